//! A filter in front of the digest index: without reading anything it says of most digests that are not stored that they are not.
//!
//! It is a split-block Bloom filter as Apache Parquet specifies it, after Putze, Sanders and Singler, "Cache-, Hash- and Space-Efficient
//! Bloom Filters" (2007): a prefix picks one block of 256 bits and sets one bit in each of its eight words. At 10 bits a key about
//! one unknown prefix in a hundred passes. A digest's prefix is as good as a hash, so it is used as it is, its high half for the block: a
//! scan of the index in its order fills the filter from front to back.
//!
//! Memory: 10 bits for each block of the data device (320 MiB a TiB), no more than asked for, and taken only as it is touched.
//!
//! After an open nothing is known of the index, and every lookup goes to the trees; the worker reads the index once, in
//! slices, and then the filter counts. It holds every prefix of the index and more, since nothing is ever taken out; when twice as
//! many were put in as there are blocks, it is emptied and filled again.
//!
//! Invariant: once it is *whole*, every prefix in the index (base and runs) is in it. A checkpoint puts in what it adds before its
//! trees are installed. Were that broken, duplicates would be stored twice and nothing lost: the index is a hint.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::ids::Pbn;
use crate::index::Change;
use crate::mapping::{HINT_SET, HintKey};
use dedup_meta::MetaError;

/// Bits for each block of the data device.
const BITS_PER_KEY: u64 = 10;
/// Bits of a block: a register of most machines, half a cache line.
const BLOCK_BITS: u64 = 256;
/// Keys put in, as a multiple of the blocks, at which it is made anew: one unknown prefix in ten passes by then.
const REFILL: u64 = 2;
/// Entries of the index read in one slice: some 60 leaves.
const SLICE_ENTRIES: usize = 16 << 10;
/// Keys put in under one hold of the lock: some ten microseconds.
const LOCKED_KEYS: usize = 1024;
/// Odd multipliers, one for each word of a block, as Parquet has them.
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// The first key that an index may have.
const FIRST: HintKey = HintKey { prefix: 0, pbn: Pbn(0) };

/// See the module.
#[derive(Debug)]
pub(crate) struct Filter {
    /// None of them: there is no filter.
    blocks: Vec<[u32; 8]>,
    /// Keys for which it was made.
    keys: u64,
    /// Keys put in.
    added: u64,
    /// Where filling it from the index goes on; `None`: it is whole.
    next: Option<HintKey>,
}

impl Filter {
    /// A filter for so many keys in at most `bytes_max` bytes. It is whole if the index is empty.
    pub(crate) fn new(keys: u64, bytes_max: u64, index_is_empty: bool) -> Self {
        let blocks = (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS).min(bytes_max / (BLOCK_BITS / 8));
        let blocks = vec![[0; 8]; blocks.min(u64::from(u32::MAX)) as usize];
        Self { blocks, keys, added: 0, next: (!index_is_empty).then_some(FIRST) }
    }

    /// Whether the index may have this prefix.
    pub(crate) fn may_hold(&self, prefix: u64) -> bool {
        if self.next.is_some() || self.blocks.is_empty() {
            return true;
        }
        let block = &self.blocks[self.block_of(prefix)];
        block.iter().zip(bits(prefix)).all(|(word, bit)| word & bit != 0)
    }

    /// Puts a prefix in.
    pub(crate) fn add(&mut self, prefix: u64) {
        if self.blocks.is_empty() {
            return;
        }
        let at = self.block_of(prefix);
        self.blocks[at].iter_mut().zip(bits(prefix)).for_each(|(word, bit)| *word |= bit);
        self.added += 1;
    }

    /// Empties it, to be filled again, if it lets too much pass.
    fn refill_if_worn(&mut self) {
        if self.next.is_none() && self.added > self.keys.saturating_mul(REFILL) {
            self.blocks.fill([0; 8]);
            (self.added, self.next) = (0, Some(FIRST));
        }
    }

    fn block_of(&self, prefix: u64) -> usize {
        // Below the length, since the high half is below 2^32.
        (((prefix >> 32) * self.blocks.len() as u64) >> 32) as usize
    }
}

/// The bit of a prefix in each word of its block.
fn bits(prefix: u64) -> [u32; 8] {
    SALT.map(|salt| 1 << ((prefix as u32).wrapping_mul(salt) >> 27))
}

impl Engine {
    /// Puts in what a checkpoint adds to the index. To be called before its trees are installed.
    pub(crate) fn filter_takes(&self, changes: &[Change]) {
        // Here and nowhere else, so that what a checkpoint has put in is not taken out again before the index has it.
        self.filter.lock().refill_if_worn();
        for part in changes.chunks(LOCKED_KEYS) {
            let mut filter = self.filter.lock();
            let added = part.iter().filter(|(_, change)| change.is_some());
            added.for_each(|(key, _)| filter.add(key.prefix));
        }
    }

    /// Reads a slice of the index into the filter. `false` if it is whole, or there is none.
    pub(crate) fn fill_filter(&self) -> Result<bool, VolumeError> {
        let from = {
            let filter = self.filter.lock();
            match filter.next {
                Some(next) if !filter.blocks.is_empty() => next,
                _ => return Ok(false),
            }
        };
        let pin = self.pin();
        let keys: Result<Vec<HintKey>, MetaError> =
            HINT_SET.range(&self.store, &pin.tables.hints, from).take(SLICE_ENTRIES).collect();
        let keys = match keys {
            Ok(keys) => keys,
            // What is left has no entries, and the next slice finds out.
            Err(error) => return Ok(self.state.lock().drop_damaged_hints(error).map(|()| true)?),
        };
        for part in keys.chunks(LOCKED_KEYS) {
            let mut filter = self.filter.lock();
            part.iter().for_each(|key| filter.add(key.prefix));
        }
        let mut filter = self.filter.lock();
        // Otherwise another thread has come further, or it was emptied meanwhile: what was read here says nothing of the rest.
        if filter.next == Some(from) {
            // The last key once more, which costs nothing.
            filter.next = keys.last().filter(|_| keys.len() == SLICE_ENTRIES).copied();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random (splitmix64).
    fn prefix(n: u64) -> u64 {
        let z = (n.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn what_was_put_in_passes_and_of_the_rest_one_in_fifty_at_most() {
        const KEYS: u64 = 100_000;
        let mut filter = Filter::new(KEYS, u64::MAX / 8, true);
        (0..KEYS).for_each(|n| filter.add(prefix(n)));
        assert!((0..KEYS).all(|n| filter.may_hold(prefix(n))));
        let passed = (KEYS..2 * KEYS).filter(|n| filter.may_hold(prefix(*n))).count() as u64;
        assert!(passed * 50 < KEYS, "{passed} of {KEYS} passed");
    }

    #[test]
    fn until_the_index_was_read_everything_passes_and_without_memory_always() {
        assert!(Filter::new(1000, u64::MAX / 8, false).may_hold(5));
        assert!(!Filter::new(1000, u64::MAX / 8, true).may_hold(5));
        let mut none = Filter::new(1000, 0, true);
        none.add(7);
        assert!(none.may_hold(5));
    }

    #[test]
    fn a_worn_filter_is_emptied_and_passes_everything_until_it_is_filled() {
        let mut filter = Filter::new(100, u64::MAX / 8, true);
        (0..200).for_each(|n| filter.add(prefix(n)));
        filter.refill_if_worn();
        assert_eq!(filter.next, None);
        filter.add(1);
        filter.refill_if_worn();
        assert!(filter.next == Some(FIRST) && filter.may_hold(prefix(1000)));
    }
}
