//! A metadata transaction: nodes written copy-on-write to blocks that nothing reachable uses.
//!
//! ```text
//!   allocate -> (own) -- write --> pending --256 blocks or finish--> device     reads see pending, then the store
//!                 |                   |
//!                 +------ free -------+----> back to the space map at once
//!   older block -------- free -------------> freed(), for the engine to release later
//! ```
//!
//! Invariants: a transaction writes only blocks that it allocated itself (I1), each sealed and shape-checked
//! first; a block that it gave back is not written any more; after the first failed write every call fails
//! (I6). Dropped unfinished, it returns its blocks, and the device shows nothing that a superblock can reach.
//!
//! Not here: flushes, the superblock, and the moment at which freed older blocks may be used again.

use crate::io::{RUN_BLOCKS, write_blocks};
use crate::node::{BlockRef, NodeSink, NodeSource, ShapeCheck};
use crate::store::{Store, is_version};
use crate::{Block, BlockType, MetaBlock, MetaError, TxId};
use dedup_spacemap::SpaceMap;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

/// Blocks written but not yet sent to the device at which they are: as many as fill one largest operation.
const PENDING_MAX: usize = RUN_BLOCKS;

/// See the module.
#[derive(Debug)]
pub struct Transaction<'a> {
    store: &'a Store,
    map: &'a mut SpaceMap,
    id: TxId,
    /// Allocated by this transaction and not given back.
    own: BTreeSet<MetaBlock>,
    /// Sealed, not yet sent to the device; in the order in which they will be.
    pending: BTreeMap<MetaBlock, Arc<Block>>,
    /// Older blocks that nothing needs once this transaction's superblock is durable.
    freed: BTreeSet<MetaBlock>,
    written: u64,
    /// The first failure, after which nothing goes on.
    failure: Option<String>,
}

/// What a finished transaction did to the metadata device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Older blocks that it no longer needs, ascending; their counts are unchanged.
    pub freed: Vec<MetaBlock>,
    /// Blocks that it took from the space map and kept.
    pub allocated: u64,
    /// Blocks sent to the device, counting a block that was written twice twice.
    pub written: u64,
}

impl<'a> Transaction<'a> {
    /// Begins transaction `id`, whose blocks come from `map`.
    pub fn new(store: &'a Store, map: &'a mut SpaceMap, id: TxId) -> Self {
        Self {
            store,
            map,
            id,
            own: BTreeSet::new(),
            pending: BTreeMap::new(),
            freed: BTreeSet::new(),
            written: 0,
            failure: None,
        }
    }

    /// Older blocks freed so far, ascending.
    pub fn freed(&self) -> impl ExactSizeIterator<Item = MetaBlock> + '_ {
        self.freed.iter().copied()
    }

    /// Blocks allocated so far and not given back.
    pub fn allocated(&self) -> u64 {
        self.own.len() as u64
    }

    /// Sends everything to the device and keeps the allocated blocks. Not durable until a [`Store::flush`].
    /// On an error the blocks go back to the space map, as if it had been dropped.
    pub fn finish(mut self) -> Result<Outcome, MetaError> {
        self.alive()?;
        self.send_pending()?;
        let own = mem::take(&mut self.own);
        let freed = mem::take(&mut self.freed);
        Ok(Outcome { freed: freed.into_iter().collect(), allocated: own.len() as u64, written: self.written })
    }

    fn alive(&self) -> Result<(), MetaError> {
        match &self.failure {
            Some(reason) => Err(MetaError::Dead { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn send_pending(&mut self) -> Result<(), MetaError> {
        let result = write_blocks(&**self.store.device(), self.pending.values().map(|block| &**block));
        if let Err(error) = &result {
            self.failure = Some(format!("transaction {}: {error}", self.id));
        }
        self.written += self.pending.len() as u64;
        self.pending.clear();
        result
    }
}

impl Drop for Transaction<'_> {
    /// Aborts what was not finished: no superblock names these blocks, so they are free at once.
    fn drop(&mut self) {
        for block in mem::take(&mut self.own) {
            self.store.forget(block);
            self.map.release(block.0);
        }
    }
}

impl NodeSource for Transaction<'_> {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.alive()?;
        match self.pending.get(&at.block) {
            Some(block) if is_version(block, at, kind, level) => Ok(block.clone()),
            _ => self.store.read(at, kind, level, shape),
        }
    }

    fn prefetch(&self, nodes: &[BlockRef], kind: BlockType, level: u8, shape: ShapeCheck<'_>) {
        let sent: Vec<BlockRef> =
            nodes.iter().filter(|at| !self.pending.contains_key(&at.block)).copied().collect();
        self.store.prefetch(&sent, kind, level, shape);
    }
}

impl NodeSink for Transaction<'_> {
    fn birth(&self) -> TxId {
        self.id
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.alive()?;
        let Some(block) = self.map.allocate().map(MetaBlock) else {
            return Err(MetaError::NoSpace { in_use: self.map.in_use(), total: self.map.len() });
        };
        self.own.insert(block);
        Ok(block)
    }

    /// # Panics
    /// If the block was not allocated by this transaction (writing it could overwrite a node that is still
    /// reachable), or its header was not made by [`Block::new`] with this transaction's number.
    fn write(&mut self, mut block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        self.alive()?;
        let at = MetaBlock(block.header.block.get());
        assert!(
            self.own.contains(&at),
            "I1: block {at} is written by transaction {} but not its own",
            self.id
        );
        assert_eq!(block.header.birth.get(), self.id.0, "block {at} has the birth of its writer");
        let level = block.header.level;
        let kind = BlockType::from_u8(block.header.block_type).expect("Block::new takes a BlockType");
        shape(&block).map_err(|fault| MetaError::Damaged { block: at, kind, level, fault })?;
        let crc = block.seal(self.store.pool());
        let block: Arc<Block> = Arc::from(block);
        self.store.remember(block.clone());
        self.pending.insert(at, block);
        if self.pending.len() >= PENDING_MAX {
            self.send_pending()?;
        }
        Ok(BlockRef { block: at, crc })
    }

    /// A block that is not in use, or freed a second time, means that a tree and the space map disagree: the
    /// transaction ends, before the disagreement reaches the device.
    fn free(&mut self, block: MetaBlock) {
        if self.own.remove(&block) {
            self.pending.remove(&block);
            self.store.forget(block);
            self.map.release(block.0);
            return;
        }
        let in_use = block.0 < self.map.len() && self.map.count(block.0) > 0;
        if !in_use || !self.freed.insert(block) {
            let why = if in_use { "freed twice" } else { "freed but not in use" };
            self.failure.get_or_insert_with(|| format!("transaction {}: block {block} is {why}", self.id));
        }
    }
}

#[cfg(test)]
mod tests;
