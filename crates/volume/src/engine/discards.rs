//! The queue of discards: freed blocks that the data device has yet to be told of.
//!
//! ```text
//!   freed, committed, unread ──> waiting, joined into ranges ──> under way ──> free
//!                                   └───── taken back, undiscarded ─────────────^
//! ```
//!
//! A commit is answered before its frees are discarded, so a device that takes long for it (a hole in a file
//! is a transaction of its file system, and stops the writes of that file meanwhile) holds nobody up. What
//! waits longer joins with more neighbours.
//!
//! Invariants: a block in here is not given out (I2); one range at a time is under way, and that one cannot
//! be taken back; no two ranges that wait touch; at most [`RANGES_MAX`] wait.
//!
//! Not here: the thread that empties the queue at its own pace (`maintenance.rs`).

use dedup_schema::Pbn;
use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that wait at most: 20 MiB of memory. What was freed here and there, more of it than this, is hardly
/// worth its discards.
const RANGES_MAX: usize = 256 << 10;

/// Blocks on their way to the device as discards.
#[derive(Debug, Default)]
pub(crate) struct Discards {
    /// First block -> end.
    waiting: BTreeMap<u64, u64>,
    under_way: Option<Range<u64>>,
    /// Where the next one is looked for: ranges go out in rising order, round and round.
    next: u64,
}

impl Discards {
    /// A block waits from now on. `false` if there are too many ranges and it joins none.
    pub(crate) fn add(&mut self, pbn: Pbn) -> bool {
        let before = self.waiting.range(..pbn.0).next_back().map(|(start, end)| (*start, *end));
        debug_assert!(
            before.is_none_or(|(_, end)| end <= pbn.0),
            "block {pbn} waits for its discard already"
        );
        let before = before.filter(|(_, end)| *end == pbn.0).map(|(start, _)| start);
        let behind = self.waiting.get(&(pbn.0 + 1)).copied();
        if before.is_none() && behind.is_none() && self.waiting.len() >= RANGES_MAX {
            return false;
        }
        if behind.is_some() {
            self.waiting.remove(&(pbn.0 + 1));
        }
        self.waiting.insert(before.unwrap_or(pbn.0), behind.unwrap_or(pbn.0 + 1));
        true
    }

    /// Takes the next range, or up to `max` blocks of it, for the device; `None` if nothing waits, or one is
    /// under way.
    pub(crate) fn begin(&mut self, max: u64) -> Option<Range<u64>> {
        if self.under_way.is_some() {
            return None;
        }
        let next = self.waiting.range(self.next..).next().or_else(|| self.waiting.first_key_value());
        let (start, end) = next.map(|(start, end)| (*start, *end))?;
        Some(self.begin_with(start..end, max))
    }

    /// The same for the largest of all.
    pub(crate) fn begin_largest(&mut self, max: u64) -> Option<Range<u64>> {
        if self.under_way.is_some() {
            return None;
        }
        let (start, end) = self.waiting.iter().max_by_key(|(start, end)| *end - *start)?;
        let range = *start..*end;
        Some(self.begin_with(range, max))
    }

    fn begin_with(&mut self, range: Range<u64>, max: u64) -> Range<u64> {
        self.waiting.remove(&range.start);
        let cut = range.end.min(range.start.saturating_add(max.max(1)));
        if cut < range.end {
            self.waiting.insert(cut, range.end);
        }
        self.next = cut;
        self.under_way = Some(range.start..cut);
        range.start..cut
    }

    /// The device has answered.
    pub(crate) fn end(&mut self) {
        self.under_way = None;
    }

    /// Takes everything out that waits.
    pub(crate) fn take_back(&mut self) -> impl Iterator<Item = Range<u64>> + use<> {
        std::mem::take(&mut self.waiting).into_iter().map(|(start, end)| start..end)
    }

    /// Whether the device works on one.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Blocks that wait.
    pub(crate) fn blocks(&self) -> u64 {
        self.waiting.iter().map(|(start, end)| end - start).sum()
    }

    /// Members within a range.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let Range { start, end } = range;
        let first = self.waiting.range(..start).next_back().map(|(start, end)| (*start, *end));
        let rest = self.waiting.range(start..end).map(|(start, end)| (*start, *end));
        let under_way = self.under_way.iter().map(|range| (range.start, range.end));
        first
            .into_iter()
            .chain(rest)
            .chain(under_way)
            .flat_map(move |(from, to)| from.max(start)..to.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn add(discards: &mut Discards, pbns: impl IntoIterator<Item = u64>) {
        pbns.into_iter().for_each(|pbn| assert!(discards.add(Pbn(pbn))));
    }

    #[test]
    fn blocks_freed_in_any_order_go_out_as_one_range() {
        let mut discards = Discards::default();
        add(&mut discards, [7, 5, 9, 6, 8, 20]);
        assert_eq!(discards.begin(100), Some(5..10));
        assert_eq!(discards.begin(100), None, "one at a time");
        discards.end();
        assert_eq!(discards.begin(100), Some(20..21));
    }

    #[test]
    fn a_block_being_discarded_is_not_reusable() {
        let mut discards = Discards::default();
        add(&mut discards, 10..20);
        assert_eq!(discards.begin(4), Some(10..14));
        assert!(discards.take_back().eq(std::iter::once(14..20)));
        assert_eq!(discards.within(0..100).collect::<Vec<_>>(), [10, 11, 12, 13]);
        discards.end();
        assert_eq!(discards.within(0..100).count(), 0);
    }

    /// A volume that is overwritten at random frees single blocks: their ranges would take memory without
    /// end.
    #[test]
    fn what_waits_is_bounded_and_what_joins_costs_nothing() {
        let mut discards = Discards::default();
        add(&mut discards, (0..RANGES_MAX as u64).map(|n| n * 3));
        assert!(!discards.add(Pbn(RANGES_MAX as u64 * 3 + 10)));
        assert!(discards.add(Pbn(1)));
        assert!(discards.add(Pbn(2)), "joins two");
        assert!(discards.add(Pbn(RANGES_MAX as u64 * 3 + 10)), "which made room");
    }

    proptest! {
        /// A set of blocks is the model: what is added and not begun or taken back waits, and is told as it
        /// is.
        #[test]
        fn a_block_is_in_it_from_its_freeing_until_it_is_discarded_or_taken_back(
            steps in prop::collection::vec((0u64..64, 0u8..12), 1..200),
        ) {
            let (mut discards, mut model, mut busy) = (Discards::default(), BTreeSet::new(), BTreeSet::new());
            for (pbn, what) in steps {
                match what {
                    1 | 2 => {
                        let begun = if what == 1 { discards.begin(3) } else { discards.begin_largest(5) };
                        prop_assert_eq!(begun.is_some(), busy.is_empty() && !model.is_empty());
                        for pbn in begun.into_iter().flatten() {
                            prop_assert!(model.remove(&pbn));
                            busy.insert(pbn);
                        }
                    }
                    3 => {
                        discards.end();
                        busy.clear();
                    }
                    4 if pbn < 8 => {
                        let taken: BTreeSet<u64> = discards.take_back().flatten().collect();
                        prop_assert_eq!(&taken, &model);
                        model.clear();
                    }
                    _ => if !model.contains(&pbn) && !busy.contains(&pbn) {
                        prop_assert!(discards.add(Pbn(pbn)));
                        model.insert(pbn);
                    },
                }
                let within: BTreeSet<u64> = discards.within(10..40).collect();
                let expected: BTreeSet<u64> =
                    model.union(&busy).copied().filter(|pbn| (10..40).contains(pbn)).collect();
                prop_assert_eq!(within, expected);
                prop_assert_eq!(discards.blocks(), model.len() as u64);
            }
        }
    }
}
