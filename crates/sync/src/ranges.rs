//! Exclusive locks on ranges of logical blocks: operations on one LBN happen one after the other.
//!
//! A batch takes all its ranges at once, so holders never wait for each other. Who waits is served in order
//! of arrival where ranges touch, so a large trim is not starved by small writes. Readers take none.

use crate::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// The locks of a volume whose blocks are `K`.
#[derive(Debug)]
pub struct RangeLocks<K> {
    state: Mutex<Locks<K>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Locks<K> {
    /// Start -> end of what is held. Disjoint.
    held: BTreeMap<K, K>,
    /// Who waits, in order of arrival.
    waiting: VecDeque<(u64, Vec<Range<K>>)>,
    next_ticket: u64,
}

/// The locked ranges of one batch; unlocked on drop.
#[derive(Debug)]
pub struct RangeGuard<'a, K: Copy + Ord> {
    locks: &'a RangeLocks<K>,
    ranges: Vec<Range<K>>,
}

impl<K> Default for RangeLocks<K> {
    fn default() -> Self {
        let locks = Locks { held: BTreeMap::new(), waiting: VecDeque::new(), next_ticket: 0 };
        Self { state: Mutex::new(locks), changed: Condvar::default() }
    }
}

impl<K: Copy + Ord> RangeLocks<K> {
    /// Waits until all of `ranges` (disjoint, not empty each) are free, and takes them together.
    pub fn lock(&self, ranges: Vec<Range<K>>) -> RangeGuard<'_, K> {
        let mut state = self.state.lock();
        if !state.is_free(&ranges, usize::MAX) {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back((ticket, ranges.clone()));
            loop {
                state = self.changed.wait(state);
                let place = state.waiting.iter().position(|(t, _)| *t == ticket).unwrap_or(0);
                if state.is_free(&ranges, place) {
                    state.waiting.remove(place);
                    break;
                }
            }
        }
        state.held.extend(ranges.iter().map(|r| (r.start, r.end)));
        RangeGuard { locks: self, ranges }
    }
}

impl<K: Copy + Ord> RangeLocks<K> {
    /// Whether somebody holds `block`, for assertions of who does.
    pub fn is_locked(&self, block: K) -> bool {
        self.state.lock().held.range(..=block).next_back().is_some_and(|(_, end)| block < *end)
    }
}

#[cfg(all(test, feature = "loom"))]
impl<K> RangeLocks<K> {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl<K: Copy + Ord> Locks<K> {
    /// Whether no holder, and none of the first `ahead` of those that wait, has a range that touches one of
    /// `ranges`.
    fn is_free(&self, ranges: &[Range<K>], ahead: usize) -> bool {
        let touches = |a: &Range<K>, b: &Range<K>| a.start < b.end && b.start < a.end;
        ranges.iter().all(|range| {
            self.held.range(..range.end).next_back().is_none_or(|(_, end)| *end <= range.start)
                && !self
                    .waiting
                    .iter()
                    .take(ahead)
                    .any(|(_, others)| others.iter().any(|o| touches(o, range)))
        })
    }
}

impl<K: Copy + Ord> Drop for RangeGuard<'_, K> {
    fn drop(&mut self) {
        let mut state = self.locks.state.lock();
        for range in &self.ranges {
            state.held.remove(&range.start);
        }
        if !state.waiting.is_empty() {
            self.locks.changed.notify_all();
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
#[allow(clippy::single_range_in_vec_init, reason = "a batch of one range")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    #[test]
    fn ranges_that_touch_exclude_each_other_and_others_do_not() {
        let locks = RangeLocks::default();
        let _a = locks.lock(vec![0..4, 10..12]);
        let _b = locks.lock([4..10].into());
        let state = locks.state.lock();
        let is_free = |range: Range<u64>| state.is_free(&[range], usize::MAX);
        assert!(!is_free(3..4));
        assert!(!is_free(0..100));
        assert!(is_free(12..100));
    }

    #[test]
    fn who_came_first_goes_first_where_ranges_touch() {
        let locks = RangeLocks::default();
        let mut locks = locks.state.lock();
        let (large, small) = (0..100, 5..6);
        locks.waiting.push_back((0, [large].into()));
        let small = std::slice::from_ref(&small);
        assert!(!locks.is_free(small, 1), "a small range does not overtake the large one that waits for it");
        assert!(locks.is_free(small, 0));
    }

    #[test]
    fn counters_behind_overlapping_ranges_lose_no_update() {
        let locks = RangeLocks::default();
        let cells: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for thread in 0..4u64 {
                let (locks, cells) = (&locks, &cells);
                scope.spawn(move || {
                    for i in 0..500u64 {
                        let start = (i * 7 + thread) % 6;
                        let _guard = locks.lock([start..start + 2].into());
                        for cell in &cells[start as usize..start as usize + 2] {
                            let seen = cell.load(Ordering::Relaxed);
                            thread::yield_now();
                            cell.store(seen + 1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let total: u64 = cells.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        assert_eq!(total, 4 * 500 * 2);
    }
}
