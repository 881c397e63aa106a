//! The sorted delta: what operations changed since the last checkpoint, in memory, protected by the log.
//!
//! There are at most two: the *active* one, which operations change, and the *frozen* one, which a checkpoint
//! is writing to the trees. A lookup asks the active one, then the frozen one, then the trees. Values are
//! absolute as of the delta's own end (rule R2), so an entry hides whatever stands below it.

use dedup_schema::{Digest, HintKey, Lbn, Mapping, Pbn};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How many blocks in use are told apart that have one digest prefix. Two contents of one prefix are made
/// with little effort if the digest is MD5 or SHA-1; a pile of them is made on purpose, and what has no place
/// among these is stored again. The bound is on what such a pile costs everybody else: so many digests, or
/// blocks to compare, a write.
pub(crate) const ALIKE_MAX: usize = 8;

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
    /// on use. Of digests that begin alike it is the latest one's; the others' are in `alike`.
    hints: FxHashMap<u64, Pbn>,
    /// The blocks before it, oldest first, that were in use when it came.
    alike: FxHashMap<u64, SmallVec<[Pbn; 2]>>,
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
    /// The first block allocated within this delta for content with this digest that `is_wanted`, going by
    /// what is known of it here.
    pub(crate) fn find(
        &self,
        digest: &Digest,
        mut is_wanted: impl FnMut(Pbn, &BlockChange) -> bool,
    ) -> Option<Pbn> {
        let latest = *self.hints.get(&digest.prefix())?;
        let mut is_found = |pbn: &Pbn| {
            let change = self.blocks.get(pbn).filter(|change| change.digest.as_ref() == Some(digest));
            change.is_some_and(|change| is_wanted(*pbn, change))
        };
        if is_found(&latest) {
            return Some(latest);
        }
        // Hardly ever is there a block before it.
        if self.alike.is_empty() {
            return None;
        }
        self.alike.get(&digest.prefix())?.iter().find(|pbn| is_found(pbn)).copied()
    }

    /// Records an allocation: count 0 until the operation that maps it is applied. Returns the count that it
    /// had here, 0 if none.
    pub(crate) fn allocate(&mut self, pbn: Pbn, digest: Digest) -> u64 {
        let change = BlockChange { count: 0, digest: Some(digest) };
        // Not `insert`: the compiler makes less of that.
        let count = match self.blocks.entry(pbn) {
            Entry::Occupied(mut known) => std::mem::replace(known.get_mut(), change).count,
            Entry::Vacant(unknown) => {
                unknown.insert(change);
                0
            }
        };
        let before = self.hints.insert(digest.prefix(), pbn).filter(|before| *before != pbn);
        if let Some(before) = before {
            self.keep_alike(digest.prefix(), before, pbn);
        }
        count
    }

    /// `before` is no longer the latest block of a prefix, `latest` is.
    fn keep_alike(&mut self, prefix: u64, before: Pbn, latest: Pbn) {
        let is_wanted = |pbn: &Pbn| {
            let change = self.blocks.get(pbn);
            *pbn != latest
                && change.is_some_and(|c| c.count > 0 && c.digest.is_some_and(|d| d.prefix() == prefix))
        };
        let mut alike = self.alike.remove(&prefix).unwrap_or_default();
        alike.push(before);
        alike.retain(|pbn| is_wanted(pbn));
        if alike.len() >= ALIKE_MAX {
            alike.remove(0);
        }
        if !alike.is_empty() {
            self.alike.insert(prefix, alike);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]
mod tests {
    use super::*;

    fn digest(prefix: u8, rest: u8) -> Digest {
        let mut digest = Digest::default();
        (digest.0[0], digest.0[31]) = (prefix, rest);
        digest
    }

    /// Allocates a block and has it mapped once.
    fn put(delta: &mut Delta, pbn: u64, digest: Digest) {
        delta.allocate(Pbn(pbn), digest);
        delta.blocks.get_mut(&Pbn(pbn)).unwrap().count = 1;
    }

    fn found(delta: &Delta, digest: Digest) -> Vec<u64> {
        let mut found = Vec::new();
        delta.find(&digest, |pbn, _| {
            found.push(pbn.0);
            false
        });
        found.sort_unstable();
        found
    }

    #[test]
    fn blocks_whose_digests_begin_alike_or_are_the_same_are_each_found() {
        let mut delta = Delta::default();
        put(&mut delta, 1, digest(7, 1));
        put(&mut delta, 2, digest(7, 2));
        put(&mut delta, 3, digest(7, 1));
        put(&mut delta, 4, digest(9, 1));
        assert_eq!(found(&delta, digest(7, 1)), [1, 3]);
        assert_eq!(found(&delta, digest(7, 2)), [2]);
        // A block taken anew for the same content, or for other content, has one place or none.
        put(&mut delta, 1, digest(7, 1));
        assert_eq!(found(&delta, digest(7, 1)), [1, 3]);
        put(&mut delta, 1, digest(9, 1));
        assert_eq!(found(&delta, digest(7, 1)), [3]);
        assert_eq!(found(&delta, digest(9, 1)), [1, 4]);
    }

    #[test]
    fn content_that_comes_and_goes_and_a_crafted_pile_leave_no_more_than_a_few() {
        let mut delta = Delta::default();
        for pbn in 1..100 {
            put(&mut delta, pbn, digest(7, 1));
            delta.blocks.get_mut(&Pbn(pbn)).unwrap().count = 0;
        }
        assert!(delta.alike.is_empty());
        (100..200).for_each(|pbn| put(&mut delta, pbn, digest(7, 1)));
        assert_eq!(found(&delta, digest(7, 1)), (200 - ALIKE_MAX as u64..200).collect::<Vec<_>>());
    }
}
