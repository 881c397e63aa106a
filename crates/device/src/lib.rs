//! Block devices: the only code that touches an operating-system file.

use std::io;

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

/// A device of fixed size with positioned I/O. All calls may be made from several threads at once.
///
/// Writes are volatile until a `flush` that began after they completed has returned `Ok`.
pub trait BlockDevice: Send + Sync + std::fmt::Debug {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// What offsets and lengths must be multiples of (bytes, a power of two, 1 if anything goes). Memory that is
    /// not aligned to it is copied through an aligned buffer.
    fn io_alignment(&self) -> usize;
    /// Fills `buf` from `offset`, or fails.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, or fails (then any part of it may have been written).
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Runs all reads, in parallel where the device can, and sets each one's `result`.
    fn read_batch(&self, ops: &mut [ReadOp<'_>]);
    /// Runs all writes, in parallel where the device can, and sets each one's `result`.
    fn write_batch(&self, ops: &mut [WriteOp<'_>]);
    /// Makes every completed write durable. After an error nothing is known about any of them.
    fn flush(&self) -> io::Result<()>;
    /// Tells the device that a range is not needed; it then reads as anything. A device without the ability does nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Forgets whatever copy of the device is cached outside it, so that the next read comes from the medium. `false` if that cannot be had
    /// (the caller then rewrites what it trusts).
    fn bypass_cache(&self) -> io::Result<bool>;
}
