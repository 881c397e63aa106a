//! Building a B-tree from sorted entries, bottom up, with every node full but the last of each level.
//!
//! Memory: one node a level. A full node is written only when another entry arrives, so that no level ends in
//! an empty node and the top is not an only child's parent.

use super::node::Node;
use super::{BTree, Key, Value};
use crate::rule;
use dedup_meta::{BlockRef, MetaError, NodeSink, Root};

impl<K: Key, V: Value> BTree<K, V> {
    /// A tree of `entries`, whose keys must rise strictly, else [`MetaError::Unsorted`]; the blocks allocated
    /// until then are the transaction's to give up.
    pub fn bulk_build<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Root, MetaError> {
        let mut build = Build { tree: *self, sink, leaf: Vec::new(), upper: Vec::new() };
        let mut last = None;
        let mut count = 0;
        for (key, value) in entries {
            if last.is_some_and(|last| last >= key) {
                return Err(self.unsorted(count));
            }
            if build.leaf.len() == Self::LEAF_CAPACITY {
                build.end_leaf()?;
            }
            build.leaf.push((key, value));
            (last, count) = (Some(key), count + 1);
        }
        build.finish(count as u64)
    }
}

/// A tree in building: the unwritten last node of each level.
struct Build<'s, K, V, N: ?Sized> {
    tree: BTree<K, V>,
    sink: &'s mut N,
    leaf: Vec<(K, V)>,
    /// The internal nodes, from level 1 up.
    upper: Vec<Vec<(K, BlockRef)>>,
}

impl<K: Key, V: Value, N: NodeSink + ?Sized> Build<'_, K, V, N> {
    fn end_leaf(&mut self) -> Result<(), MetaError> {
        let block = Node::<K, V>::build(self.tree.kind, 0, &self.leaf);
        let at = rule::write(self.sink, block, &self.tree.rule(0))?;
        let low = self.leaf[0].0;
        self.leaf.clear();
        self.add(0, low, at)
    }

    /// Writes the internal node on `level`.
    fn end_node(&mut self, level: usize) -> Result<(), MetaError> {
        let entries = std::mem::take(&mut self.upper[level - 1]);
        let block = Node::<K, BlockRef>::build(self.tree.kind, level as u8, &entries);
        let at = rule::write(self.sink, block, &self.tree.rule(level as u8))?;
        self.add(level, entries[0].0, at)
    }

    /// Enters a written node of `level` into its parent.
    fn add(&mut self, level: usize, low: K, at: BlockRef) -> Result<(), MetaError> {
        if self.upper.len() == level {
            self.upper.push(Vec::new());
        }
        if self.upper[level].len() == BTree::<K, V>::FANOUT {
            self.end_node(level + 1)?;
        }
        self.upper[level].push((low, at));
        Ok(())
    }

    fn finish(mut self, entries: u64) -> Result<Root, MetaError> {
        if self.leaf.is_empty() {
            return Ok(Root::EMPTY);
        }
        self.end_leaf()?;
        let mut level = 1;
        loop {
            // Every level below `level` has been ended, so `upper[level - 1]` has at least the last node of
            // the one below.
            if let (true, [(_, at)]) = (level == self.upper.len(), &self.upper[level - 1][..]) {
                return Ok(Root { node: Some(*at), level: level as u8 - 1, entries });
            }
            self.end_node(level)?;
            level += 1;
        }
    }
}
