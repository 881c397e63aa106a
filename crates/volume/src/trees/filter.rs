//! A filter in front of the digest index: without reading anything it says of most digests that are not
//! stored that they are not.
//!
//! A digest's prefix is as good as a hash, so it is used as it is, its high half for the filter's block: a
//! scan of the index in its order fills the filter from front to back.
//!
//! Memory: 10 bits for each block of the data device (320 MiB a TiB), no more than asked for, and taken only
//! as it is touched.
//!
//! After an open nothing is known of the index, and every lookup goes to the trees; the worker reads the
//! index once, in slices of rising prefixes, and the filter counts for those that it has read. It holds every
//! prefix of the index and more, since nothing is ever taken out; when twice as many were put in as there are
//! blocks, it is emptied and filled again.
//!
//! Invariant: every prefix in the index (base and runs) below the one where filling goes on is in it; all,
//! once it is *whole*. A checkpoint puts in what it adds, wherever filling stands, before its trees are
//! installed. Were that broken, duplicates would be stored twice and nothing lost: the index is a hint.

use crate::trees::bloom::Bloom;
use crate::trees::index::Change;
use dedup_schema::{HintKey, Pbn};
use dedup_sync::Mutex;

/// Keys put in, as a multiple of the blocks, at which it is made anew: one unknown prefix in ten passes by
/// then.
const REFILL: u64 = 2;
/// Keys put in under one hold of the lock: some ten microseconds.
const LOCKED_KEYS: usize = 1024;
/// The first key that an index may have.
const FIRST: HintKey = HintKey { prefix: 0, pbn: Pbn(0) };

/// See the module.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) bloom: Bloom,
    /// Keys for which it was made.
    keys: u64,
    /// Keys put in.
    added: u64,
    /// Where filling it from the index goes on; `None`: it is whole.
    pub(crate) next: Option<HintKey>,
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
    pub(crate) fn refill_if_worn(&mut self) {
        if self.next.is_none() && self.added > self.keys.saturating_mul(REFILL) {
            self.bloom.clear();
            (self.added, self.next) = (0, Some(FIRST));
        }
    }
}

/// Puts in what a checkpoint adds to the index. To be called before its trees are installed.
pub(crate) fn take_changes(filter: &Mutex<Filter>, changes: &[Change]) {
    // Here and nowhere else, so that what a checkpoint has put in is not taken out again before the index has
    // it.
    filter.lock().refill_if_worn();
    for part in changes.chunks(LOCKED_KEYS) {
        let mut filter = filter.lock();
        let added = part.iter().filter(|(_, change)| change.is_some());
        added.for_each(|(key, _)| filter.add(key.prefix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trees::bloom::hash;

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
