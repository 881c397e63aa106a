//! Where journals of acknowledged operations are kept: one file for each metadata device, beside the control
//! sockets.
//!
//! ```text
//!   /run/dedup/journal-f8-1-4711-ID     of the metadata file with inode 4711 on device 8:1
//!   /run/dedup/journal-b254-3-ID        of the block device 254:3; ID is the journal's UUID
//! ```
//!
//! The journal's id is part of the name because numbers are given again: a disk, or an older copy of one,
//! that is plugged in where another one was must not cost that one's journal.
//!
//! That directory is in memory on most systems, and need not be: what is written survives the process in
//! either case. The superblock has the path, so whoever opens the volume finds the file, whatever its own
//! runtime directory is. A copy of a volume is another device, and does not find the original's journal to be
//! its own.

use crate::control;
use crate::exit::chain;
use dedup_volume::{JournalFile, JournalOptions, JournalPlace};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How a tool keeps what is acknowledged on the volume with this metadata device, and finds what another
/// process has kept.
pub fn journal_options(metadata: &Path) -> io::Result<JournalOptions> {
    let boot = std::fs::read_to_string(BOOT_ID).ok().and_then(|id| id.trim().parse().ok());
    Ok(JournalOptions {
        place: Arc::new(RuntimeDirectory::new(metadata)?),
        boot: boot.unwrap_or_default(),
        id: Uuid::new_v4(),
    })
}

/// The runtime directory, for one metadata device.
#[derive(Debug)]
struct RuntimeDirectory {
    /// For people, and for who compares.
    device: String,
    file_name: String,
}

impl RuntimeDirectory {
    fn new(metadata: &Path) -> io::Result<Self> {
        let stat = std::fs::metadata(metadata)?;
        let numbers = |dev| (rustix::fs::major(dev), rustix::fs::minor(dev));
        if stat.file_type().is_block_device() {
            let (major, minor) = numbers(stat.rdev());
            return Ok(Self {
                device: format!("block device {major}:{minor}"),
                file_name: format!("journal-b{major}-{minor}"),
            });
        }
        let ((major, minor), inode) = (numbers(stat.dev()), stat.ino());
        Ok(Self {
            device: format!("inode {inode} of {major}:{minor}"),
            file_name: format!("journal-f{major}-{minor}-{inode}"),
        })
    }

    fn create_in(&self, directory: &Path, id: Uuid) -> io::Result<Arc<dyn JournalFile>> {
        // Others find it from other directories.
        let directory = std::path::absolute(directory)?;
        let path = directory.join(format!("{}-{id}", self.file_name));
        if path.to_str().is_none() {
            return Err(io::Error::other(format!("{}: expected a path in UTF-8", path.display())));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| named(&path, error))?;
        Ok(Arc::new(Kept { file, path, _directory: kept_from_cleaning(&directory) }))
    }
}

impl JournalPlace for RuntimeDirectory {
    fn create(&self, id: Uuid) -> io::Result<Arc<dyn JournalFile>> {
        let directory = control::runtime_directory().map_err(|error| io::Error::other(chain(&error)))?;
        self.create_in(&directory, id)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn JournalFile>> {
        let path = PathBuf::from(name);
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let open = |write| OpenOptions::new().read(true).write(write).custom_flags(flags).open(&path);
        // Who opens the volume for reading need not be able to write it.
        let file = open(true).or_else(|_| open(false)).map_err(|error| named(&path, error))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{}: no regular file", path.display())));
        }
        // It is written on once it has been taken in.
        let directory = path.parent().and_then(kept_from_cleaning);
        Ok(Arc::new(Kept { file, path, _directory: directory }))
    }

    fn device(&self) -> String {
        self.device.clone()
    }
}

/// A journal's file.
#[derive(Debug)]
struct Kept {
    file: File,
    path: PathBuf,
    /// Open for as long as the journal is.
    _directory: Option<File>,
}

/// How often the lock is tried, and the pause in between: `systemd-tmpfiles` may have it for a moment.
const LOCK_TRIES: u32 = 20;
/// See [`LOCK_TRIES`].
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A lock on the directory, which keeps `systemd-tmpfiles` from clearing it out: below `/tmp`, what has not
/// been touched for ten days is removed, and a journal from which nobody could take in anything would be
/// written on. Without it, everything else works.
fn kept_from_cleaning(directory: &Path) -> Option<File> {
    let directory = File::open(directory).ok()?;
    for _ in 0..LOCK_TRIES {
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockShared).is_ok() {
            return Some(directory);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    None
}

impl JournalFile for Kept {
    fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut filled) = (vec![0; len], 0);
        while filled < len {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| named(&self.path, error))
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> RuntimeDirectory {
        let path = dir.join("metadata");
        std::fs::write(&path, "x").unwrap();
        RuntimeDirectory::new(&path).unwrap()
    }

    #[test]
    fn a_copy_is_another_device_and_the_same_file_by_another_path_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        std::fs::write(path("a"), "x").unwrap();
        std::fs::copy(path("a"), path("b")).unwrap();
        std::os::unix::fs::symlink("a", path("link")).unwrap();
        let device = |name| RuntimeDirectory::new(&path(name)).unwrap().device();
        let original = device("a");
        assert_eq!(device("link"), original);
        assert_ne!(device("b"), original);
        std::fs::rename(path("a"), path("moved")).unwrap();
        assert_eq!(device("moved"), original);
    }

    /// `systemd-tmpfiles` takes the same lock, exclusively, before it clears a directory out.
    #[test]
    fn the_directory_of_a_journal_in_use_is_locked_against_being_cleared_out() {
        let dir = tempfile::tempdir().unwrap();
        let clear_out = || {
            let opened = File::open(dir.path()).unwrap();
            rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive).is_ok()
        };
        let place = place(dir.path());
        let created = place.create_in(dir.path(), Uuid::nil()).unwrap();
        let opened = place.open(&created.name()).unwrap();
        assert!(!clear_out());
        drop(created);
        assert!(!clear_out(), "one that was taken in");
        drop(opened);
        assert!(clear_out());
    }

    /// A disk that is plugged in where another one was has its number, and an older copy of it the pool's
    /// UUID as well; the other one's journal is the only copy of what was acknowledged.
    #[test]
    fn another_journal_of_a_device_of_the_same_number_leaves_this_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let created = |id| place.create_in(dir.path(), Uuid::from_u128(id));
        let first = created(1).unwrap();
        first.write_at(0, b"acknowledged").unwrap();
        let other = created(2).unwrap();
        assert_eq!(place.open(&first.name()).unwrap().read_at(0, 99).unwrap(), b"acknowledged");
        other.remove().unwrap();
        assert!(created(1).is_err(), "an id has one file");
        assert_eq!(first.read_at(0, 99).unwrap(), b"acknowledged");
    }

    #[test]
    fn what_is_no_regular_file_is_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let (place, path) = (place(dir.path()), dir.path().join("metadata"));
        std::os::unix::fs::symlink("metadata", dir.path().join("link")).unwrap();
        for name in
            [dir.path().to_path_buf(), dir.path().join("link"), dir.path().join("none"), "/dev/null".into()]
        {
            assert!(place.open(name.to_str().unwrap()).is_err(), "{}", name.display());
        }
        let file = place.open(path.to_str().unwrap()).unwrap();
        file.write_at(3, b"yz").unwrap();
        assert_eq!(file.read_at(0, 9).unwrap(), b"x\0\0yz");
    }
}
