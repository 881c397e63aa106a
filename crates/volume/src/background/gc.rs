//! Garbage collection, and the rebuilding of the index. Space needs no collection: a block is free as soon as
//! its last reference is gone and committed. What is collected is *hints*, entries of the digest index whose
//! block was freed or holds something else.
//!
//! All of it works in slices of a few thousand entries, each admitted like any operation and put into the
//! delta as advice for the next checkpoint, while reads and writes go on. None of it is logged: an
//! interrupted sweep is just not finished, an interrupted rebuild goes on where the last checkpoint stood.

use crate::background::recount;
use crate::engine::Engine;
use crate::engine::sweep::Sweep;
use crate::error::VolumeError;
use crate::io::present::Known;
use crate::state::budget::Purpose;
use crate::state::pins::Pin;
use crate::trees::tables::Counts;
use dedup_meta::{MetaError, RunSet};
use dedup_schema::{DIGESTS, HINT_SET, HintKey, MAX_BLOCKS, Pbn};

/// Entries looked at in one slice: a few milliseconds.
const SLICE_ENTRIES: usize = 4096;
/// Entries of the index per allocated block beyond which it is swept without being asked, in quarters.
const ENTRIES_PER_BLOCK_MAX_QUARTERS: u64 = 5;
/// Below this the index is never swept without being asked: it is a few leaves.
const ENTRIES_MIN: u64 = 64 << 10;
/// Places at which an estimate takes its samples, and entries at each.
const SAMPLES: u64 = 32;
/// See [`SAMPLES`].
const SAMPLE_ENTRIES: usize = 128;

/// What the garbage collector is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GcStatus {
    /// Whether a sweep is running.
    pub running: bool,
    /// Entries that the running or last sweep has looked at.
    pub examined: u64,
    /// Stale entries that it has removed.
    pub removed: u64,
    /// Whether the index is being rebuilt.
    pub rebuilding: bool,
}

/// What a sweep would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GcEstimate {
    /// Entries in the index as of the last checkpoint.
    pub entries: u64,
    /// Entries that were looked at.
    pub sampled: u64,
    /// Of these, stale.
    pub sampled_stale: u64,
    /// Stale entries in all, in proportion.
    pub stale: u64,
}

impl Engine {
    /// Starts a sweep from the beginning, unless one is running.
    pub(crate) fn gc_start(&self) {
        let mut sweep = self.sweep.lock();
        if sweep.next.is_none() {
            *sweep = Sweep { next: Some(HintKey { prefix: 0, pbn: Pbn(0) }), removed: 0, examined: 0 };
        }
        drop(sweep);
        self.wake_worker();
    }

    /// Ends a running sweep where it stands.
    pub(crate) fn gc_stop(&self) {
        self.sweep.lock().next = None;
    }

    /// What it is doing.
    pub(crate) fn gc_status(&self) -> GcStatus {
        let rebuilding = self.state.lock().hint_rebuild_next.is_some();
        let sweep = self.sweep.lock();
        GcStatus {
            running: sweep.next.is_some(),
            examined: sweep.examined,
            removed: sweep.removed,
            rebuilding,
        }
    }

    /// Looks at entries spread over the whole index; digests are spread evenly, so these stand for all.
    pub(crate) fn gc_estimate(&self) -> Result<GcEstimate, VolumeError> {
        let pin = self.pin();
        let entries = pin.tables.index_entries();
        let (mut sampled, mut sampled_stale) = (0, 0);
        let samples = if entries <= SAMPLES * SAMPLE_ENTRIES as u64 { 1 } else { SAMPLES };
        let take = if samples == 1 { usize::MAX } else { SAMPLE_ENTRIES };
        for i in 0..samples {
            let from = HintKey { prefix: i * (u64::MAX / samples), pbn: Pbn(0) };
            let keys: Vec<HintKey> = HINT_SET
                .range(&self.store, &pin.tables.hints, from)
                .take(take)
                .collect::<Result<_, MetaError>>()?;
            sampled += keys.len() as u64;
            sampled_stale += self.stale(&pin, &keys)?.0.len() as u64;
        }
        let stale = (u128::from(entries) * u128::from(sampled_stale))
            .checked_div(u128::from(sampled))
            .unwrap_or(0) as u64;
        Ok(GcEstimate { entries, sampled, sampled_stale, stale })
    }

    /// One slice of whatever is to be done: a rebuild, a recount, a sweep. `false` when there is nothing.
    pub(crate) fn collect_some(&self) -> Result<bool, VolumeError> {
        self.sweep_if_bloated();
        let (rebuild, recount) = {
            let state = self.state.lock();
            let rebuild =
                state.hint_rebuild_next.filter(|_| state.budget.with_hints() && !state.hints_dropped);
            (rebuild, state.recount_needed && !state.layers.is_sealed() && !state.hints_dropped)
        };
        if self.state.lock().hints_dropped {
            return self.checkpoint().map(|()| true);
        }
        if let Some(next) = rebuild {
            return self.rebuild_slice(next).map(|()| true);
        }
        if recount {
            return recount::run(self).map(|()| true);
        }
        if self.fill_run_filter()? || self.fill_filter()? {
            return Ok(true);
        }
        let next = self.sweep.lock().next;
        match next {
            Some(next) => self.sweep_slice(next).map(|()| true),
            None => Ok(false),
        }
    }

    fn sweep_if_bloated(&self) {
        let state = self.state.lock();
        let (entries, used) = (state.layers.tables().index_entries(), state.data_used);
        drop(state);
        if entries > ENTRIES_MIN && entries * 4 > used * ENTRIES_PER_BLOCK_MAX_QUARTERS {
            let mut sweep = self.sweep.lock();
            if sweep.next.is_none() {
                sweep.next = Some(HintKey { prefix: 0, pbn: Pbn(0) });
            }
        }
    }

    /// Which of these entries the truth does not confirm, and the counts that this was found with.
    fn stale(&self, pin: &Pin<'_>, keys: &[HintKey]) -> Result<(Vec<HintKey>, Counts), VolumeError> {
        let pbns = || keys.iter().map(|key| key.pbn);
        let counts = pin.tables.counts(&self.store, pbns())?;
        let digests = pin.tables.digests(&self.store, pbns())?;
        let confirmed = |key: &HintKey| {
            counts.get(key.pbn) > Some(0)
                && digests.get(&key.pbn).is_some_and(|digest| digest.prefix() == key.prefix)
        };
        Ok((keys.iter().filter(|key| !confirmed(key)).copied().collect(), counts))
    }

    fn sweep_slice(&self, from: HintKey) -> Result<(), VolumeError> {
        let mut admission = self.admit(self.slice_entries(), Purpose::Shrink)?;
        let pin = self.pin();
        let keys: Vec<HintKey> = HINT_SET
            .range(&self.store, &pin.tables.hints, from)
            .take(self.slice_entries() as usize)
            .collect::<Result<_, MetaError>>()
            .or_else(|error| self.drop_damaged_hints(&pin.tables.hints, error).map(|()| Vec::new()))?;
        let (stale, counts) = self.stale(&pin, &keys)?;
        let Ok(mut present) = self.present(Known::new(counts)) else { return Ok(()) };
        let mut removed = 0;
        for key in stale {
            // Allocated anew since the checkpoint: the next one takes care of both the old hint and the new.
            if !present.is_new(key.pbn) || present.count(key.pbn) == Some(0) {
                present.layers.active.hint_changes.insert(key, false);
                present.layers.active.operations += 1;
                present.budget.published(1, false);
                removed += 1;
            }
        }
        present.counters.gc_counter += removed;
        drop(present);
        admission.used(removed);
        let mut sweep = self.sweep.lock();
        sweep.examined += keys.len() as u64;
        sweep.removed += removed;
        // Stopped meanwhile: it stays stopped.
        if sweep.next == Some(from) {
            let full = keys.len() as u64 == self.slice_entries();
            sweep.next = keys.last().filter(|_| full).and_then(|last| successor(*last));
        }
        Ok(())
    }

    /// Adds the hints of the next blocks, in their order, from the digests.
    fn rebuild_slice(&self, from: Pbn) -> Result<(), VolumeError> {
        let mut admission = self.admit_some(self.slice_entries(), Purpose::Grow)?;
        let max = admission.left();
        let (pin, begun) = {
            let state = self.state.lock();
            (self.pin_as_of(&state), state.rebuilds_begun)
        };
        let found: Vec<(u64, crate::Digest)> = DIGESTS
            .scan(&self.store, &pin.tables.digests, from.0..self.pbns)
            .take(max as usize)
            .collect::<Result<_, MetaError>>()?;
        let counts = pin.tables.counts(&self.store, found.iter().map(|(pbn, _)| Pbn(*pbn)))?;
        let Ok(mut present) = self.present(Known::new(counts)) else { return Ok(()) };
        // Begun anew meanwhile, perhaps at this very block: a checkpoint has left out what came since the
        // pin.
        if present.hint_rebuild_next != Some(from) || present.rebuilds_begun != begun {
            return Ok(());
        }
        let mut added = 0;
        for (pbn, digest) in &found {
            let (pbn, prefix) = (Pbn(*pbn), digest.prefix());
            // What was allocated since, the checkpoint of its delta has indexed, or will.
            let in_use = present.count_in_trees(pbn) > Some(0) && !present.is_new(pbn);
            // Damaged content is never indexed.
            if in_use && !present.bad.contains(&pbn) {
                present.layers.active.hint_changes.insert(HintKey { prefix, pbn }, true);
                present.layers.active.operations += 1;
                present.budget.published(1, false);
                added += 1;
            }
        }
        let full = found.len() as u64 == max;
        present.hint_rebuild_next = found.last().filter(|_| full).map(|(pbn, _)| Pbn(pbn + 1));
        let is_rebuilt = present.hint_rebuild_next.is_none();
        drop(present);
        admission.used(added);
        if is_rebuilt {
            tracing::info!("digest index rebuilt");
        }
        Ok(())
    }

    /// A lookup in the index `met` found damage: there is no index from now on, and it will be built anew.
    /// Unless it is another one by now, which a reader with an old pin knows nothing of. Other damage is
    /// returned. To be called without the state's lock.
    pub(crate) fn drop_damaged_hints(&self, met: &RunSet, error: MetaError) -> Result<(), MetaError> {
        if !matches!(error, MetaError::Damaged { kind: dedup_meta::BlockType::Hint, .. }) {
            return Err(error);
        }
        {
            let mut state = self.state.lock();
            if state.layers.tables().hints != *met {
                return Ok(());
            }
            state.drop_hints();
        }
        tracing::warn!("digest index dropped, to be rebuilt: {error}");
        Ok(())
    }

    fn slice_entries(&self) -> u64 {
        SLICE_ENTRIES.min(self.slice_max) as u64
    }
}

/// The next possible key.
fn successor(key: HintKey) -> Option<HintKey> {
    match key.pbn.0 + 1 < MAX_BLOCKS {
        true => Some(HintKey { prefix: key.prefix, pbn: Pbn(key.pbn.0 + 1) }),
        false => key.prefix.checked_add(1).map(|prefix| HintKey { prefix, pbn: Pbn(0) }),
    }
}
