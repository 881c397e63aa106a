//! The servers: started on a Unix socket, asked for their CPU time, stopped.
//!
//! A server is ready when its socket takes a connection. CPU time is that of the process with all its
//! threads, ended ones and those that io_uring works with among them; what the kernel does on its own account
//! (writeback) is in nobody's.

use crate::child::Running;
use crate::programs::Programs;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start or to end: recovery and a last checkpoint under heavy load.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a server is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A server that used no CPU for so long has done its background work; well above the 10 ms unit of its
/// clock.
const QUIET_TIME: Duration = Duration::from_millis(200);
/// Longest wait for that.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// How servers use the disk, which decides who is compared with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Through the page cache.
    Buffered,
    /// Around it.
    Direct,
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// None: fio itself on a raw file, the limit of what any server can reach.
    Raw,
    /// The peer of a mode, on a raw file.
    Peer,
    /// Ours, on a volume.
    DedupNbd,
    /// An older build of ours, on a volume.
    Before,
    /// A newer build of ours, on a volume.
    After,
}

/// Where a server finds its storage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage<'a> {
    /// The raw file, written in full.
    pub(crate) raw: &'a Path,
    /// Directory for the volume.
    pub(crate) dir: &'a Path,
    /// Bytes of the logical device.
    pub(crate) logical_size: u64,
    /// More options for `dedup-nbd`.
    pub(crate) volume_options: &'a [String],
    /// Short directory for sockets, whose paths are limited to 107 bytes.
    pub(crate) sockets: &'a Path,
}

/// A server that serves.
#[derive(Debug)]
pub(crate) struct Server {
    running: Running,
    pub(crate) socket: PathBuf,
    /// Removed at the end.
    volume: Option<PathBuf>,
}

impl Mode {
    pub(crate) const ALL: [Self; 2] = [Self::Buffered, Self::Direct];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Direct => "direct",
        }
    }
}

impl Kind {
    pub(crate) fn name(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::Raw, _) => "raw file",
            (Self::DedupNbd, _) => "dedup-nbd",
            (Self::Before, _) => "before",
            (Self::After, _) => "after",
            (Self::Peer, Mode::Buffered) => "nbdkit file",
            (Self::Peer, Mode::Direct) => "qemu-nbd",
        }
    }

    /// Whether it is `dedup-nbd`, of whatever build.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::DedupNbd | Self::Before | Self::After)
    }

    /// Directory of its volume, in that of the run.
    pub(crate) fn volume(self, dir: &Path) -> PathBuf {
        dir.join(format!("volume-{self:?}"))
    }
}

impl Server {
    /// Starts a server and waits until it serves; `None` where there is none.
    pub(crate) fn start(
        kind: Kind,
        mode: Mode,
        storage: Storage<'_>,
        programs: &Programs,
    ) -> Result<Option<Self>> {
        let name = kind.name(mode);
        let socket = storage.sockets.join(format!("{kind:?}"));
        let log = storage.sockets.join(format!("{kind:?}.log"));
        let Some(mut command) = command(kind, mode, storage, &socket, programs) else { return Ok(None) };
        // Left behind by servers that were killed.
        let _ = fs::remove_file(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let running = Running::spawn(&mut command)?;
        let volume = kind.is_ours().then(|| kind.volume(storage.dir));
        let mut server = Self { running, socket, volume };
        server.wait_until_ready().with_context(|| {
            let told = fs::read_to_string(&log).unwrap_or_default();
            format!("{name} does not serve: {}", told.lines().last().unwrap_or("it said nothing"))
        })?;
        Ok(Some(server))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.running.ended()? {
                bail!("it ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("nothing listens at its socket after {} s", PATIENCE.as_secs());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// User and system time since the start.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        cpu_time(&self.running.id().to_string())
    }

    /// Waits until the server has done what it does behind a client's back; gives its CPU time then.
    pub(crate) fn settle(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let (mut used, mut since) = (self.cpu_time()?, begin);
        while since.elapsed() < QUIET_TIME && begin.elapsed() < SETTLE_MAX {
            thread::sleep(POLL_INTERVAL);
            if self.running.ended()?.is_some() {
                bail!("the server has ended");
            }
            let now = self.cpu_time()?;
            if now != used {
                (used, since) = (now, Instant::now());
            }
        }
        Ok(used)
    }

    /// Stops it in good order, and removes its volume.
    pub(crate) fn stop(self) -> Result<()> {
        self.running.stop(PATIENCE)?;
        match self.volume {
            Some(volume) => fs::remove_dir_all(&volume).context("cannot remove the volume"),
            None => Ok(()),
        }
    }
}

fn command(
    kind: Kind,
    mode: Mode,
    storage: Storage<'_>,
    socket: &Path,
    programs: &Programs,
) -> Option<Command> {
    Some(match (kind, mode) {
        (Kind::Raw, _) => return None,
        (Kind::Peer, Mode::Buffered) => {
            let mut command = Command::new("nbdkit");
            command.args(["--foreground", "--unix"]).arg(socket).arg("file").arg(storage.raw);
            command
        }
        (Kind::Peer, Mode::Direct) => {
            let mut command = Command::new("qemu-nbd");
            command.args([
                "--persistent",
                "--shared=16",
                "--format=raw",
                "--cache=none",
                "--aio=io_uring",
                "--discard=unmap",
                "--socket",
            ]);
            command.arg(socket).arg(storage.raw);
            command
        }
        (Kind::DedupNbd | Kind::Before | Kind::After, mode) => {
            let mut command = Command::new(&programs.build(kind).dedup_nbd);
            command
                .arg(kind.volume(storage.dir))
                .args(["--create", "--logical-size"])
                .arg(storage.logical_size.to_string());
            command
                .args(storage.volume_options)
                .args(["--io", mode.name(), "--socket"])
                .arg(socket)
                .env("DEDUP_RUNTIME_DIR", storage.sockets);
            command
        }
    })
}

/// CPU time of a process, `self` or a number, with all its threads.
pub(crate) fn cpu_time(process: &str) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_cpu_ticks(&text)
        .map(|ticks| Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
        .with_context(|| format!("{path}: expected utime and stime, found {text:?}"))
}

/// Fields 14 and 15 of proc(5)'s `stat`, counted from behind the name, which may contain anything.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_process_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 120 34 0 0 20 0 1 0 99";
        assert_eq!(parse_cpu_ticks(stat), Some(154));
        assert_eq!(parse_cpu_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_has_a_cpu_time() {
        assert!(cpu_time("self").is_ok());
        assert!(cpu_time("0").is_err());
    }
}
