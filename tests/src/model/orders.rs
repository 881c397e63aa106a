//! What requests handed over together may make of one block: they take effect in any order, each on the whole
//! block.

use super::script::{Change, Req};
pub(super) use crate::history::Content;
use std::ops::Range;
use std::sync::Arc;

/// Contents by number, of one block size.
#[derive(Clone, Debug)]
pub(super) struct Contents(Vec<Content>);

/// Few, so that contents meet often.
pub(super) const CONTENTS: u64 = 9;

impl Contents {
    pub(super) fn new(block_size: usize) -> Self {
        Self((0..CONTENTS).map(|content| crate::block(content, block_size).into()).collect())
    }

    pub(super) fn zero(&self) -> Content {
        Arc::clone(&self.0[0])
    }

    pub(super) fn of(&self, number: u64) -> &Content {
        &self.0[(number % CONTENTS) as usize]
    }
}

/// A change within the device.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) range: Range<u64>,
    pub(super) change: Change,
    pub(super) fua: bool,
    block_size: u64,
}

impl Placed {
    /// `None` for a request that changes nothing by its kind.
    pub(super) fn new(request: &Req, block_size: u64) -> Option<Self> {
        match request {
            Req::Change { offset, len, change, fua } => {
                Some(Self { range: *offset..offset + len, change: change.clone(), fua: *fua, block_size })
            }
            Req::Read { .. } | Req::Flush => None,
        }
    }

    /// The blocks that it changes, in whole or in part.
    pub(super) fn blocks(&self) -> Range<usize> {
        let (start, end) = (self.range.start, self.range.end);
        match self.change {
            _ if start == end => 0..0,
            Change::Trim => {
                let first = start.div_ceil(self.block_size);
                first as usize..(end / self.block_size).max(first) as usize
            }
            _ => (start / self.block_size) as usize..end.div_ceil(self.block_size) as usize,
        }
    }

    /// Which bytes of a block it covers.
    pub(super) fn part(&self, block: usize) -> Range<usize> {
        let start = block as u64 * self.block_size;
        let within = |at: u64| (at.max(start) - start).min(self.block_size) as usize;
        within(self.range.start)..within(self.range.end)
    }

    /// Whether it covers all of a block.
    pub(super) fn is_whole(&self, block: usize) -> bool {
        self.part(block).len() as u64 == self.block_size
    }

    /// What becomes of one of [`Self::blocks`].
    pub(super) fn apply(&self, block: usize, old: &Content, contents: &Contents) -> Content {
        let new = match self.change {
            Change::Write { first, stride } => {
                contents.of(first + stride * (block - self.blocks().start) as u64)
            }
            Change::Trim | Change::Zero => contents.of(0),
        };
        if self.is_whole(block) {
            return Arc::clone(new);
        }
        let (mut bytes, part) = (old.to_vec(), self.part(block));
        bytes[part.clone()].copy_from_slice(&new[part]);
        bytes.into()
    }
}

/// What changes of one batch may make of a block.
#[derive(Debug)]
pub(super) struct Outcomes {
    /// After all of them.
    pub(super) end: Vec<Content>,
    /// After any of them, or none: what a read beside them may see.
    pub(super) any: Vec<Content>,
    /// After any of them, those with FUA among them: what is durable at least.
    pub(super) durable: Vec<Content>,
}

impl Outcomes {
    /// `changes` all touch the block.
    pub(super) fn of(changes: &[&Placed], block: usize, old: &Content, contents: &Contents) -> Self {
        let mut outcomes = Self { end: Vec::new(), any: Vec::new(), durable: Vec::new() };
        outcomes.explore(changes, 0, block, old, contents);
        outcomes
    }

    /// All orders of all subsets; `done` is a set of bits.
    fn explore(&mut self, changes: &[&Placed], done: u32, block: usize, now: &Content, contents: &Contents) {
        let is_done = |at: usize| done & (1 << at) != 0;
        insert(&mut self.any, now);
        if (0..changes.len()).all(|at| is_done(at) || !changes[at].fua) {
            insert(&mut self.durable, now);
        }
        if (0..changes.len()).all(is_done) {
            insert(&mut self.end, now);
        }
        for at in (0..changes.len()).filter(|at| !is_done(*at)) {
            let next = changes[at].apply(block, now, contents);
            self.explore(changes, done | 1 << at, block, &next, contents);
        }
    }
}

fn insert(set: &mut Vec<Content>, content: &Content) {
    if !set.contains(content) {
        set.push(Arc::clone(content));
    }
}
