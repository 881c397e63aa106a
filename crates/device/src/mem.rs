//! A device in memory: what it holds is gone with it, and only what was written costs memory.
//!
//! Reads share a lock; writes take it alone, and only to put pages in their places that were copied before.
//! Durability is not modelled (see [`SimDevice`](crate::SimDevice)).

use crate::block_device::check_range;
use crate::image::{Prepared, prepare};
use crate::{BlockDevice, ReadOp, SparseImage, WriteOp};
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A device of fixed size in memory, zeros at first.
#[derive(Debug)]
pub struct MemDevice {
    size: u64,
    image: RwLock<SparseImage>,
}

impl MemDevice {
    /// A device of `size` zero bytes, none of which takes memory yet.
    pub fn new(size: u64) -> Self {
        Self::from_image(SparseImage::new(size))
    }

    /// A device with the content of `image`.
    pub fn from_image(image: SparseImage) -> Self {
        Self { size: image.size(), image: RwLock::new(image) }
    }

    /// A snapshot of the content.
    pub fn image(&self) -> SparseImage {
        self.shared().clone()
    }

    // A panic under the lock leaves bytes of a write in part, as a failed write may: nothing that poisoning
    // would save.
    fn shared(&self) -> RwLockReadGuard<'_, SparseImage> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, SparseImage> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn io_alignment(&self) -> usize {
        1
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.shared().read(offset, buf)
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_range(self.size, 1, offset, buf.len() as u64)?;
        let prepared = prepare(offset, buf).collect();
        // In a statement of its own, so that what was replaced is dropped after the lock.
        let replaced = self.exclusive().put(prepared);
        drop(replaced);
        Ok(())
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        let image = self.shared();
        for op in ops {
            op.result = read_op(&image, op);
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        let mut prepared: Vec<Prepared<'_>> = Vec::new();
        for op in ops {
            op.result = check_range(self.size, 1, op.offset, op.byte_count());
            if op.result.is_err() {
                continue;
            }
            let mut at = op.offset;
            for buf in &op.bufs {
                prepared.extend(prepare(at, buf));
                at += buf.len() as u64;
            }
        }
        let replaced = self.exclusive().put(prepared);
        drop(replaced);
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.exclusive().zero(offset, len)
    }

    /// Memory is its own medium: `true`.
    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Scatters a range of `image` into the buffers of `op`.
pub(crate) fn read_op(image: &SparseImage, op: &mut ReadOp<'_>) -> io::Result<()> {
    check_range(image.size(), 1, op.offset, op.byte_count())?;
    let mut at = op.offset;
    for buf in &mut op.bufs {
        image.read(at, buf)?;
        at += buf.len() as u64;
    }
    Ok(())
}
