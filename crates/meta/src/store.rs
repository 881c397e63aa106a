//! Verified metadata blocks behind a bounded cache.
//!
//! ```text
//!   read(BlockRef) --> cache hit with the CRC, type and level asked for --> the block
//!                  \-> device -> Block::verify -> version -> shape -----> cache, the block
//! ```
//!
//! Invariants: what is in the cache has been verified and shape-checked, or was sealed by a transaction of
//! this process; a hit is still held against the CRC that the parent names, so a stale entry costs a read and
//! never a wrong node. A block number from a damaged pointer is an error, not a panic. The cache holds at
//! most its capacity, one block a unit, and has no random state: the same calls evict the same blocks.
//!
//! Not here: writing nodes (a transaction's), any order of flushes, and any notion of which block is
//! reachable.

mod bulk;

pub use bulk::Bulk;

use crate::io::{device_blocks, failed, offset, read_blocks, write_blocks};
use crate::node::{BlockRef, NodeSource, ShapeCheck};
use crate::{Block, BlockFault, BlockType, MetaBlock, MetaError};
use dedup_device::BlockDevice;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};
use rustc_hash::FxBuildHasher;
use std::sync::Arc;
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Shards of the cache unless told otherwise: enough for the threads of one machine, and a fixed number,
/// because one that followed the machine's cores would make runs differ between machines.
const DEFAULT_SHARDS: usize = 16;

type BlockCache =
    Cache<MetaBlock, Arc<Block>, UnitWeighter, FxBuildHasher, DefaultLifecycle<MetaBlock, Arc<Block>>>;

/// The metadata device of one pool, read through a cache of verified blocks. Shared by all threads.
#[derive(Debug)]
pub struct Store {
    device: Arc<dyn BlockDevice>,
    pool: Uuid,
    cache: BlockCache,
}

impl Store {
    /// The blocks of `pool` on `device`, with a cache of at most `cache_blocks` blocks of 4 KiB.
    pub fn new(device: Arc<dyn BlockDevice>, pool: Uuid, cache_blocks: usize) -> Self {
        Self::with_shards(device, pool, cache_blocks, DEFAULT_SHARDS)
    }

    /// As [`Store::new`], with the cache split by at most `shards` locks (rounded up to a power of two; fewer
    /// if a shard would hold less than 32 blocks).
    pub fn with_shards(device: Arc<dyn BlockDevice>, pool: Uuid, cache_blocks: usize, shards: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(cache_blocks)
            .weight_capacity(cache_blocks as u64)
            .shards(shards.max(1))
            .build()
            .expect("building fails only if one of the two capacities is missing");
        let cache = Cache::with_options(options, UnitWeighter, FxBuildHasher, DefaultLifecycle::default());
        Self { device, pool, cache }
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// The pool whose blocks these are.
    pub fn pool(&self) -> Uuid {
        self.pool
    }

    /// Whole 4 KiB blocks on the device.
    pub fn blocks(&self) -> u64 {
        device_blocks(&*self.device)
    }

    /// Blocks in the cache now.
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// Drops a block from the cache, because its place was given back or rewritten.
    pub fn forget(&self, block: MetaBlock) {
        self.cache.remove(&block);
    }

    /// The bytes that stand at `block`, past the cache and unverified. Fails with [`MetaError::Io`], also if
    /// there is no such block.
    pub fn read_raw(&self, block: MetaBlock) -> Result<Box<Block>, MetaError> {
        self.require_on_device("read", block)?;
        let mut bytes = Block::zeroed();
        let at = offset(block.0);
        self.device.read(at, bytes.as_mut().as_mut_bytes()).map_err(|e| failed("read", at, e))?;
        Ok(bytes)
    }

    /// Writes a block as it is (sealed by the caller) to the place in its header, past the cache. Not durable
    /// until a [`Store::flush`].
    pub fn write_raw(&self, block: &Block) -> Result<(), MetaError> {
        let at = MetaBlock(block.header.block.get());
        self.require_on_device("write", at)?;
        self.forget(at);
        write_blocks(&*self.device, [block])
    }

    /// Makes every completed write durable. After an error nothing is known about any of them, and it must
    /// not be retried.
    pub fn flush(&self) -> Result<(), MetaError> {
        self.device.flush().map_err(|e| failed("flush", 0, e))
    }

    /// Puts a block that was just sealed where readers find it.
    pub(crate) fn remember(&self, block: Arc<Block>) {
        self.cache.insert(MetaBlock(block.header.block.get()), block);
    }

    fn cached_version(&self, at: BlockRef, kind: BlockType, level: u8) -> Option<Arc<Block>> {
        self.cache.get(&at.block).filter(|block| is_version(block, at, kind, level))
    }

    fn require_on_device(&self, operation: &'static str, block: MetaBlock) -> Result<(), MetaError> {
        if block.0 < self.blocks() {
            return Ok(());
        }
        let message = format!("block {block} is beyond the device's {} blocks", self.blocks());
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, message);
        Err(MetaError::Io { operation, block, source })
    }

    /// What is wrong with a reference to a block that is not on the device.
    fn beyond(&self, block: MetaBlock) -> BlockFault {
        BlockFault::Field {
            field: "block number",
            expected: format!("below {}", self.blocks()),
            found: block.to_string(),
        }
    }

    /// All checks of a block that came from the device. The version comes after the checksum, so that damage
    /// is not mistaken for a lost write.
    fn check(
        &self,
        block: &Block,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<(), BlockFault> {
        block.verify(self.pool, kind, level, at.block)?;
        let found = block.header.crc.get();
        if found != at.crc {
            return Err(BlockFault::Version { expected: at.crc, found });
        }
        shape(block)
    }
}

impl NodeSource for Store {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        if let Some(block) = self.cached_version(at, kind, level) {
            return Ok(block);
        }
        let damaged = |fault| MetaError::Damaged { block: at.block, kind, level, fault };
        if at.block.0 >= self.blocks() {
            return Err(damaged(self.beyond(at.block)));
        }
        let block = self.read_raw(at.block)?;
        self.check(&block, at, kind, level, shape).map_err(damaged)?;
        let block: Arc<Block> = Arc::from(block);
        self.remember(block.clone());
        Ok(block)
    }

    /// One batch of device reads for those that are not cached, of these at most as many as half the cache
    /// holds: more would evict each other before they are read.
    fn prefetch(&self, nodes: &[BlockRef], kind: BlockType, level: u8, shape: ShapeCheck<'_>) {
        let limit = (self.cache.capacity() / 2) as usize;
        let absent = |at: &&BlockRef| {
            at.block.0 < self.blocks()
                && self.cache.peek(&at.block).is_none_or(|b| !is_version(&b, **at, kind, level))
        };
        let mut wanted: Vec<BlockRef> = nodes.iter().filter(absent).take(limit).copied().collect();
        wanted.sort_unstable_by_key(|at| at.block);
        wanted.dedup();

        let numbers: Vec<MetaBlock> = wanted.iter().map(|at| at.block).collect();
        let mut blocks = vec![Block::zeroed(); wanted.len()];
        let results = read_blocks(&*self.device, &numbers, &mut blocks);
        for ((block, at), result) in blocks.into_iter().zip(wanted).zip(results) {
            if result.is_ok() && self.check(&block, at, kind, level, shape).is_ok() {
                self.remember(Arc::from(block));
            }
        }
    }
}

/// Whether a verified block is the one that `at` means.
pub(crate) fn is_version(block: &Block, at: BlockRef, kind: BlockType, level: u8) -> bool {
    let header = &block.header;
    header.crc.get() == at.crc && header.block_type == kind as u8 && header.level == level
}

#[cfg(test)]
mod tests;
