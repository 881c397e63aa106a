//! An array over a 48-bit address space of which a small part is used: pages of numbers, allocated when they
//! are first set.

use dedup_spacemap::page::COUNTS_PER_PAGE;
use rustc_hash::FxHashMap;

/// Elements of a page: as many as a leaf of a count tree has, so that leaf and page can be held against each
/// other.
pub(crate) const PAGE: u64 = COUNTS_PER_PAGE as u64;

/// The array; elements that were never set have the default.
#[derive(Debug, Default)]
pub(crate) struct Sparse<T> {
    pages: FxHashMap<u64, Box<[T]>>,
}

impl<T: Copy + Default> Sparse<T> {
    /// Element `i`.
    pub(crate) fn get(&self, i: u64) -> T {
        self.pages.get(&(i / PAGE)).map_or(T::default(), |page| page[(i % PAGE) as usize])
    }

    /// Element `i`, to be changed.
    pub(crate) fn slot(&mut self, i: u64) -> &mut T {
        let page = self.pages.entry(i / PAGE).or_insert_with(|| vec![T::default(); COUNTS_PER_PAGE].into());
        &mut page[(i % PAGE) as usize]
    }
}
