//! The last free blocks of a volume that is larger than its store: for what gets it out of being full.
//!
//! A write out of place needs a free block, also one that overwrites. On a store without any, nothing can be
//! changed but by trims: a file system on it cannot write its journal, is not mounted, not repaired, and so
//! has nothing deleted and trimmed. So the last blocks are kept for writes that give back what they take, and
//! the half before them for small requests too: metadata of a file system, mostly, while its data comes in
//! large ones.
//!
//! Not here: a store with a block for every LBN and one to spare, which is never full.

/// The part of the store that is kept.
const KEPT_PART: u64 = 64;
/// Blocks kept at most, 256 MiB of them with 4 KiB.
const KEPT_MAX: u64 = 64 << 10;
/// Blocks from which on a request is a large one: 64 KiB with 4 KiB.
const LARGE_BLOCKS: u64 = 16;

/// How many blocks are kept, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overwrites {
    kept: u64,
}

/// A block's wish for a free one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    /// What it replaces becomes free.
    pub(crate) frees_one: bool,
    /// Its request is a large one.
    pub(crate) is_large: bool,
}

/// Whether a request of so many blocks is a large one.
pub(crate) fn is_large(blocks: u64) -> bool {
    blocks >= LARGE_BLOCKS
}

impl Overwrites {
    /// For a volume of `lbns` on `blocks` blocks of store.
    pub(crate) fn new(lbns: u64, blocks: u64) -> Self {
        Self { kept: if blocks > lbns { 0 } else { (blocks / KEPT_PART).min(KEPT_MAX) } }
    }

    /// Whether so many free blocks are enough for everybody.
    pub(crate) fn leaves(&self, free: u64) -> bool {
        free > self.kept
    }

    /// How many free blocks have to be left, or the block may have none.
    pub(crate) fn kept_from(&self, growth: &Growth) -> u64 {
        match growth.frees_one {
            true => 0,
            false if growth.is_large => self.kept,
            false => self.kept / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_blocks_are_for_overwrites_and_those_before_them_for_small_requests() {
        let overwrites = Overwrites::new(1 << 20, 6400);
        let allowed = |free, frees_one, is_large| {
            let kept = overwrites.kept_from(&Growth { frees_one, is_large });
            kept == 0 || free > kept
        };
        assert!(allowed(101, false, true) && !allowed(100, false, true));
        assert!(allowed(51, false, false) && !allowed(50, false, false));
        assert!(allowed(1, true, true));
    }

    #[test]
    fn a_store_with_a_block_for_each_lbn_and_one_to_spare_keeps_none_back() {
        for (lbns, blocks) in [(6400, 6401), (6400, 7000), (100, 63)] {
            let growth = Growth { frees_one: false, is_large: true };
            assert_eq!(Overwrites::new(lbns, blocks).kept_from(&growth), 0, "{lbns} on {blocks}");
        }
    }
}
