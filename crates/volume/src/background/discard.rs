//! Telling the data device of freed blocks, from the [queue](crate::engine::discards), a range at a time.

use crate::engine::Engine;
use crate::engine::discards::Discards;
use std::ops::Range;

/// Bytes of one discard: what is under way cannot be taken back, and whoever needs just that block waits for
/// it.
const DISCARD_BYTES: u64 = 64 << 20;
/// Discards that a close waits for: of a file that is fragmented at its worst, less than a second.
const DISCARDS_AT_CLOSE: usize = 1024;

impl Engine {
    /// Tells the data device of some freed blocks that it has not been told of; they can be reused when it
    /// has answered. `false` if there are none, or somebody else does this.
    pub(crate) fn discard_some(&self) -> bool {
        self.discard_by(|discards| discards.begin(self.discard_blocks_max()))
    }

    /// Before the volume is closed: discards the largest of what waits, a bounded number. The rest keeps its
    /// space until it is written again.
    pub(crate) fn discard_largest(&self) {
        let max = self.discard_blocks_max();
        for _ in 0..DISCARDS_AT_CLOSE {
            if !self.discard_by(|discards| discards.begin_largest(max)) {
                return;
            }
        }
    }

    fn discard_blocks_max(&self) -> u64 {
        (DISCARD_BYTES / self.block_size).max(1)
    }

    fn discard_by(&self, begin: impl FnOnce(&mut Discards) -> Option<Range<u64>>) -> bool {
        let mut allocator = self.space.allocator.lock();
        let Some(range) = begin(&mut allocator.discards) else { return false };
        drop(allocator);
        let (offset, len) = (range.start * self.block_size, (range.end - range.start) * self.block_size);
        let discarded = self.data.discard(offset, len);
        let mut allocator = self.space.allocator.lock();
        allocator.discards.end();
        allocator.free(range);
        self.space.discarded.notify_all();
        if let Err(error) = discarded {
            tracing::warn!("discard of {len} bytes at {offset} on the data device: {error}");
        }
        true
    }
}
