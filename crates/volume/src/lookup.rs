//! Looking up a batch of blocks to be written, without the lock: where each LBN was mapped, whether each content is stored, and the
//! counts that either will change.
//!
//! The deltas are asked first, under the lock and for a moment; what they do not know is looked up in the trees of that very moment,
//! one descent for the whole batch. What comes out is believed only once it has been validated under the lock again.

use crate::digest::{Digest, Fingerprint};
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::fault::Fault;
use crate::ids::{Lbn, Pbn};
use crate::mapping::{DIGESTS, Mapping};
use crate::pins::Pin;
use crate::state::BaseCounts;
use crate::volume::Volume;
use crate::write::BlockWrite;
use dedup_device::AlignedBuf;
use dedup_meta::TxId;
use rustc_hash::FxHashSet;

/// What a lookup made of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Zero,
    /// Stored already, it seems.
    Hit(Pbn),
    Miss,
    /// Somebody is writing the same content.
    Busy(Digest),
}

/// What was found for a round, and the pin that keeps it true enough to be validated.
#[derive(Debug)]
pub(crate) struct Lookup<'e> {
    /// Item, plan.
    pub(crate) plans: Vec<(usize, Plan)>,
    pub(crate) counts: BaseCounts,
    pub(crate) pin: Pin<'e>,
}

impl Volume {
    /// The block that holds content of each of these digests, if one does. It may be freed right after. For measuring the index: writes do
    /// the same, and more.
    #[doc(hidden)]
    pub fn find(&self, digests: &[Digest]) -> Result<Vec<Option<Pbn>>, VolumeError> {
        let engine = &self.engine;
        let (mut found, mut unknown) = (vec![None; digests.len()], Vec::new());
        let pin = {
            let state = engine.state.lock();
            for (place, digest) in digests.iter().enumerate() {
                found[place] = state.find_recent(digest);
                if found[place].is_none() {
                    unknown.push((*digest, place));
                }
            }
            engine.pins.pin(state.seq, state.layers.tables().clone())
        };
        let stored = engine.find_stored(unknown, |_| true, &pin)?;
        let counts = pin.tables.counts(&engine.store, stored.iter().map(|(_, pbn)| *pbn))?;
        let state = engine.state.lock();
        let is_valid =
            |(place, pbn): &(usize, Pbn)| engine.is_valid_hit(&state, *pbn, &digests[*place], &counts);
        stored.into_iter().filter(is_valid).for_each(|(place, pbn)| found[place] = Some(pbn));
        Ok(found)
    }
}

impl Engine {
    /// Finds each block's old mapping and whether its content is stored, and the counts that either will
    /// change.
    pub(crate) fn look_up(&self, slice: &mut [BlockWrite<'_>]) -> Result<Lookup<'_>, VolumeError> {
        let mut plans = Vec::with_capacity(slice.len());
        let (mut unmapped, mut unknown) = (Vec::new(), Vec::new());
        // The pin belongs to the moment at which the deltas are asked: what they do not know, its trees do.
        // With trees from before that moment, what a checkpoint has just moved from the frozen delta to new
        // trees would be found in neither.
        let pin = {
            let state = self.state.lock();
            let claimed = self.claims.view();
            for (item, block) in slice.iter_mut().enumerate().filter(|(_, b)| b.is_pending()) {
                block.old = block.old.or_else(|| state.mapping(block.lbn));
                if block.old.is_none() {
                    unmapped.push(item);
                }
                let plan = match block.print {
                    Fingerprint::Zero => Plan::Zero,
                    Fingerprint::Content { digest, .. } if claimed.contains(&digest) => Plan::Busy(digest),
                    Fingerprint::Content { digest, .. } => match state.find_recent(&digest) {
                        Some(pbn) if !block.rejected.contains(&pbn) => Plan::Hit(pbn),
                        _ => {
                            unknown.push((digest, plans.len()));
                            Plan::Miss
                        }
                    },
                };
                plans.push((item, plan));
            }
            drop(claimed);
            self.pins.pin(state.seq, state.layers.tables().clone())
        };
        self.fill_old_mappings(slice, unmapped, &pin)?;
        // What the neighbours would say of a block that was no match is known.
        let untried = |place: usize| {
            let block = &slice[plans[place].0];
            block.stale.is_empty() && block.rejected.is_empty()
        };
        let found = self.find_stored(unknown, untried, &pin)?;
        for (place, pbn) in found {
            let (item, plan) = &mut plans[place];
            if !slice[*item].rejected.contains(&pbn) && !slice[*item].stale.contains(&pbn) {
                *plan = Plan::Hit(pbn);
            }
        }
        let olds =
            plans.iter().filter_map(|(item, _)| slice[*item].old).filter(Mapping::is_mapped).map(|m| m.pbn);
        let hits =
            plans.iter().filter_map(|(_, plan)| if let Plan::Hit(pbn) = plan { Some(*pbn) } else { None });
        let counts = pin.tables.counts(&self.store, olds.chain(hits))?;
        if self.options.verify_match && !self.planted(Fault::BytesNotCompared) {
            self.compare_bytes(slice, &mut plans, &counts, pin.tables.txid);
        }
        Ok(Lookup { plans, counts, pin })
    }

    fn fill_old_mappings(
        &self,
        slice: &mut [BlockWrite<'_>],
        mut items: Vec<usize>,
        pin: &Pin<'_>,
    ) -> Result<(), VolumeError> {
        items.sort_unstable_by_key(|item| slice[*item].lbn);
        let lbns: Vec<Lbn> = items.iter().map(|item| slice[*item].lbn).collect();
        for (item, mapping) in items.into_iter().zip(pin.tables.mappings(&self.store, &lbns)?) {
            slice[item].old = Some(mapping);
        }
        Ok(())
    }

    /// Which of these digests the trees know: the block whose digest, in full, is the same. A damaged index
    /// knows none.
    fn find_stored(
        &self,
        mut unknown: Vec<(Digest, usize)>,
        ask_neighbours: impl Fn(usize) -> bool,
        pin: &Pin<'_>,
    ) -> Result<Vec<(usize, Pbn)>, VolumeError> {
        unknown.sort_unstable();
        let near: Vec<(usize, Pbn)> = {
            let neighbours = self.neighbours.lock();
            let asked = unknown.iter().enumerate().filter(|(_, (_, place))| ask_neighbours(*place));
            asked.filter_map(|(i, (digest, _))| Some((i, neighbours.find(digest)?))).collect()
        };
        let mut hits = self.with_these_digests(&unknown, near, pin)?;
        let is_found: FxHashSet<usize> = hits.iter().map(|(place, _)| *place).collect();
        unknown.retain(|(_, place)| !is_found.contains(place));
        {
            let filter = self.filter.lock();
            unknown.retain(|(digest, _)| filter.may_hold(digest.prefix()));
        }
        let digests: Vec<Digest> = unknown.iter().map(|(digest, _)| *digest).collect();
        match pin.tables.candidates(&self.store, &digests) {
            Ok(candidates) => hits.extend(self.with_these_digests(&unknown, candidates, pin)?),
            Err(error) => self.drop_damaged_hints(error)?,
        }
        self.meet_neighbours(hits.iter().map(|(_, pbn)| *pbn), pin);
        Ok(hits)
    }

    /// Takes in the digests around hits that follow one another.
    fn meet_neighbours(&self, hits: impl Iterator<Item = Pbn>, pin: &Pin<'_>) {
        let wanted = self.neighbours.lock().wanted(hits);
        for number in wanted {
            // A leaf that cannot be read is an error for whoever needs it.
            if let Ok(leaf) = DIGESTS.leaf(&self.store, &pin.tables.digests, number) {
                let entries = leaf.iter().flat_map(|leaf| DIGESTS.leaf_entries(leaf));
                self.neighbours.lock().take_in(number, entries.map(|(pbn, digest)| (Pbn(pbn), digest)));
            }
        }
    }

    /// Those of the candidates (place in `unknown`, block) that have the digest in full, by the item's place.
    fn with_these_digests(
        &self,
        unknown: &[(Digest, usize)],
        candidates: Vec<(usize, Pbn)>,
        pin: &Pin<'_>,
    ) -> Result<Vec<(usize, Pbn)>, VolumeError> {
        let stored = pin.tables.digests(&self.store, candidates.iter().map(|(_, pbn)| *pbn))?;
        let is_match = |digest: &Digest, pbn: &Pbn| match stored.get(pbn) {
            _ if self.planted(Fault::HintTrusted) => true,
            Some(found) if self.planted(Fault::PrefixTakenForDigest) => found.prefix() == digest.prefix(),
            found => found == Some(digest),
        };
        Ok(candidates
            .into_iter()
            .filter(|(i, pbn)| is_match(&unknown[*i].0, pbn))
            .map(|(i, pbn)| (unknown[i].1, pbn))
            .collect())
    }

    /// With byte comparison: a hit whose bytes differ, or cannot be read, is none. A hit on a block that is free meanwhile is none
    /// either, and no collision: its bytes may be gone. What was no match is left for the next round, which may find another one.
    fn compare_bytes(
        &self,
        slice: &mut [BlockWrite<'_>],
        plans: &mut Vec<(usize, Plan)>,
        counts: &BaseCounts,
        counts_of: TxId,
    ) {
        let mut stored = AlignedBuf::zeroed(self.block_size as usize);
        let mut collisions = 0;
        plans.retain(|(item, plan)| {
            let block = &mut slice[*item];
            let (Plan::Hit(pbn), Fingerprint::Content { digest, .. }) = (*plan, block.print) else {
                return true;
            };
            let is_valid = {
                let state = self.state.lock();
                // Counts from before a checkpoint say nothing any more: the whole round is void, and comes again.
                if state.layers.tables().txid != counts_of {
                    return false;
                }
                self.is_valid_hit(&state, pbn, &digest, counts)
            };
            if !is_valid {
                block.stale.push(pbn);
                return false;
            }
            let read = self.data.read(pbn.0 * self.block_size, &mut stored);
            let tell =
                |error: &_| tracing::error!("data device: read of block {pbn}, to compare it: {error}");
            let readable = read.inspect_err(tell).is_ok();
            let matches = readable && *stored == *block.data;
            if !matches {
                collisions += u64::from(readable);
                block.rejected.push(pbn);
            }
            matches
        });
        if collisions > 0 {
            self.state.lock().counters.collisions += collisions;
        }
    }
}
