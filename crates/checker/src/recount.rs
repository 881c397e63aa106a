//! Reference counts, counted from the mappings.
//!
//! ```text
//!   narrow page   2 bits a block, as a leaf of the count tree has them; 3: the count stands in a table
//!   wide page     a byte a block; 255: the count stands in the table
//! ```
//!
//! A page begins narrow, and becomes wide when its entries in the table come near to taking what it would
//! take more.

use crate::batch::Note;
use crate::sparse::PAGE;
use dedup_spacemap::page;
use rustc_hash::FxHashMap;

/// In a wide page: the count stands in the table.
const LARGE: u8 = u8::MAX;
/// Entries of the table (of some 32 bytes) that take half as much as a wide page has more than a narrow one.
const TABLE_MAX: u16 = (page::COUNTS_PER_PAGE - page::PAGE_BYTES).div_ceil(64) as u16;

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Recount {
    pages: FxHashMap<u64, Page>,
    table: FxHashMap<u64, u64>,
    /// Blocks with a count above 0.
    used: u64,
}

/// The counts of [`PAGE`] blocks.
#[derive(Debug)]
pub(crate) struct Page {
    counts: Box<[u8]>,
    is_wide: bool,
    /// Entries in the table.
    in_table: u16,
}

impl Page {
    fn new() -> Self {
        Self { counts: vec![0; page::PAGE_BYTES].into(), is_wide: false, in_table: 0 }
    }

    /// What stands for block `i`.
    fn get(&self, i: usize) -> u8 {
        if self.is_wide { self.counts[i] } else { page::get(&self.counts, i) }
    }

    fn set(&mut self, i: usize, count: u8) {
        if self.is_wide { self.counts[i] = count } else { page::set(&mut self.counts, i, count) }
    }

    /// What stands for a block whose count is in the table.
    fn mark(&self) -> u8 {
        if self.is_wide { LARGE } else { page::MAX_COUNT }
    }

    /// Whether block `i` has a count above 0.
    pub(crate) fn is_used(&self, i: usize) -> bool {
        self.get(i) > 0
    }

    /// All counts as the count tree has them, if none of them is in need of its overflow tree.
    pub(crate) fn as_leaf(&self) -> Option<&[u8]> {
        (!self.is_wide && self.in_table == 0).then_some(&self.counts)
    }
}

impl Recount {
    /// How many LBNs are mapped to `pbn`.
    pub(crate) fn get(&self, pbn: u64) -> u64 {
        self.count(self.page(pbn / PAGE), pbn)
    }

    /// The same if the block's page is at hand.
    pub(crate) fn count(&self, page: Option<&Page>, pbn: u64) -> u64 {
        let Some(page) = page else { return 0 };
        match page.get((pbn % PAGE) as usize) {
            mark if mark == page.mark() => self.table.get(&pbn).copied().unwrap_or(mark.into()),
            count => count.into(),
        }
    }

    /// One more LBN is mapped to `pbn`.
    pub(crate) fn add(&mut self, pbn: u64) {
        let page = self.pages.entry(pbn / PAGE).or_insert_with(Page::new);
        let (i, mark) = ((pbn % PAGE) as usize, page.mark());
        let count = page.get(i);
        self.used += u64::from(count == 0);
        if count == mark {
            *self.table.entry(pbn).or_insert(mark.into()) += 1;
            return;
        }
        page.set(i, count + 1);
        if count + 1 == mark {
            self.table.insert(pbn, mark.into());
            page.in_table += 1;
            if !page.is_wide && page.in_table > TABLE_MAX {
                self.widen(pbn / PAGE);
            }
        }
    }

    /// One more LBN is mapped to each of these blocks of a page.
    pub(crate) fn add_noted(&mut self, number: u64, blocks: &[Note]) {
        blocks.iter().for_each(|note| self.add(number * PAGE + note.index() as u64));
    }

    /// One LBN less; `false` if none was.
    pub(crate) fn remove(&mut self, pbn: u64) -> bool {
        let Some(page) = self.pages.get_mut(&(pbn / PAGE)) else { return false };
        let (i, mark) = ((pbn % PAGE) as usize, page.mark());
        let Some(less) = page.get(i).checked_sub(1) else { return false };
        if less + 1 == mark {
            let large = self.table.entry(pbn).or_insert(mark.into());
            *large -= 1;
            if *large >= mark.into() {
                return true;
            }
            self.table.remove(&pbn);
            page.in_table -= 1;
        }
        page.set(i, less);
        self.used -= u64::from(less == 0);
        true
    }

    /// Blocks with a count above 0.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The counts of a page's blocks; `None` if all are 0.
    pub(crate) fn page(&self, number: u64) -> Option<&Page> {
        self.pages.get(&number)
    }

    /// The pages in which a count may be above 0.
    pub(crate) fn page_numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.pages.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// Blocks with a count above 0, ascending.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.page_numbers().into_iter().flat_map(|number| {
            let page = &self.pages[&number];
            let used = (0..page::COUNTS_PER_PAGE).filter(|i| page.is_used(*i));
            used.map(move |i| number * PAGE + i as u64)
        })
    }

    /// Gives the page's counts a byte each.
    fn widen(&mut self, number: u64) {
        let Some(narrow) = self.pages.get(&number) else { return };
        let first = number * PAGE;
        let mut wide = Page { counts: vec![0; page::COUNTS_PER_PAGE].into(), is_wide: true, in_table: 0 };
        for (i, count) in page::iter(&narrow.counts) {
            let pbn = first + i as u64;
            wide.counts[i] = match self.table.get(&pbn) {
                None => count,
                Some(large) => u8::try_from(*large).unwrap_or(LARGE),
            };
            if wide.counts[i] == LARGE {
                wide.in_table += 1;
            } else {
                self.table.remove(&pbn);
            }
        }
        self.pages.insert(number, wide);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_up_and_down_across_the_width_of_two_bits_and_of_a_byte() {
        for wide in [false, true] {
            let mut counts = Recount::default();
            counts.add(7);
            if wide {
                counts.widen(0);
            }
            for n in 1..=600 {
                assert_eq!((counts.get(7), counts.used()), (n, 1));
                counts.add(7);
            }
            for n in (0..=600).rev() {
                assert!(counts.remove(7));
                assert_eq!((counts.get(7), counts.used()), (n, u64::from(n > 0)));
            }
            assert!(!counts.remove(7));
            assert!(!counts.remove(8) && !counts.remove(PAGE));
            assert_eq!((counts.blocks().count(), counts.table.len()), (0, 0));
        }
    }

    #[test]
    fn a_page_of_blocks_with_many_references_keeps_its_counts_and_takes_a_byte_for_each() {
        let mut counts = Recount::default();
        let expected = |pbn: u64| pbn % 7 * if pbn.is_multiple_of(1000) { 100 } else { 1 };
        for pbn in 0..PAGE + 100 {
            (0..expected(pbn)).for_each(|_| counts.add(pbn));
        }
        for pbn in 0..PAGE + 100 {
            assert_eq!(counts.get(pbn), expected(pbn), "PBN {pbn}");
        }
        assert!(counts.pages[&0].is_wide && !counts.pages[&1].is_wide);
        assert!(counts.table.len() < usize::from(TABLE_MAX));
        assert!(counts.blocks().eq((0..PAGE + 100).filter(|pbn| expected(*pbn) > 0)));
        assert_eq!(counts.used(), counts.blocks().count() as u64);
        assert!(counts.page(0).unwrap().as_leaf().is_none());
    }

    #[test]
    fn a_page_of_small_counts_is_a_leaf_of_the_count_tree() {
        let mut counts = Recount::default();
        [5, 6, 6, 9].into_iter().for_each(|pbn| counts.add(pbn));
        let leaf = counts.page(0).unwrap().as_leaf().unwrap();
        assert!(page::iter(leaf).eq([(5, 1), (6, 2), (9, 1)]));
        counts.add(6);
        assert!(counts.page(0).unwrap().as_leaf().is_none());
    }
}
