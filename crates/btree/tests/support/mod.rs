//! A metadata device in memory that checks and counts everything a tree does to it.
//!
//! Every read is verified like one from a device: checksum, type, level, place, version, shape. Freed blocks
//! are gone at once, so a tree that still reads one fails. Block numbers rise and are never given out twice.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use dedup_btree::{Descend, Visit, Visitor};
use dedup_meta::{
    Block, BlockFault, BlockRef, BlockType, MetaBlock, MetaError, NodeSink, NodeSource, ShapeCheck, TxId,
};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

const POOL: Uuid = Uuid::from_u128(7);

/// The device, its counters, and what it lets pass.
#[derive(Clone, Default)]
pub struct Memory {
    blocks: BTreeMap<u64, Box<Block>>,
    last: u64,
    /// Allocations not yet written.
    pending: BTreeSet<u64>,
    pub reads: Cell<u64>,
    pub prefetched: Cell<u64>,
    pub writes: u64,
    pub allocated: u64,
    pub freed: u64,
    /// Freed blocks, in order.
    pub freed_blocks: Vec<MetaBlock>,
    /// Behave like a cache that holds every block: no shape check on reads.
    pub all_cached: bool,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocated and not freed.
    pub fn in_use(&self) -> BTreeSet<u64> {
        self.blocks.keys().copied().chain(self.pending.iter().copied()).collect()
    }

    /// Starts counting anew.
    pub fn reset(&mut self) {
        (self.writes, self.allocated, self.freed) = (0, 0, 0);
        self.reads.set(0);
        self.prefetched.set(0);
        self.freed_blocks.clear();
    }

    pub fn block(&self, at: MetaBlock) -> &Block {
        &self.blocks[&at.0]
    }

    /// Changes a block behind the tree's back, sealed again: only shape checks can see it.
    pub fn tamper(&mut self, at: MetaBlock, change: impl FnOnce(&mut Block)) -> BlockRef {
        let block = self.blocks.get_mut(&at.0).unwrap();
        change(block);
        BlockRef { block: at, crc: block.seal(POOL) }
    }

    /// Makes a block unreadable.
    pub fn lose(&mut self, at: MetaBlock) {
        self.blocks.get_mut(&at.0).unwrap().payload[100] ^= 1;
    }

    fn verified(&self, at: BlockRef, kind: BlockType, level: u8) -> Result<&Block, BlockFault> {
        let Some(block) = self.blocks.get(&at.block.0) else {
            return Err(BlockFault::Checksum { expected: at.crc, found: 0 });
        };
        block.verify(POOL, kind, level, at.block)?;
        let (expected, found) = (at.crc, block.header.crc.get());
        if expected == found { Ok(block) } else { Err(BlockFault::Version { expected, found }) }
    }
}

impl NodeSource for Memory {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.reads.set(self.reads.get() + 1);
        self.verified(at, kind, level)
            .and_then(|block| if self.all_cached { Ok(block) } else { shape(block).map(|()| block) })
            .map(|block| Arc::new(block.clone()))
            .map_err(|fault| MetaError::Damaged { block: at.block, kind, level, fault })
    }

    fn prefetch(&self, nodes: &[BlockRef], kind: BlockType, level: u8, shape: ShapeCheck<'_>) {
        assert!(nodes.len() <= 256);
        self.prefetched.set(self.prefetched.get() + nodes.len() as u64);
        for at in nodes {
            if let Ok(block) = self.verified(*at, kind, level) {
                let _ = shape(block);
            }
        }
    }
}

impl NodeSink for Memory {
    fn birth(&self) -> TxId {
        TxId(5)
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.last += 1;
        self.allocated += 1;
        self.pending.insert(self.last);
        Ok(MetaBlock(self.last))
    }

    fn write(&mut self, mut block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        let place = MetaBlock(block.header.block.get());
        assert!(self.pending.remove(&place.0), "written to a block that was not allocated, or twice");
        assert_eq!(block.header.birth.get(), 5);
        shape(&block).unwrap_or_else(|fault| panic!("an invalid node was to be written: {fault}"));
        self.writes += 1;
        let crc = block.seal(POOL);
        self.blocks.insert(place.0, block);
        Ok(BlockRef { block: place, crc })
    }

    fn free(&mut self, block: MetaBlock) {
        assert!(self.blocks.remove(&block.0).is_some(), "freed what was not in use");
        self.freed += 1;
        self.freed_blocks.push(block);
    }
}

/// A visitor that notes everything.
#[derive(Default)]
pub struct Survey {
    pub blocks: BTreeSet<u64>,
    pub by_level: BTreeMap<u8, Vec<BlockRef>>,
    pub errors: Vec<(MetaBlock, String)>,
    pub visits: u64,
    /// Stop below this level.
    pub above: Option<u8>,
}

impl Visitor for Survey {
    fn reference(&mut self, at: BlockRef, level: u8, _parent: Option<MetaBlock>) -> bool {
        self.by_level.entry(level).or_default().push(at);
        self.above.is_none_or(|above| level > above)
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        self.visits += 1;
        match visit.node {
            Ok(_) => drop(self.blocks.insert(visit.at.block.0)),
            Err(error) => self.errors.push((visit.at.block, error.to_string())),
        }
        Descend::Yes
    }
}
