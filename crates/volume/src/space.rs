//! Data blocks for new content: from the open region of the data device, region after region.
//!
//! The policy is [`dedup_spacemap::Regions`]; this file gives it what it must know: the count pages of the
//! last checkpoint, and every block for which they are out of date (counted by a delta, reserved by a write
//! in flight, or in quarantine).
//!
//! Lock order: the allocator's lock before the state's.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::fault::{Fault, Planted};
use crate::ids::{Pbn, Seq};
use crate::mapping::{COUNTS, CountLeaf};
use crate::state::State;
use crate::sync::Mutex;
use dedup_btree::LeafCodec;
use dedup_meta::MetaError;
use dedup_spacemap::Regions;
use rustc_hash::FxHashSet;
use std::ops::Range;

/// The allocator of data blocks.
#[derive(Debug)]
pub(crate) struct Space {
    allocator: Mutex<Allocator>,
    /// Bytes of the data device that were last preallocated.
    preallocated: Mutex<Range<u64>>,
}

#[derive(Debug)]
struct Allocator {
    regions: Regions,
    /// Given out and not yet published; and for good, until a reopen, those whose write failed.
    reserved: FxHashSet<Pbn>,
}

impl Space {
    /// An allocator for a device of `blocks` blocks whose cursor stands at region `cursor`.
    pub(crate) fn new(blocks: u64, cursor: u64) -> Self {
        let allocator = Allocator { regions: Regions::new(blocks, cursor), reserved: FxHashSet::default() };
        Self { allocator: Mutex::new(allocator), preallocated: Mutex::new(0..0) }
    }

    /// Where to go on after a reopen.
    pub(crate) fn cursor(&self) -> u64 {
        self.allocator.lock().regions.cursor()
    }

    /// These blocks are published: counts protect them from now on.
    pub(crate) fn published(&self, pbns: impl IntoIterator<Item = Pbn>) {
        let mut allocator = self.allocator.lock();
        for pbn in pbns {
            allocator.reserved.remove(&pbn);
        }
    }

    /// These blocks were not used after all.
    pub(crate) fn give_back(&self, pbns: impl IntoIterator<Item = Pbn>) {
        let mut allocator = self.allocator.lock();
        for pbn in pbns {
            allocator.reserved.remove(&pbn);
            allocator.regions.give_back(pbn.0);
        }
    }
}

/// Bytes that are preallocated at a time: of a file system's time next to none, of its space little.
const PREALLOCATED: u64 = 16 << 20;

impl Engine {
    /// To be called before these bytes of the data device are written, in rising order. Free blocks are given out in rising order, so
    /// hardly any write is the first one behind what is preallocated. That there is no space for more is not said here: the write may
    /// need none.
    pub(crate) fn preallocate(&self, bytes: Range<u64>) {
        let mut last = self.space.preallocated.lock();
        if last.start <= bytes.start && bytes.end <= last.end {
            return;
        }
        let end = bytes.end.max(bytes.start.saturating_add(PREALLOCATED)).min(self.pbns * self.block_size);
        *last = bytes.start..end;
        drop(last);
        if let Err(error) = self.data.preallocate(bytes.start, end - bytes.start) {
            tracing::debug!("no space was preallocated on the data device: {error}");
        }
    }

    /// Reserves up to `n` free blocks, consecutive as far as possible, ascending within a region. Fewer only
    /// if there are no more.
    pub(crate) fn allocate(&self, n: usize) -> Result<Vec<Pbn>, VolumeError> {
        let mut taken = Vec::with_capacity(n);
        if n == 0 {
            return Ok(taken);
        }
        if self.planted(Fault::FreedReusedBeforeCommit) {
            self.release_freed(self.published_seq());
        }
        let mut allocator = self.space.allocator.lock();
        while taken.len() < n {
            let runs = allocator.regions.take((n - taken.len()) as u64);
            for pbn in runs.into_iter().flatten().map(Pbn) {
                allocator.reserved.insert(pbn);
                taken.push(pbn);
            }
            if taken.len() == n {
                break;
            }
            match self.open_region(&mut allocator) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    drop(allocator);
                    self.space.give_back(taken);
                    return Err(error);
                }
            }
        }
        Ok(taken)
    }

    /// Opens the next region that may have a free block; `false` if there is none.
    fn open_region(&self, allocator: &mut Allocator) -> Result<bool, VolumeError> {
        loop {
            let (pin, average_used) = {
                let state = self.state.lock();
                let regions = allocator.regions.region_count().max(1);
                (self.pins.pin(state.seq, state.layers.tables().clone()), state.data_used / regions)
            };
            let root = pin.tables.counts;
            let window_used = |window| COUNTS.children(&self.store, &root, window);
            let Some(region) = allocator.regions.next_region::<MetaError>(window_used, average_used)? else {
                return Ok(false);
            };
            let page = COUNTS.leaf(&self.store, &root, region)?;
            let blocks = region * CountLeaf::PER_LEAF..((region + 1) * CountLeaf::PER_LEAF).min(self.pbns);
            let state = self.state.lock();
            if state.layers.tables().txid != pin.tables.txid {
                continue;
            }
            let overrides = out_of_date(&state, &allocator.reserved, blocks, self.options.planted);
            drop(state);
            allocator.regions.open(region, page.as_ref().map(|p| p.payload.as_slice()), overrides);
            return Ok(true);
        }
    }

    /// Does the next thing that can free blocks when there are none (rule R9): first commit and wait for
    /// readers of what was freed, then up to two checkpoints, after which frees waiting for one are released
    /// and the counts that the policy goes by are exact. To be called without a pin. `false` when nothing is
    /// left to try.
    pub(crate) fn reclaim(&self, attempt: u32) -> Result<bool, VolumeError> {
        match attempt {
            _ if self.planted(Fault::ReclaimSkipped) => return Ok(false),
            0 => {
                let (newest, seq) = {
                    let state = self.state.lock();
                    (state.quarantine.newest(), state.seq)
                };
                self.commit(seq)?;
                if let Some(newest) = newest {
                    self.pins.wait_past(newest);
                }
                self.release_freed(self.commits.durable());
            }
            1 | 2 => self.checkpoint()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Frees whose commit is durable and that no reader can reach go back to the allocator, by way of a
    /// discard if those are on.
    pub(crate) fn release_freed(&self, durable: Seq) {
        let discards = self.options.discard;
        let oldest = self.pins.oldest_seq().filter(|_| !self.planted(Fault::FreedReusedUnderReader));
        self.release(|state| state.quarantine.release(durable, oldest, discards));
    }

    /// Frees that waited for a checkpoint do the same.
    pub(crate) fn release_checkpointed(&self) {
        let discards = self.options.discard;
        self.release(|state| state.quarantine.checkpointed(discards));
    }

    fn release(&self, take: impl FnOnce(&mut State) -> Vec<Pbn>) {
        // Under the allocator's lock, so that no region is opened between the two steps: it would give the
        // blocks out already.
        let mut allocator = self.space.allocator.lock();
        let released = take(&mut self.state.lock());
        if !self.options.discard {
            released.iter().for_each(|pbn| allocator.regions.give_back(pbn.0));
            return;
        }
        if self.planted(Fault::ReusedWhileDiscarding) {
            self.state.lock().quarantine.discarded(&released);
            released.iter().for_each(|pbn| allocator.regions.give_back(pbn.0));
        }
        drop(allocator);
        self.discard(released);
    }

    /// Tells the data device that freed blocks are not needed; they can be reused when it has answered.
    fn discard(&self, pbns: Vec<Pbn>) {
        for run in runs(pbns.iter().map(|p| p.0)) {
            let (offset, len) = (run.start * self.block_size, (run.end - run.start) * self.block_size);
            if let Err(error) = self.data.discard(offset, len) {
                tracing::warn!("discard of {len} bytes at {offset} on the data device: {error}");
            }
        }
        if self.planted(Fault::ReusedWhileDiscarding) {
            return;
        }
        let mut allocator = self.space.allocator.lock();
        self.state.lock().quarantine.discarded(&pbns);
        pbns.iter().for_each(|pbn| allocator.regions.give_back(pbn.0));
    }

    /// The last operation published so far.
    pub(crate) fn published_seq(&self) -> Seq {
        self.state.lock().seq
    }
}

/// For which blocks of `range` the count page of the last checkpoint does not tell whether they are free.
fn out_of_date(
    state: &State,
    reserved: &FxHashSet<Pbn>,
    range: Range<u64>,
    planted: Planted,
) -> Vec<(u64, bool)> {
    let range = Pbn(range.start)..Pbn(range.end);
    let mut overrides = Vec::new();
    // The last word on a block is the newest delta's.
    for delta in state.layers.deltas().collect::<Vec<_>>().into_iter().rev() {
        overrides.extend(delta.blocks.range(range.clone()).map(|(pbn, change)| (pbn.0, change.count > 0)));
    }
    if !planted.is(Fault::RegionIgnoresQuarantine) {
        overrides.extend(state.quarantine.range(range.clone()).map(|pbn| (pbn.0, true)));
    }
    // What writes in flight hold, and the few whose write failed: not many to go through.
    overrides.extend(reserved.iter().filter(|pbn| range.contains(pbn)).map(|pbn| (pbn.0, true)));
    overrides
}

/// Consecutive runs of block numbers, sorted first.
pub(crate) fn runs(numbers: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
    let mut numbers: Vec<u64> = numbers.into_iter().collect();
    numbers.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}
