//! A sparse file on a file system that has so much room and no more: what a full file system does to a device.
//!
//! A place that was written before costs nothing to write again; a new one takes a block of [`ALLOCATION_BYTES`], and fails if none
//! is left; a discard gives whole blocks back.

use std::collections::BTreeSet;
use std::ops::Range;

/// What a file system hands out at once, in bytes: the block of the common ones, and an image's page.
const ALLOCATION_BYTES: u64 = crate::image::PAGE_SIZE as u64;

#[derive(Debug)]
pub(super) struct Capacity {
    taken: BTreeSet<u64>,
    blocks_max: usize,
}

impl Capacity {
    /// Room for what is `taken` (numbers of blocks) and `bytes` more, rounded down to whole blocks.
    pub(super) fn new(taken: BTreeSet<u64>, bytes: u64) -> Self {
        let blocks_max = taken.len() + (bytes / ALLOCATION_BYTES) as usize;
        Self { taken, blocks_max }
    }

    /// Takes room for a write. `false`: there is not enough; what there is has been taken, as a write that failed halfway leaves it.
    pub(super) fn take(&mut self, range: Range<u64>) -> bool {
        for block in range.start / ALLOCATION_BYTES..range.end.div_ceil(ALLOCATION_BYTES) {
            if self.taken.len() >= self.blocks_max && !self.taken.contains(&block) {
                return false;
            }
            self.taken.insert(block);
        }
        true
    }

    /// Gives back the blocks that a discard covers.
    pub(super) fn give_back(&mut self, range: Range<u64>) {
        let (first, end) = (range.start.div_ceil(ALLOCATION_BYTES), range.end / ALLOCATION_BYTES);
        let covered: Vec<u64> = self.taken.range(first..end.max(first)).copied().collect();
        for block in covered {
            self.taken.remove(&block);
        }
    }
}
