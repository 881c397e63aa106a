//! How a checkpoint changes the digest index: its changes are always scattered.

use crate::mapping::{HINT_SET, HINTS, HintKey};
use crate::runs::{self, Merging, Plan, RunPolicy, WithRuns};
use dedup_btree::{BTree, KeySet};
use dedup_meta::{MetaError, NodeSink, NodeSource, RunSet};

type Set = KeySet<HintKey>;
/// An entry that comes (`Some`) or goes.
pub(crate) type Change = (HintKey, Option<()>);

/// Changes an entry of the base, as a fraction, from which on they are made to it at once: sixteen to a leaf of 200 entries, a
/// quarter of a kilobyte each.
const DENSE: u64 = 12;
/// Entries of a base to which all changes are made at once: some 80 leaves.
const DIRECT_BELOW: u64 = 16 << 10;
/// Runs are merged into the base when together they hold this part of it: 25 changes to a leaf of 200.
const MERGE_PART: u64 = 8;

/// An upper bound of the blocks that a checkpoint of `operations` writes for the index: each brings at most two changes.
pub(crate) fn worst_case(operations: u64, set: &RunSet) -> u64 {
    runs::worst_case(&Index, operations.saturating_mul(2), set)
}

/// The index with `changes` (rising) made to it, in at most `blocks`, which must be [`worst_case`] of them.
pub(crate) fn apply(
    source: &impl NodeSource,
    sink: &mut impl NodeSink,
    old: &RunSet,
    changes: &[Change],
    merging: &mut Option<Merging<HintKey>>,
    blocks: u64,
    policy: RunPolicy,
) -> Result<RunSet, MetaError> {
    let (count, entries) = (changes.len() as u64, old.base.entries);
    let direct = match policy {
        RunPolicy::ByCost => entries < DIRECT_BELOW || count.saturating_mul(DENSE) >= entries,
        RunPolicy::Always => false,
        RunPolicy::Never => true,
    };
    let plan = Plan { direct, merge_at: entries.div_ceil(MERGE_PART), blocks, spare: 0 };
    runs::apply(&Index, source, sink, old, changes, merging, plan)
}

struct Index;

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
