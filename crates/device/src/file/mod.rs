//! A regular file or a block device.
//!
//! ```text
//!   FileDevice --- buffered ---> preadv/pwritev, one operation after the other          (positioned)
//!        |                  \--> after bypass_cache: reads through a second, direct descriptor
//!        |--- direct ------> aligned memory, bounced if need be ---> io_uring           (direct, uring)
//!        |                                                      \--> preadv/pwritev
//!        |--- open, create: type, size, alignment, lock         (open, geometry, lock)
//! ```
//!
//! Invariants: the lock is held as long as the device lives; the size never changes; a failed flush is
//! reported once and never repeated here. A direct device covers only whole multiples of its alignment, so a
//! file's odd tail is not part of it.

mod direct;
mod geometry;
mod lock;
mod open;
mod positioned;
mod transfer;
mod uring;

use crate::block_device::check_range;
use crate::{AlignedBuf, BlockDevice, DeviceError, ReadOp, WriteOp};
use direct::DirectIo;
use geometry::Geometry;
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, fstatvfs, seek};
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes that are filled with zeros at a time.
const RESERVE_BYTES: usize = 1 << 20;

/// What may be done with a device, and so which lock its opening takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reads and writes; no one else may have it open.
    ReadWrite,
    /// Reads; other readers may have it open.
    ReadOnly,
}

/// How bytes get to the medium and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Around the page cache. Offsets and lengths must be aligned; not every file system can do it.
    Direct,
    /// Through the page cache, with any offset and length.
    Buffered,
}

/// A regular file or a block device, locked while it is open.
#[derive(Debug)]
pub struct FileDevice {
    path: PathBuf,
    fd: OwnedFd,
    mode: OpenMode,
    io: IoMode,
    geometry: Geometry,
    /// Set once the page cache is to be bypassed for reads of a buffered device.
    direct_reader: OnceLock<DirectReader>,
}

/// A second descriptor of a buffered device. It has no lock of its own and needs none: it lives no longer
/// than the first.
#[derive(Debug)]
struct DirectReader {
    fd: OwnedFd,
    alignment: usize,
}

impl FileDevice {
    /// Opens what is there.
    ///
    /// Fails with [`DeviceError::Locked`] if another opening conflicts, with [`DeviceError::DirectRefused`]
    /// if direct I/O is not to be had, with [`DeviceError::WrongType`] if it is neither a file nor a block
    /// device. A block device opened for writing is also claimed from the kernel, so a mounted one is
    /// refused.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode, io: IoMode) -> Result<Self, DeviceError> {
        open::open(path.as_ref(), mode, io)
    }

    /// Makes a sparse file of `size` bytes, or takes one that is there and not larger, and opens it for
    /// reading and writing. The file's length and its name are durable on return. A block device must hold at
    /// least `size` bytes.
    pub fn create(path: impl AsRef<Path>, size: u64, io: IoMode) -> Result<Self, DeviceError> {
        open::create(path.as_ref(), size, io)
    }

    /// The process that has the file or block device at `path` locked, as far as it can be seen: not from
    /// another PID namespace.
    pub fn holder(path: impl AsRef<Path>) -> Option<u32> {
        lock::holder_of(path.as_ref())
    }

    /// As [`physical_sector`](Self::physical_sector), of a file that would be made in `directory`.
    pub fn physical_sector_in(directory: &Path) -> io::Result<usize> {
        Ok(geometry::file_physical_sector(&rustix::fs::stat(directory)?))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the medium writes as a whole, as far as the kernel knows them (a file's are those of the
    /// disk that its file system is on).
    pub fn physical_sector(&self) -> usize {
        self.geometry.physical_sector
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.geometry.size, self.geometry.io_alignment, offset, len)
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.mode {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, "device was opened read-only"))
            }
        }
    }

    /// The direct descriptor to read by, if that is the way.
    fn direct_reads(&self) -> Option<DirectIo<'_>> {
        match self.io {
            IoMode::Direct => Some(DirectIo::new(self.fd.as_fd(), self.geometry.io_alignment)),
            IoMode::Buffered => self.direct_reader.get().map(|r| DirectIo::new(r.fd.as_fd(), r.alignment)),
        }
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn io_alignment(&self) -> usize {
        self.geometry.io_alignment
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut ops = [ReadOp::new(offset, vec![buf])];
        self.read_batch(&mut ops);
        let [op] = ops;
        op.result
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut ops = [WriteOp::new(offset, vec![buf])];
        self.write_batch(&mut ops);
        let [op] = ops;
        op.result
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        let mut admitted = Vec::with_capacity(ops.len());
        for op in ops {
            op.result = self.check(op.offset, op.byte_count());
            if op.result.is_ok() {
                admitted.push(op);
            }
        }
        match self.direct_reads() {
            Some(direct) => direct.read(&mut admitted),
            None => admitted.into_iter().for_each(|op| positioned::read_op(self.fd.as_fd(), op)),
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        let mut admitted = Vec::with_capacity(ops.len());
        for op in ops {
            op.result = self.check_writable().and_then(|()| self.check(op.offset, op.byte_count()));
            if op.result.is_ok() {
                admitted.push(op);
            }
        }
        match self.io {
            IoMode::Direct => {
                DirectIo::new(self.fd.as_fd(), self.geometry.io_alignment).write(&mut admitted);
            }
            IoMode::Buffered => {
                admitted.into_iter().for_each(|op| positioned::write_op(self.fd.as_fd(), op));
            }
        }
    }

    /// `fdatasync`, once. An interrupted one is an error too: nothing says what it had done.
    fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.fd)?)
    }

    /// Punches a hole: a file gives the space back and reads as zeros, a block device is told to deallocate.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check(offset, len)?;
        // A block device takes whole sectors only; what sticks out of them is simply kept.
        let unit = self.geometry.discard_unit;
        let (start, end) = (offset.next_multiple_of(unit), (offset + len) / unit * unit);
        if start >= end {
            return Ok(());
        }
        match fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, end - start)
        {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            done => Ok(done?),
        }
    }

    /// A file's holes, and extents that were allocated and never written, are filled with zeros.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.geometry.is_file {
            return Ok(());
        }
        let zeros = AlignedBuf::zeroed(RESERVE_BYTES.min(len as usize));
        let end = offset + len;
        for start in (offset..end).step_by(RESERVE_BYTES) {
            self.write(start, &zeros[..(end - start).min(RESERVE_BYTES as u64) as usize])?;
        }
        Ok(())
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check(offset, len)?;
        if !self.geometry.is_file {
            return Ok(());
        }
        match fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            done => Ok(done?),
        }
    }

    /// Asks for data and holes. A file system that knows none says that all of it is data.
    fn allocated(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if !self.geometry.is_file {
            return Ok(Some(range));
        }
        let start = match seek(&self.fd, SeekFrom::Data(range.start)) {
            Err(Errno::NXIO) => return Ok(None),
            start => start?,
        };
        if start >= range.end {
            return Ok(None);
        }
        Ok(Some(start..seek(&self.fd, SeekFrom::Hole(start))?.min(range.end)))
    }

    fn room_below(&self) -> Option<u64> {
        let stat = self.geometry.is_file.then(|| fstatvfs(&self.fd).ok()).flatten()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Direct I/O has no cache to bypass. A buffered device reads through a direct descriptor from now on;
    /// the kernel writes dirty pages back before such a read, so it still sees what was written.
    fn bypass_cache(&self) -> io::Result<bool> {
        if self.io == IoMode::Direct || self.direct_reader.get().is_some() {
            return Ok(true);
        }
        let Some((fd, alignment)) = open::direct_reader(&self.fd)? else {
            return Ok(false);
        };
        // If another thread came first, its descriptor serves as well as this one.
        self.direct_reader.get_or_init(|| DirectReader { fd, alignment });
        Ok(true)
    }
}
