//! The sorted delta: what operations changed since the last checkpoint, in memory, protected by the log.
//!
//! There are at most two: the *active* one, which operations change, and the *frozen* one, which a checkpoint
//! is writing to the trees. A lookup asks the active one, then the frozen one, then the trees. Values are
//! absolute as of the delta's own end (rule R2), so an entry hides whatever stands below it.

use crate::digest::Digest;
use crate::ids::{Lbn, Pbn};
use crate::mapping::{HintKey, Mapping};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// What a delta says of a data block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockChange {
    /// Its reference count.
    pub(crate) count: u64,
    /// The digest of its content, if it was allocated within this delta.
    pub(crate) digest: Option<Digest>,
}

/// Changes since a checkpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    /// LBNs with a new mapping ([`Mapping::UNMAPPED`] included).
    pub(crate) mappings: BTreeMap<Lbn, Mapping>,
    /// Data blocks with a new count.
    pub(crate) blocks: BTreeMap<Pbn, BlockChange>,
    /// Digest prefix -> block allocated within this delta. A hint like the tree's: checked against `blocks`
    /// on use. Of two digests that begin alike the later one stays.
    pub(crate) hints: FxHashMap<u64, Pbn>,
    /// Blocks marked damaged (`true`) or no longer so (`false`).
    pub(crate) bad: BTreeMap<Pbn, bool>,
    /// Advisory changes to the hint tree from garbage collection and rebuilding: insert (`true`) or delete
    /// (`false`).
    pub(crate) hint_changes: BTreeMap<HintKey, bool>,
    /// Operations admitted into this delta, ranges counted as the LBNs that they unmap. An upper bound of its
    /// entries.
    pub(crate) operations: u64,
}

impl Delta {
    /// The block allocated within this delta for content with this digest, and what is known of it here.
    pub(crate) fn find(&self, digest: &Digest) -> Option<(Pbn, &BlockChange)> {
        let pbn = *self.hints.get(&digest.prefix())?;
        let change = self.blocks.get(&pbn)?;
        (change.digest.as_ref() == Some(digest)).then_some((pbn, change))
    }

    /// Records an allocation: count 0 until the operation that maps it is applied.
    pub(crate) fn allocate(&mut self, pbn: Pbn, digest: Digest) {
        self.blocks.insert(pbn, BlockChange { count: 0, digest: Some(digest) });
        self.hints.insert(digest.prefix(), pbn);
    }
}
