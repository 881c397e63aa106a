//! LBN -> mapping: an array tree, and runs of changes above it.
//!
//! A lookup asks the runs, the newest first, and the base for what no run knows. Unmapped is a value like any
//! other in a run, where it hides what the base has.

use crate::trees::run_filters::RunFilters;
use crate::trees::runs::{self, Plan, RunPolicy, WithRuns};
use dedup_btree::{ArrayTree, BTree, LeafCodec, RunMap};
use dedup_meta::{MetaError, NodeSink, NodeSource, Root, RunSet};
use dedup_schema::{Lbn, MAPPING_RUNS, MAPPINGS, Mapping, MappingLeaf};

type Runs = RunMap<Lbn, Mapping>;
/// What an LBN is mapped to from now on.
pub(crate) type Change = (Lbn, Mapping);

/// Changes for each leaf that they touch, from which on they are made to the base at once: a quarter of a
/// kilobyte each, as much as a change in a run costs until it is merged.
const DENSE: u64 = 16;
/// Leaves that changes may touch to be made to the base in any case.
const DIRECT_LEAVES: u64 = 64;
/// Changes in runs for each leaf that the base can have at which they are merged: those that a leaf is
/// rewritten for.
const MERGE_CHANGES_PER_LEAF: u64 = 25;

/// The mappings of `lbns` (strictly rising), in their order.
pub(crate) fn get_many(
    source: &(impl NodeSource + ?Sized),
    set: &RunSet,
    filters: &RunFilters,
    lbns: &[Lbn],
) -> Result<Vec<Mapping>, MetaError> {
    let mut known: Vec<Option<Mapping>> = vec![None; if set.runs.is_empty() { 0 } else { lbns.len() }];
    let may_hold = |run: &Root, lbn: &Lbn| filters.may_hold(run, *lbn);
    MAPPING_RUNS
        .lookup_many(source, &set.runs, lbns, may_hold, |place, mapping| known[place] = Some(mapping))?;
    let is_known = |place: usize| known.get(place).is_some_and(Option::is_some);
    let unknown: Vec<u64> =
        lbns.iter().enumerate().filter(|(place, _)| !is_known(*place)).map(|(_, lbn)| lbn.0).collect();
    let mut from_base = Vec::with_capacity(unknown.len());
    MAPPINGS.get_many(source, &set.base, &unknown, |_, mapping| from_base.push(mapping))?;
    if known.is_empty() {
        return Ok(from_base);
    }
    let mut from_base = from_base.into_iter();
    Ok(known
        .into_iter()
        .map(|known| known.or_else(|| from_base.next()).unwrap_or(Mapping::UNMAPPED))
        .collect())
}

/// The map of a volume of so many blocks, as checkpoints change it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LbnMap {
    pub(crate) lbns: u64,
    pub(crate) policy: RunPolicy,
}

impl LbnMap {
    /// An upper bound of the blocks that a checkpoint of `operations` writes.
    pub(crate) fn worst_case(&self, operations: u64, set: &RunSet) -> u64 {
        match operations {
            0 => 0,
            _ => runs::worst_case(self, operations.min(self.lbns), set),
        }
    }

    /// An upper bound of the blocks that it takes to merge all runs into the base. They are kept free, so
    /// that a run is only a delay of what is written, and a device is full when the tree without runs would
    /// fill it.
    pub(crate) fn debt(&self, set: &RunSet) -> u64 {
        let changes: u64 = set.runs.iter().map(|run| run.entries).sum();
        self.base_blocks(changes.min(self.lbns), set)
    }

    /// What is to become of `changes` (rising) of `operations`, and of runs, if space is short with `spare`
    /// blocks for these.
    pub(crate) fn plan(&self, old: &RunSet, changes: &[Change], operations: u64, spare: u64) -> Plan {
        let leaf = |lbn: Lbn| lbn.0 / MappingLeaf::PER_LEAF;
        let touched = changes.chunk_by(|a, b| leaf(a.0) == leaf(b.0)).count() as u64;
        let is_dense = touched <= DIRECT_LEAVES || changes.len() as u64 >= touched * DENSE;
        let is_direct = match self.policy {
            RunPolicy::ByCost => is_dense,
            RunPolicy::Always => false,
            RunPolicy::Never => true,
        };
        let merge_at = match self.policy {
            RunPolicy::Always => old.base.entries / 8,
            RunPolicy::ByCost | RunPolicy::Never => {
                self.base_leaves(old).saturating_mul(MERGE_CHANGES_PER_LEAF)
            }
        };
        let blocks = self.worst_case(operations, old);
        Plan { direct: is_direct.then_some(touched), merge_at, blocks, spare }
    }
}

impl WithRuns for LbnMap {
    type Key = Lbn;
    type Change = Change;
    const RUNS_MAX: usize = Runs::RUNS_MAX;

    fn runs(set: &RunSet) -> usize {
        set.runs.len()
    }

    fn run_entries(set: &RunSet, run: usize) -> u64 {
        set.runs[run].entries
    }

    fn run_blocks(changes: u64) -> u64 {
        Runs::run_blocks(changes)
    }

    fn amend_blocks(changes: u64, set: &RunSet) -> u64 {
        set.runs.last().map_or(0, |run| BTree::<Lbn, Mapping>::worst_case_blocks(changes, run))
    }

    fn base_blocks(&self, changes: u64, _set: &RunSet) -> u64 {
        ArrayTree::<MappingLeaf>::worst_case_blocks(changes, self.lbns)
    }

    fn direct_blocks(&self, changes: u64, set: &RunSet) -> u64 {
        let leaves = match self.policy {
            RunPolicy::Never => changes,
            RunPolicy::ByCost => (changes / DENSE).max(DIRECT_LEAVES).min(changes),
            RunPolicy::Always => 0,
        };
        self.base_blocks(leaves, set)
    }

    fn base_leaves(&self, _set: &RunSet) -> u64 {
        self.lbns.div_ceil(MappingLeaf::PER_LEAF)
    }

    fn apply(&self, sink: &mut impl NodeSink, set: &RunSet, changes: &[Change]) -> Result<RunSet, MetaError> {
        let changes: Vec<(u64, Mapping)> = changes.iter().map(|(lbn, mapping)| (lbn.0, *mapping)).collect();
        let base = MAPPINGS.apply(sink, &set.base, &changes, &mut |_, _, _| {})?;
        Ok(RunSet { base, runs: set.runs.clone() })
    }

    fn push(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        joined: usize,
        changes: &[Change],
    ) -> Result<RunSet, MetaError> {
        Ok(RunSet { base: set.base, runs: MAPPING_RUNS.push(source, sink, &set.runs, joined, changes)? })
    }

    fn amend(&self, sink: &mut impl NodeSink, set: &RunSet, changes: &[Change]) -> Result<RunSet, MetaError> {
        Ok(RunSet { base: set.base, runs: MAPPING_RUNS.amend(sink, &set.runs, changes)? })
    }

    fn merge(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        oldest: usize,
        from: Option<Lbn>,
        limit: usize,
    ) -> Result<(RunSet, Option<Lbn>), MetaError> {
        let mut rest = MAPPING_RUNS.range(source, &set.runs[..oldest], from.unwrap_or(Lbn(0))..);
        let changes: Vec<Change> = rest.by_ref().take(limit).collect::<Result<_, _>>()?;
        let next = rest.next().transpose()?.map(|(lbn, _)| lbn);
        Ok((self.apply(sink, set, &changes)?, next))
    }

    fn drop_oldest(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        oldest: usize,
    ) -> Result<RunSet, MetaError> {
        Ok(RunSet { base: set.base, runs: MAPPING_RUNS.drop_oldest(source, sink, &set.runs, oldest)? })
    }
}
