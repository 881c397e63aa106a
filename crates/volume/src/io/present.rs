//! What was looked up without the lock, brought up to the trees of the moment at which it is used.

use crate::state::State;
use crate::state::delta::Delta;
use crate::trees::tables::Counts;
use dedup_meta::TxId;
use dedup_schema::{Digest, Pbn};
use dedup_sync::Arc;

/// What a lookup in pinned trees knows of blocks, to be brought up to the present ones.
#[derive(Debug)]
pub(crate) struct Known {
    /// Reference counts as in the trees `of`.
    pub(crate) counts: Counts,
    of: TxId,
    /// What was installed since the lookup began.
    since: Vec<Arc<Delta>>,
}

impl Known {
    /// Counts that were read in the trees `of`.
    pub(crate) fn new(counts: Counts, of: TxId) -> Self {
        Self { counts, of, since: Vec::new() }
    }

    /// Whether it is as of the present trees, to which it is brought if that is possible.
    pub(crate) fn catch_up(&mut self, state: &State) -> bool {
        let present = state.layers.tables().txid;
        if self.of == present {
            return true;
        }
        let Some(deltas) = state.history.since(self.of) else { return false };
        for delta in deltas {
            for (pbn, count) in &mut self.counts {
                if let Some(change) = delta.blocks.get(pbn) {
                    *count = change.count;
                }
            }
            self.since.push(Arc::clone(delta));
        }
        self.of = present;
        true
    }

    /// The digest of a block that was allocated since the lookup began, and is in no delta of the state any
    /// more.
    pub(crate) fn digest(&self, pbn: Pbn) -> Option<Digest> {
        self.since.iter().rev().find_map(|delta| delta.blocks.get(&pbn)?.digest)
    }

    /// Whether a block with this digest was allocated since the lookup began, and is in no delta of the state
    /// any more.
    #[inline]
    pub(crate) fn has_met(&self, digest: &Digest) -> bool {
        self.since.iter().any(|delta| delta.find(digest, |_, _| true).is_some())
    }
}
