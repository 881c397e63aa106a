//! Changing a B-tree by a sorted batch.
//!
//! One recursion goes down along the changes and comes back with each touched node's new entries, not yet cut
//! into blocks. The parent holds the new entries of all its touched children at once, so it can merge what
//! has become small and split what has become large before anything is written: each touched node is read
//! once and written once.
//!
//! ```text
//!            before                     in the parent's hands                  written
//!   [ a | b | c | d ]          kept a, edited b (12), kept c, edited d (700)
//!     |   |   |   |             -> b is under a quarter: joins a
//!    200 180 250 290            -> d does not fit: three even parts        [ ab | c | d1 | d2 | d3 ]
//! ```
//!
//! **Invariants:** the old block of each changed node is freed, no other; what does not change is not
//! rewritten; `entries` stays exact. After an error the transaction holds half a tree and must be given up.

use super::node::{KeyRule, Node};
use super::{BTree, Key, Value};
use crate::rule::{self, Rule, damaged, fault};
use dedup_meta::{BlockRef, MetaBlock, MetaError, NodeSink, Root};
use std::ops::Range;

impl<K: Key, V: Value> BTree<K, V> {
    /// The tree with `changes` made to it: `Some` inserts or replaces, `None` removes, if there is anything
    /// to remove.
    ///
    /// Keys must rise strictly, else [`MetaError::Unsorted`]. Blocks allocated: at most
    /// [`worst_case_blocks`](Self::worst_case_blocks). After an error the transaction must be given up.
    pub fn apply<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        root: &Root,
        changes: &[(K, Option<V>)],
    ) -> Result<Root, MetaError> {
        if let Some(i) = changes.windows(2).position(|pair| pair[0].0 >= pair[1].0) {
            return Err(self.unsorted(i + 1));
        }
        if changes.is_empty() {
            return Ok(*root);
        }
        let mut batch = Batch { tree: *self, sink, added: 0, removed: 0 };
        let Some(content) = batch.top(root, changes)? else { return Ok(*root) };
        let entries =
            root.entries.saturating_add(batch.added).checked_sub(batch.removed).ok_or_else(|| {
                let fault = fault("root entries", format!("at least {}", batch.removed), root.entries);
                damaged(root.node.map_or(MetaBlock(0), |at| at.block), &self.rule(root.level), fault)
            })?;
        if let Some(old) = root.node {
            batch.sink.free(old.block);
        }
        batch.crown(content, root.level, entries)
    }

    /// The tree with one entry put in or replaced.
    pub fn insert<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        root: &Root,
        key: K,
        value: V,
    ) -> Result<Root, MetaError> {
        self.apply(sink, root, &[(key, Some(value))])
    }

    /// The tree without `key`.
    pub fn remove<N: NodeSink + ?Sized>(&self, sink: &mut N, root: &Root, key: K) -> Result<Root, MetaError> {
        self.apply(sink, root, &[(key, None)])
    }

    /// The error for input whose entry `position` does not rise.
    pub(super) fn unsorted(&self, position: usize) -> MetaError {
        MetaError::Unsorted { kind: self.kind, position: position as u64 }
    }

    /// The rule of a node of which only the level is known.
    pub(super) fn rule(&self, level: u8) -> KeyRule<K, V> {
        KeyRule::new(self.kind, level)
    }

    /// Writes `entries` as few nodes of even size and adds a parent's entry for each to `out`.
    pub(super) fn write_even<D: Value, N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        level: u8,
        mut entries: &[(K, D)],
        out: &mut Vec<(K, BlockRef)>,
    ) -> Result<(), MetaError> {
        let mut nodes = entries.len().div_ceil(Node::<K, D>::CAPACITY);
        while nodes > 0 {
            let (part, rest) = entries.split_at(entries.len().div_ceil(nodes));
            let block = Node::<K, D>::build(self.kind, level, part);
            out.push((part[0].0, rule::write(sink, block, &self.rule(level))?));
            (entries, nodes) = (rest, nodes - 1);
        }
        Ok(())
    }
}

/// The new entries of a node, however many.
enum Content<K, V> {
    Leaf(Vec<(K, V)>),
    Internal(Vec<(K, BlockRef)>),
}

impl<K: Key, V: Value> Content<K, V> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.is_empty(),
            Self::Internal(entries) => entries.is_empty(),
        }
    }

    /// Under a quarter full: joins a neighbour.
    fn is_small(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.len() < Node::<K, V>::CAPACITY / 4,
            Self::Internal(entries) => entries.len() < Node::<K, BlockRef>::CAPACITY / 4,
        }
    }

    /// Both nodes' entries; `right` is of the same level, all its keys are above.
    fn join(&mut self, right: Self) {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(right)) => left.extend(right),
            (Self::Internal(left), Self::Internal(right)) => left.extend(right),
            (Self::Leaf(_), Self::Internal(_)) | (Self::Internal(_), Self::Leaf(_)) => {
                unreachable!(
                    "children of one node have one level: each was built by `Batch::load` or `node` for it"
                )
            }
        }
    }
}

/// A child of a node in work.
enum Slot<K, V> {
    /// Untouched so far.
    Kept(K, BlockRef),
    /// Changed; its old block is freed.
    Edited(Content<K, V>),
}

/// One run of `apply`.
struct Batch<'s, K, V, N: ?Sized> {
    tree: BTree<K, V>,
    sink: &'s mut N,
    added: u64,
    removed: u64,
}

impl<K: Key, V: Value, N: NodeSink + ?Sized> Batch<'_, K, V, N> {
    /// The root's new content, `None` if nothing changes.
    fn top(&mut self, root: &Root, changes: &[(K, Option<V>)]) -> Result<Option<Content<K, V>>, MetaError> {
        match self.tree.top(root)? {
            Some((at, rule)) => self.node(at, &rule, changes),
            None => Ok(self.merge(std::iter::empty(), changes)),
        }
    }

    /// The new content of the node at `at`, `None` if the changes do not change it. Does not free the old
    /// block.
    fn node(
        &mut self,
        at: BlockRef,
        rule: &KeyRule<K, V>,
        changes: &[(K, Option<V>)],
    ) -> Result<Option<Content<K, V>>, MetaError> {
        let block = rule::read(self.sink, at, rule)?;
        if rule.level() == 0 {
            return Ok(self.merge(Node::<K, V>::new(&block).entries(), changes));
        }
        let node = Node::<K, BlockRef>::new(&block);
        let parts = parts(&node, changes);
        let hit: Vec<_> = (0..node.len()).filter(|i| !parts[*i].is_empty()).map(|i| node.data(i)).collect();
        if hit.len() > 1 {
            rule::prefetch(self.sink, &hit, &rule.child(&node, 0));
        }
        let mut slots = Vec::with_capacity(node.len());
        let mut changed = false;
        for (i, part) in parts.into_iter().enumerate() {
            let (key, child) = (node.key(i), node.data(i));
            let content = match part.is_empty() {
                true => None,
                false => self.node(child, &rule.child(&node, i), &changes[part])?,
            };
            slots.push(match content {
                None => Slot::Kept(key, child),
                Some(content) => {
                    changed = true;
                    self.sink.free(child.block);
                    Slot::Edited(content)
                }
            });
        }
        if !changed {
            return Ok(None);
        }
        let slots = self.join_small(slots, rule.level() - 1)?;
        Ok(Some(Content::Internal(self.write_slots(slots, rule.level() - 1)?)))
    }

    /// A leaf's entries after `changes`, `None` if they are the same. Counts what comes and goes.
    fn merge(
        &mut self,
        old: impl Iterator<Item = (K, V)>,
        changes: &[(K, Option<V>)],
    ) -> Option<Content<K, V>> {
        let mut old = old.peekable();
        let mut new = Vec::with_capacity(old.size_hint().0 + changes.len());
        let mut changed = false;
        for (key, change) in changes {
            while let Some(entry) = old.next_if(|entry| entry.0 < *key) {
                new.push(entry);
            }
            let before = old.next_if(|entry| entry.0 == *key).map(|entry| entry.1);
            changed |= before != *change;
            self.added += u64::from(before.is_none() && change.is_some());
            self.removed += u64::from(before.is_some() && change.is_none());
            new.extend(change.map(|value| (*key, value)));
        }
        new.extend(old);
        changed.then_some(Content::Leaf(new))
    }

    /// Drops empty children and joins each small edited one with the neighbour on its left, or else on its
    /// right.
    fn join_small(&mut self, slots: Vec<Slot<K, V>>, level: u8) -> Result<Vec<Slot<K, V>>, MetaError> {
        let small = |slot: &Slot<K, V>| matches!(slot, Slot::Edited(content) if content.is_small());
        let mut out: Vec<Slot<K, V>> = Vec::with_capacity(slots.len());
        for slot in slots {
            if matches!(&slot, Slot::Edited(content) if content.is_empty()) {
                continue;
            }
            match out.pop() {
                Some(left) if small(&left) || small(&slot) => {
                    let mut content = self.load(left, level)?;
                    content.join(self.load(slot, level)?);
                    out.push(Slot::Edited(content));
                }
                left => out.extend(left.into_iter().chain([slot])),
            }
        }
        Ok(out)
    }

    /// A child's content, read (and its block freed) if it was not yet.
    fn load(&mut self, slot: Slot<K, V>, level: u8) -> Result<Content<K, V>, MetaError> {
        let (key, at) = match slot {
            Slot::Edited(content) => return Ok(content),
            Slot::Kept(key, at) => (key, at),
        };
        let rule = self.tree.rule(level).with_low(key);
        let block = rule::read(self.sink, at, &rule)?;
        self.sink.free(at.block);
        Ok(match level {
            0 => Content::Leaf(Node::new(&block).entries().collect()),
            _ => Content::Internal(Node::new(&block).entries().collect()),
        })
    }

    /// Writes the edited children; the parent's entries for all.
    fn write_slots(&mut self, slots: Vec<Slot<K, V>>, level: u8) -> Result<Vec<(K, BlockRef)>, MetaError> {
        let mut entries = Vec::with_capacity(slots.len());
        for slot in slots {
            match slot {
                Slot::Kept(key, at) => entries.push((key, at)),
                Slot::Edited(content) => self.write(&content, level, &mut entries)?,
            }
        }
        Ok(entries)
    }

    fn write(
        &mut self,
        content: &Content<K, V>,
        level: u8,
        out: &mut Vec<(K, BlockRef)>,
    ) -> Result<(), MetaError> {
        match content {
            Content::Leaf(entries) => self.tree.write_even(self.sink, level, entries, out),
            Content::Internal(entries) => self.tree.write_even(self.sink, level, entries, out),
        }
    }

    /// Writes the top of the tree, of `content` on `level`: higher while it does not fit, lower while it has
    /// one child.
    fn crown(&mut self, content: Content<K, V>, mut level: u8, entries: u64) -> Result<Root, MetaError> {
        if let Content::Internal(children) = &content
            && let [(_, only)] = children[..]
        {
            return self.descend(only, level - 1, entries);
        }
        let mut top = Vec::new();
        self.write(&content, level, &mut top)?;
        while top.len() > 1 {
            level += 1;
            let mut nodes = Vec::new();
            self.tree.write_even(self.sink, level, &top, &mut nodes)?;
            top = nodes;
        }
        Ok(top.pop().map_or(Root::EMPTY, |(_, node)| Root { node: Some(node), level, entries }))
    }

    /// Makes the node at `at` the root, or its only descendant that is no only child.
    fn descend(&mut self, mut at: BlockRef, mut level: u8, entries: u64) -> Result<Root, MetaError> {
        while level > 0 {
            let block = rule::read(self.sink, at, &self.tree.rule(level))?;
            let children = Node::<K, BlockRef>::new(&block);
            if children.len() > 1 {
                break;
            }
            self.sink.free(at.block);
            (at, level) = (children.data(0), level - 1);
        }
        Ok(Root { node: Some(at), level, entries })
    }
}

/// For each child of `node`, the part of `changes` that falls into it. What is below the first key goes to
/// the first.
fn parts<K: Key, V>(node: &Node<'_, K, BlockRef>, changes: &[(K, Option<V>)]) -> Vec<Range<usize>> {
    let mut parts = Vec::with_capacity(node.len());
    let mut start = 0;
    for i in 0..node.len() {
        let rest = &changes[start..];
        let end = match i + 1 < node.len() {
            true => start + rest.partition_point(|change| change.0 < node.key(i + 1)),
            false => changes.len(),
        };
        parts.push(start..end);
        start = end;
    }
    parts
}
