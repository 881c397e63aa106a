//! Opening and creating: type, lock, size and alignment of a file or block device, in that order.
//!
//! The lock is taken before anything is measured or changed, and a file is never truncated: `create` extends
//! or leaves alone. Its length and its directory entry are synced, else a power cut could leave a durable
//! volume in a file that nobody can find.

use super::geometry::{self, Geometry};
use super::{FileDevice, IoMode, OpenMode, lock};
use crate::DeviceError;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::OnceLock;

/// See [`FileDevice::open`].
pub(super) fn open(path: &Path, mode: OpenMode, io: IoMode) -> Result<FileDevice, DeviceError> {
    let fd = open_locked(path, mode, io, OFlags::empty())?;
    finish(path, fd, mode, io)
}

/// See [`FileDevice::create`].
pub(super) fn create(path: &Path, size: u64, io: IoMode) -> Result<FileDevice, DeviceError> {
    let fd = open_locked(path, OpenMode::ReadWrite, io, OFlags::CREATE)?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| failed(path, "examine", e))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        // The kernel keeps sizes as signed numbers and never reports a negative one.
        let found = stat.st_size as u64;
        if found > size {
            return Err(DeviceError::WouldShrink { path: path.to_owned(), expected: size, found });
        }
        // Not every file can be resized (append-only, sealed), and one of the right length need not be.
        if found != size {
            rustix::fs::ftruncate(&fd, size).map_err(|e| failed(path, "set the length", e))?;
        }
        rustix::fs::fsync(&fd).map_err(|e| failed(path, "sync the file", e))?;
        sync_parent(path).map_err(|e| failed(path, "sync the directory", e))?;
    }
    let device = finish(path, fd, OpenMode::ReadWrite, io)?;
    // A direct device is rounded down to its alignment, which is no lack of space for a file of the right
    // length.
    let found = device.geometry.size;
    if found < size - size % device.geometry.io_alignment as u64 {
        return Err(DeviceError::TooSmall { path: path.to_owned(), expected: size, found });
    }
    Ok(device)
}

/// A second descriptor of the same file, for direct reads, and what they must be aligned to. `None` if the
/// file system refuses.
pub(super) fn direct_reader(fd: &OwnedFd) -> io::Result<Option<(OwnedFd, usize)>> {
    // Through /proc, because the path may name another file by now.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    match rustix::fs::open(link, flags, Mode::empty()) {
        Ok(direct) => Ok(geometry::direct_alignment(direct.as_fd())?.map(|alignment| (direct, alignment))),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Opens and locks, and makes sure that it is something with blocks.
fn open_locked(path: &Path, mode: OpenMode, io: IoMode, extra: OFlags) -> Result<OwnedFd, DeviceError> {
    let mut flags = OFlags::CLOEXEC | extra;
    flags |= match mode {
        OpenMode::ReadWrite => OFlags::RDWR,
        OpenMode::ReadOnly => OFlags::RDONLY,
    };
    if io == IoMode::Direct {
        flags |= OFlags::DIRECT;
    }
    // Asked before opening: opening a FIFO would wait for its other end.
    let file_type = match rustix::fs::stat(path) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) if extra.contains(OFlags::CREATE) => FileType::RegularFile,
        Err(e) => return Err(failed(path, "examine", e)),
    };
    match file_type {
        FileType::RegularFile => {}
        // On a block device this claims it: the kernel refuses while it is mounted or part of another.
        FileType::BlockDevice if mode == OpenMode::ReadWrite => {
            flags = flags.difference(OFlags::CREATE) | OFlags::EXCL;
        }
        FileType::BlockDevice => {}
        other => return Err(DeviceError::WrongType { path: path.to_owned(), found: type_name(other) }),
    }
    let patience = lock::Patience::new();
    let opened = loop {
        match rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::BUSY) if patience.wait(path) => {}
            other => break other,
        }
    };
    let fd = match opened {
        Ok(fd) => fd,
        Err(Errno::INVAL) if io == IoMode::Direct => {
            return Err(DeviceError::DirectRefused { path: path.to_owned(), source: Errno::INVAL.into() });
        }
        Err(Errno::BUSY) => {
            let owner = lock::owner_of(path)
                .unwrap_or_else(|| "the kernel (mounted, or part of another device)".into());
            return Err(DeviceError::Locked { path: path.to_owned(), owner });
        }
        Err(e) => return Err(failed(path, "open", e)),
    };
    lock::lock(&fd, path, mode)?;
    Ok(fd)
}

fn finish(path: &Path, fd: OwnedFd, mode: OpenMode, io: IoMode) -> Result<FileDevice, DeviceError> {
    let geometry = Geometry::of(&fd, io).map_err(|e| DeviceError::Io {
        path: path.to_owned(),
        operation: "measure",
        source: e,
    })?;
    let Some(geometry) = geometry else {
        return Err(DeviceError::DirectRefused { path: path.to_owned(), source: Errno::OPNOTSUPP.into() });
    };
    Ok(FileDevice { path: path.to_owned(), fd, mode, io, geometry, direct_reader: OnceLock::new() })
}

/// Makes a file's name durable.
fn sync_parent(path: &Path) -> Result<(), Errno> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::open(parent, flags, Mode::empty())?)
}

fn failed(path: &Path, operation: &'static str, error: Errno) -> DeviceError {
    DeviceError::Io { path: path.to_owned(), operation, source: error.into() }
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::BlockDevice => "a block device",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        _ => "something else",
    }
}
