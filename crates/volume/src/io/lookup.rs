//! Looking up a batch of blocks to be written, without the lock: where each LBN was mapped, whether each
//! content is stored, and the counts that either will change.
//!
//! ```text
//!   deltas ──> near the last hits ──> index        each asked for what the one before does not know
//!      │               └── in use? ── this digest? ──┤
//!      └────────────── same bytes? ──────────────────┴──> a hit      bytes only where they are compared
//! ```
//!
//! The deltas are asked first, under the lock and for a moment; what they do not know is looked up in the
//! trees of that very moment, one descent for the whole batch. Counts are asked before digests: a stale hint
//! costs a look into a page of counts, which is small and in memory, and is dropped. What comes out is
//! believed only once it has been validated under the lock again, after it was brought up to the present
//! trees ([`crate::state::history`]).
//!
//! Invariant: a block that was in use at any moment since the pin, with this digest, has its content as long
//! as the pin is held. So what was found of it stays true whatever checkpoints do, but for its count.
//!
//! Bytes are compared when all is looked up, and the trees are pinned no longer: a data device that does not
//! answer holds no metadata back. What came out of it is remembered, should that have made the round void.

use crate::engine::Engine;
use crate::engine::fingerprint::Fingerprint;
use crate::error::VolumeError;
use crate::io::block_write::BlockWrite;
use crate::io::present::{Known, Present};
use crate::state::State;
use crate::state::budget::Purpose;
use crate::state::delta::ALIKE_MAX;
use crate::state::pins::{DataPin, Pin};
use crate::trees::tables::Counts;
use dedup_schema::{DIGESTS, Digest, HintKey, Lbn, Mapping, Pbn};
use rustc_hash::{FxHashMap, FxHashSet};

/// What a lookup made of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Zero,
    /// Stored already, it seems.
    Hit(Pbn),
    /// Stored blocks have its digest, and other bytes as far as they were compared. There may be more of
    /// them: the next round knows.
    Alike,
    Miss,
    /// Somebody is writing the same content.
    Busy(Digest),
}

/// What was found for a round, and the pin that keeps it true enough to be validated.
#[derive(Debug)]
pub(crate) struct Lookup<'e> {
    /// Item, plan.
    pub(crate) plans: Vec<(usize, Plan)>,
    pub(crate) known: Known,
    /// Entries of the index that the trees do not confirm.
    pub(crate) stale: Vec<HintKey>,
    pub(crate) pin: Pinned<'e>,
}

/// What a lookup has pinned.
#[derive(Debug)]
pub(crate) enum Pinned<'e> {
    /// The trees too, so that what has become part of them since is kept in the history.
    Trees(Pin<'e>),
    /// Stored blocks were read after the lookup: no device of data holds metadata back.
    Blocks(DataPin<'e>),
}

impl<'e> Pinned<'e> {
    /// What it takes for stored blocks to keep their content.
    pub(crate) fn blocks(self) -> DataPin<'e> {
        match self {
            Self::Trees(pin) => pin.without_trees(),
            Self::Blocks(pin) => pin,
        }
    }
}

/// What the trees confirm of candidates.
#[derive(Debug, Default)]
struct Confirmed {
    /// Place, block in use that has the digest in full: no more than [`ALIKE_MAX`] of a place.
    found: Vec<(usize, Pbn)>,
    /// Candidates that are not in use, or whose digest begins otherwise.
    stale: Vec<HintKey>,
}

impl Engine {
    /// The block that holds content of each of these digests, if one does. It may be freed right after. For
    /// measuring the index: writes do the same, and more.
    pub(crate) fn find(&self, digests: &[Digest]) -> Result<Vec<Option<Pbn>>, VolumeError> {
        let (mut found, mut unknown) = (vec![None; digests.len()], Vec::new());
        let pin = {
            let state = self.state.lock();
            for (place, digest) in digests.iter().enumerate() {
                found[place] = state.find_recent(digest, |_| true);
                if found[place].is_none() {
                    unknown.push((*digest, place));
                }
            }
            self.pin_as_of(&state)
        };
        unknown.sort_unstable();
        let mut counts = Counts::new(pin.tables.txid, Default::default());
        let mut stored = self.find_near(&unknown, |_| true, &pin, &mut counts)?;
        let is_near: FxHashSet<usize> = stored.iter().map(|(place, _)| *place).collect();
        unknown.retain(|(_, place)| !is_near.contains(place));
        stored.extend(self.find_indexed(unknown, &pin, &mut counts)?.found);
        if let Ok(present) = self.present(Known::new(counts)) {
            for (place, pbn) in stored {
                if found[place].is_none() && present.is_valid_hit(pbn, &digests[place]) {
                    found[place] = Some(pbn);
                }
            }
        }
        Ok(found)
    }

    /// Finds each block's old mapping and whether its content is stored, and the counts that either will
    /// change.
    pub(crate) fn look_up(&self, slice: &mut [BlockWrite<'_>]) -> Result<Lookup<'_>, VolumeError> {
        let mut plans = Vec::with_capacity(slice.len());
        let (mut unmapped, mut unknown, mut alike) = (Vec::new(), Vec::new(), Vec::new());
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
                    Fingerprint::Content { digest, .. } if self.compares_bytes() => {
                        let before = alike.len();
                        state.find_recent(&digest, |pbn| {
                            if !state.bad.contains(&pbn) && !block.differs(pbn) {
                                alike.push((plans.len(), pbn));
                            }
                            false
                        });
                        if alike.len() > before {
                            Plan::Alike
                        } else {
                            unknown.push((digest, plans.len()));
                            Plan::Miss
                        }
                    }
                    Fingerprint::Content { digest, .. } => match state.find_recent(&digest, |_| true) {
                        Some(pbn) => Plan::Hit(pbn),
                        None => {
                            unknown.push((digest, plans.len()));
                            Plan::Miss
                        }
                    },
                };
                plans.push((item, plan));
            }
            drop(claimed);
            self.pin_as_of(&state)
        };
        self.fill_old_mappings(slice, unmapped, &pin)?;
        let mut counts = Counts::new(pin.tables.txid, Default::default());
        let stale = self.look_in_trees(slice, &mut plans, unknown, (&mut alike, &mut counts), &pin)?;
        let olds =
            plans.iter().filter_map(|(item, _)| slice[*item].old).filter(Mapping::is_mapped).map(|m| m.pbn);
        let hits =
            plans.iter().filter_map(|(_, plan)| if let Plan::Hit(pbn) = plan { Some(*pbn) } else { None });
        let needed = olds.chain(hits).chain(alike.iter().map(|(_, pbn)| *pbn));
        let lacking: Vec<Pbn> = needed.filter(|pbn| counts.get(*pbn).is_none()).collect();
        counts.extend(pin.tables.counts(&self.store, lacking)?);
        let known = Known::new(counts);
        let pin = match self.remember(slice, &mut plans, &mut alike) {
            true => Pinned::Trees(pin),
            false => {
                let pin = pin.without_trees();
                self.compare(slice, &mut plans, alike);
                Pinned::Blocks(pin)
            }
        };
        Ok(Lookup { plans, known, stale, pin })
    }

    /// Makes hits of those misses among the plans that the trees know, or adds what they know to `alike`;
    /// `unknown` has their digests and places. Returns stale entries of the index.
    fn look_in_trees(
        &self,
        slice: &[BlockWrite<'_>],
        plans: &mut [(usize, Plan)],
        mut unknown: Vec<(Digest, usize)>,
        (alike, counts): (&mut Vec<(usize, Pbn)>, &mut Counts),
        pin: &Pin<'_>,
    ) -> Result<Vec<HintKey>, VolumeError> {
        let is_miss = |plans: &[(usize, Plan)], (_, place): &(Digest, usize)| plans[*place].1 == Plan::Miss;
        unknown.sort_unstable();
        // What the neighbours would say of a block that was no match is known.
        let is_asked = |place: usize| !slice[plans[place].0].is_doubtful();
        let near = self.find_near(&unknown, is_asked, pin, counts)?;
        let mut hits = self.take_hits(slice, plans, near, (alike, &*counts), pin);
        if !hits.is_empty() {
            unknown.retain(|item| is_miss(plans, item));
        }
        let Confirmed { found, stale } = self.find_indexed(unknown, pin, counts)?;
        hits.append(&mut self.take_hits(slice, plans, found, (alike, &*counts), pin));
        self.meet_neighbours(hits, pin);
        Ok(stale)
    }

    /// Makes hits of what was found (place, block), of several the first; where bytes are compared, all of it
    /// is to be compared. Returns the blocks.
    fn take_hits(
        &self,
        slice: &[BlockWrite<'_>],
        plans: &mut [(usize, Plan)],
        mut found: Vec<(usize, Pbn)>,
        (alike, counts): (&mut Vec<(usize, Pbn)>, &Counts),
        pin: &Pin<'_>,
    ) -> Vec<Pbn> {
        if found.is_empty() {
            return Vec::new();
        }
        self.judge(slice, plans, &mut found, pin, counts);
        if self.compares_bytes() {
            found.retain(|(place, pbn)| !slice[plans[*place].0].differs(*pbn));
            found.iter().for_each(|(place, _)| plans[*place].1 = Plan::Alike);
            alike.extend(&found);
        } else {
            found.retain(|(place, pbn)| {
                let is_first = plans[*place].1 == Plan::Miss;
                if is_first {
                    plans[*place].1 = Plan::Hit(*pbn);
                }
                is_first
            });
        }
        found.into_iter().map(|(_, pbn)| pbn).collect()
    }

    /// Leaves of what was found only blocks that are in use at this moment and have the digest, and with byte
    /// comparison are not damaged. Not asked of blocks that hardly ever fail: these are validated when they
    /// are published, and come again if need be.
    fn judge(
        &self,
        slice: &[BlockWrite<'_>],
        plans: &[(usize, Plan)],
        found: &mut Vec<(usize, Pbn)>,
        pin: &Pin<'_>,
        counts: &Counts,
    ) {
        let all = self.compares_bytes();
        let is_asked = |place: &usize| all || slice[plans[*place].0].is_doubtful();
        let asked = found.iter().filter(|(place, _)| is_asked(place));
        let counts: FxHashMap<Pbn, u64> =
            asked.filter_map(|(_, pbn)| Some((*pbn, counts.get(*pbn)?))).collect();
        if counts.is_empty() {
            return;
        }
        // Otherwise the round is void, and finds out soon enough. No block is compared that was perhaps freed
        // before the pin: what comes of it would be remembered, and the pin does not keep the block.
        let Ok(present) = self.present(Known::new(Counts::new(pin.tables.txid, counts))) else {
            if all {
                found.clear();
            }
            return;
        };
        found.retain(|(place, pbn)| {
            let Fingerprint::Content { digest, .. } = slice[plans[*place].0].print else { return false };
            !is_asked(place) || (present.is_valid_hit(*pbn, &digest) && !(all && present.bad.contains(pbn)))
        });
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

    /// Which of these digests (ascending) blocks near the last hits have: (place, block), of the places that
    /// are to be asked. `counts` takes what was read.
    fn find_near(
        &self,
        unknown: &[(Digest, usize)],
        is_asked: impl Fn(usize) -> bool,
        pin: &Pin<'_>,
        counts: &mut Counts,
    ) -> Result<Vec<(usize, Pbn)>, VolumeError> {
        let near: Vec<(usize, Pbn)> = {
            let neighbours = self.neighbours.lock();
            let near = |(i, (digest, place)): (usize, &(Digest, usize))| {
                Some((i, neighbours.find(digest).filter(|_| is_asked(*place))?))
            };
            unknown.iter().enumerate().filter_map(near).collect()
        };
        Ok(self.confirm(unknown, near, pin, counts)?.found)
    }

    /// Which of these digests (ascending) the index knows: (place, block), several if several have the
    /// digest. A damaged index knows none.
    fn find_indexed(
        &self,
        mut unknown: Vec<(Digest, usize)>,
        pin: &Pin<'_>,
        counts: &mut Counts,
    ) -> Result<Confirmed, VolumeError> {
        {
            let filter = self.filter.lock();
            unknown.retain(|(digest, _)| filter.may_hold(digest.prefix()));
        }
        let digests: Vec<Digest> = unknown.iter().map(|(digest, _)| *digest).collect();
        match pin.tables.candidates(&self.store, &digests) {
            Ok(candidates) => self.confirm(&unknown, candidates, pin, counts),
            Err(error) => {
                self.drop_damaged_hints(&pin.tables.hints, error)?;
                Ok(Confirmed::default())
            }
        }
    }

    /// Takes in the digests around hits that follow one another.
    fn meet_neighbours(&self, hits: Vec<Pbn>, pin: &Pin<'_>) {
        if hits.is_empty() {
            return;
        }
        let wanted = self.neighbours.lock().wanted(hits);
        for number in wanted {
            // A leaf that cannot be read is an error for whoever needs it.
            if let Ok(leaf) = DIGESTS.leaf(&self.store, &pin.tables.digests, number) {
                let entries = leaf.iter().flat_map(|leaf| DIGESTS.leaf_entries(leaf));
                self.neighbours.lock().take_in(number, entries.map(|(pbn, digest)| (Pbn(pbn), digest)));
            }
        }
    }

    /// Which of the candidates (place in `unknown`, block) are in use and have the digest in full, as the
    /// pinned trees have it.
    fn confirm(
        &self,
        unknown: &[(Digest, usize)],
        mut candidates: Vec<(usize, Pbn)>,
        pin: &Pin<'_>,
        counts: &mut Counts,
    ) -> Result<Confirmed, VolumeError> {
        let mut confirmed = Confirmed::default();
        if candidates.is_empty() {
            return Ok(confirmed);
        }
        let key = |i: usize, pbn| HintKey { prefix: unknown[i].0.prefix(), pbn };
        let read = pin.tables.counts(&self.store, candidates.iter().map(|(_, pbn)| *pbn))?;
        counts.extend(read);
        let is_used = |pbn: &Pbn| counts.get(*pbn) > Some(0);
        // The candidates of one digest do not stand together: those of younger runs come first.
        let mut tried = vec![0; unknown.len()];
        candidates.retain(|(i, pbn)| {
            if !is_used(pbn) {
                confirmed.stale.push(key(*i, *pbn));
                return false;
            }
            tried[*i] += 1;
            tried[*i] <= ALIKE_MAX
        });
        let stored = pin.tables.digests(&self.store, candidates.iter().map(|(_, pbn)| *pbn))?;
        for (i, pbn) in candidates {
            let (digest, place) = &unknown[i];
            if stored.get(&pbn) == Some(digest) {
                confirmed.found.push((*place, pbn));
            } else if stored.get(&pbn).is_none_or(|found| found.prefix() != digest.prefix()) {
                confirmed.stale.push(key(i, pbn));
            }
        }
        Ok(confirmed)
    }

    /// Has the next checkpoint remove entries of the index that a lookup found stale, if they still are.
    /// Advice: what there is no room for is left out.
    pub(crate) fn drop_stale(&self, present: &mut Present<'_>, mut stale: Vec<HintKey>) {
        stale.retain(|key| {
            // Allocated anew since: the checkpoint takes care of both the old entry and the new one.
            !present.is_new(key.pbn) || present.count(key.pbn) == Some(0)
        });
        let State { layers, budget, .. } = &mut **present;
        stale.retain(|key| layers.active.hint_changes.get(key) != Some(&false));
        let dropped = stale.len() as u64;
        if dropped == 0 || !budget.with_hints() {
            return;
        }
        let (operations, tables) = (layers.active.operations, layers.tables().clone());
        if budget.admit(dropped, operations, &tables, Purpose::Grow).is_ok() {
            budget.published(dropped, false);
            layers.active.operations += dropped;
            layers.active.hint_changes.extend(stale.into_iter().map(|key| (key, false)));
        }
    }
}
