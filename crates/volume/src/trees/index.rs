//! How a checkpoint changes the digest index: its changes are always scattered.

use crate::trees::runs::{self, Plan, RunPolicy, WithRuns};
use dedup_btree::{BTree, KeySet};
use dedup_meta::{MetaError, NodeSink, NodeSource, RunSet};
use dedup_schema::{HINT_SET, HINTS, HintKey};

type Set = KeySet<HintKey>;
/// An entry that comes (`Some`) or goes.
pub(crate) type Change = (HintKey, Option<()>);

/// Changes an entry of the base, as a fraction, from which on they are made to it at once: sixteen to a leaf
/// of 200 entries, a quarter of a kilobyte each.
const DENSE: u64 = 12;
/// Entries of a base to which all changes are made at once: some 80 leaves.
const DIRECT_BELOW: u64 = 16 << 10;
/// Entries of a leaf of the base, more or less: two thirds of what fits.
const LEAF_ENTRIES: u64 = 200;
/// Runs are merged into the base when together they hold this part of it: 25 changes to a leaf of 200.
const MERGE_PART: u64 = 8;

/// The index as checkpoints change it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index {
    pub(crate) policy: RunPolicy,
}

impl Index {
    /// An upper bound of the blocks that a checkpoint of `operations` writes: each brings at most two
    /// changes.
    pub(crate) fn worst_case(&self, operations: u64, set: &RunSet) -> u64 {
        runs::worst_case(self, operations.saturating_mul(2), set)
    }

    /// What is to become of so many changes, of `operations`, in at most `room` blocks; `None` if they have
    /// no room. As a run they take few: what goes to the base otherwise becomes one where a leaf for each
    /// change could be too much.
    pub(crate) fn plan(&self, old: &RunSet, changes: u64, operations: u64, room: u64) -> Option<Plan> {
        let blocks = self.worst_case(operations, old).min(room);
        let is_direct =
            self.is_direct(changes, old) && (room == u64::MAX || self.base_blocks(changes, old) <= room);
        let run = match Set::runs(old) < Set::RUNS_MAX {
            true => Set::run_blocks(changes),
            false => Set::run_blocks(changes).max(Set::amend_blocks(changes, old)),
        };
        (is_direct || run <= blocks).then(|| Plan {
            direct: is_direct.then(|| changes.min(self.base_leaves(old))),
            merge_at: old.base.entries.div_ceil(MERGE_PART),
            blocks,
            spare: 0,
        })
    }

    fn is_direct(&self, changes: u64, set: &RunSet) -> bool {
        match self.policy {
            RunPolicy::ByCost => {
                set.base.entries < DIRECT_BELOW || changes.saturating_mul(DENSE) >= set.base.entries
            }
            RunPolicy::Always => false,
            RunPolicy::Never => true,
        }
    }
}

impl WithRuns for Index {
    type Key = HintKey;
    type Change = Change;
    const RUNS_MAX: usize = Set::RUNS_MAX;

    fn runs(set: &RunSet) -> usize {
        Set::runs(set)
    }

    fn run_entries(set: &RunSet, run: usize) -> u64 {
        Set::run_entries(set, run)
    }

    fn run_blocks(changes: u64) -> u64 {
        Set::run_blocks(changes)
    }

    fn amend_blocks(changes: u64, set: &RunSet) -> u64 {
        Set::amend_blocks(changes, set)
    }

    fn base_blocks(&self, changes: u64, set: &RunSet) -> u64 {
        BTree::<HintKey, ()>::worst_case_blocks(changes, &set.base)
    }

    fn direct_blocks(&self, changes: u64, set: &RunSet) -> u64 {
        match self.is_direct(changes, set) {
            true => self.base_blocks(changes, set),
            false => 0,
        }
    }

    fn base_leaves(&self, set: &RunSet) -> u64 {
        set.base.entries / LEAF_ENTRIES
    }

    fn apply(&self, sink: &mut impl NodeSink, set: &RunSet, changes: &[Change]) -> Result<RunSet, MetaError> {
        Ok(RunSet { base: HINTS.apply(sink, &set.base, changes)?, runs: Vec::new() })
    }

    fn push(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        joined: usize,
        changes: &[Change],
    ) -> Result<RunSet, MetaError> {
        HINT_SET.push_run(source, sink, set, joined, changes)
    }

    fn amend(&self, sink: &mut impl NodeSink, set: &RunSet, changes: &[Change]) -> Result<RunSet, MetaError> {
        HINT_SET.amend(sink, set, changes)
    }

    fn merge(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        oldest: usize,
        from: Option<HintKey>,
        limit: usize,
    ) -> Result<(RunSet, Option<HintKey>), MetaError> {
        HINT_SET.merge(source, sink, set, oldest, from, limit)
    }

    fn drop_oldest(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        oldest: usize,
    ) -> Result<RunSet, MetaError> {
        HINT_SET.drop_oldest(source, sink, set, oldest)
    }
}
