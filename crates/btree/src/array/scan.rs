//! Walking the values of an array tree that are not default, a leaf at a time.
//!
//! What is absent costs nothing: an empty terabyte is one missing entry of an index node. Below a level-1
//! node the leaves ahead are prefetched, first one, then twice as many each time up to 32, never one beyond
//! the range.

use super::node::{ArrayRule, FANOUT, child, span};
use super::{ArrayTree, LeafCodec, slot};
use crate::rule::{self, Rule};
use dedup_meta::{Block, BlockRef, MetaError, NodeSource, Root};
use std::ops::Range;
use std::sync::Arc;

/// Most leaves read ahead: 128 KiB, about where a device's throughput no longer depends on the request's
/// size.
const AHEAD_MAX: usize = 32;

impl<L: LeafCodec> ArrayTree<L> {
    /// The values in `range` that are not default, in order, each with its index. Ends after the first error.
    pub fn scan<'s, S: NodeSource + ?Sized>(
        &self,
        source: &'s S,
        root: &Root,
        range: Range<u64>,
    ) -> Scan<'s, L, S> {
        let (start, error) = match self.top(root) {
            Ok(top) => (top, None),
            Err(error) => (None, Some(error)),
        };
        let range = range.start..range.end.min(span::<L>(root.level));
        let start = start.filter(|_| !range.is_empty());
        Scan { source, start, error, path: Vec::new(), leaf: None, range, ahead: 1 }
    }
}

/// An iterator over the values of an [`ArrayTree`] that are not default.
pub struct Scan<'s, L, S: ?Sized> {
    source: &'s S,
    /// The root, until it is read.
    start: Option<(BlockRef, ArrayRule<L>)>,
    error: Option<MetaError>,
    path: Vec<Step<L>>,
    leaf: Option<Step<L>>,
    range: Range<u64>,
    /// Leaves to prefetch next time.
    ahead: usize,
}

/// A node on the path.
struct Step<L> {
    block: Arc<Block>,
    rule: ArrayRule<L>,
    /// The children or slots still to visit.
    rest: Range<usize>,
    /// Children before this one have been prefetched.
    asked: usize,
}

impl<L: LeafCodec, S: NodeSource + ?Sized> Scan<'_, L, S> {
    /// Reads a node, of which some index lies in the range.
    fn enter(&mut self, at: BlockRef, rule: ArrayRule<L>) -> Result<(), MetaError> {
        let block = rule::read(self.source, at, &rule)?;
        let last = rule.first().saturating_add(span::<L>(rule.level()) - 1).min(self.range.end - 1);
        let rest = slot(&rule, self.range.start)..slot(&rule, last) + 1;
        let step = Step { block, asked: rest.start, rule, rest };
        if step.rule.level() == 0 {
            self.leaf = Some(step);
        } else {
            self.path.push(step);
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
            let Some(i) = step.rest.next() else { continue };
            let next = child(&step.block.payload, i).map(|child| (child.at, step.rule.child(i, child)));
            if let Some((_, rule)) = &next
                && rule.level() == 0
                && i >= step.asked
            {
                self.look_ahead(&mut step, i, rule);
            }
            self.path.push(step);
            if let Some((at, rule)) = next {
                self.enter(at, rule)?;
            }
        }
        Ok(true)
    }

    /// Prefetches the leaf `i` and those after it.
    fn look_ahead(&mut self, step: &mut Step<L>, i: usize, rule: &ArrayRule<L>) {
        let mut nodes = Vec::with_capacity(self.ahead);
        step.asked = i;
        while step.asked < step.rest.end.min(FANOUT) && nodes.len() < self.ahead {
            nodes.extend(child(&step.block.payload, step.asked).map(|child| child.at));
            step.asked += 1;
        }
        if nodes.len() > 1 {
            rule::prefetch(self.source, &nodes, rule);
        }
        self.ahead = AHEAD_MAX.min(self.ahead * 2);
    }

    fn step(&mut self) -> Result<Option<(u64, L::Value)>, MetaError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        loop {
            if self.leaf.is_none() && !self.advance()? {
                return Ok(None);
            }
            if let Some(leaf) = &mut self.leaf {
                for slot in &mut leaf.rest {
                    let value = L::get(&leaf.block.payload, slot);
                    if value != L::Value::default() {
                        return Ok(Some((leaf.rule.first() + slot as u64, value)));
                    }
                }
            }
            self.leaf = None;
        }
    }
}

impl<L: LeafCodec, S: NodeSource + ?Sized> Iterator for Scan<'_, L, S> {
    type Item = Result<(u64, L::Value), MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step().transpose();
        if !matches!(item, Some(Ok(_))) {
            (self.start, self.leaf) = (None, None);
            self.path.clear();
        }
        item
    }
}
