//! The B-tree: sparse keys of a fixed size, each with a value of a fixed size.
//!
//! This file is the tree's public face and its lookups; `node` has the layout and the validity of a node,
//! `apply` the changes, `bulk` the building from sorted entries, `cursor` the walk along a range, `cost` the
//! upper bound.
//!
//! A [`BTree`] holds no state but the block type: roots are passed in and handed back, as the transaction
//! owns them.

mod apply;
mod bulk;
mod cost;
mod cursor;
mod entry;
mod node;

pub use cursor::Cursor;
pub use entry::{Key, Value};
pub use node::MAX_LEVEL;

use crate::rule::{self, Rule, damaged, fault};
use crate::sweep::{Levels, Reader, Sweep, Window};
use crate::walk::{self, Visitor};
use dedup_meta::{Block, BlockRef, BlockType, MetaError, NodeSource, Root};
use node::{KeyRule, Node, Top};
use std::marker::PhantomData;
use std::ops::Range;

/// A kind of B-tree: its keys, values and block type.
#[derive(Clone, Copy, Debug)]
pub struct BTree<K, V> {
    kind: BlockType,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value> BTree<K, V> {
    /// Most entries in a leaf.
    pub const LEAF_CAPACITY: usize = Node::<K, V>::CAPACITY;
    /// Most children of an internal node.
    pub const FANOUT: usize = Node::<K, BlockRef>::CAPACITY;

    /// The trees whose nodes are of type `kind`.
    pub const fn new(kind: BlockType) -> Self {
        Self { kind, types: PhantomData }
    }

    /// The value of `key`. Reads one node a level.
    pub fn lookup<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        key: &K,
    ) -> Result<Option<V>, MetaError> {
        let mut found = None;
        self.lookup_many(source, root, &[*key], |_, value| found = Some(value))?;
        Ok(found)
    }

    /// Calls `visit` for each of the strictly rising `keys` that the tree holds, in order. A node on the way
    /// to several keys is read once, and nodes are prefetched before they are read.
    pub fn lookup_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        keys: &[K],
        mut visit: impl FnMut(K, V),
    ) -> Result<(), MetaError> {
        let ranges: Vec<_> = keys.iter().map(|key| (*key, *key)).collect();
        self.range_many(source, root, &ranges, |_, key, value| visit(key, value))
    }

    /// Calls `visit(range's number, key, value)` for each entry in one of the inclusive `ranges`, which must
    /// rise and not overlap, in order: many short prefix searches for the price of one descent.
    pub fn range_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        ranges: &[(K, K)],
        visit: impl FnMut(usize, K, V),
    ) -> Result<(), MetaError> {
        self.first_many(source, root, ranges, usize::MAX, visit)
    }

    /// The same, of each range at most the first `limit` entries: what lies beyond them is not read.
    pub fn first_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        ranges: &[(K, K)],
        limit: usize,
        mut visit: impl FnMut(usize, K, V),
    ) -> Result<(), MetaError> {
        if let Some(i) = ranges.windows(2).position(|pair| pair[0].1 >= pair[1].0) {
            return Err(self.unsorted(i + 1));
        }
        match self.top(root)? {
            Some((at, rule)) => {
                let mut taken = Taken { limit, range: 0, count: 0 };
                find(source, at, &rule, ranges, 0, &mut taken, &mut visit)
            }
            None => Ok(()),
        }
    }

    /// Shows every node to `visitor`, parents before children, in key order. Damage does not end the walk:
    /// the visitor sees the error in place of the node, and the walk goes on beside it.
    pub fn walk<S: NodeSource + ?Sized>(&self, source: &S, root: &Root, visitor: &mut dyn Visitor) {
        walk::walk(source, root, self.top(root), visitor);
    }

    /// The same as [`walk`](Self::walk) in large reads, driven leaf by leaf.
    pub fn sweep(&self, reader: &Reader, window: Window, root: &Root) -> Box<dyn Sweep>
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        Box::new(Levels::new(reader, window, root, self.top(root)))
    }

    /// The entries of a leaf that a visitor was shown.
    pub fn leaf_entries(&self, leaf: &Block) -> impl Iterator<Item = (K, V)> {
        Node::<K, V>::new(leaf).entries().collect::<Vec<_>>().into_iter()
    }

    /// Calls `visit` with every entry that can be read, in order, and with the error of every node that
    /// cannot.
    pub fn walk_entries<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        mut visit: impl FnMut(Result<(K, V), MetaError>),
    ) {
        let mut entries = walk::Leaves(|leaf: Result<&Block, MetaError>| match leaf {
            Ok(leaf) => Node::<K, V>::new(leaf).entries().for_each(|entry| visit(Ok(entry))),
            Err(error) => visit(Err(error)),
        });
        self.walk(source, root, &mut entries);
    }

    /// The root node and its rule; an error if the root's level is none that a tree can have.
    fn top(&self, root: &Root) -> Result<Top<K, V>, MetaError> {
        let rule = KeyRule::new(self.kind, root.level);
        match root.node {
            None => Ok(None),
            Some(at) if root.level > MAX_LEVEL => {
                let fault = fault("root level", format!("at most {MAX_LEVEL}"), root.level);
                Err(damaged(at.block, &rule, fault))
            }
            Some(at) => Ok(Some((at, rule))),
        }
    }
}

/// How much was taken of the range that was met last; they are met one after the other.
struct Taken {
    limit: usize,
    range: usize,
    count: usize,
}

impl Taken {
    /// Takes an entry of a range, if it may have one more.
    fn take(&mut self, range: usize) -> bool {
        if self.range != range {
            (self.range, self.count) = (range, 0);
        }
        self.count += 1;
        self.count <= self.limit
    }

    /// Whether nothing more is wanted of a range.
    fn is_full(&self, range: usize) -> bool {
        self.range == range && self.count >= self.limit
    }
}

/// Looks for `ranges`, the first of which is number `base`, below the node at `at`.
fn find<K: Key, V: Value, S: NodeSource + ?Sized>(
    source: &S,
    at: BlockRef,
    rule: &KeyRule<K, V>,
    ranges: &[(K, K)],
    base: usize,
    taken: &mut Taken,
    visit: &mut dyn FnMut(usize, K, V),
) -> Result<(), MetaError> {
    let block = rule::read(source, at, rule)?;
    if rule.level() == 0 {
        let leaf = Node::<K, V>::new(&block);
        for (i, (from, to)) in ranges.iter().enumerate() {
            let start = leaf.partition_point(|key| key < *from);
            (start..leaf.len())
                .map(|slot| (leaf.key(slot), leaf.data(slot)))
                .take_while(|(key, _)| key <= to && taken.take(base + i))
                .for_each(|(key, value)| visit(base + i, key, value));
        }
        return Ok(());
    }
    let node = Node::<K, BlockRef>::new(&block);
    let hits = touched(&node, ranges);
    if let [_, _, ..] = hits[..] {
        // Not those that only go on with the range of the one before: it may have enough by then.
        let begins = |h: &usize| *h == 0 || hits[*h].1.end > hits[*h - 1].1.end;
        let nodes: Vec<_> = (0..hits.len()).filter(begins).map(|h| node.data(hits[h].0)).collect();
        rule::prefetch(source, &nodes, &rule.child(&node, 0));
    }
    hits.into_iter().try_for_each(|(i, part)| {
        let first = base + part.start;
        if part.len() == 1 && taken.is_full(first) {
            return Ok(());
        }
        find(source, node.data(i), &rule.child(&node, i), &ranges[part], first, taken, visit)
    })
}

/// The children that may hold something of `ranges`, each with the part of `ranges` that concerns it.
fn touched<K: Key>(node: &Node<'_, K, BlockRef>, ranges: &[(K, K)]) -> Vec<(usize, Range<usize>)> {
    let mut hits: Vec<(usize, Range<usize>)> = Vec::new();
    for (r, (from, to)) in ranges.iter().enumerate() {
        let start = node.partition_point(|key| key <= *from).saturating_sub(1);
        let end = node.partition_point(|key| key <= *to);
        for child in start..end {
            match hits.last_mut() {
                Some((last, part)) if *last == child => part.end = r + 1,
                _ => hits.push((child, r..r + 1)),
            }
        }
    }
    hits
}
