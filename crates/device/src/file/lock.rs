//! The lock of an open device, and who holds it.
//!
//! `flock` belongs to the open file, not to the process: it is gone when the descriptor is closed, however
//! the process ends, and two openings in one process conflict as any others do. It is advisory; a program
//! that does not ask is not kept out.
//!
//! A process that was killed with I/O under way is gone before its descriptors are: the kernel closes its
//! io_uring in the background. So a holder that lives is reported at once, and one that does not is given a
//! moment.

use super::OpenMode;
use crate::DeviceError;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Stat};
use rustix::io::Errno;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the kernel may take to close what a dead process had open: as long as its last I/O takes on a
/// busy disk.
const DEAD_HOLDER_TIME: Duration = Duration::from_secs(2);
/// How often to look meanwhile.
const DEAD_HOLDER_INTERVAL: Duration = Duration::from_millis(5);

/// Patience with holders that do not live any more.
#[derive(Debug)]
pub(super) struct Patience(Instant);

impl Patience {
    /// Begins now.
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Whether to try again, a little later: nobody who lives has `path` locked.
    pub(super) fn wait(&self, path: &Path) -> bool {
        let lives = holder_of(path).is_some_and(lives);
        let again = !lives && self.0.elapsed() < DEAD_HOLDER_TIME;
        if again {
            sleep(DEAD_HOLDER_INTERVAL);
        }
        again
    }
}

/// Locks `fd`, without waiting for anyone alive: alone for a writer, shared for a reader. Held until the last
/// copy of `fd` is closed.
pub(super) fn lock(fd: &OwnedFd, path: &Path, mode: OpenMode) -> Result<(), DeviceError> {
    let operation = match mode {
        OpenMode::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        OpenMode::ReadOnly => FlockOperation::NonBlockingLockShared,
    };
    let patience = Patience::new();
    loop {
        match rustix::fs::flock(fd, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if patience.wait(path) => {}
            Err(Errno::WOULDBLOCK) => {
                let owner = owner_of(path).unwrap_or_else(|| "unknown process".into());
                return Err(DeviceError::Locked { path: path.to_owned(), owner });
            }
            Err(e) => {
                return Err(DeviceError::Io { path: path.to_owned(), operation: "lock", source: e.into() });
            }
        }
    }
}

/// Process ID and command of one that holds a lock on `path`. `None` if there is none, or it cannot be seen
/// from here (another PID namespace, a file system whose device numbers differ from those in the lock table).
pub(super) fn owner_of(path: &Path) -> Option<String> {
    let pid = holder_of(path)?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let command = command.as_deref().map_or("command unknown", str::trim);
    let own = if pid == std::process::id() {
        ", this very one: it has the device open already, perhaps by another name"
    } else {
        ""
    };
    Some(format!("process {pid} ({command}){own}"))
}

/// Whether a process runs. One that was killed and that its parent has not asked after yet (a zombie) does
/// not.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "PID (COMMAND) STATE ...", where the command may hold anything.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The process ID of one that holds a lock on `path`, as far as it can be seen.
pub(super) fn holder_of(path: &Path) -> Option<u32> {
    let stat = rustix::fs::stat(path).ok()?;
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| holder(line, &stat))
}

/// The process ID in a line of the lock table, if the line is an `flock` that is held on the file.
///
/// ```text
/// 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF      held: PID, major:minor (hex):inode
/// 1: -> FLOCK  ADVISORY  WRITE 1235 fd:01:5678 0 EOF   waits for it
/// ```
fn holder(line: &str, stat: &Stat) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    if fields.next()? != "FLOCK" {
        return None;
    }
    let pid: u32 = fields.nth(2)?.parse().ok()?;
    let mut file = fields.next()?.split(':');
    let major = u32::from_str_radix(file.next()?, 16).ok()?;
    let minor = u32::from_str_radix(file.next()?, 16).ok()?;
    let inode: u64 = file.next()?.parse().ok()?;
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    ((major, minor) == device && inode == stat.st_ino).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_table_gives_the_holder_and_not_who_waits() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let id = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
        assert_eq!(holder(&format!("1: FLOCK  ADVISORY  WRITE 1234 {id} 0 EOF"), &stat), Some(1234));
        assert_eq!(holder(&format!("1: -> FLOCK  ADVISORY  WRITE 1235 {id} 0 EOF"), &stat), None);
        assert_eq!(holder(&format!("2: POSIX  ADVISORY  WRITE 1236 {id} 0 EOF"), &stat), None);
        assert_eq!(holder(&format!("3: FLOCK  ADVISORY  WRITE 1237 {id}0 0 EOF"), &stat), None);
        assert_eq!(holder("", &stat), None);
    }

    /// A server that was killed stays a zombie until its parent asks after it: whoever starts it again need
    /// not be that parent.
    #[test]
    fn a_process_that_nobody_has_asked_after_does_not_live() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let since = Instant::now();
        while lives(child.id()) {
            assert!(since.elapsed() < Duration::from_secs(20), "`true` does not end");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(lives(std::process::id()));
    }
}
