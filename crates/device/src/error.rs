//! What can go wrong when a device is opened or created. I/O on an open device reports plain `io::Error`s.

use std::io;
use std::path::PathBuf;

/// Why a file or block device could not be opened or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A system call failed.
    #[error("{path}: cannot {operation}: {source}", path = path.display())]
    Io {
        /// The device.
        path: PathBuf,
        /// What was tried, as a verb with its object.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Someone else has it open.
    #[error("{path}: in use by {owner}", path = path.display())]
    Locked {
        /// The device.
        path: PathBuf,
        /// Process ID and command name, if they could be found.
        owner: String,
    },
    /// Direct I/O was asked for and is not to be had.
    #[error("{path}: its file system refuses direct I/O ({source}); use --io buffered", path = path.display())]
    DirectRefused {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that exists already holds more than was asked for. Nothing was changed.
    #[error("{path}: has {found} bytes, will not be cut to {expected}", path = path.display())]
    WouldShrink {
        /// The file.
        path: PathBuf,
        /// Bytes asked for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A block device is smaller than what was asked for.
    #[error("{path}: has {found} bytes, {expected} are needed", path = path.display())]
    TooSmall {
        /// The block device.
        path: PathBuf,
        /// Bytes asked for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: expected a regular file or a block device, found {found}", path = path.display())]
    WrongType {
        /// What was named.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
}
