//! A set of keys that takes random changes cheaply: a base tree, and *runs* of changes above it.
//!
//! ```text
//!   newest   run 2   [ added | removed ]      each run is two packed B-trees; its word on a key counts
//!            run 1   [ added | removed ]      against all that stands below it
//!            run 0   [ added | removed ]
//!   oldest   base    [ keys ]
//! ```
//!
//! A batch of `n` keys scattered over a large tree rewrites almost `n` leaves. As a run it takes `n / 290` blocks; several runs
//! merged into the base at once share the leaves that they rewrite. (A two-level log-structured merge tree, after O'Neil et al., 1996;
//! young runs are joined as they come, after Bentley and Saxe, 1980.)
//!
//! Where the runs are recorded, a run is two roots in a row, `added` and `removed`, either of which may be empty; older runs come
//! first.
//!
//! **Invariants:** the two trees of a run have no key in common; a run is immutable; merging the oldest runs changes what the base
//! says and never what the whole says, so it can stop after any key and begin anew. Damage is an error of the tree that it is in.
//!
//! Not here: when to make a run, when to merge, and who remembers how far a merge has come.

mod meter;

pub use meter::Metered;

use crate::btree::{BTree, Key};
use crate::walk::{Descend, Visit, Visitor};
use dedup_meta::{BlockRef, BlockType, MAX_RUNS, MetaBlock, MetaError, NodeSink, NodeSource, Root, RunSet};
use std::collections::BTreeSet;
use std::iter::Peekable;

/// A kind of set: its keys and block type.
#[derive(Clone, Copy, Debug)]
pub struct KeySet<K> {
    tree: BTree<K, ()>,
}

/// A key that was added (`Some`) or removed.
type Change<K> = (K, Option<()>);
type Changes<'s, K> = Box<dyn Iterator<Item = Result<Change<K>, MetaError>> + 's>;

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

    /// Keys in the set. Exact without runs; with them, keys added twice or removed in vain make it a little wrong.
    pub fn entries(set: &RunSet) -> u64 {
        let of = |part: usize| set.runs.iter().skip(part).step_by(2).map(|root| root.entries).sum::<u64>();
        (set.base.entries + of(0)).saturating_sub(of(1))
    }

    /// Calls `visit(range's number, key)` for each key of the set in one of the inclusive `ranges`, which must rise and not
    /// overlap. What came in last comes first.
    pub fn range_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        set: &RunSet,
        ranges: &[(K, K)],
        mut visit: impl FnMut(usize, K),
    ) -> Result<(), MetaError> {
        let mut known = BTreeSet::new();
        for run in set.runs.chunks(2).rev() {
            let mut said = Vec::new();
            self.tree.range_many(source, &run[0], ranges, |range, key, ()| {
                said.push(key);
                if !known.contains(&key) {
                    visit(range, key);
                }
            })?;
            if let Some(removed) = run.get(1) {
                self.tree.range_many(source, removed, ranges, |_, key, ()| said.push(key))?;
            }
            known.extend(said);
        }
        self.tree.range_many(source, &set.base, ranges, |range, key, ()| {
            if !known.contains(&key) {
                visit(range, key);
            }
        })
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

    /// The set with `changes` (rising) as its newest run, which takes in the `absorbed` newest of those before. These are read
    /// from `source`, which must see what earlier transactions wrote, and freed. Blocks allocated: at most [`Self::run_blocks`].
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
            let mut failed = None;
            let keys = all
                .map_while(|change| change.map_err(|error| failed = Some(error)).ok())
                .filter(|(_, change)| *change == part)
                .map(|(key, _)| (key, ()));
            let root = self.tree.bulk_build(sink, keys)?;
            failed.map_or(Ok(()), Err)?;
            runs.push(root);
        }
        self.free(source, sink, absorbed)?;
        Ok(RunSet { base: set.base, runs })
    }

    /// An upper bound of the blocks of a run with so many changes: two trees, full but for the last node of each level.
    pub fn run_blocks(changes: u64) -> u64 {
        let (mut blocks, mut level, mut capacity) = (0, changes, BTree::<K, ()>::LEAF_CAPACITY as u64);
        loop {
            level = level / capacity + 2;
            blocks += level;
            if level <= 2 {
                return blocks;
            }
            capacity = BTree::<K, ()>::FANOUT as u64;
        }
    }

    /// The set with the next changes of its `merging` oldest runs made to its base: at most `limit` (not 0), beginning at the key
    /// `from`. Also where the next merge goes on; `None` at their end.
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
        self.free(source, sink, gone)?;
        Ok(RunSet { base: set.base, runs: kept.to_vec() })
    }

    /// Frees all blocks of these trees. Leaves need not be read for it.
    fn free<S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
        &self,
        source: &S,
        sink: &mut N,
        roots: &[Root],
    ) -> Result<(), MetaError> {
        let mut blocks = Blocks::default();
        roots.iter().for_each(|root| self.tree.walk(source, root, &mut blocks));
        blocks.damage.map_or(Ok(()), Err)?;
        blocks.met.into_iter().for_each(|block| sink.free(block));
        Ok(())
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

/// Several rising sequences as one; of equal keys the first sequence's counts.
struct Merge<'s, K> {
    parts: Vec<Peekable<Changes<'s, K>>>,
}

impl<'s, K: Key> Merge<'s, K> {
    fn new(parts: impl Iterator<Item = Changes<'s, K>>) -> Self {
        Self { parts: parts.map(Iterator::peekable).collect() }
    }
}

impl<K: Key> Iterator for Merge<'_, K> {
    type Item = Result<Change<K>, MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut lowest: Option<(usize, K)> = None;
        for (i, part) in self.parts.iter_mut().enumerate() {
            match part.peek() {
                None => {}
                Some(Err(_)) => {
                    let error = part.next();
                    self.parts.clear();
                    return error;
                }
                Some(Ok((key, _))) if lowest.is_none_or(|(_, low)| *key < low) => lowest = Some((i, *key)),
                Some(Ok(_)) => {}
            }
        }
        let (first, low) = lowest?;
        let found = self.parts[first].next();
        for part in &mut self.parts[first + 1..] {
            part.next_if(|change| matches!(change, Ok((key, _)) if *key == low));
        }
        found
    }
}

/// A visitor that notes all blocks of a tree.
#[derive(Default)]
struct Blocks {
    met: Vec<MetaBlock>,
    damage: Option<MetaError>,
}

impl Visitor for Blocks {
    fn reference(&mut self, at: BlockRef, level: u8, _parent: Option<MetaBlock>) -> bool {
        self.met.push(at.block);
        level > 0
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        match visit.node {
            Ok(_) => Descend::Yes,
            Err(error) => {
                self.damage.get_or_insert(error);
                Descend::Stop
            }
        }
    }
}
