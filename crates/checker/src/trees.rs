//! Walking trees: every node is read and verified once, every reference to one is remembered.
//!
//! A node that is referred to a second time is a finding and is not entered again, so a walk ends after as
//! many reads as there are blocks, whatever the pointers say.

use crate::merge::Stream;
use crate::report::{Findings, Kind, node_place};
use crate::sparse::Sparse;
use crate::walked::Walked;
use crate::{Check, Phase, Progress};
use dedup_btree::{Descend, Reader, Spawn, Sweep, Visit, Visitor, Window};
use dedup_meta::{Block, BlockRef, BlockType, Layout, MetaBlock, Root, Store, Superblock};
use dedup_schema::{BAD, COUNTS, DIGESTS, HINTS, MAPPING_RUNS, MAPPINGS, META_MAP, OVERFLOW};
use rayon::ThreadPoolBuilder;
use std::sync::Arc;

/// Between two reports of progress.
const PROGRESS_BLOCKS: u64 = 256;

/// Threads that read and verify: each waits for the device half of the time.
const READERS: usize = 3;
/// Nodes from which on there are such threads: 16 MiB, a few milliseconds' work.
const THREADS_FROM: u64 = 4096;
/// 2 MiB of leaves, in which a tree that was written in its order stands in a few pieces, for each reader and
/// one at hand: 10 MiB, and at most as much again for what is read through.
pub(crate) const WINDOW: Window = Window { nodes: 512, windows: READERS + 1 };
/// For each of the up to 16 trees of runs beside a base: 6 MiB together. They were written at one go.
pub(crate) const RUN_WINDOW: Window = Window { nodes: 32, windows: 2 };

/// What the newest superblock reaches on the metadata device.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// References to each block; saturates.
    references: Sparse<u8>,
    /// The version that the first reference names.
    versions: Sparse<u32>,
    /// Blocks with a reference.
    pub(crate) blocks: u64,
    /// Of these looked at: the reserved places to begin with.
    read: u64,
    /// Nodes that could not be read: what is below them is unknown.
    pub(crate) damaged: u64,
}

impl Reach {
    /// Only the reserved places, which are never nodes.
    pub(crate) fn new(layout: &Layout) -> Self {
        let mut this = Self::default();
        layout.reserved().for_each(|block| {
            this.refer(BlockRef { block, crc: 0 });
        });
        this.read = this.blocks;
        this
    }

    /// How often a block is referred to.
    pub(crate) fn references(&self, block: MetaBlock) -> u8 {
        self.references.get(block.0)
    }

    /// The version that is referred to.
    pub(crate) fn version(&self, block: MetaBlock) -> u32 {
        self.versions.get(block.0)
    }

    /// Notes a reference; `false` if it is not the first.
    fn refer(&mut self, at: BlockRef) -> bool {
        let count = self.references.slot(at.block.0);
        *count = count.saturating_add(1);
        if *count > 1 {
            return false;
        }
        *self.versions.slot(at.block.0) = at.crc;
        self.blocks += 1;
        true
    }
}

struct Walk<'c, F> {
    tree: BlockType,
    device_blocks: u64,
    findings: &'c mut Findings,
    reach: &'c mut Reach,
    progress: &'c mut dyn FnMut(Progress),
    total: u64,
    met: Walked,
    leaf: F,
}

impl<F: FnMut(&Block, &mut Findings)> Visitor for Walk<'_, F> {
    fn reference(&mut self, at: BlockRef, level: u8, parent: Option<MetaBlock>) -> bool {
        if at.block.0 >= self.device_blocks {
            return true; // reading it says what is wrong
        }
        let first = self.reach.refer(at);
        if !first {
            self.met.damaged += 1;
            let from = parent.map_or("the superblock".to_string(), |parent| format!("block {parent}"));
            let found = format!("{}, again from {from}", self.reach.references(at.block));
            self.findings.add(
                Kind::MetadataShared,
                node_place(self.tree, at.block, level),
                "references",
                1,
                found,
            );
        }
        first
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        match visit.node {
            Ok(block) => {
                self.met.nodes += 1;
                if visit.level == 0 {
                    (self.leaf)(block, self.findings);
                }
            }
            Err(error) => {
                self.met.damaged += 1;
                let kind = if self.tree == BlockType::Hint { Kind::HintNode } else { Kind::TreeNode };
                self.findings.node(kind, self.tree, visit.at.block, visit.level, &error);
            }
        }
        self.reach.read += 1;
        let done = self.reach.read;
        if done.is_multiple_of(PROGRESS_BLOCKS) {
            (self.progress)(Progress { phase: Phase::Trees, done, total: self.total.max(done) });
        }
        Descend::Yes
    }
}

impl Check<'_> {
    /// Walks a tree of the newest superblock and shows its intact leaves to `leaf`.
    pub(crate) fn walk(
        &mut self,
        tree: BlockType,
        root: &Root,
        mut leaf: impl FnMut(&Block, &mut Findings),
    ) -> Walked {
        let mut sweep = sweep(tree, &self.reader, WINDOW, root);
        let mut met = Walked::default();
        while self.step(&mut *sweep, tree, &mut met, &mut leaf) {}
        self.account(tree, met);
        met
    }

    /// Shows the next leaf of a tree of the newest superblock to `leaf`, if it is intact; `false` if there is
    /// none.
    pub(crate) fn step(
        &mut self,
        sweep: &mut dyn Sweep,
        tree: BlockType,
        met: &mut Walked,
        leaf: impl FnMut(&Block, &mut Findings),
    ) -> bool {
        let mut walk = Walk {
            tree,
            device_blocks: self.newest.layout.metadata_blocks,
            findings: &mut self.findings,
            reach: &mut self.reach,
            progress: &mut *self.progress,
            total: self.newest.roots.metamap.entries,
            met: *met,
            leaf,
        };
        let more = sweep.step(&mut walk);
        *met = walk.met;
        more
    }

    /// A tree has been read to its end.
    pub(crate) fn account(&mut self, tree: BlockType, met: Walked) {
        self.reach.damaged += met.damaged;
        *self.summary.tree_blocks.entry(tree.name()).or_default() += met.nodes;
    }

    /// A tree or one of its runs, to be merged with the others.
    pub(crate) fn stream<K: Ord + Copy, V>(
        &self,
        tree: BlockType,
        root: &Root,
        is_base: bool,
    ) -> Stream<K, V> {
        let window = if is_base { WINDOW } else { RUN_WINDOW };
        Stream::new(tree, *root, sweep(tree, &self.reader, window, root))
    }

    /// Compares the entries of a B-tree with its root's figure; array trees do that themselves, in each node.
    pub(crate) fn check_total(
        &mut self,
        kind: Kind,
        tree: BlockType,
        root: &Root,
        met: Walked,
        entries: u64,
    ) {
        if met.damaged == 0 && root.entries != entries {
            self.findings.add(
                kind,
                format!("superblock ({})", tree.name()),
                "entries",
                entries,
                root.entries,
            );
        }
    }
}

/// The sweep of a tree of the type that the superblock says it is.
pub(crate) fn sweep(tree: BlockType, reader: &Reader, window: Window, root: &Root) -> Box<dyn Sweep> {
    match tree {
        BlockType::Mapping => MAPPINGS.sweep(reader, window, root),
        BlockType::MappingRun => MAPPING_RUNS.tree().sweep(reader, window, root),
        BlockType::Digest => DIGESTS.sweep(reader, window, root),
        BlockType::RefCount => COUNTS.sweep(reader, window, root),
        BlockType::Overflow => OVERFLOW.sweep(reader, window, root),
        BlockType::Hint => HINTS.sweep(reader, window, root),
        BlockType::Bad => BAD.sweep(reader, window, root),
        BlockType::MetaMap => META_MAP.sweep(reader, window, root),
        BlockType::Superblock | BlockType::Log => unreachable!("{tree:?} is no tree"),
    }
}

/// What to read trees with: on this thread if there is little to read, as in a test that checks thousands of
/// volumes.
pub(crate) fn reader(store: &Arc<Store>, newest: &Superblock) -> Reader {
    let used = newest.roots.metamap.entries.min(store.blocks());
    let nodes = used.saturating_sub(newest.layout.log.blocks);
    let pool = (nodes >= THREADS_FROM).then(|| ThreadPoolBuilder::new().num_threads(READERS).build());
    let spawn: Spawn = match pool {
        Some(Ok(pool)) => Arc::new(move |job| pool.spawn_fifo(job)),
        // Without threads it is as slow as it would be on one.
        Some(Err(_)) | None => Arc::new(|job| job()),
    };
    Reader::new(store.clone(), spawn)
}
