//! When changes become runs above a map's base, and when runs are merged into it, a slice a checkpoint: what
//! the digest index and the LBN map have in common.
//!
//! ```text
//!  changes ──few leaves, or many changes to each──> base
//!     └─────scattered over a large base───────────> a run ──joined with young runs──> ... ──merged, a slice a checkpoint──> base
//! ```
//!
//! What it costs, in leaves of a base of `L`: `n` scattered changes rewrite `L (1 - e^-(n/L))` of them,
//! nearly one each where n is far below L. As a run they take `n / 290`, or `n / 225` with a value. Runs are
//! merged when together they have some 25 changes for each leaf of the base, so a change pays for 1/25 of a
//! leaf, and for having been joined a few times before.
//!
//! Runs are rooted in the superblock until the checkpoint that frees their last block (R10). How far a merge
//! has come is known in memory only: it changes nothing that the map says, so after an open it begins anew.
//! No part of this can fail for want of space: a checkpoint's share for the map ([`worst_case`]) bounds the
//! run and the slice. So a slice is bounded by what it costs, in leaves, and not only by the changes that it
//! merges.

use dedup_btree::Metered;
use dedup_meta::{MetaError, NodeSink, NodeSource, RunSet};

/// A run is joined with younger changes as long as it has no more than so many times theirs. 4 gives as few
/// rewrites as 2 and half the runs.
const JOIN_RATIO: u64 = 4;
/// Changes merged in a checkpoint for each that it brings: fast enough to end before new runs have grown as
/// large.
const MERGE_PACE: usize = 4;
/// A checkpoint has as many blocks for merges and joins as this part of its changes would take if each had a
/// leaf of the base to itself: half as much again as [`MERGE_PACE`] takes at 25 changes a leaf, and room to
/// join runs of 28 times the changes.
const MERGE_SHARE: u64 = 4;
/// Changes merged in one go, after which the blocks used are counted again.
const MERGE_STEP: usize = 1024;
/// What a run may take beyond the changes' own leaves: the last nodes of each level of two trees.
const RUN_SLACK_BLOCKS: u64 = 8;

/// When changes become runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunPolicy {
    /// Where that writes less: changes scattered over a map that is large for their number.
    #[default]
    ByCost,
    /// However few there are, and merged soon, so that all of it happens in small volumes too: for tests.
    Always,
    /// Not unless there are runs already: what they save can be measured so.
    Never,
}

/// A map with runs above its base.
pub(crate) trait WithRuns {
    type Key: Copy;
    type Change;
    /// Runs that it may have.
    const RUNS_MAX: usize;

    fn runs(set: &RunSet) -> usize;
    /// Changes in a run, the oldest of which is 0.
    fn run_entries(set: &RunSet, run: usize) -> u64;
    /// Upper bounds of the blocks that are allocated: by a run of so many changes,
    fn run_blocks(changes: u64) -> u64;
    /// by so many changes to the youngest run (0 if there is none),
    fn amend_blocks(changes: u64, set: &RunSet) -> u64;
    /// by so many changes to the base,
    fn base_blocks(&self, changes: u64, set: &RunSet) -> u64;
    /// and by so many changes if they are such that they go to the base at once ([`Plan::direct`]).
    fn direct_blocks(&self, changes: u64, set: &RunSet) -> u64;
    /// Leaves of the base, more or less.
    fn base_leaves(&self, set: &RunSet) -> u64;

    /// Makes changes to the base of a map without runs.
    fn apply(
        &self,
        sink: &mut impl NodeSink,
        set: &RunSet,
        changes: &[Self::Change],
    ) -> Result<RunSet, MetaError>;
    /// Makes them a run that takes in the `joined` youngest.
    fn push(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        joined: usize,
        changes: &[Self::Change],
    ) -> Result<RunSet, MetaError>;
    /// Makes them to the youngest run.
    fn amend(
        &self,
        sink: &mut impl NodeSink,
        set: &RunSet,
        changes: &[Self::Change],
    ) -> Result<RunSet, MetaError>;
    /// Makes the next changes of the `oldest` runs to the base, at most `limit`; says where to go on.
    fn merge(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        oldest: usize,
        from: Option<Self::Key>,
        limit: usize,
    ) -> Result<(RunSet, Option<Self::Key>), MetaError>;
    /// Frees the `oldest` runs.
    fn drop_oldest(
        &self,
        source: &impl NodeSource,
        sink: &mut impl NodeSink,
        set: &RunSet,
        oldest: usize,
    ) -> Result<RunSet, MetaError>;
}

/// A merge under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merging<K> {
    /// The oldest runs, which are being merged.
    runs: usize,
    /// Where it goes on; `None`: at the beginning.
    next: Option<K>,
}

/// What a map wants of this checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Changes go to the base if it has no runs. These are the leaves that they touch, more or less.
    pub(crate) direct: Option<u64>,
    /// Changes in runs at which a merge begins.
    pub(crate) merge_at: u64,
    /// Blocks that may be allocated: [`worst_case`], or less for joins and merges if there are not as many.
    pub(crate) blocks: u64,
    /// Blocks that a merge may allocate beyond these. If there are any, space is short and runs are merged as
    /// fast as can be, so that theirs come back.
    pub(crate) spare: u64,
}

/// Runs at which they are merged even if they hold little, and which are merged at most at once: there is
/// place for new ones meanwhile.
const fn merge_runs<M: WithRuns>() -> usize {
    M::RUNS_MAX * 5 / 8
}

/// An upper bound of the blocks that a checkpoint with so many changes allocates for a map.
pub(crate) fn worst_case<M: WithRuns>(map: &M, changes: u64, set: &RunSet) -> u64 {
    // By the time of that checkpoint the one before it may have brought a run.
    let amend = match M::runs(set) + 2 >= M::RUNS_MAX {
        true => M::amend_blocks(changes, set),
        false => 0,
    };
    own_blocks(map, changes, set).max(amend.saturating_add(RUN_SLACK_BLOCKS))
}

/// The same, should the youngest run not be changed.
fn own_blocks<M: WithRuns>(map: &M, changes: u64, set: &RunSet) -> u64 {
    let merged = changes.min((changes / MERGE_SHARE).max(MERGE_STEP as u64));
    let bounds = [map.direct_blocks(changes, set), M::run_blocks(changes), map.base_blocks(merged, set)];
    bounds.into_iter().fold(0, u64::max).saturating_add(RUN_SLACK_BLOCKS)
}

/// About how many nodes [`apply`] reads to change them, and writes.
pub(crate) fn expected_nodes<M: WithRuns>(
    map: &M,
    old: &RunSet,
    changes: u64,
    merging: Option<&Merging<M::Key>>,
    plan: &Plan,
) -> u64 {
    let runs = M::runs(old);
    if let (0, Some(leaves)) = (runs, plan.direct) {
        return 2 * leaves;
    }
    // A map that was dropped since has fewer runs.
    let held = merging.filter(|merging| merging.runs <= runs).map_or(0, |merging| merging.runs);
    let entries = |runs: std::ops::Range<usize>| runs.map(|run| M::run_entries(old, run)).sum::<u64>();
    let joined = joined::<M>(old, held, changes, plan.blocks.min(own_blocks(map, changes, old)) / 2);
    let merged = changes.saturating_mul(MERGE_PACE as u64).min(entries(0..held));
    let leaves = merged as u128 * u128::from(map.base_leaves(old)) / u128::from(entries(0..held).max(1));
    M::run_blocks(changes + entries(runs - joined..runs)) + 2 * merged.min(leaves as u64).min(plan.blocks)
}

/// The map with `changes` (rising) made to it. `source` sees what was there before this transaction.
pub(crate) fn apply<M: WithRuns>(
    map: &M,
    source: &impl NodeSource,
    sink: &mut impl NodeSink,
    old: &RunSet,
    changes: &[M::Change],
    merging: &mut Option<Merging<M::Key>>,
    plan: Plan,
) -> Result<RunSet, MetaError> {
    let runs = M::runs(old);
    // Of a map that was dropped nothing is merged any more.
    *merging = merging.filter(|merging| merging.runs <= runs);
    let in_hurry = plan.spare > 0 && runs > 0;
    if changes.is_empty() && !in_hurry {
        return Ok(old.clone());
    }
    if runs == 0 && plan.direct.is_some() {
        return map.apply(sink, old, changes);
    }
    let in_runs: u64 = (0..runs).map(|run| M::run_entries(old, run)).sum();
    let is_due = runs >= merge_runs::<M>() || in_runs >= plan.merge_at || in_hurry;
    if merging.is_none() && runs > 0 && is_due {
        *merging = Some(Merging { runs: runs.min(merge_runs::<M>()), next: None });
    }
    let mut sink = Metered::new(sink);
    let held = merging.map_or(0, |merging| merging.runs);
    // What was reserved may have been so before there was the youngest run, so its part is neither the joins'
    // nor the merge's.
    let own = plan.blocks.min(own_blocks(map, changes.len() as u64, old));
    let joined = joined::<M>(old, held, changes.len() as u64, own / 2);
    let mut set = match runs - joined < M::RUNS_MAX {
        _ if changes.is_empty() => old.clone(),
        true => map.push(source, &mut sink, old, joined, changes)?,
        // Not one that is being merged, of which there are fewer.
        false => map.amend(&mut sink, old, changes)?,
    };
    let merge_blocks = own.saturating_add(plan.spare);
    let mut left = if in_hurry { usize::MAX } else { changes.len().saturating_mul(MERGE_PACE) };
    while let Some(Merging { runs, next }) = *merging {
        let affordable = |n: &usize| {
            let blocks = map.base_blocks(*n as u64, &set);
            sink.allocated().saturating_add(blocks) <= merge_blocks
        };
        let halves = std::iter::successors(Some(left.min(MERGE_STEP)), |n| Some(n / 2));
        let Some(step) = halves.take_while(|n| *n > 0).find(affordable) else { break };
        let (merged, next) = map.merge(source, &mut sink, &set, runs, next, step)?;
        (set, left) = (merged, left - step);
        *merging = next.map(|next| Merging { runs, next: Some(next) });
        if next.is_none() {
            set = map.drop_oldest(source, &mut sink, &set, runs)?;
        }
    }
    Ok(set)
}

/// How many of the youngest runs, none of them one of the `held` oldest, are joined with `count` new changes,
/// in at most `blocks`.
fn joined<M: WithRuns>(set: &RunSet, held: usize, count: u64, blocks: u64) -> usize {
    let (mut joined, mut total) = (0, count);
    for run in (held..M::runs(set)).rev() {
        let entries = M::run_entries(set, run);
        if M::run_blocks(total + entries) > blocks || entries > total.saturating_mul(JOIN_RATIO) {
            break;
        }
        (joined, total) = (joined + 1, total + entries);
    }
    joined
}

#[cfg(test)]
mod tests;
