//! Changing an array tree: the one recursion under single values and whole leaves alike.
//!
//! It goes down along the edits and writes on its way back: each touched node is read once and written at
//! most once, under its parent, which learns its place, CRC and `used`. A node without content is dropped
//! instead.
//!
//! Height. A tree that must reach further begins at a *lifted* node: one that is not stored yet and whose
//! only child, number 0, is the old root or lifted itself. And the top node may turn out to be useless,
//! because all that is left lies below its child 0. So the top does its other children first; if none is
//! left, child 0 becomes the top in its place, before anything of the spine is written. Thus no block is
//! allocated that the new tree does not use.
//!
//! ```text
//!   top ->  [ 0 | . | . | 3 ]      edits empty child 3: the root is child 0, or its child 0, and so on
//!             |           |
//!           [...]       [...]
//! ```

use super::node::{ArrayRule, Child, child, children, level_for, set_child, span};
use super::{ArrayTree, LeafCodec, slot};
use crate::rule::{self, Rule, damaged, fault};
use dedup_meta::{Block, BlockRef, BlockType, MetaError, NodeSink, PAYLOAD_SIZE, Root};

/// Something that happens to the leaf which covers `index`.
pub(super) trait Edit {
    fn index(&self) -> u64;
}

/// What edits do to leaves.
pub(super) trait LeafEdit<E> {
    /// Whether the old payload matters.
    const READS_OLD: bool;
    /// Applies all edits of one leaf, whose first index is `first`: whether it must be written, and how many
    /// values are not default afterwards.
    fn edit(&mut self, payload: &mut [u8; PAYLOAD_SIZE], first: u64, edits: &[E]) -> (bool, u32);
}

impl<L: LeafCodec> ArrayTree<L> {
    /// Applies `edits`, whose indices rise strictly, to the tree; it must cover `reach` indices (or may be
    /// lower, if nothing is left there).
    pub(super) fn edit<E: Edit, F: LeafEdit<E>, N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        root: &Root,
        reach: u64,
        edits: &[E],
        leaf: &mut F,
    ) -> Result<Root, MetaError> {
        if let Some(i) = edits.windows(2).position(|pair| pair[0].index() >= pair[1].index()) {
            return Err(MetaError::Unsorted { kind: self.kind, position: i as u64 + 1 });
        }
        let low = self.top(root)?.map(|(at, _)| Child { at, used: root.entries });
        let level = if low.is_some() { root.level.max(level_for::<L>(reach)) } else { level_for::<L>(reach) };
        // What lies beyond the tree's reach is default and stays so.
        let edits = &edits[..edits.partition_point(|edit| edit.index() < span::<L>(level))];
        if edits.is_empty() {
            return Ok(*root);
        }
        let old = match low {
            None => Old::Absent,
            Some(child) if level == root.level => Old::Stored(child),
            Some(child) => Old::Lifted(child, root.level),
        };
        let used = low.map_or(0, |child| child.used);
        let mut batch = Batch { kind: self.kind, sink, leaf };
        let new = batch.node::<L, E>(&old, &ArrayRule::new(self.kind, level, 0, used), edits, true)?;
        Ok(match new {
            New::Same => *root,
            New::Gone => Root::EMPTY,
            New::Moved(child, level) => Root { node: Some(child.at), level, entries: child.used },
            New::Fresh(block, used) => {
                let level = block.header.level;
                let child = batch.write::<L>(block, used, 0)?;
                Root { node: Some(child.at), level, entries: child.used }
            }
        })
    }
}

/// A node as it was.
enum Old {
    Absent,
    Stored(Child),
    /// Not stored; its child 0 is this node, on this level or below lifted ones.
    Lifted(Child, u8),
}

/// A node as it has become.
enum New {
    /// As before.
    Same,
    /// All default.
    Gone,
    /// Only for the top: this stored node, on a lower level, stands for it.
    Moved(Child, u8),
    /// To be written, with so many values in use.
    Fresh(Box<Block>, u64),
}

/// One run of `edit`.
struct Batch<'s, F, N: ?Sized> {
    kind: BlockType,
    sink: &'s mut N,
    leaf: &'s mut F,
}

impl<F, N: NodeSink + ?Sized> Batch<'_, F, N> {
    /// The node under `rule` after `edits`, which it covers. `top`: nothing is beside it, and it may give
    /// way.
    fn node<L: LeafCodec, E: Edit>(
        &mut self,
        old: &Old,
        rule: &ArrayRule<L>,
        edits: &[E],
        top: bool,
    ) -> Result<New, MetaError>
    where
        F: LeafEdit<E>,
    {
        let new = match (rule.level(), edits.is_empty(), old) {
            (_, true, Old::Absent) | (0, true, _) => New::Same,
            (_, true, Old::Stored(_)) if !top => New::Same,
            (0, false, _) => self.leaf(old, rule, edits)?,
            _ => self.index(old, rule, edits, top)?,
        };
        if let (Old::Stored(child), New::Gone | New::Moved(..) | New::Fresh(..)) = (old, &new) {
            self.sink.free(child.at.block);
        }
        Ok(new)
    }

    fn leaf<L: LeafCodec, E: Edit>(
        &mut self,
        old: &Old,
        rule: &ArrayRule<L>,
        edits: &[E],
    ) -> Result<New, MetaError>
    where
        F: LeafEdit<E>,
    {
        let mut block = rule.blank();
        if let (Old::Stored(child), true) = (old, F::READS_OLD) {
            block.payload = rule::read(self.sink, child.at, rule)?.payload;
        }
        let (changed, used) = self.leaf.edit(&mut block.payload, rule.first(), edits);
        block.header.entries = (used as u16).into();
        Ok(match (changed, used, old) {
            (false, ..) | (_, 0, Old::Absent) => New::Same,
            (true, 0, _) => New::Gone,
            (true, ..) => New::Fresh(block, used.into()),
        })
    }

    fn index<L: LeafCodec, E: Edit>(
        &mut self,
        old: &Old,
        rule: &ArrayRule<L>,
        edits: &[E],
        top: bool,
    ) -> Result<New, MetaError>
    where
        F: LeafEdit<E>,
    {
        let mut block = rule.blank();
        if let Old::Stored(child) = old {
            let stored = rule::read(self.sink, child.at, rule)?;
            // The sum as well, which a cached node was perhaps not checked for: it becomes the new figure.
            rule.check(&stored).map_err(|fault| damaged(child.at.block, rule, fault))?;
            block.payload = stored.payload;
        }
        let mut changed = matches!(old, Old::Lifted(..));
        let low = edits.partition_point(|edit| slot(rule, edit.index()) == 0);
        let (low, high) = edits.split_at(low);
        self.prefetch(&block, rule, edits);
        for part in high.chunk_by(|a, b| slot(rule, a.index()) == slot(rule, b.index())) {
            let i = slot(rule, part[0].index());
            let child = child(&block.payload, i);
            let below = child.map_or(Old::Absent, Old::Stored);
            let rule = rule.child(i, child.unwrap_or(NO_CHILD));
            let new = self.node(&below, &rule, part, false)?;
            changed |= self.settle(&mut block, i, new, &rule)?;
        }
        let first = match old {
            Old::Lifted(child, level) if level + 1 == rule.level() => Old::Stored(*child),
            Old::Lifted(child, level) => Old::Lifted(*child, *level),
            _ => child(&block.payload, 0).map_or(Old::Absent, Old::Stored),
        };
        let kept = match first {
            Old::Stored(child) | Old::Lifted(child, _) => Some(child),
            Old::Absent => None,
        };
        set_child(&mut block.payload, 0, None);
        let give_way = top && children(&block.payload).next().is_none();
        let low_rule = rule.child(0, kept.unwrap_or(NO_CHILD));
        let new = self.node(&first, &low_rule, low, give_way)?;
        if give_way {
            return Ok(match (new, first) {
                (New::Same, Old::Stored(child)) => New::Moved(child, low_rule.level()),
                (New::Same, Old::Absent) => New::Gone,
                (new, _) => new,
            });
        }
        set_child(&mut block.payload, 0, kept);
        changed |= self.settle(&mut block, 0, new, &low_rule)?;
        Ok(finish(block, changed))
    }

    /// Writes what child `i` has become and enters it into its parent; whether that changed the parent.
    fn settle<L: LeafCodec>(
        &mut self,
        parent: &mut Block,
        i: usize,
        new: New,
        rule: &ArrayRule<L>,
    ) -> Result<bool, MetaError> {
        let entry = match new {
            New::Same => return Ok(false),
            New::Gone => None,
            New::Moved(child, _) => Some(child),
            New::Fresh(block, used) => Some(self.write::<L>(block, used, rule.first())?),
        };
        set_child(&mut parent.payload, i, entry);
        Ok(true)
    }

    fn write<L: LeafCodec>(&mut self, block: Box<Block>, used: u64, first: u64) -> Result<Child, MetaError> {
        let rule = ArrayRule::<L>::new(self.kind, block.header.level, first, used);
        Ok(Child { at: rule::write(self.sink, block, &rule)?, used })
    }

    /// Asks for the children that will be read.
    fn prefetch<L: LeafCodec, E: Edit>(&self, block: &Block, rule: &ArrayRule<L>, edits: &[E])
    where
        F: LeafEdit<E>,
    {
        if rule.level() == 1 && !F::READS_OLD {
            return;
        }
        let mut touched: Vec<_> = edits.iter().map(|edit| slot(rule, edit.index())).collect();
        touched.dedup();
        let known: Vec<_> = touched.into_iter().filter_map(|i| child(&block.payload, i)).collect();
        if let [child, _, ..] = known[..] {
            let nodes: Vec<BlockRef> = known.iter().map(|child| child.at).collect();
            rule::prefetch(self.sink, &nodes, &rule.child(0, child));
        }
    }
}

/// What stands for a missing child where only its level and first index matter.
const NO_CHILD: Child = Child { at: BlockRef { block: dedup_meta::MetaBlock(0), crc: 0 }, used: 0 };

/// An index node with its children settled.
fn finish(mut block: Box<Block>, changed: bool) -> New {
    if !changed {
        return New::Same;
    }
    let (count, used) =
        children(&block.payload).fold((0_u16, 0), |(n, sum), (_, child)| (n + 1, sum + child.used));
    block.header.entries = count.into();
    if count == 0 { New::Gone } else { New::Fresh(block, used) }
}

/// A fault for an index that no tree can hold.
pub(super) fn out_of_range<L: LeafCodec>(kind: BlockType, index: u64) -> MetaError {
    let rule = ArrayRule::<L>::new(kind, 0, 0, 0);
    damaged(NO_CHILD.at.block, &rule, fault("index", "below 2^48", index))
}
