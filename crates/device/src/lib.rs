//! Block devices: the only code that touches an operating-system file.
//!
//! Everything above this crate sees storage as a [`BlockDevice`]: a fixed number of bytes, positioned reads
//! and writes, singly or in batches, a [`flush`](BlockDevice::flush) that makes completed writes durable, and
//! a [`discard`](BlockDevice::discard) that may do nothing. Offsets and lengths are bytes throughout. A batch
//! is a slice of [`ReadOp`]s or [`WriteOp`]s, each with its own list of buffers and its own result, so that
//! one bad sector fails one request and not its neighbours.
//!
//! There are three devices.
//!
//! - [`FileDevice`] is a regular file or a block device, opened with an [`OpenMode`] and an [`IoMode`].
//!   Direct I/O goes around the page cache and runs batches through io_uring; buffered I/O works on every
//!   file system. Opening takes a lock, exclusive for writers and shared for readers, that ends with the
//!   process. What can go wrong there is a [`DeviceError`], which names the path and what to do about it.
//! - [`MemDevice`] is memory, for tests and benchmarks that want no medium under them.
//! - [`SimDevice`] is a disk with a volatile cache and a power cord. It remembers which writes no flush has
//!   covered; [`SimDevice::crash`] pulls the cord and lets the caller decide, sector by sector, which of
//!   those the medium kept. [`SimDevice::set_cut_after`] pulls it at the n-th I/O instead.
//!   [`SimDevice::inject`] orders what goes wrong with single operations and places, a [`SimFault`]: they
//!   fail, find the device full, are lost or misdirected, return old bytes. Nothing in it depends on time or
//!   on chance: the same calls give the same device.
//!
//! [`InterceptDevice`] is none of its own: it shows each call to a function before the call goes on to a
//! device below, for whoever counts calls, delays them or lets them fail.
//!
//! [`MemDevice`] and [`SimDevice`] keep their bytes in a [`SparseImage`], which costs next to nothing to
//! clone, so a test can afford thousands of crash states. Memory handed to direct I/O should be aligned;
//! [`AlignedBuf`] is. Anything else works too and costs a copy.
//!
//! # What a write promises
//!
//! ```text
//!   write returned Ok   -> every read sees it; a power cut may keep any of its 512-byte sectors, or none
//!   write returned Err  -> the same, except that reads may see old bytes, new ones or a mixture
//!   flush returned Ok   -> every write that had completed before the flush began survives a power cut
//!   flush returned Err  -> nothing is known about any write since the last good flush, now or later
//! ```
//!
//! The last line is why no device here ever repeats a failed flush: the second one would report success for
//! bytes that the kernel dropped after the first.
//!
//! ```
//! use dedup_device::{BlockDevice, SimDevice};
//!
//! let disk = SimDevice::new(1 << 20);
//! disk.write(0, &[1; 512])?;
//! disk.flush()?;
//! disk.write(512, &[2; 512])?;
//!
//! let after = disk.crash(|_write, _sector| false); // the medium kept nothing that was not flushed
//! let mut bytes = [0; 1024];
//! after.read(0, &mut bytes)?;
//! assert_eq!((bytes[0], bytes[512]), (1, 0));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Not here: caching, checksums, retries, queues that outlive a call. Those belong to the layers that know
//! what the bytes mean.

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod aligned;
mod block_device;
mod error;
mod file;
mod image;
mod intercept;
mod mem;
mod sim;

pub use aligned::AlignedBuf;
pub use block_device::{BlockDevice, ReadOp, WriteOp};
pub use error::DeviceError;
pub use file::{FileDevice, IoMode, OpenMode};
pub use image::SparseImage;
pub use intercept::{Call, InterceptDevice};
pub use mem::MemDevice;
pub use sim::{
    IoKind, PendingWrite, SECTOR_SIZE, SimCounters, SimDevice, SimError, SimFault, SimFileSystem,
    SimQuestions, When,
};
