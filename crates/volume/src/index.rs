//! How a checkpoint changes the digest index: straight in its base tree, or as a run above it, with the oldest runs merged into the base
//! a slice at a time.
//!
//! ```text
//!  changes ──few leaves, or many changes to each──> base
//!     └─────scattered over a large base───────────> a run ──joined with young runs──> ... ──merged, a slice a checkpoint──> base
//! ```
//!
//! What it costs, in leaves of a base of `L` that holds `E` entries: `n` scattered changes rewrite `L (1 - e^-(n/L))` leaves, nearly one
//! each where n is far below L. As a run they take `n / 290`. Runs are merged when they hold an eighth of the base, about 25 changes
//! to each leaf of it, so a change pays for 1/25 of a leaf, and for having been joined a few times before.
//!
//! Runs are rooted in the superblock until the checkpoint that frees their last block (R10). How far a merge has come is known in
//! memory only: it changes nothing that the index says, so after an open it begins anew. No part of this can fail for want of
//! space: a checkpoint's share for the index ([`worst_case`]) bounds the run and the slice.

use crate::mapping::{HINT_SET, HINTS, HintKey};
use dedup_btree::{BTree, KeySet, Metered};
use dedup_meta::{MetaError, NodeSink, NodeSource, RunSet};

type Set = KeySet<HintKey>;
/// An entry that comes (`Some`) or goes.
pub(crate) type Change = (HintKey, Option<()>);

/// Changes an entry of the base, as a fraction, from which on they are made to it at once: sixteen to a leaf of 200 entries, a
/// quarter of a kilobyte each.
const DENSE: u64 = 12;
/// A run is joined with younger changes as long as it has no more than so many times theirs. 4 gives as few rewrites as 2 and half
/// the runs.
const JOIN_RATIO: u64 = 4;
/// Entries of a base to which all changes are made at once: some 80 leaves.
const DIRECT_BELOW: u64 = 16 << 10;
/// Runs are merged into the base when together they hold this part of it: 25 changes to a leaf of 200.
const MERGE_PART: u64 = 8;
/// Runs at which they are merged even if they hold less, so that there is place for new ones meanwhile.
const MERGE_RUNS: usize = Set::RUNS_MAX - 3;
/// Changes merged in a checkpoint for each that it brings: fast enough to end before new runs have grown as large.
const MERGE_PACE: usize = 4;
/// Changes merged in one go, after which the blocks used are counted again.
const MERGE_STEP: usize = 1024;
/// What a run may take beyond the changes' own leaves: the last nodes of each level of two trees.
const RUN_SLACK_BLOCKS: u64 = 8;

/// When changes of the index become runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexRuns {
    /// Where that writes less: in an index that is large for the number of changes.
    #[default]
    ByCost,
    /// However few there are, so that small volumes have runs too: for tests.
    Always,
    /// Not unless there are runs already: what they save can be measured so.
    Never,
}

/// A merge under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merging {
    /// The oldest runs, which are being merged.
    runs: usize,
    /// Where it goes on; `None`: at the beginning.
    next: Option<HintKey>,
}

/// An upper bound of the blocks that a checkpoint of `operations` writes for the index: each brings at most two changes.
pub(crate) fn worst_case(operations: u64, set: &RunSet) -> u64 {
    let changes = operations.saturating_mul(2);
    BTree::<HintKey, ()>::worst_case_blocks(changes, &set.base).saturating_add(RUN_SLACK_BLOCKS)
}

/// The index with `changes` (rising) made to it, in at most `allowed` blocks, which must be [`worst_case`] of them. `source` sees what
/// was there before this transaction.
pub(crate) fn apply(
    source: &impl NodeSource,
    sink: &mut impl NodeSink,
    old: &RunSet,
    changes: &[Change],
    merging: &mut Option<Merging>,
    allowed: u64,
    policy: IndexRuns,
) -> Result<RunSet, MetaError> {
    let runs = Set::runs(old);
    // An index that was dropped is not merged any more.
    *merging = merging.filter(|merging| merging.runs <= runs);
    let count = changes.len() as u64;
    let is_direct = match policy {
        IndexRuns::ByCost => {
            old.base.entries < DIRECT_BELOW || count.saturating_mul(DENSE) >= old.base.entries
        }
        IndexRuns::Always => false,
        IndexRuns::Never => true,
    };
    if changes.is_empty() || runs == 0 && is_direct {
        let base = HINTS.apply(sink, &old.base, changes)?;
        return Ok(RunSet { base, runs: old.runs.clone() });
    }
    let in_runs: u64 = (0..runs).map(|i| Set::run_entries(old, i)).sum();
    let is_due = runs >= MERGE_RUNS || in_runs.saturating_mul(MERGE_PART) >= old.base.entries;
    if merging.is_none() && runs > 0 && is_due {
        *merging = Some(Merging { runs, next: None });
    }
    let mut sink = Metered::new(sink);
    let joined = joined(old, merging.map_or(0, |merging| merging.runs), count, allowed / 2);
    let mut set = HINT_SET.push_run(source, &mut sink, old, joined, changes)?;
    let mut left = changes.len() * MERGE_PACE;
    while let Some(Merging { runs, next }) = *merging {
        let affordable = |n: &usize| {
            let blocks = BTree::<HintKey, ()>::worst_case_blocks(*n as u64, &set.base);
            sink.allocated().saturating_add(blocks) <= allowed
        };
        let halves = std::iter::successors(Some(left.min(MERGE_STEP)), |n| Some(n / 2));
        let Some(step) = halves.take_while(|n| *n > 0).find(affordable) else { break };
        let (merged, next) = HINT_SET.merge(source, &mut sink, &set, runs, next, step)?;
        (set, left) = (merged, left - step);
        *merging = next.map(|next| Merging { runs, next: Some(next) });
        if next.is_none() {
            set = HINT_SET.drop_oldest(source, &mut sink, &set, runs)?;
        }
    }
    Ok(set)
}

/// How many of the youngest runs, none of them one of the `merging` oldest, are joined with `count` new changes, in at most
/// `blocks`. One that must make room is joined in any case.
fn joined(set: &RunSet, merging: usize, count: u64, blocks: u64) -> usize {
    let runs = Set::runs(set);
    let (mut joined, mut total) = (0, count);
    for run in (merging..runs).rev() {
        let entries = Set::run_entries(set, run);
        let fits = Set::run_blocks(total + entries) <= blocks && entries <= total * JOIN_RATIO;
        if !fits && run + 1 < Set::RUNS_MAX {
            break;
        }
        (joined, total) = (joined + 1, total + entries);
    }
    joined
}
