//! What was looked up without the lock, brought up to the trees of the moment at which it is used.
//!
//! ```text
//!   pin ─> look up without the lock ─> Known ──Engine::present──> Present: the state, locked, and what is known, true of it
//!                                       └── the history of the trees does not reach back so far: look up again
//! ```
//!
//! Invariant: counts are changed through a [`Present`] only, which nothing but that check makes, and which
//! ends with the lock. (An open, which has the state to itself, changes them without.)

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::state::delta::Delta;
use crate::state::{State, Written};
use crate::trees::tables::Counts;
use dedup_schema::{Digest, Lbn, Mapping, Pbn};
use dedup_sync::{Arc, MutexGuard};
use std::ops::{Deref, DerefMut};

/// What a lookup in pinned trees knows of blocks.
#[derive(Debug)]
pub(crate) struct Known {
    counts: Counts,
    /// What was installed since the lookup began.
    since: Vec<Arc<Delta>>,
}

/// The state under its lock, and what is known of blocks in its very trees.
#[derive(Debug)]
pub(crate) struct Present<'e> {
    state: MutexGuard<'e, State>,
    known: Known,
}

impl Known {
    /// Counts that were looked up.
    pub(crate) fn new(counts: Counts) -> Self {
        Self { counts, since: Vec::new() }
    }

    /// Whether it is as of the present trees, to which it is brought if that is possible.
    fn catch_up(&mut self, state: &State) -> bool {
        let present = state.layers.tables().txid;
        if self.counts.of() == present {
            return true;
        }
        let Some(deltas) = state.history.since(self.counts.of()) else { return false };
        let deltas: Vec<Arc<Delta>> = deltas.cloned().collect();
        let newest = |pbn| deltas.iter().rev().find_map(|delta| Some(delta.blocks.get(&pbn)?.count));
        self.counts.bring_to(present, newest);
        self.since.extend(deltas);
        true
    }
}

impl Engine {
    /// The state, locked, with `known` brought up to it. If the history of the trees does not reach back to
    /// the lookup, that comes back, and it is to be made again.
    pub(crate) fn present(&self, mut known: Known) -> Result<Present<'_>, Known> {
        let state = self.state.lock();
        if known.catch_up(&state) { Ok(Present { state, known }) } else { Err(known) }
    }

    /// The state, locked, with nothing known.
    pub(crate) fn present_without_counts(&self) -> Present<'_> {
        let state = self.state.lock();
        let known = Known::new(Counts::new(state.layers.tables().txid, Default::default()));
        Present { state, known }
    }
}

impl Present<'_> {
    /// Ends the lock; what is known may be brought up to later trees.
    pub(crate) fn release(self) -> Known {
        self.known
    }

    /// A block's current count, if it is known.
    pub(crate) fn count(&self, pbn: Pbn) -> Option<u64> {
        self.state.count(pbn, &self.known.counts)
    }

    /// Its count in the trees alone, if it was looked up.
    pub(crate) fn count_in_trees(&self, pbn: Pbn) -> Option<u64> {
        self.known.counts.get(pbn)
    }

    /// See [`State::check_reference`].
    #[inline]
    pub(crate) fn check_reference(&self, lbn: Lbn, pbn: Pbn) -> Result<(), VolumeError> {
        self.state.check_reference(lbn, pbn, &self.known.counts)
    }

    /// Whether `pbn` still holds content with this digest and is in use. The pin keeps it from being reused
    /// from here on.
    pub(crate) fn is_valid_hit(&self, pbn: Pbn, digest: &Digest) -> bool {
        // An index, digests and counts that were forged together may name a block that is none.
        if !(1..self.state.data_blocks).contains(&pbn.0) {
            return false;
        }
        let (count, recent) = self.state.count_and_digest(pbn, &self.known.counts);
        let recent = recent.or_else(|| self.digest_since(pbn));
        count > Some(0) && recent.is_none_or(|recent| recent == *digest)
    }

    /// Whether a block was allocated since the lookup.
    pub(crate) fn is_new(&self, pbn: Pbn) -> bool {
        self.state.recent_digest(pbn).is_some() || self.digest_since(pbn).is_some()
    }

    /// The digest of a block that was allocated since the lookup, and is in no delta of the state any more.
    fn digest_since(&self, pbn: Pbn) -> Option<Digest> {
        self.known.since.iter().rev().find_map(|delta| delta.blocks.get(&pbn)?.digest)
    }

    /// Whether a block with this digest was allocated since the lookup, and is in no delta of the state any
    /// more.
    #[inline]
    pub(crate) fn has_met(&self, digest: &Digest) -> bool {
        self.known.since.iter().any(|delta| delta.find(digest, |_, _| true).is_some())
    }

    /// See [`State::publish_write`].
    pub(crate) fn publish_write(&mut self, lbn: Lbn, new: Mapping, old: Mapping, written: (Written, &[u8])) {
        self.state.publish_write(lbn, new, old, written, &self.known.counts);
    }

    /// See [`State::publish_unmap`].
    pub(crate) fn publish_unmap(&mut self, first: Lbn, blocks: u64, mapped: &[(Lbn, Pbn)]) {
        self.state.publish_unmap(first, blocks, mapped, &self.known.counts);
    }
}

impl Deref for Present<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Present<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}
