//! A filter in front of the digest index: without reading anything it says of most digests that are not stored that they are not.
//!
//! A digest's prefix is as good as a hash, so it is used as it is, its high half for the filter's block: a scan of the index in its order
//! fills the filter from front to back.
//!
//! Memory: 10 bits for each block of the data device (320 MiB a TiB), no more than asked for, and taken only as it is touched.
//!
//! After an open nothing is known of the index, and every lookup goes to the trees; the worker reads the index once, in
//! slices of rising prefixes, and the filter counts for those that it has read. It holds every prefix of the index and more, since nothing
//! is ever taken out; when twice as many were put in as there are blocks, it is emptied and filled again.
//!
//! Invariant: every prefix in the index (base and runs) below the one where filling goes on is in it; all, once it is *whole*. A
//! checkpoint puts in what it adds, wherever filling stands, before its trees are installed. Were that broken, duplicates would be stored twice and nothing lost: the index is a hint.

use crate::bloom::Bloom;
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::index::Change;
use dedup_meta::{MetaError, NodeSource, RunSet};
use dedup_schema::{HINTS, HintKey, Pbn};
use std::ops::Bound;

/// Keys put in, as a multiple of the blocks, at which it is made anew: one unknown prefix in ten passes by then.
const REFILL: u64 = 2;
/// Entries of each tree of the index read in one slice: some 60 leaves of the base.
const SLICE_ENTRIES: usize = 16 << 10;
/// Keys put in under one hold of the lock: some ten microseconds.
const LOCKED_KEYS: usize = 1024;
/// The first key that an index may have.
const FIRST: HintKey = HintKey { prefix: 0, pbn: Pbn(0) };

/// See the module.
#[derive(Debug)]
pub(crate) struct Filter {
    bloom: Bloom,
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
        Self { bloom: Bloom::new(keys, bytes_max), keys, added: 0, next: (!index_is_empty).then_some(FIRST) }
    }

    /// Whether the index may have this prefix.
    pub(crate) fn may_hold(&self, prefix: u64) -> bool {
        // Of the very prefix at which filling goes on, entries may be left.
        self.next.is_some_and(|next| prefix >= next.prefix) || self.bloom.may_hold(prefix)
    }

    /// Puts a prefix in.
    pub(crate) fn add(&mut self, prefix: u64) {
        self.bloom.add(prefix);
        self.added += 1;
    }

    /// Empties it, to be filled again, if it lets too much pass.
    fn refill_if_worn(&mut self) {
        if self.next.is_none() && self.added > self.keys.saturating_mul(REFILL) {
            self.bloom.clear();
            (self.added, self.next) = (0, Some(FIRST));
        }
    }
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
                Some(next) if !filter.bloom.is_absent() => next,
                _ => return Ok(false),
            }
        };
        let pin = self.pin();
        let (prefixes, next) = match read_slice(&self.store, &pin.tables.hints, from) {
            Ok(slice) => slice,
            // What is left has no entries, and the next slice finds out.
            Err(error) => return Ok(self.drop_damaged_hints(&pin.tables.hints, error).map(|()| true)?),
        };
        for part in prefixes.chunks(LOCKED_KEYS) {
            let mut filter = self.filter.lock();
            part.iter().for_each(|prefix| filter.add(*prefix));
        }
        let mut filter = self.filter.lock();
        // Otherwise another thread has come further, or it was emptied meanwhile: what was read here says nothing of the rest.
        if filter.next == Some(from) {
            filter.next = next;
        }
        Ok(true)
    }
}

/// Prefixes of the index's entries from `from` on, as many as make a slice, and the key up to which these are all; `None`: up to its end. What runs
/// remove counts as there: to leave it out costs far more than it saves.
fn read_slice(
    source: &impl NodeSource,
    index: &RunSet,
    from: HintKey,
) -> Result<(Vec<u64>, Option<HintKey>), MetaError> {
    let mut prefixes = Vec::with_capacity(SLICE_ENTRIES);
    let mut to = None;
    // Of a run, what it adds comes before what it removes.
    for tree in std::iter::once(&index.base).chain(index.runs.iter().step_by(2)) {
        let end = to.map_or(Bound::Unbounded, Bound::Included);
        let mut left = SLICE_ENTRIES;
        for entry in HINTS.range(source, tree, (Bound::Included(from), end)) {
            let (key, ()) = entry?;
            prefixes.push(key.prefix);
            left -= 1;
            // The slice ends here, and the next begins with this key once more.
            if left == 0 {
                to = Some(key);
                break;
            }
        }
    }
    Ok((prefixes, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bloom::hash;

    #[test]
    fn until_the_index_was_read_everything_passes_and_without_memory_always() {
        assert!(Filter::new(1000, u64::MAX / 8, false).may_hold(5));
        assert!(!Filter::new(1000, u64::MAX / 8, true).may_hold(5));
        let mut none = Filter::new(1000, 0, true);
        none.add(7);
        assert!(none.may_hold(5));
    }

    #[test]
    fn a_filter_counts_for_the_prefixes_below_the_one_where_filling_goes_on() {
        let mut filter = Filter::new(1000, u64::MAX / 8, false);
        let middle = 1 << 63;
        filter.add(middle - 2);
        filter.next = Some(HintKey { prefix: middle, pbn: Pbn(9) });
        assert_eq!(
            [3, middle - 2, middle, middle + 3].map(|n| filter.may_hold(n)),
            [false, true, true, true]
        );
    }

    #[test]
    fn a_worn_filter_is_emptied_and_passes_everything_until_it_is_filled() {
        let mut filter = Filter::new(100, u64::MAX / 8, true);
        (0..200).for_each(|n| filter.add(hash(n)));
        filter.refill_if_worn();
        assert_eq!(filter.next, None);
        filter.add(1);
        filter.refill_if_worn();
        assert!(filter.next == Some(FIRST) && filter.may_hold(hash(1000)));
    }
}
