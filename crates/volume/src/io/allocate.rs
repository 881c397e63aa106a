//! Taking free data blocks, and giving freed ones back: what the [allocator](crate::engine::space) does with
//! the help of the rest.

#[cfg(test)]
mod tests;

use crate::engine::Engine;
use crate::engine::set_aside::PROBE_BLOCKS;
use crate::engine::space::{Allocator, Places, Taken};
use crate::error::VolumeError;
use crate::state::State;
use crate::state::delta::Delta;
use dedup_btree::LeafCodec;
use dedup_meta::MetaError;
use dedup_schema::{COUNTS, CountLeaf, Pbn, Seq};
use dedup_sync::{Arc, Place, Signal};
use std::ops::Range;

/// Bytes that are preallocated at a time: of a file system's time next to none, of its space little.
const PREALLOCATED: u64 = 16 << 20;

impl Engine {
    /// To be called before these bytes of the data device are written, in rising order. Free blocks are given
    /// out in rising order, so hardly any write is the first one behind what is preallocated. That there is
    /// no space for more is not said here: the write may need none.
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
    /// if there are no more, if they are probes, or if others have been waiting for them.
    pub(crate) fn allocate(
        &self,
        n: usize,
        places: Places,
        place: &Place<'_>,
    ) -> Result<Vec<Pbn>, VolumeError> {
        let mut taken = Vec::with_capacity(n);
        if n == 0 {
            return Ok(taken);
        }
        let mut allocator = self.space.allocator.lock();
        if !place.is_first() {
            return Ok(taken);
        }
        let probes = places == Places::Probes && allocator.set_aside.is_full_below();
        if allocator.is_exhausted && !probes {
            return Ok(taken);
        }
        let n = if probes { n.min(PROBE_BLOCKS) } else { n };
        if probes {
            allocator.regions.close();
        }
        while taken.len() < n {
            let runs = allocator.regions.take((n - taken.len()) as u64);
            for pbn in runs.into_iter().flatten().map(Pbn) {
                allocator.reserved.insert(pbn);
                taken.push(pbn);
            }
            if taken.len() == n {
                break;
            }
            match self.open_region(&mut allocator, probes) {
                Ok(true) => {}
                Ok(false) if allocator.take_back_discards() => {}
                // What the device is working on is all that is left. Whoever works on it waits for nothing
                // else.
                Ok(false) if taken.is_empty() && allocator.discards.is_under_way() => {
                    allocator = self.space.discarded.wait(allocator);
                }
                Ok(false) if probes && taken.is_empty() && allocator.set_aside.forget_refusals() => {
                    allocator.regions.close();
                }
                Ok(false) => break,
                Err(error) => {
                    drop(allocator);
                    self.space.give_back(taken);
                    return Err(error);
                }
            }
        }
        if probes {
            allocator.set_aside.probing(&taken);
            // Nobody else takes what is left of a region that was opened for probes.
            allocator.regions.close();
        } else {
            allocator.is_exhausted = taken.is_empty() && allocator.set_aside.is_full_below();
        }
        Ok(taken)
    }

    /// Opens the next region that may have a free block; `false` if there is none. While the file system
    /// below is full, blocks in holes are free only if asked for.
    fn open_region(&self, allocator: &mut Allocator, holes: bool) -> Result<bool, VolumeError> {
        loop {
            let (pin, average_used) = {
                let state = self.state.lock();
                if self.free_blocks(&state, &allocator.taken()) == 0 {
                    return Ok(false);
                }
                let regions = allocator.regions.region_count().max(1);
                (self.pin_as_of(&state), state.data_used / regions)
            };
            let root = pin.tables.counts;
            let window_used = |window| COUNTS.children(&self.store, &root, window);
            let Some(region) = allocator.regions.next_region::<MetaError>(window_used, average_used)? else {
                return Ok(false);
            };
            let page = COUNTS.leaf(&self.store, &root, region)?;
            let blocks = region * CountLeaf::PER_LEAF..((region + 1) * CountLeaf::PER_LEAF).min(self.pbns);
            let state = self.state.lock();
            let Some(installed) = state.history.since(pin.tables.txid) else { continue };
            let mut overrides = out_of_date(&state, installed, allocator, blocks.clone());
            drop(state);
            let without_holes = allocator.set_aside.is_full_below() && !holes;
            if without_holes {
                overrides.extend(self.holes(blocks).map(|pbn| (pbn, true)));
            }
            allocator.regions.open(region, page.as_ref().map(|p| p.payload.as_slice()), overrides);
            if without_holes {
                allocator.regions.reconsider(region);
            }
            return Ok(true);
        }
    }

    /// Frees whose commit is durable and that no reader can reach go back to the allocator, by way of a
    /// discard if those are on.
    pub(crate) fn release_freed(&self, durable: Seq) {
        let oldest = self.pins.oldest_seq();
        self.release(|state| state.quarantine.release(durable, oldest));
    }

    /// Frees that waited for a checkpoint do the same.
    pub(crate) fn release_checkpointed(&self) {
        self.release(|state| state.quarantine.checkpointed());
    }

    fn release(&self, take: impl FnOnce(&mut State) -> Vec<Pbn>) {
        // Under the allocator's lock, so that no region is opened between the two steps: it would give the
        // blocks out already.
        let mut allocator = self.space.allocator.lock();
        let released = take(&mut self.state.lock());
        for pbn in &released {
            if !self.options.discard || !allocator.discards.add(*pbn) {
                allocator.free([pbn.0]);
            }
        }
        // What waits for its discard can be taken back.
        allocator.is_exhausted &= released.is_empty();
        drop(allocator);
        if !released.is_empty() {
            // Otherwise whoever waits would wake itself, again and again.
            self.pins.blocks.changed();
        }
        if self.options.discard && !released.is_empty() {
            self.wakeup.raise(Signal::Discard);
        }
    }

    /// How many blocks are free. What was published a moment ago is taken twice: it is still among the
    /// reserved, and its writer will say when it is not.
    pub(crate) fn free_blocks(&self, state: &State, taken: &Taken) -> u64 {
        let freed = state.quarantine.census().all;
        (self.pbns - 1).saturating_sub(state.data_used + taken.reserved + taken.set_aside + freed)
    }

    /// Blocks of a range that have no space of their own on the data device.
    fn holes(&self, blocks: Range<u64>) -> impl Iterator<Item = u64> + use<> {
        let size = self.block_size;
        let (mut backed, mut at, end) = (Vec::new(), blocks.start * size, blocks.end * size);
        while at < end {
            match self.data.allocated(at..end) {
                Ok(Some(bytes)) => {
                    backed.push(bytes.start.div_ceil(size)..bytes.end / size);
                    at = bytes.end;
                }
                Ok(None) => break,
                // Nothing is known: each may be tried.
                Err(_) => {
                    backed.push(at / size..blocks.end);
                    break;
                }
            }
        }
        let starts = std::iter::once(blocks.start).chain(backed.clone().into_iter().map(|range| range.end));
        let ends = backed.into_iter().map(|range| range.start).chain(std::iter::once(blocks.end));
        starts.zip(ends.collect::<Vec<_>>()).flat_map(|(start, end)| start..end)
    }

    /// The last operation published so far.
    pub(crate) fn published_seq(&self) -> Seq {
        self.state.lock().seq
    }
}

/// For which blocks of `range` the count page of the last checkpoint does not tell whether they are free.
fn out_of_date<'s>(
    state: &'s State,
    installed: impl Iterator<Item = &'s Arc<Delta>>,
    allocator: &Allocator,
    range: Range<u64>,
) -> Vec<(u64, bool)> {
    let range = Pbn(range.start)..Pbn(range.end);
    let mut overrides = Vec::new();
    // The last word on a block is the newest delta's.
    let deltas = state.layers.deltas().collect::<Vec<_>>().into_iter().rev();
    for delta in installed.map(|delta| &**delta).chain(deltas) {
        overrides.extend(delta.blocks.range(range.clone()).map(|(pbn, change)| (pbn.0, change.count > 0)));
    }
    overrides.extend(state.quarantine.range(range.clone()).map(|pbn| (pbn.0, true)));
    overrides.extend(allocator.discards.within(range.start.0..range.end.0).map(|pbn| (pbn, true)));
    // What writes in flight hold, and the few whose write failed: not many to go through.
    let busy = allocator.reserved.iter().copied().chain(allocator.set_aside.iter());
    overrides.extend(busy.filter(|pbn| range.contains(pbn)).map(|pbn| (pbn.0, true)));
    overrides
}
