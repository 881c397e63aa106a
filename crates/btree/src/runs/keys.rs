//! A set of keys with runs.
//!
//! Where the runs are recorded, a run is two roots in a row, `added` and `removed`, either of which may be
//! empty; older runs come first. The two have no key in common.

use super::{Merge, Said, build, free, packed_blocks};
use crate::btree::{BTree, Key};
use dedup_meta::{BlockType, MAX_RUNS, MetaError, NodeSink, NodeSource, Root, RunSet};
use std::collections::BTreeSet;

/// A kind of set: its keys and block type.
#[derive(Clone, Copy, Debug)]
pub struct KeySet<K> {
    tree: BTree<K, ()>,
}

/// A key that was added (`Some`) or removed.
type Change<K> = (K, Option<()>);
type Changes<'s, K> = Said<'s, K, Option<()>>;

impl<K: Key + 'static> KeySet<K> {
    /// Runs that a set may have.
    pub const RUNS_MAX: usize = MAX_RUNS / 2;

    /// The sets whose nodes are of type `kind`.
    pub const fn new(kind: BlockType) -> Self {
        Self { tree: BTree::new(kind) }
    }

    /// The trees that a set consists of.
    pub fn trees(set: &RunSet) -> impl Iterator<Item = &Root> {
        std::iter::once(&set.base).chain(&set.runs)
    }

    /// How many runs there are.
    pub fn runs(set: &RunSet) -> usize {
        set.runs.len() / 2
    }

    /// Changes in the `i`-th run, the oldest of which is 0.
    pub fn run_entries(set: &RunSet, i: usize) -> u64 {
        set.runs[2 * i..][..2].iter().map(|root| root.entries).sum()
    }

    /// Keys in the set. Exact without runs; with them, keys added twice or removed in vain make it a little
    /// wrong.
    pub fn entries(set: &RunSet) -> u64 {
        let of = |part: usize| set.runs.iter().skip(part).step_by(2).map(|root| root.entries).sum::<u64>();
        (set.base.entries + of(0)).saturating_sub(of(1))
    }

    /// Calls `visit(range's number, key)` for each key of the set in one of the inclusive `ranges`, which
    /// must rise and not overlap. What came in last comes first. No more than the first `limit` keys of a
    /// range are read of each tree, so that one with very many of them costs little.
    pub fn range_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        set: &RunSet,
        ranges: &[(K, K)],
        limit: usize,
        mut visit: impl FnMut(usize, K),
    ) -> Result<(), MetaError> {
        if set.runs.is_empty() {
            return self
                .tree
                .first_many(source, &set.base, ranges, limit, |range, key, ()| visit(range, key));
        }
        // Range, key, and how many runs are older than what has it.
        let mut found: Vec<(usize, K, usize)> = Vec::new();
        for age in (1..=Self::runs(set)).rev() {
            let added = &set.runs[2 * (age - 1)];
            self.tree
                .first_many(source, added, ranges, limit, |range, key, ()| found.push((range, key, age)))?;
        }
        self.tree
            .first_many(source, &set.base, ranges, limit, |range, key, ()| found.push((range, key, 0)))?;
        for (older, removed) in set.runs.iter().skip(1).step_by(2).enumerate() {
            // What the run removes of that which is older; what it says of anything else is not asked for.
            let mut keys: Vec<K> =
                found.iter().filter(|(_, _, age)| *age <= older).map(|(_, key, _)| *key).collect();
            if keys.is_empty() || removed.node.is_none() {
                continue;
            }
            keys.sort_unstable();
            keys.dedup();
            let mut gone = BTreeSet::new();
            self.tree.lookup_many(source, removed, &keys, |key, ()| {
                gone.insert(key);
            })?;
            found.retain(|(_, key, age)| *age > older || !gone.contains(key));
        }
        let mut known = BTreeSet::new();
        found.iter().filter(|(_, key, _)| known.insert(*key)).for_each(|(range, key, _)| visit(*range, *key));
        Ok(())
    }

    /// The keys of the set from `from` on, rising. Ends after the first error.
    pub fn range<'s, S: NodeSource + ?Sized>(
        &self,
        source: &'s S,
        set: &RunSet,
        from: K,
    ) -> impl Iterator<Item = Result<K, MetaError>> + use<'s, K, S> {
        let base: Changes<'s, K> = Box::new(self.said(source, &set.base, Some(()), Some(from)));
        let runs = self.changes(source, &set.runs, Some(from));
        Merge::new(runs.chain([base])).filter_map(|change| match change {
            Ok((key, Some(()))) => Some(Ok(key)),
            Ok((_, None)) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// The set with `changes` (rising) as its newest run, which takes in the `absorbed` newest of those
    /// before. These are read from `source`, which must see what earlier transactions wrote, and freed.
    /// Blocks allocated: at most [`Self::run_blocks`].
    pub fn push_run<S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
        &self,
        source: &S,
        sink: &mut N,
        set: &RunSet,
        absorbed: usize,
        changes: &[(K, Option<()>)],
    ) -> Result<RunSet, MetaError> {
        let (kept, absorbed) = set.runs.split_at(set.runs.len() - 2 * absorbed);
        let mut runs = kept.to_vec();
        for part in [Some(()), None] {
            let own: Changes<'_, K> = Box::new(changes.iter().map(|change| Ok(*change)));
            let all = Merge::new(std::iter::once(own).chain(self.changes(source, absorbed, None)));
            let keys = all.filter_map(|change| match change {
                Ok((key, change)) => (change == part).then_some(Ok((key, ()))),
                Err(error) => Some(Err(error)),
            });
            runs.push(build(&self.tree, sink, keys)?);
        }
        free(&self.tree, source, sink, absorbed)?;
        Ok(RunSet { base: set.base, runs })
    }

    /// The set with `changes` (rising) made to its newest run, of which there must be one, leaf by leaf: for
    /// few changes and a large run. Blocks allocated: at most [`Self::amend_blocks`].
    pub fn amend<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        set: &RunSet,
        changes: &[Change<K>],
    ) -> Result<RunSet, MetaError> {
        let mut runs = set.runs.clone();
        let newest = runs.len().saturating_sub(2);
        for (root, part) in runs[newest..].iter_mut().zip([Some(()), None]) {
            let own: Vec<Change<K>> =
                changes.iter().map(|(key, change)| (*key, (*change == part).then_some(()))).collect();
            *root = self.tree.apply(sink, root, &own)?;
        }
        Ok(RunSet { base: set.base, runs })
    }

    /// An upper bound of the blocks that so many changes to the newest run allocate; 0 if there is none.
    pub fn amend_blocks(changes: u64, set: &RunSet) -> u64 {
        let newest = set.runs.len().saturating_sub(2);
        set.runs[newest..].iter().map(|root| BTree::<K, ()>::worst_case_blocks(changes, root)).sum()
    }

    /// An upper bound of the blocks of a run with so many changes: two trees.
    pub fn run_blocks(changes: u64) -> u64 {
        packed_blocks::<K, ()>(changes, 2)
    }

    /// The set with the next changes of its `merging` oldest runs made to its base: at most `limit` (not 0),
    /// beginning at the key `from`. Also where the next merge goes on; `None` at their end.
    pub fn merge<S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
        &self,
        source: &S,
        sink: &mut N,
        set: &RunSet,
        merging: usize,
        from: Option<K>,
        limit: usize,
    ) -> Result<(RunSet, Option<K>), MetaError> {
        let mut rest = Merge::new(self.changes(source, &set.runs[..2 * merging], from));
        let changes: Vec<Change<K>> = rest.by_ref().take(limit).collect::<Result<_, _>>()?;
        let next = rest.next().transpose()?.map(|(key, _)| key);
        let base = self.tree.apply(sink, &set.base, &changes)?;
        Ok((RunSet { base, runs: set.runs.clone() }, next))
    }

    /// The set without its `merged` oldest runs, which are part of its base.
    pub fn drop_oldest<S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
        &self,
        source: &S,
        sink: &mut N,
        set: &RunSet,
        merged: usize,
    ) -> Result<RunSet, MetaError> {
        let (gone, kept) = set.runs.split_at(2 * merged);
        free(&self.tree, source, sink, gone)?;
        Ok(RunSet { base: set.base, runs: kept.to_vec() })
    }

    /// What each of `runs` says, newest first.
    fn changes<'s, S: NodeSource + ?Sized>(
        &self,
        source: &'s S,
        runs: &[Root],
        from: Option<K>,
    ) -> impl Iterator<Item = Changes<'s, K>> + use<'s, K, S> {
        let this = *self;
        let trees: Vec<(usize, Root)> = runs.iter().copied().enumerate().rev().collect();
        trees.into_iter().map(move |(i, root)| -> Changes<'s, K> {
            let change = (i % 2 == 0).then_some(());
            Box::new(this.said(source, &root, change, from))
        })
    }

    /// What one tree of a run says.
    fn said<'s, S: NodeSource + ?Sized>(
        &self,
        source: &'s S,
        root: &Root,
        change: Option<()>,
        from: Option<K>,
    ) -> impl Iterator<Item = Result<Change<K>, MetaError>> + use<'s, K, S> {
        let from = from.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Included);
        let range = (from, std::ops::Bound::Unbounded);
        self.tree.range(source, root, range).map(move |entry| entry.map(|(key, ())| (key, change)))
    }
}
