//! Child processes that do not outlive this one: killed when dropped, and when a signal ends the run.
//!
//! On SIGINT and SIGTERM every child is killed and none starts any more, so whoever waits for one gets an
//! error, and temporary files are removed on the way out. Not covered: SIGKILL.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Children that live, `None` after a signal.
static LIVING: Mutex<Option<Vec<Pid>>> = Mutex::new(Some(Vec::new()));
/// How often an ending child is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A child, killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    name: String,
}

/// Makes SIGINT and SIGTERM end the children, and through them this process.
pub(crate) fn watch_signals() -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            for pid in living().take().into_iter().flatten() {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    })?;
    Ok(())
}

/// Whether a signal has ended the run.
pub(crate) fn check_interrupted() -> Result<()> {
    if living().is_none() {
        bail!("interrupted");
    }
    Ok(())
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut living = living();
        let Some(pids) = &mut *living else { bail!("interrupted") };
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        pids.push(pid);
        Ok(Self { child, pid, name })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The status, if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        check_interrupted()?;
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for its end, until `deadline`.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end in time", self.name);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// SIGTERM, then the end, within `patience`.
    pub(crate) fn stop(mut self, patience: Duration) -> Result<ExitStatus> {
        kill_process(self.pid, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))?;
        self.wait_until(Instant::now() + patience)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pids) = &mut *living() {
            pids.retain(|pid| *pid != self.pid);
        }
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn living() -> MutexGuard<'static, Option<Vec<Pid>>> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_gone() {
        let child = Running::spawn(Command::new("sleep").arg("1000")).unwrap();
        let proc = format!("/proc/{}", child.id());
        assert!(std::fs::exists(&proc).unwrap());
        drop(child);
        assert!(!std::fs::exists(&proc).unwrap());
    }

    #[test]
    fn a_child_that_does_not_end_in_time_is_an_error() {
        let mut child = Running::spawn(Command::new("sleep").arg("1000")).unwrap();
        assert!(child.wait_until(Instant::now()).unwrap_err().to_string().contains("sleep"));
    }
}
