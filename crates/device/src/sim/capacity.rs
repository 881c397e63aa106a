//! A file system that has so much room and no more, and sparse files on it: what a full file system does to
//! devices.
//!
//! A place that was written before costs nothing to write again; a new one takes a block of
//! [`ALLOCATION_BYTES`], and fails if none is left; a discard gives whole blocks back.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a file system hands out at once, in bytes: the block of the common ones, and an image's page.
const ALLOCATION_BYTES: u64 = crate::image::PAGE_SIZE as u64;

/// The room of a file system that holds the files of several devices.
#[derive(Clone, Debug)]
pub struct SimFileSystem {
    /// Blocks that nobody has.
    free: Arc<AtomicU64>,
}

impl SimFileSystem {
    /// One with room for `bytes`, rounded down to whole blocks.
    pub fn new(bytes: u64) -> Self {
        Self { free: Arc::new(AtomicU64::new(bytes / ALLOCATION_BYTES)) }
    }

    /// Bytes left.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::SeqCst) * ALLOCATION_BYTES
    }

    /// Leaves so many bytes: somebody else writes files, or deletes some.
    pub fn set_free(&self, bytes: u64) {
        self.free.store(bytes / ALLOCATION_BYTES, Ordering::SeqCst);
    }

    /// Takes a block, if there is one.
    fn take(&self) -> bool {
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1)).is_ok()
    }
}

/// A device's file.
#[derive(Debug)]
pub(super) struct Capacity {
    taken: BTreeSet<u64>,
    file_system: SimFileSystem,
}

impl Capacity {
    /// A file that has blocks `taken`, beside the room in `file_system`.
    pub(super) fn new(taken: BTreeSet<u64>, file_system: SimFileSystem) -> Self {
        Self { taken, file_system }
    }

    /// Takes room for a write. `false`: there is not enough; what there is has been taken, as a write that
    /// failed halfway leaves it.
    pub(super) fn take(&mut self, range: Range<u64>) -> bool {
        for block in range.start / ALLOCATION_BYTES..range.end.div_ceil(ALLOCATION_BYTES) {
            if !self.taken.contains(&block) {
                if !self.file_system.take() {
                    return false;
                }
                self.taken.insert(block);
            }
        }
        true
    }

    /// Gives back the blocks that a discard covers.
    pub(super) fn give_back(&mut self, range: Range<u64>) {
        let (first, end) = (range.start.div_ceil(ALLOCATION_BYTES), range.end / ALLOCATION_BYTES);
        let covered: Vec<u64> = self.taken.range(first..end.max(first)).copied().collect();
        for block in covered {
            self.taken.remove(&block);
            self.file_system.free.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The next bytes of `range` that have a block.
    pub(super) fn allocated(&self, range: Range<u64>) -> Option<Range<u64>> {
        let blocks = range.start / ALLOCATION_BYTES..range.end.div_ceil(ALLOCATION_BYTES);
        let first = *self.taken.range(blocks.clone()).next()?;
        let end = (first..blocks.end).find(|block| !self.taken.contains(block)).unwrap_or(blocks.end);
        Some((first * ALLOCATION_BYTES).max(range.start)..(end * ALLOCATION_BYTES).min(range.end))
    }

    /// Bytes that the file system has left.
    pub(super) fn free(&self) -> u64 {
        self.file_system.free()
    }
}
