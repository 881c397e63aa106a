//! Runs of changes to a map whose base is somebody else's.

use super::{Merge, Said, build, free, packed_blocks};
use crate::btree::{BTree, Key, Value};
use dedup_meta::{BlockType, MAX_RUNS, MetaError, NodeSink, NodeSource, Root};
use std::ops::RangeBounds;

/// A kind of runs, each a tree of the newest values: oldest first where they are recorded. What is passed as
/// `runs` may be any number of them in a row.
#[derive(Clone, Copy, Debug)]
pub struct RunMap<K, V> {
    tree: BTree<K, V>,
}

impl<K: Key + 'static, V: Value + 'static> RunMap<K, V> {
    /// Runs that a map may have.
    pub const RUNS_MAX: usize = MAX_RUNS;

    /// The runs whose nodes are of type `kind`.
    pub const fn new(kind: BlockType) -> Self {
        Self { tree: BTree::new(kind) }
    }

    /// One run, as a tree.
    pub const fn tree(&self) -> &BTree<K, V> {
        &self.tree
    }

    /// Calls `visit(place in keys, value)` for each of the strictly rising `keys` of which a run says
    /// something, with what the newest such run says. A run is not asked for keys that `may_hold(run, key)`
    /// denies.
    pub fn lookup_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        runs: &[Root],
        keys: &[K],
        may_hold: impl Fn(&Root, &K) -> bool,
        mut visit: impl FnMut(usize, V),
    ) -> Result<(), MetaError> {
        let mut open: Vec<(usize, K)> = keys.iter().copied().enumerate().collect();
        for run in runs.iter().rev().filter(|run| run.node.is_some()) {
            if open.is_empty() {
                break;
            }
            let asked: Vec<K> = open.iter().map(|(_, key)| *key).filter(|key| may_hold(run, key)).collect();
            let mut found = Vec::new();
            self.tree.lookup_many(source, run, &asked, |key, value| found.push((key, value)))?;
            let mut found = found.into_iter().peekable();
            open.retain(|(place, key)| match found.next_if(|(known, _)| known == key) {
                Some((_, value)) => {
                    visit(*place, value);
                    false
                }
                None => true,
            });
        }
        Ok(())
    }

    /// What the runs say of the keys in `range`, in order, the newest run's word where several have one. Ends
    /// after the first error.
    pub fn range<'s, S: NodeSource + ?Sized, R: RangeBounds<K>>(
        &self,
        source: &'s S,
        runs: &[Root],
        range: R,
    ) -> impl Iterator<Item = Result<(K, V), MetaError>> + use<'s, K, V, S, R> {
        let (from, to) = (range.start_bound().cloned(), range.end_bound().cloned());
        let tree = self.tree;
        let newest_first: Vec<Root> = runs.iter().rev().copied().collect();
        Merge::new(
            newest_first
                .into_iter()
                .map(move |run| -> Said<'s, K, V> { Box::new(tree.range(source, &run, (from, to))) }),
        )
    }

    /// The runs with `changes` (rising) as the newest one, which takes in the `absorbed` newest of those
    /// before. These are read from `source`, which must see what earlier transactions wrote, and freed.
    /// Blocks allocated: at most [`Self::run_blocks`].
    pub fn push<S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
        &self,
        source: &S,
        sink: &mut N,
        runs: &[Root],
        absorbed: usize,
        changes: &[(K, V)],
    ) -> Result<Vec<Root>, MetaError> {
        let (kept, absorbed) = runs.split_at(runs.len() - absorbed);
        let own: Said<'_, K, V> = Box::new(changes.iter().map(|change| Ok(*change)));
        let before: Said<'_, K, V> = Box::new(self.range(source, absorbed, ..));
        let run = build(&self.tree, sink, Merge::new([own, before].into_iter()))?;
        free(&self.tree, source, sink, absorbed)?;
        Ok([kept, &[run]].concat())
    }

    /// The runs with `changes` (rising) made to the newest one, of which there must be one, leaf by leaf: for
    /// few changes and a large run. Blocks allocated: at most the run's [`BTree::worst_case_blocks`].
    pub fn amend<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        runs: &[Root],
        changes: &[(K, V)],
    ) -> Result<Vec<Root>, MetaError> {
        let Some((newest, kept)) = runs.split_last() else { return Ok(Vec::new()) };
        let changes: Vec<(K, Option<V>)> = changes.iter().map(|(key, value)| (*key, Some(*value))).collect();
        Ok([kept, &[self.tree.apply(sink, newest, &changes)?]].concat())
    }

    /// The runs without the `merged` oldest, whose blocks are freed.
    pub fn drop_oldest<S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
        &self,
        source: &S,
        sink: &mut N,
        runs: &[Root],
        merged: usize,
    ) -> Result<Vec<Root>, MetaError> {
        let (gone, kept) = runs.split_at(merged);
        free(&self.tree, source, sink, gone)?;
        Ok(kept.to_vec())
    }

    /// An upper bound of the blocks of a run with so many changes.
    pub fn run_blocks(changes: u64) -> u64 {
        packed_blocks::<K, V>(changes, 1)
    }
}
