//! A metadata device on which no checkpoint comes to its end, to fill the log beyond what checkpoints let it grow to.
//!
//! Once it is [held](HeldDevice::hold), a write outside the log's ring waits for ever, and a flush says that it is done. So commits go on, as fast as the
//! device takes a write, and nothing that they leave is released. What it lies about is lost only in a power cut; it is for a process that ends
//! as if killed.

use dedup_device::{BlockDevice, ReadOp, WriteOp};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;

/// See the module.
#[derive(Debug)]
pub(crate) struct HeldDevice {
    inner: Arc<dyn BlockDevice>,
    /// Bytes of the ring, once it is held.
    ring: OnceLock<Range<u64>>,
}

impl HeldDevice {
    pub(crate) fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, ring: OnceLock::new() }
    }

    /// From now on, only these bytes are written.
    pub(crate) fn hold(&self, ring: Range<u64>) {
        self.ring.get_or_init(|| ring);
    }

    fn wait_unless_in_ring(&self, offset: u64) {
        while self.ring.get().is_some_and(|ring| !ring.contains(&offset)) {
            std::thread::park();
        }
    }
}

impl BlockDevice for HeldDevice {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn io_alignment(&self) -> usize {
        self.inner.io_alignment()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, buf)
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.wait_unless_in_ring(offset);
        self.inner.write(offset, buf)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        self.inner.read_batch(ops)
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        ops.iter().for_each(|op| self.wait_unless_in_ring(op.offset));
        self.inner.write_batch(ops)
    }

    fn flush(&self) -> io::Result<()> {
        if self.ring.get().is_some() { Ok(()) } else { self.inner.flush() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.reserve(offset, len)
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.preallocate(offset, len)
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        self.inner.bypass_cache()
    }
}
