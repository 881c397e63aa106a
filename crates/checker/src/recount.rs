//! Reference counts, counted from the mappings: a byte for each block in use, and a table for the few counts that a byte cannot hold.

use crate::sparse::Sparse;
use rustc_hash::FxHashMap;

/// In the byte: the count stands in the table.
const LARGE: u8 = u8::MAX;

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Recount {
    small: Sparse<u8>,
    large: FxHashMap<u64, u64>,
    /// Blocks with a count above 0.
    used: u64,
}

impl Recount {
    /// How many LBNs are mapped to `pbn`.
    pub(crate) fn get(&self, pbn: u64) -> u64 {
        self.widen(pbn, self.small.get(pbn))
    }

    /// One more LBN is mapped to `pbn`.
    pub(crate) fn add(&mut self, pbn: u64) {
        let slot = self.small.slot(pbn);
        match *slot {
            LARGE => *self.large.entry(pbn).or_insert(u64::from(LARGE)) += 1,
            count => {
                self.used += u64::from(count == 0);
                *slot = count + 1;
            }
        }
    }

    /// One LBN less; `false` if none was.
    pub(crate) fn remove(&mut self, pbn: u64) -> bool {
        let slot = self.small.slot(pbn);
        if let Some(large) = self.large.get_mut(&pbn) {
            *large -= 1;
            if *large == u64::from(LARGE) {
                self.large.remove(&pbn);
            }
            return true;
        }
        let Some(less) = slot.checked_sub(1) else { return false };
        *slot = less;
        self.used -= u64::from(less == 0);
        true
    }

    /// Blocks with a count above 0.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The counts of a page's blocks; `None` if all are 0.
    pub(crate) fn page(&self, number: u64) -> Option<&[u8]> {
        self.small.page(number)
    }

    /// The pages in which a count may be above 0.
    pub(crate) fn page_numbers(&self) -> Vec<u64> {
        self.small.page_numbers()
    }

    /// Blocks with a count above 0, ascending.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.small.iter().filter(|(_, count)| *count > 0).map(|(pbn, _)| pbn)
    }

    /// The count of a block whose byte is `small`.
    pub(crate) fn widen(&self, pbn: u64, small: u8) -> u64 {
        match small {
            LARGE => self.large.get(&pbn).copied().unwrap_or(u64::from(LARGE)),
            small => small.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_up_and_down_across_the_width_of_a_byte() {
        let mut counts = Recount::default();
        for n in 1..=600 {
            counts.add(7);
            assert_eq!((counts.get(7), counts.used()), (n, 1));
        }
        for n in (0..600).rev() {
            assert!(counts.remove(7));
            assert_eq!((counts.get(7), counts.used()), (n, u64::from(n > 0)));
        }
        assert!(!counts.remove(7));
        assert!(!counts.remove(8));
        assert_eq!(counts.blocks().count(), 0);
    }
}
