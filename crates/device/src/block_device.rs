//! The contract between a device and everything above it.
//!
//! Implementations check every range against the device's size and alignment *before* they touch anything;
//! the check is [`check_range`], the same for all of them.

use std::fmt::Debug;
use std::io;
use std::ops::Range;

/// One positioned read of a batch: consecutive bytes from `offset` fill `bufs` in order.
#[derive(Debug)]
pub struct ReadOp<'a> {
    /// Byte offset on the device.
    pub offset: u64,
    /// Where the bytes go, in order.
    pub bufs: Vec<&'a mut [u8]>,
    /// Set by the device: `Ok` only if every byte was read.
    pub result: io::Result<()>,
}

impl<'a> ReadOp<'a> {
    /// A read that has not run: its result is an error until a device sets it.
    pub fn new(offset: u64, bufs: Vec<&'a mut [u8]>) -> Self {
        Self { offset, bufs, result: not_run() }
    }

    /// Bytes in all buffers together.
    pub fn byte_count(&self) -> u64 {
        self.bufs.iter().map(|b| b.len() as u64).sum()
    }
}

/// One positioned write of a batch: `bufs` in order go to consecutive bytes from `offset`.
#[derive(Debug)]
pub struct WriteOp<'a> {
    /// Byte offset on the device.
    pub offset: u64,
    /// The bytes, in order.
    pub bufs: Vec<&'a [u8]>,
    /// Set by the device: `Ok` only if every byte was written (not: is durable).
    pub result: io::Result<()>,
}

impl<'a> WriteOp<'a> {
    /// A write that has not run: its result is an error until a device sets it.
    pub fn new(offset: u64, bufs: Vec<&'a [u8]>) -> Self {
        Self { offset, bufs, result: not_run() }
    }

    /// Bytes in all buffers together.
    pub fn byte_count(&self) -> u64 {
        self.bufs.iter().map(|b| b.len() as u64).sum()
    }
}

/// A device of fixed size with positioned I/O. All calls may be made from several threads at once.
///
/// Writes are volatile until a `flush` that began after they completed has returned `Ok`. Operations of one
/// batch run in any order; two of them that overlap leave either's bytes.
pub trait BlockDevice: Send + Sync + Debug {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// What offsets and lengths must be multiples of (bytes, a power of two, 1 if anything goes): those of
    /// each operation, not of each buffer in it. Memory that is not aligned to it is copied through an
    /// aligned buffer.
    fn io_alignment(&self) -> usize;
    /// Fills `buf` from `offset`, or fails (then `buf` holds anything).
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, or fails (then any part of it may have been written).
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Runs all reads, in parallel where the device can, and sets each one's `result`.
    fn read_batch(&self, ops: &mut [ReadOp<'_>]);
    /// Runs all writes, in parallel where the device can, and sets each one's `result`.
    fn write_batch(&self, ops: &mut [WriteOp<'_>]);
    /// Makes every completed write durable. After an error nothing is known about any of them, and a later
    /// `Ok` says nothing about them either.
    fn flush(&self) -> io::Result<()>;
    /// Tells the device that a range is not needed; it then reads as anything. A device without the ability
    /// does nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives a range that holds nothing of use space of its own, so that later writes of it change nothing
    /// but bytes and a flush has no allocation to make durable. It then reads as zeros, or as before. Only a
    /// file needs it.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }
    /// Takes space for a range of which nothing may be written yet, so that writes to it find room. What it
    /// reads as stays the same. A file takes space for its holes at one go, which also costs far less than a
    /// bit with each write.
    ///
    /// Fails with [`io::ErrorKind::StorageFull`] or [`io::ErrorKind::QuotaExceeded`] if there is not enough
    /// (a part may have been taken), with [`io::ErrorKind::Unsupported`] if the file system cannot promise
    /// room.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }
    /// The next bytes of `range`, which is not empty, that have space of their own, as far as the device
    /// knows: writing them takes no more from what is below. `None` if there are none. Space that was taken
    /// and never written may count as missing. Only a file has holes.
    fn allocated(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok(Some(range))
    }
    /// Bytes that the file system below can still give, if there is one and it tells.
    fn room_below(&self) -> Option<u64> {
        None
    }
    /// Forgets whatever copy of the device is cached outside it, so that the next read comes from the medium.
    /// `false` if that cannot be had (the caller then rewrites what it trusts).
    fn bypass_cache(&self) -> io::Result<bool>;
}

/// `Ok` if `offset..offset + len` lies within `size` and both are multiples of `alignment`.
pub(crate) fn check_range(size: u64, alignment: usize, offset: u64, len: u64) -> io::Result<()> {
    let fits = offset.checked_add(len).is_some_and(|end| end <= size);
    if !fits {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are beyond the device's {size} bytes"),
        ));
    }
    let alignment = alignment as u64;
    if !offset.is_multiple_of(alignment) || !len.is_multiple_of(alignment) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are not aligned to the device's {alignment} bytes"),
        ));
    }
    Ok(())
}

/// The result of an operation that no device has run. Without a message, so that it costs no allocation.
fn not_run() -> io::Result<()> {
    Err(io::ErrorKind::Other.into())
}
