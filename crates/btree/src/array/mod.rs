//! The array tree: a dense map from an index below 2^48 to a small value, most of them default.
//!
//! This file is the tree's public face and its lookups; `node` has the layout and the validity of a node,
//! `codec` what a leaf holds, `edit` the changes to a tree, `apply` those to values, `put` those to whole
//! leaves and their cost, `scan` the walk along a range, `cost` the upper bound.
//!
//! **Invariants:** a node exists only if a value below it is not default, so an untouched terabyte has no
//! nodes; the root's level is the lowest one that reaches the last such value.

mod apply;
mod codec;
mod cost;
mod edit;
mod node;
mod put;
mod scan;

pub use codec::{Bytes, LeafCodec, Slot};
pub use node::FANOUT;
pub use scan::Scan;

use crate::bytes::LIMIT_48;
use crate::rule::{self, Rule, damaged, fault};
use crate::sweep::{Levels, Reader, Sweep, Window};
use crate::walk::{self, Visitor};
use dedup_meta::{Block, BlockRef, BlockType, MetaError, NodeSource, Root};
use node::{ArrayRule, child, level_for, span};
use std::marker::PhantomData;
use std::sync::Arc;

/// A kind of array tree: its leaves' codec and its block type.
#[derive(Debug)]
pub struct ArrayTree<L> {
    kind: BlockType,
    codec: PhantomData<fn() -> L>,
}

impl<L> Clone for ArrayTree<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for ArrayTree<L> {}

impl<L: LeafCodec> ArrayTree<L> {
    /// Highest level of a root: the one that covers 2^48 indices.
    pub const MAX_LEVEL: u8 = level_for::<L>(LIMIT_48);

    /// The trees whose nodes are of type `kind`.
    pub const fn new(kind: BlockType) -> Self {
        Self { kind, codec: PhantomData }
    }

    /// The value at `index`; the default beyond 2^48. Reads at most one node a level.
    pub fn get<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        index: u64,
    ) -> Result<L::Value, MetaError> {
        let mut value = L::Value::default();
        self.get_many(source, root, &[index], |_, found| value = found)?;
        Ok(value)
    }

    /// Calls `visit(index, value)` for each of the rising `indices`, in order. A node on the way to several
    /// of them is read once, and nodes are prefetched before they are read.
    pub fn get_many<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        indices: &[u64],
        mut visit: impl FnMut(u64, L::Value),
    ) -> Result<(), MetaError> {
        let top = self.top(root)?;
        let covered = indices.partition_point(|index| *index < span::<L>(root.level));
        let (inside, beyond) = indices.split_at(covered);
        get_below::<L, S>(source, top, inside, &mut visit)?;
        beyond.iter().for_each(|index| visit(*index, L::Value::default()));
        Ok(())
    }

    /// Leaf number `number`, which holds the indices from `number * PER_LEAF` on; `None` if it is all
    /// default.
    pub fn leaf<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        number: u64,
    ) -> Result<Option<Arc<Block>>, MetaError> {
        self.node_at(source, root, 0, number.saturating_mul(L::PER_LEAF))
    }

    /// How many values are not default in each of the 254 leaves below the level-1 node number `number`
    /// (leaves `254 * number` and following); `None` if all are default. Reads no leaf. For allocators: where
    /// is room?
    pub fn children<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        number: u64,
    ) -> Result<Option<Vec<u64>>, MetaError> {
        if root.level == 0 {
            let mut used = vec![0; FANOUT];
            used[0] = root.entries;
            return Ok((number == 0 && root.node.is_some()).then_some(used));
        }
        let node = self.node_at(source, root, 1, number.saturating_mul(span::<L>(1)))?;
        let used =
            |block: &Block| (0..FANOUT).map(|i| child(&block.payload, i).map_or(0, |c| c.used)).collect();
        Ok(node.map(|block| used(&block)))
    }

    /// Shows every node to `visitor`, parents before children, in order of indices. Damage does not end the
    /// walk: the visitor sees the error in place of the node, and the walk goes on beside it.
    pub fn walk<S: NodeSource + ?Sized>(&self, source: &S, root: &Root, visitor: &mut dyn Visitor) {
        walk::walk(source, root, self.top(root), visitor);
    }

    /// The same as [`walk`](Self::walk) in large reads, driven leaf by leaf.
    pub fn sweep(&self, reader: &Reader, window: Window, root: &Root) -> Box<dyn Sweep>
    where
        L: Send + 'static,
    {
        Box::new(Levels::new(reader, window, root, self.top(root)))
    }

    /// The values of a leaf that a visitor was shown, except default ones.
    pub fn leaf_entries(&self, leaf: &Block) -> impl Iterator<Item = (u64, L::Value)> {
        let first = leaf.header.first.get();
        (0..L::PER_LEAF)
            .map(move |slot| (first.saturating_add(slot), L::get(&leaf.payload, slot as usize)))
            .filter(|(_, value)| *value != L::Value::default())
    }

    /// Calls `visit` with every value that is not default and can be read, in order, and with the error of
    /// every node that cannot.
    pub fn walk_entries<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        mut visit: impl FnMut(Result<(u64, L::Value), MetaError>),
    ) {
        let mut entries = walk::Leaves(|leaf: Result<&Block, MetaError>| match leaf {
            Ok(leaf) => self.leaf_entries(leaf).for_each(|entry| visit(Ok(entry))),
            Err(error) => visit(Err(error)),
        });
        self.walk(source, root, &mut entries);
    }

    /// The root node and its rule; an error if the root's level or count is none that a tree can have.
    fn top(&self, root: &Root) -> Result<Option<(BlockRef, ArrayRule<L>)>, MetaError> {
        let rule = ArrayRule::new(self.kind, root.level, 0, root.entries);
        match root.node {
            None => Ok(None),
            Some(at) if root.level > Self::MAX_LEVEL => {
                let fault = fault("root level", format!("at most {}", Self::MAX_LEVEL), root.level);
                Err(damaged(at.block, &rule, fault))
            }
            Some(at) if root.entries == 0 || root.entries > span::<L>(root.level).min(LIMIT_48) => Err(
                damaged(at.block, &rule, fault("root entries", "1 to what the level holds", root.entries)),
            ),
            Some(at) => Ok(Some((at, rule))),
        }
    }

    /// The node on `level` that covers `index`, if there is one.
    fn node_at<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        level: u8,
        index: u64,
    ) -> Result<Option<Arc<Block>>, MetaError> {
        let mut next = self.top(root)?;
        if index >= span::<L>(root.level) || level > root.level {
            return Ok(None);
        }
        while let Some((at, rule)) = next {
            let block = rule::read(source, at, &rule)?;
            if rule.level() == level {
                return Ok(Some(block));
            }
            let i = slot::<L>(&rule, index);
            next = child(&block.payload, i).map(|child| (child.at, rule.child(i, child)));
        }
        Ok(None)
    }
}

/// The number of the child (or, in a leaf, of the value) for `index` in a node under `rule`.
fn slot<L: LeafCodec>(rule: &ArrayRule<L>, index: u64) -> usize {
    let width = if rule.level() == 0 { 1 } else { span::<L>(rule.level() - 1) };
    (index.saturating_sub(rule.first()) / width) as usize
}

/// Looks up `indices`, all covered by the node `top`.
fn get_below<L: LeafCodec, S: NodeSource + ?Sized>(
    source: &S,
    top: Option<(BlockRef, ArrayRule<L>)>,
    indices: &[u64],
    visit: &mut dyn FnMut(u64, L::Value),
) -> Result<(), MetaError> {
    let (Some((at, rule)), false) = (top, indices.is_empty()) else {
        indices.iter().for_each(|index| visit(*index, L::Value::default()));
        return Ok(());
    };
    let block = rule::read(source, at, &rule)?;
    if rule.level() == 0 {
        indices.iter().for_each(|index| visit(*index, L::get(&block.payload, slot(&rule, *index))));
        return Ok(());
    }
    let parts: Vec<_> = indices
        .chunk_by(|a, b| slot(&rule, *a) == slot(&rule, *b))
        .map(|part| {
            let i = slot(&rule, part[0]);
            (child(&block.payload, i).map(|child| (child.at, rule.child(i, child))), part)
        })
        .collect();
    let nodes: Vec<_> = parts.iter().filter_map(|(node, _)| node.as_ref()).collect();
    if let [(_, rule), _, ..] = nodes[..] {
        rule::prefetch(source, &nodes.iter().map(|(at, _)| *at).collect::<Vec<_>>(), rule);
    }
    parts.into_iter().try_for_each(|(node, part)| get_below(source, node, part, visit))
}
