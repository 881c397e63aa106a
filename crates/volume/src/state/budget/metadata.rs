//! The metadata device's part of the budget: what checkpoints may need at worst, and what there is for it
//! (rule R8).

use super::Purpose;
use crate::trees::index::Index;
use crate::trees::lbn_map::LbnMap;
use crate::trees::runs::RunPolicy;
use crate::trees::tables::Tables;
use dedup_btree::{ArrayTree, BTree};
use dedup_meta::MetaError;
use dedup_schema::{Count, CountLeaf, DigestLeaf, Pbn};

/// Metadata blocks that only trims and checkpoints may use: enough to checkpoint a slice of a trim in trees
/// of any height.
const SHRINK_RESERVE_BLOCKS: u64 = 512;
/// Superblocks apart, what a checkpoint writes besides trees is its own map: pages and their index, twice for
/// the fixpoint.
const MAP_SLACK_BLOCKS: u64 = 16;

/// Blocks of the metadata device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MetaUsage {
    /// That can be allocated.
    pub(crate) free: u64,
    /// That could be if they had space on disk, which they may get.
    pub(crate) holes: u64,
    /// In use.
    pub(crate) used: u64,
    /// That nobody uses any more, and checkpoints will give back: the superblocks' older trees or readers
    /// reach them.
    pub(crate) held: u64,
}

impl MetaUsage {
    /// What can be promised.
    pub(super) fn whole(&self) -> u64 {
        self.free + self.holes
    }
}

/// Sizes that bound the trees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TreeBounds {
    /// Logical blocks.
    pub(crate) lbns: u64,
    /// Data blocks.
    pub(crate) pbns: u64,
    /// Metadata blocks.
    pub(crate) meta_blocks: u64,
    /// When changes become runs, which take less.
    pub(crate) runs: RunPolicy,
}

/// What is there, and what is needed.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    bounds: TreeBounds,
    /// As of the last checkpoint, and of what has been backed since.
    pub(super) usage: MetaUsage,
    /// Upper bound of the changes to bad marks in a delta.
    marks: u64,
    /// Whether the index is written at checkpoints. Not when the device is short: it can be rebuilt.
    pub(super) with_hints: bool,
}

impl Metadata {
    /// Of a device of which nothing is known to be free.
    pub(super) fn new(bounds: TreeBounds) -> Self {
        Self { bounds, usage: MetaUsage::default(), marks: 0, with_hints: true }
    }

    /// The device's state. The index is taken up again when there is room for more than one slice of its
    /// rebuilding, so that it is not given up again at once.
    pub(super) fn found(&mut self, usage: MetaUsage, tables: &Tables) {
        self.usage = usage;
        if !self.with_hints {
            let slice = (self.bounds.meta_blocks / 64).min(4096);
            let needed =
                2 * self.worst_case_with(slice, tables, true) + self.set_aside(Purpose::Grow, tables);
            self.with_hints = needed <= usage.whole();
        }
    }

    /// Bad marks were set or lifted: so many stand or have changed.
    pub(super) fn marked(&mut self, marks: u64) {
        self.marks = self.marks.max(marks);
    }

    /// Blocks of the device.
    pub(super) fn blocks(&self) -> u64 {
        self.bounds.meta_blocks
    }

    /// The error when nothing more can be done.
    pub(super) fn full(&self) -> MetaError {
        MetaError::NoSpace { in_use: self.usage.used, total: self.bounds.meta_blocks }
    }

    /// Blocks that no delta may count on. Only what grows has to leave room for merges too: they are what
    /// gives space back to the rest.
    pub(super) fn set_aside(&self, purpose: Purpose, tables: &Tables) -> u64 {
        let debt = match purpose {
            Purpose::Grow => self.lbn_map().debt(&tables.mappings),
            Purpose::Shrink => 0,
        };
        debt + self.reserve(purpose)
    }

    /// The same without what merges need.
    pub(super) fn reserve(&self, purpose: Purpose) -> u64 {
        let map_pages = self.bounds.meta_blocks / dedup_spacemap::page::COUNTS_PER_PAGE as u64 + 1;
        let map = 2 * map_pages + MAP_SLACK_BLOCKS;
        match purpose {
            Purpose::Grow => map + SHRINK_RESERVE_BLOCKS.min(self.bounds.meta_blocks / 16),
            Purpose::Shrink => map,
        }
    }

    /// An upper bound of the blocks that a checkpoint of `operations` writes. Each changes at most one
    /// mapping, one digest, one hint and the hint before it, and two counts (the new block's and the old
    /// one's).
    pub(super) fn worst_case(&self, operations: u64, tables: &Tables) -> u64 {
        self.worst_case_with(operations, tables, self.with_hints)
    }

    /// The same with and without the index.
    pub(super) fn worst_case_with(&self, operations: u64, tables: &Tables, with_hints: bool) -> u64 {
        if operations == 0 {
            return 0;
        }
        let TreeBounds { pbns, runs, .. } = self.bounds;
        let counts = operations.saturating_mul(2);
        let hints = match with_hints {
            true => Index { policy: runs }.worst_case(operations, &tables.hints),
            false => 0,
        };
        self.lbn_map().worst_case(operations, &tables.mappings)
            + ArrayTree::<DigestLeaf>::worst_case_blocks(operations, pbns)
            + ArrayTree::<CountLeaf>::worst_case_blocks(counts, pbns)
            + BTree::<Pbn, Count>::worst_case_blocks(counts.min(pbns), &tables.overflow)
            + BTree::<Pbn, ()>::worst_case_blocks(operations.min(self.marks), &tables.bad)
            + hints
    }

    /// The map of LBNs.
    fn lbn_map(&self) -> LbnMap {
        LbnMap { lbns: self.bounds.lbns, policy: self.bounds.runs }
    }
}
