//! Walking a range of a B-tree in key order, a leaf at a time.
//!
//! The cursor keeps the path from the root, one node a level. Below a level-1 node it prefetches the leaves
//! ahead, first one, then twice as many each time up to 32, never one beyond the range: a short range costs a
//! short read, a long one is read in large pieces.

use super::node::{KeyRule, Node};
use super::{BTree, Key, Value};
use crate::rule::{self, Rule};
use dedup_meta::{Block, BlockRef, MetaError, NodeSource, Root};
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// Most leaves read ahead: 128 KiB, about where a device's throughput no longer depends on the request's
/// size.
const AHEAD_MAX: usize = 32;

impl<K: Key, V: Value> BTree<K, V> {
    /// The entries with keys in `range`, in order. Ends after the first error.
    pub fn range<'s, S: NodeSource + ?Sized>(
        &self,
        source: &'s S,
        root: &Root,
        range: impl RangeBounds<K>,
    ) -> Cursor<'s, K, V, S> {
        let (start, next) = match self.top(root) {
            Ok(top) => (top, None),
            Err(error) => (None, Some(error)),
        };
        let (from, to) = (range.start_bound().cloned(), range.end_bound().cloned());
        Cursor { source, start, error: next, path: Vec::new(), leaf: None, from, to, ahead: 1 }
    }
}

/// An iterator over a range of a [`BTree`].
pub struct Cursor<'s, K, V, S: ?Sized> {
    source: &'s S,
    /// The root, until it is read.
    start: Option<(BlockRef, KeyRule<K, V>)>,
    error: Option<MetaError>,
    path: Vec<Step<K, V>>,
    /// The leaf and its next entry.
    leaf: Option<(Arc<Block>, usize)>,
    from: Bound<K>,
    to: Bound<K>,
    /// Leaves to prefetch next time.
    ahead: usize,
}

/// An internal node on the path.
struct Step<K, V> {
    block: Arc<Block>,
    rule: KeyRule<K, V>,
    /// The child to enter next.
    next: usize,
    /// Children before this one have been prefetched.
    asked: usize,
}

impl<K: Key, V: Value, S: NodeSource + ?Sized> Cursor<'_, K, V, S> {
    fn is_before(&self, key: K) -> bool {
        match self.from {
            Bound::Included(from) => key < from,
            Bound::Excluded(from) => key <= from,
            Bound::Unbounded => false,
        }
    }

    fn is_beyond(&self, key: K) -> bool {
        match self.to {
            Bound::Included(to) => key > to,
            Bound::Excluded(to) => key >= to,
            Bound::Unbounded => false,
        }
    }

    /// Reads a node and stands before the first of its entries that may matter.
    fn enter(&mut self, at: BlockRef, rule: KeyRule<K, V>) -> Result<(), MetaError> {
        let block = rule::read(self.source, at, &rule)?;
        if rule.level() == 0 {
            let first = Node::<K, V>::new(&block).partition_point(|key| self.is_before(key));
            self.leaf = Some((block, first));
        } else {
            let next =
                Node::<K, BlockRef>::new(&block).partition_point(|key| self.is_before(key)).saturating_sub(1);
            self.path.push(Step { block, rule, next, asked: next });
        }
        Ok(())
    }

    /// Enters the next leaf; `false` if there is none in the range.
    fn advance(&mut self) -> Result<bool, MetaError> {
        if let Some((at, rule)) = self.start.take() {
            self.enter(at, rule)?;
        }
        while self.leaf.is_none() {
            let Some(mut step) = self.path.pop() else { return Ok(false) };
            let node = Node::<K, BlockRef>::new(&step.block);
            if step.next == node.len() {
                continue;
            }
            if self.is_beyond(node.key(step.next)) {
                return Ok(false);
            }
            let (at, rule) = (node.data(step.next), step.rule.child(&node, step.next));
            if step.rule.level() == 1 && step.next == step.asked {
                step.asked = (step.next + self.ahead).min(node.partition_point(|key| !self.is_beyond(key)));
                if step.asked > step.next + 1 {
                    let nodes: Vec<_> = (step.next..step.asked).map(|i| node.data(i)).collect();
                    rule::prefetch(self.source, &nodes, &rule);
                }
                self.ahead = AHEAD_MAX.min(self.ahead * 2);
            }
            step.next += 1;
            self.path.push(step);
            self.enter(at, rule)?;
        }
        Ok(true)
    }

    fn step(&mut self) -> Result<Option<(K, V)>, MetaError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        loop {
            if self.leaf.is_none() && !self.advance()? {
                return Ok(None);
            }
            if let Some((block, next)) = &mut self.leaf {
                let leaf = Node::<K, V>::new(block);
                if *next < leaf.len() {
                    let entry = (leaf.key(*next), leaf.data(*next));
                    *next += 1;
                    return Ok((!self.is_beyond(entry.0)).then_some(entry));
                }
            }
            self.leaf = None;
        }
    }
}

impl<K: Key, V: Value, S: NodeSource + ?Sized> Iterator for Cursor<'_, K, V, S> {
    type Item = Result<(K, V), MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step().transpose();
        if !matches!(item, Some(Ok(_))) {
            (self.start, self.leaf) = (None, None);
            self.path.clear();
        }
        item
    }
}
