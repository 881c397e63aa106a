//! The metadata device's space map, in memory: 2 bits of count and 1 bit of hold for each block.
//!
//! ```text
//!                allocate                     release (freed by the transaction that allocated it)
//!   free  ----------------------->  used  ------------------------------------------------->  free
//!    ^                               |
//!    |  unhold                       |  free_held (freed by a later transaction)
//!    +------------  held  <----------+
//! ```
//!
//! A *held* block has count 0 and still must not be written: an older superblock or a reader reaches it
//! (invariant I1; [`Generations`](crate::Generations) says for how long). The hold is not part of what a page
//! stores: after an open the holds follow from the two superblocks' maps.
//!
//! Invariants: `allocatable` = blocks with count 0 and no hold; the hold bits past the device's end are
//! always set, so that a search never yields a block that does not exist, and the counts there are always 0.
//!
//! Not here: counts of 3 and more (no metadata block has them today), encoding to blocks, I/O.

use crate::page::{self, COUNTS_PER_PAGE, GROUPS_PER_PAGE, MAX_COUNT, PAGE_BYTES};

/// Why a page from a device was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Not the bytes of one page.
    #[error("space map page {page}: expected {expected} bytes, found {found}")]
    Length {
        /// Which page.
        page: usize,
        /// [`PAGE_BYTES`].
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A block that the device does not have is counted as used.
    #[error(
        "space map page {page}: block {block} has count {count}, but the device ends after {blocks} blocks"
    )]
    PastEnd {
        /// Which page.
        page: usize,
        /// The first such block.
        block: u64,
        /// Its count; 0 was expected.
        count: u8,
        /// Blocks on the device.
        blocks: u64,
    },
}

/// The counts and holds of every block of the metadata device.
#[derive(Clone, Debug)]
pub struct SpaceMap {
    blocks: u64,
    /// The pages, one after the other.
    counts: Vec<u8>,
    /// A bit for each block, [`GROUPS_PER_PAGE`] words a page.
    held: Vec<u64>,
    /// Allocatable blocks of each page, so that a search skips full pages.
    free: Vec<u16>,
    dirty: Vec<bool>,
    in_use: u64,
    allocatable: u64,
    /// Where the next search begins.
    cursor: u64,
}

const _: () = assert!(COUNTS_PER_PAGE <= u16::MAX as usize);

impl SpaceMap {
    /// The map of a device of `blocks` blocks, all free, no page dirty.
    ///
    /// # Panics
    /// If the map cannot be addressed in memory.
    pub fn new(blocks: u64) -> Self {
        let pages = usize::try_from(blocks.div_ceil(COUNTS_PER_PAGE as u64))
            .expect("a map that fits the address space");
        let mut map = Self {
            blocks,
            counts: vec![0; pages * PAGE_BYTES],
            held: vec![0; pages * GROUPS_PER_PAGE],
            free: vec![COUNTS_PER_PAGE as u16; pages],
            dirty: vec![false; pages],
            in_use: 0,
            allocatable: blocks,
            cursor: 0,
        };
        let capacity = (pages * COUNTS_PER_PAGE) as u64;
        // A word at a time: a test opens thousands of small devices, most of whose one page this is.
        let first = (blocks / 64) as usize;
        if let Some((partly, whole)) = map.held.get_mut(first..).and_then(<[u64]>::split_first_mut) {
            *partly = u64::MAX << (blocks % 64);
            whole.fill(u64::MAX);
        }
        if let Some(last) = map.free.last_mut() {
            *last -= (capacity - blocks) as u16;
        }
        map
    }

    /// Blocks on the device.
    pub fn len(&self) -> u64 {
        self.blocks
    }

    /// Whether the device has no block at all.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Blocks with a count above 0.
    pub fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Blocks that [`allocate`](Self::allocate) can still give out.
    pub fn allocatable(&self) -> u64 {
        self.allocatable
    }

    /// The count of `block`, 0 to [`MAX_COUNT`].
    pub fn count(&self, block: u64) -> u8 {
        let (page, i) = self.locate(block);
        page::get(self.page(page), i)
    }

    /// Whether `block` is held.
    pub fn is_held(&self, block: u64) -> bool {
        self.locate(block);
        self.held[(block / 64) as usize] & 1 << (block % 64) != 0
    }

    /// Gives out the first allocatable block at or after the one given out last, going round at the end:
    /// consecutive calls give consecutive blocks wherever these are free. Its count becomes 1. `None` if no
    /// block is allocatable.
    pub fn allocate(&mut self) -> Option<u64> {
        let (first, from) = (self.cursor / COUNTS_PER_PAGE as u64, self.cursor % COUNTS_PER_PAGE as u64);
        let (first, pages) = (first as usize, self.page_count());
        let block =
            (first < pages).then(|| self.find_in_page(first, from as usize)).flatten().or_else(|| {
                (first + 1..pages).chain(0..pages.min(first + 1)).find_map(|page| self.find_in_page(page, 0))
            });
        assert_eq!(
            block.is_some(),
            self.allocatable > 0,
            "search found {block:?}, allocatable {}",
            self.allocatable
        );
        let block = block?;
        self.change(block, 1, false);
        self.cursor = block + 1;
        Some(block)
    }

    /// Takes back a block that nothing but the running transaction has seen: count 1 to 0, allocatable at
    /// once.
    ///
    /// # Panics
    /// If its count is not 1, or it is held.
    pub fn release(&mut self, block: u64) {
        self.expect(block, "release", 1, false);
        self.change(block, 0, false);
    }

    /// Frees a block that an older superblock or a reader still reaches: count 1 to 0, and held.
    ///
    /// # Panics
    /// If its count is not 1, or it is held.
    pub fn free_held(&mut self, block: u64) {
        self.expect(block, "free_held", 1, false);
        self.change(block, 0, true);
    }

    /// Keeps a free block from being given out.
    ///
    /// # Panics
    /// If its count is not 0, or it is held already.
    pub fn hold(&mut self, block: u64) {
        self.expect(block, "hold", 0, false);
        self.change(block, 0, true);
    }

    /// Ends a hold.
    ///
    /// # Panics
    /// If the block's count is not 0, or it is not held.
    pub fn unhold(&mut self, block: u64) {
        self.expect(block, "unhold", 0, true);
        self.change(block, 0, false);
    }

    /// Sets a count without regard to its old value (when the map is recomputed by a walk of the trees). The
    /// hold stays, and matters again once the count is 0.
    pub fn set_count(&mut self, block: u64, count: u8) {
        assert!(count <= MAX_COUNT, "block {block} set to count {count}, at most {MAX_COUNT} fits");
        self.change(block, count, self.is_held(block));
    }

    /// Pages of the map.
    pub fn page_count(&self) -> usize {
        self.dirty.len()
    }

    /// The [`PAGE_BYTES`] of page `i`, as they go to a device.
    pub fn page(&self, i: usize) -> &[u8] {
        &self.counts[i * PAGE_BYTES..][..PAGE_BYTES]
    }

    /// Replaces page `i` by what a device returned; the page is then not dirty. Holds stay. On an error
    /// nothing changes.
    pub fn load_page(&mut self, i: usize, bytes: &[u8]) -> Result<(), LoadError> {
        if bytes.len() != PAGE_BYTES {
            return Err(LoadError::Length { page: i, expected: PAGE_BYTES, found: bytes.len() });
        }
        let base = i as u64 * COUNTS_PER_PAGE as u64;
        // Only the last page can reach past the end, so only there is each count looked at.
        if base + COUNTS_PER_PAGE as u64 > self.blocks {
            let past = page::iter(bytes)
                .map(|(at, count)| (base + at as u64, count))
                .find(|(b, _)| *b >= self.blocks);
            if let Some((block, count)) = past {
                return Err(LoadError::PastEnd { page: i, block, count, blocks: self.blocks });
            }
        }
        self.in_use = self.in_use - page::used(self.page(i)) + page::used(bytes);
        self.counts[i * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(bytes);
        let free: u32 = (0..GROUPS_PER_PAGE).map(|group| self.allocatable_group(i, group).count_ones()).sum();
        self.allocatable = self.allocatable - u64::from(self.free[i]) + u64::from(free);
        self.free[i] = free as u16; // at most COUNTS_PER_PAGE, which fits
        self.dirty[i] = false;
        Ok(())
    }

    /// The pages whose counts changed since [`clear_dirty`](Self::clear_dirty), ascending.
    pub fn dirty_pages(&self) -> impl Iterator<Item = usize> + '_ {
        self.dirty.iter().enumerate().filter(|(_, dirty)| **dirty).map(|(i, _)| i)
    }

    /// Says that every page has been written as it is now.
    pub fn clear_dirty(&mut self) {
        self.dirty.fill(false);
        debug_assert_eq!(
            self.free.iter().map(|free| u64::from(*free)).sum::<u64>(),
            self.allocatable,
            "the pages' free blocks, and those of the map"
        );
    }

    fn locate(&self, block: u64) -> (usize, usize) {
        assert!(block < self.blocks, "block {block} of a device of {} blocks", self.blocks);
        ((block / COUNTS_PER_PAGE as u64) as usize, (block % COUNTS_PER_PAGE as u64) as usize)
    }

    fn expect(&self, block: u64, operation: &str, count: u8, held: bool) {
        let (found, found_held) = (self.count(block), self.is_held(block));
        assert!(
            (found, found_held) == (count, held),
            "{operation} of block {block}: expected count {count}, held {held}; found count {found}, held {found_held}"
        );
    }

    /// Brings a block to a count and a hold, and every total with it.
    fn change(&mut self, block: u64, count: u8, held: bool) {
        let (page, i) = self.locate(block);
        let (old_count, old_held) = (self.count(block), self.is_held(block));
        if count != old_count {
            page::set(&mut self.counts[page * PAGE_BYTES..][..PAGE_BYTES], i, count);
            self.dirty[page] = true;
            self.in_use = self.in_use - u64::from(old_count > 0) + u64::from(count > 0);
        }
        if held != old_held {
            self.held[(block / 64) as usize] ^= 1 << (block % 64);
        }
        let (was, is) = (old_count == 0 && !old_held, count == 0 && !held);
        self.free[page] = self.free[page] - u16::from(was) + u16::from(is);
        self.allocatable = self.allocatable - u64::from(was) + u64::from(is);
    }

    /// The first allocatable block of a page at or after its block number `from`.
    fn find_in_page(&self, page: usize, from: usize) -> Option<u64> {
        if self.free[page] == 0 {
            return None;
        }
        (from / 64..GROUPS_PER_PAGE).find_map(|group| {
            let mut free = self.allocatable_group(page, group);
            if group == from / 64 {
                free &= u64::MAX << (from % 64);
            }
            let at = (page * COUNTS_PER_PAGE + group * 64) as u64 + u64::from(free.trailing_zeros());
            (free != 0).then_some(at)
        })
    }

    fn allocatable_group(&self, page: usize, group: usize) -> u64 {
        page::free_group(self.page(page), group) & !self.held[page * GROUPS_PER_PAGE + group]
    }
}
