//! Notes on data blocks, looked at by place.
//!
//! The index names blocks in the order of their digests, and an aged volume's mappings name them in any. The
//! accounts of a tebibyte are 192 MiB, so one note after the other would wait for memory and for the
//! processor's translation of addresses each time; a few hundred thousand, brought together by place, share
//! both.
//!
//! (Counting sort by page, once; within a page the order stays that of arrival.)

use crate::sparse::PAGE;

/// Notes that are taken at once: 4 MiB with room for sorting.
const NOTES: usize = 256 << 10;
/// Bits of a note beside the block's number.
const VALUE_BITS: u32 = 4;
/// Bits of a block's number in its page.
const INDEX_BITS: u32 = PAGE.next_power_of_two().trailing_zeros();

/// A note: page, block in it, value.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Note(u64);

impl Note {
    fn new(pbn: u64, value: u8) -> Self {
        Self((pbn / PAGE) << (INDEX_BITS + VALUE_BITS) | (pbn % PAGE) << VALUE_BITS | u64::from(value))
    }

    fn page(self) -> u64 {
        self.0 >> (INDEX_BITS + VALUE_BITS)
    }

    /// The block in its page.
    pub(crate) fn index(self) -> usize {
        (self.0 >> VALUE_BITS) as usize & ((1 << INDEX_BITS) - 1)
    }

    /// What was noted of it.
    pub(crate) fn value(self) -> u8 {
        self.0 as u8 & ((1 << VALUE_BITS) - 1)
    }
}

/// Notes not yet looked at.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    notes: Vec<Note>,
    sorted: Vec<Note>,
    /// Where each page's next note goes.
    places: Vec<u32>,
}

impl Batch {
    /// Takes a note (below 16) on a block below 2^48; whether it is time to [`drain`](Self::drain).
    #[must_use]
    pub(crate) fn push(&mut self, pbn: u64, value: u8) -> bool {
        self.notes.push(Note::new(pbn, value));
        self.notes.len() >= NOTES
    }

    /// Shows the notes to `look`, those of a page together with its number.
    pub(crate) fn drain(&mut self, mut look: impl FnMut(u64, &[Note])) {
        let Some(first) = self.notes.iter().map(|note| note.page()).min() else { return };
        let last = self.notes.iter().map(|note| note.page()).max().unwrap_or(first);
        if last - first < NOTES as u64 {
            self.sort(first, (last - first) as usize + 1);
        } else {
            // More pages than notes: a table of them would be larger than both lists.
            std::mem::swap(&mut self.notes, &mut self.sorted);
            self.sorted.sort_by_key(|note| note.page());
        }
        self.sorted.chunk_by(|a, b| a.page() == b.page()).for_each(|notes| look(notes[0].page(), notes));
        self.notes.clear();
        self.sorted.clear();
    }

    /// Sorts the notes, which are of `pages` pages from `first` on.
    fn sort(&mut self, first: u64, pages: usize) {
        let page = |note: Note| (note.page() - first) as usize;
        self.places.clear();
        self.places.resize(pages + 1, 0);
        self.notes.iter().for_each(|note| self.places[page(*note) + 1] += 1);
        (1..=pages).for_each(|i| self.places[i] += self.places[i - 1]);
        self.sorted.resize(self.notes.len(), Note::default());
        for note in &self.notes {
            let place = &mut self.places[page(*note)];
            self.sorted[*place as usize] = *note;
            *place += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_is_shown_once_and_those_of_a_page_together_whatever_the_size() {
        for blocks in [1, 100, PAGE, 1 << 20, 1 << 48] {
            let mut batch = Batch::default();
            let notes: Vec<(u64, u8)> = (0..10_000_u64)
                .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks, (i % 16) as u8))
                .collect();
            for _ in 0..2 {
                notes.iter().for_each(|(pbn, value)| assert!(!batch.push(*pbn, *value)));
                let (mut shown, mut pages) = (Vec::new(), Vec::new());
                batch.drain(|page, notes| {
                    pages.push(page);
                    shown.extend(notes.iter().map(|note| (page * PAGE + note.index() as u64, note.value())));
                });
                assert!(pages.is_sorted_by(|a, b| a < b), "of {blocks} blocks");
                let mut expected = notes.clone();
                shown.sort_unstable();
                expected.sort_unstable();
                assert_eq!(shown, expected);
            }
        }
    }

    #[test]
    fn it_says_when_it_is_full() {
        let mut batch = Batch::default();
        assert_eq!((0..NOTES).position(|_| batch.push(3, 0)), Some(NOTES - 1));
        batch.drain(|page, notes| assert_eq!((page, notes.len()), (0, NOTES)));
        batch.drain(|page, _| panic!("page {page} again"));
    }
}
