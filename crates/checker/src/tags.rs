//! What the digest tree says of each block, in half a byte, for the index to be held against.
//!
//! ```text
//!   0        no digest, or no LBN maps to the block
//!   1 to 14  has a digest: so much is kept of it
//!   15       has a digest, and the index knows it
//! ```
//!
//! The index is sorted by digest and the digests by block, so neither can be looked up cheaply in the other.
//! Of the entries that name a block only one can be right, so once a block is known each other entry of it
//! counts as stale, whatever it agrees with. Only where the right entry is missing may a stale one be taken
//! for it, one time in 14.

use crate::batch::Note;
use crate::recount::Page;
use crate::sparse::PAGE;
use rustc_hash::FxHashMap;

/// What a tag may be.
const TAGS: u64 = 14;
/// The index has the block with this digest.
const INDEXED: u8 = 15;
/// Bytes of a page.
const PAGE_BYTES: usize = PAGE as usize / 2;

/// Half a byte for each block.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    pages: FxHashMap<u64, Box<[u8; PAGE_BYTES]>>,
}

/// What is kept of a digest's prefix: 1 to 14. By multiplication (Knuth), because prefixes of a sorted tree
/// differ in their high bits.
pub(crate) fn tag(prefix: u64) -> u8 {
    let bits = prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    1 + ((bits * TAGS) >> 32) as u8
}

/// Byte and shift of a block in its page.
fn place(index: usize) -> (usize, usize) {
    (index / 2, index % 2 * 4)
}

impl Tags {
    /// The block has a digest with this prefix.
    pub(crate) fn set(&mut self, pbn: u64, prefix: u64) {
        let page = self.pages.entry(pbn / PAGE).or_insert_with(|| Box::new([0; PAGE_BYTES]));
        let (byte, shift) = place((pbn % PAGE) as usize);
        page[byte] = page[byte] & !(15 << shift) | tag(prefix) << shift;
    }

    /// The index has these entries, of blocks of one page, noted with the tags of their prefixes: how many of
    /// them are stale.
    pub(crate) fn index(&mut self, number: u64, entries: &[Note]) -> u64 {
        let Some(page) = self.pages.get_mut(&number) else { return entries.len() as u64 };
        let mut stale = 0;
        for note in entries {
            let (byte, shift) = place(note.index());
            let is_good = page[byte] >> shift & 15 == note.value();
            // No branch, so that the processor waits for many of them at once.
            page[byte] |= (INDEXED * u8::from(is_good)) << shift;
            stale += u64::from(!is_good);
        }
        stale
    }

    /// Those of a page's blocks in use that have no digest.
    pub(crate) fn missing(&self, number: u64, used: &Page) -> Vec<u64> {
        let page = self.pages.get(&number);
        let has = |i: &usize| {
            let (byte, shift) = place(*i);
            page.is_some_and(|page| page[byte] >> shift & 15 > 0)
        };
        let missing = (0..PAGE as usize).filter(|i| used.is_used(*i) && !has(i));
        missing.map(|i| number * PAGE + i as u64).collect()
    }

    /// Blocks with a digest that the index does not know.
    pub(crate) fn unindexed(&self) -> u64 {
        let halves = self.pages.values().flat_map(|page| page.iter()).flat_map(|byte| [byte & 15, byte >> 4]);
        halves.filter(|half| (1..INDEXED).contains(half)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;

    /// The index has an entry: whether it is a good one.
    fn index(tags: &mut Tags, pbn: u64, prefix: u64) -> bool {
        let (mut batch, mut stale) = (Batch::default(), 0);
        assert!(!batch.push(pbn, tag(prefix)));
        batch.drain(|page, notes| stale += tags.index(page, notes));
        stale == 0
    }

    #[test]
    fn a_block_has_one_good_entry_and_its_neighbours_keep_their_own() {
        let mut tags = Tags::default();
        (0..100).for_each(|pbn| tags.set(pbn, pbn << 40));
        assert_eq!(tags.unindexed(), 100);
        assert!(index(&mut tags, 7, 7 << 40));
        assert!(!index(&mut tags, 7, 7 << 40), "a key is in a set once");
        assert!(!index(&mut tags, 100, 0) && !index(&mut tags, PAGE, 0), "a block without a digest");
        assert_eq!(tags.unindexed(), 99);
        let others = (0..100).filter(|pbn| *pbn != 7);
        others.for_each(|pbn| assert!(index(&mut tags, pbn, pbn << 40), "PBN {pbn}"));
        assert_eq!(tags.unindexed(), 0);
    }

    #[test]
    fn a_stale_entry_agrees_one_time_in_fourteen() {
        let mut tags = Tags::default();
        (0..PAGE).for_each(|pbn| tags.set(pbn, pbn << 40));
        let stale = |pbn: u64| (pbn << 40) + (pbn + 1) * 0x1_2345_6789;
        let taken = (0..PAGE).filter(|pbn| index(&mut tags, *pbn, stale(*pbn))).count();
        assert!((PAGE as usize / 16..PAGE as usize / 12).contains(&taken), "{taken}");
    }
}
