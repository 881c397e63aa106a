//! Which free data block to write next.
//!
//! The data device's counts are an array tree on the metadata device: a *region* is what one leaf (one
//! [`page`](crate::page)) counts, a *window* the regions below one level-1 node, which keeps their used
//! counts.
//!
//! ```text
//!   level 1   | used 0 | used 1 | ...... | used 253 |      one window = 254 regions = 15.7 GiB of 4 KiB blocks
//!                 |        |                  |
//!   level 0   region 0  region 1  ......  region 253       16256 blocks each, 2 bits a block
//! ```
//!
//! Blocks are taken from one *open* region, ascending, so that the new blocks of a batch lie side by side and
//! go out as one large write, and their digests fall into few leaves. When it is used up, the next region is
//! the first one after it, going round, that is no fuller than the volume's average. Last in, first out would
//! refill single holes all over the volume, and cost a digest leaf for almost every block written (on an aged
//! volume, ten times the bytes).
//!
//! The tree lags behind: it knows neither the deltas, nor what is reserved or set aside. So whoever opens a
//! region says for which blocks the page is wrong, and a region may turn out to have nothing free although
//! its used count said otherwise. Such a *barren* region is passed over until a search has found no other, so
//! a full volume is recognised after at most one look at each region. The other way round, a region that the
//! tree calls full is not once a block of it was given back: so every free block is found, without a
//! checkpoint that would tell the tree.
//!
//! Invariants: a block is given out at most once for each time its region is opened or it is given back;
//! block 0, the device's label, never; nor any block that the page or the overrides call busy.
//!
//! Not here: reading the tree, knowing the deltas, counting references. A region's number is that of its
//! page.

use crate::page::{self, COUNTS_PER_PAGE, GROUPS_PER_PAGE};
use std::collections::BTreeSet;
use std::ops::Range;

/// Blocks in a region: the counts of one page.
pub const REGION_BLOCKS: u64 = COUNTS_PER_PAGE as u64;
/// Regions in a window: the 16-byte entries that fit the 4064 bytes of a count tree's level-1 node.
pub const REGIONS_PER_WINDOW: u64 = 254;

/// The block that holds the device's label.
const LABEL: u64 = 0;

/// The allocator of data blocks: the open region, and how the next is chosen.
#[derive(Clone, Debug)]
pub struct Regions {
    blocks: u64,
    cursor: u64,
    open: Option<OpenRegion>,
    /// Regions that had nothing free when opened, and have had nothing given back since.
    barren: BTreeSet<u64>,
    /// Regions that have had something given back since they were last opened, so that they are not full
    /// whatever the tree says.
    refilled: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
struct OpenRegion {
    /// Bit set = may be given out.
    free: Box<[u64; GROUPS_PER_PAGE]>,
    available: u64,
    /// No group before this one has a bit set, so that what is used up is not looked at again and again.
    first: usize,
}

impl Regions {
    /// The allocator for a device of `blocks` blocks. The first search begins at region `cursor`: what
    /// [`cursor`](Self::cursor) said before the volume was closed, or 0. (Beyond the end, as after a shrink,
    /// is taken as 0.)
    pub fn new(blocks: u64, cursor: u64) -> Self {
        let cursor = if cursor < blocks.div_ceil(REGION_BLOCKS) { cursor } else { 0 };
        Self { blocks, cursor, open: None, barren: BTreeSet::new(), refilled: BTreeSet::new() }
    }

    /// Regions on the device; the last may be smaller than the others.
    pub fn region_count(&self) -> u64 {
        self.blocks.div_ceil(REGION_BLOCKS)
    }

    /// Blocks that region `region` can give out when it is empty.
    pub fn capacity(&self, region: u64) -> u64 {
        let range = self.range(region);
        range.end - range.start - u64::from(range.contains(&LABEL))
    }

    /// The open region, if one is.
    pub fn current(&self) -> Option<u64> {
        self.open.is_some().then_some(self.cursor)
    }

    /// Blocks that the open region can still give out.
    pub fn available(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.available)
    }

    /// Where to go on after a restart, for the superblock: the open region, or where the first search would
    /// begin.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Takes up to `n` blocks from the open region: the lowest free ones, as ascending runs of which no two
    /// touch. Fewer than `n` if the region has no more, none if no region is open.
    pub fn take(&mut self, n: u64) -> Vec<Range<u64>> {
        let base = self.cursor * REGION_BLOCKS;
        let Some(open) = &mut self.open else { return Vec::new() };
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut missing = n.min(open.available);
        open.available -= missing;
        while missing > 0 && open.first < GROUPS_PER_PAGE {
            let group = open.first;
            let free = &mut open.free[group];
            while missing > 0 && *free != 0 {
                let first = free.trailing_zeros();
                let len = u64::from((*free >> first).trailing_ones()).min(missing);
                *free &= !(u64::MAX >> (64 - len) << first);
                missing -= len;
                let start = base + group as u64 * 64 + u64::from(first);
                match runs.last_mut() {
                    Some(run) if run.end == start => run.end += len,
                    _ => runs.push(start..start + len),
                }
            }
            open.first += usize::from(*free == 0);
        }
        runs
    }

    /// Takes back a block that was taken and not used. In the open region it can be taken again at once;
    /// elsewhere the region's next opening finds it.
    ///
    /// # Panics
    /// If there is no such block to take, or it is free in the open region.
    pub fn give_back(&mut self, pbn: u64) {
        assert!(
            pbn != LABEL && pbn < self.blocks,
            "block {pbn} given back to a device of {} blocks",
            self.blocks
        );
        let (region, i) = (pbn / REGION_BLOCKS, (pbn % REGION_BLOCKS) as usize);
        self.barren.remove(&region);
        if self.current() == Some(region)
            && let Some(open) = &mut self.open
        {
            assert!(
                open.free[i / 64] & 1 << (i % 64) == 0,
                "block {pbn} of open region {region} given back twice"
            );
            open.set(i, true);
        } else {
            self.refilled.insert(region);
        }
    }

    /// Of a region some blocks were called busy that are free, or may be soon: it counts as one that had
    /// something given back.
    pub fn reconsider(&mut self, region: u64) {
        self.refilled.insert(region);
    }

    /// Makes `region` the open one.
    ///
    /// `page` holds its counts as the tree has them, `None` if the tree has no leaf there (all free).
    /// `overrides` says of single blocks of the region what is newer than that: `(pbn, true)` for one that
    /// must not be given out (counted by a delta, reserved, read, set aside), `(pbn, false)` for one that is
    /// free although the page says used. Any order; the last word on a block counts. Blocks taken earlier and
    /// neither counted in the page nor given back have to be among the busy ones.
    ///
    /// # Panics
    /// If the region or an override is out of range, or the page has a wrong length.
    pub fn open(
        &mut self,
        region: u64,
        page: Option<&[u8]>,
        overrides: impl IntoIterator<Item = (u64, bool)>,
    ) {
        let range = self.range(region);
        let mut free = Box::new([u64::MAX; GROUPS_PER_PAGE]);
        if let Some(page) = page {
            free.iter_mut().enumerate().for_each(|(group, word)| *word = page::free_group(page, group));
        }
        // The end goes before the overrides, which cannot name a block past it, and the label after them.
        let len = (range.end - range.start) as usize;
        for i in len..COUNTS_PER_PAGE {
            free[i / 64] &= !(1 << (i % 64));
        }
        let available = free.iter().map(|word| u64::from(word.count_ones())).sum();
        let mut open = OpenRegion { free, available, first: 0 };
        for (pbn, busy) in overrides {
            assert!(
                range.contains(&pbn),
                "override for block {pbn} while opening region {region}, blocks {range:?}"
            );
            open.set((pbn - range.start) as usize, !busy);
        }
        if range.contains(&LABEL) {
            open.set((LABEL - range.start) as usize, false);
        }
        if open.available == 0 {
            self.barren.insert(region);
        } else {
            self.barren.remove(&region);
        }
        self.refilled.remove(&region);
        self.cursor = region;
        self.open = Some(open);
    }

    /// Closes the open region: what it can still give out was found with other overrides than hold now.
    /// Barren regions are considered again, and the next search begins here.
    pub fn close(&mut self) {
        if self.available() > 0 {
            self.refilled.insert(self.cursor);
        }
        self.open = None;
        self.barren.clear();
    }

    /// Chooses the region to open next, without opening it: going up from the one after the open region and
    /// round at the end, the first with at most `average_used` blocks in use; if there is none, the first
    /// that is not full. Barren regions are passed over. `None` if no region is left; all barren ones are
    /// then considered again, for a caller that has reclaimed space and asks once more.
    ///
    /// `window_used(w)` gives the used counts of regions `w * 254 ..`, `None` if all of them are empty;
    /// counts missing at the end are 0. One search asks for each window at most once.
    pub fn next_region<E>(
        &mut self,
        window_used: impl Fn(u64) -> Result<Option<Vec<u64>>, E>,
        average_used: u64,
    ) -> Result<Option<u64>, E> {
        let regions = self.region_count();
        let start = match self.current() {
            Some(open) if open + 1 < regions => open + 1,
            Some(_) => 0,
            None => self.cursor,
        };
        // The first window is looked at twice, at first from `start` on and at last for what is before it:
        // its counts are kept.
        let first_window = start / REGIONS_PER_WINDOW;
        let windows = regions.div_ceil(REGIONS_PER_WINDOW);
        let first_used = if regions > 0 { window_used(first_window)? } else { None };
        let mut not_full = None;
        for turn in 0..=windows {
            let window = (first_window + turn) % windows.max(1);
            let other = if window == first_window { None } else { window_used(window)? };
            let used = if window == first_window { &first_used } else { &other };
            let mut candidates = window * REGIONS_PER_WINDOW..regions.min((window + 1) * REGIONS_PER_WINDOW);
            if turn == 0 {
                candidates.start = start;
            }
            for region in candidates {
                let at = (region % REGIONS_PER_WINDOW) as usize;
                let used = used.as_ref().and_then(|used| used.get(at)).copied().unwrap_or(0);
                let is_full = used >= self.capacity(region) && !self.refilled.contains(&region);
                if is_full || self.barren.contains(&region) {
                    continue;
                }
                if used <= average_used {
                    return Ok(Some(region));
                }
                not_full = not_full.or(Some(region));
            }
        }
        if not_full.is_none() {
            self.barren.clear();
        }
        Ok(not_full)
    }

    /// The blocks of a region.
    fn range(&self, region: u64) -> Range<u64> {
        let regions = self.region_count();
        assert!(region < regions, "region {region} of a device of {regions} regions");
        region * REGION_BLOCKS..self.blocks.min((region + 1) * REGION_BLOCKS)
    }
}

impl OpenRegion {
    fn set(&mut self, i: usize, free: bool) {
        let word = &mut self.free[i / 64];
        self.available -= *word >> (i % 64) & 1;
        *word = *word & !(1 << (i % 64)) | u64::from(free) << (i % 64);
        self.available += u64::from(free);
        if free {
            self.first = self.first.min(i / 64);
        }
    }
}
