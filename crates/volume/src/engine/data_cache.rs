//! Content of blocks in memory, by PBN: a block that many LBNs share is there once.
//!
//! ```text
//!   read of an LBN ─> mapping {pbn, crc} ─> hit whose content has the crc ─> the bytes
//!                                        └> data device ─> verified ─────> kept, the bytes
//!   write of a new block ─> forgotten, then written to its place
//! ```
//!
//! For data devices that are used past the kernel's page cache, which does the same for the others. Only what
//! was read is kept, not what was written: a device that takes a backup should not forget what its readers
//! come back for.
//!
//! Invariants: what is kept was verified as reads are. A PBN's content changes only when it is allocated
//! anew, which waits for every read that may still keep the old one (invariant I2), and forgets it before the
//! new one is written. So a hit is what the device would have; it is held against the mapping's checksum all
//! the same, which costs what it costs for a block from the device.
//!
//! Not here: what verifies a block on the device (a second read of a damaged one, the comparison of a match,
//! the checker) never asks it.

use dedup_schema::Pbn;
use dedup_sync::Arc;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};
use rustc_hash::FxBuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// Locks that split it: enough for the threads of one machine, and fixed, so that runs do not differ between
/// machines.
const SHARDS: usize = 16;

type Blocks = Cache<Pbn, Arc<[u8]>, UnitWeighter, FxBuildHasher, DefaultLifecycle<Pbn, Arc<[u8]>>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct DataCache {
    /// `None` if it is to hold nothing.
    blocks: Option<Blocks>,
    block_size: u64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// The cache of data.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DataCacheStatus {
    /// Bytes of content that it may hold.
    pub size: u64,
    /// Bytes of content that it holds.
    pub used: u64,
    /// Blocks found in it since the open.
    pub hits: u64,
    /// Blocks read from the device instead.
    pub misses: u64,
}

impl DataCache {
    /// Holds at most `bytes` of content, in blocks of `block_size` bytes.
    pub(crate) fn new(bytes: u64, block_size: u64) -> Self {
        let capacity = bytes / block_size;
        let cache = |capacity: u64| {
            let options = OptionsBuilder::new()
                .estimated_items_capacity(capacity as usize)
                .weight_capacity(capacity)
                .shards(SHARDS)
                .build()
                .expect("building fails only if one of the two capacities is missing");
            Cache::with_options(options, UnitWeighter, FxBuildHasher, DefaultLifecycle::default())
        };
        Self {
            blocks: (capacity > 0).then(|| cache(capacity)),
            block_size,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Whether it holds anything, ever.
    pub(crate) fn is_on(&self) -> bool {
        self.blocks.is_some()
    }

    /// Copies the block's content from byte `start` on to `buf`. `false` if it is not here, or has not this
    /// checksum.
    pub(crate) fn copy(&self, pbn: Pbn, crc: u32, start: usize, buf: &mut [u8]) -> bool {
        let Some(blocks) = &self.blocks else { return false };
        let content = blocks.get(&pbn).filter(|content| crc32c::crc32c(content) == crc);
        let counter = if content.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        content.map(|content| buf.copy_from_slice(&content[start..][..buf.len()])).is_some()
    }

    /// Keeps a block's content, verified by a reader that still has the block pinned.
    pub(crate) fn keep(&self, pbn: Pbn, content: &[u8]) {
        if let Some(blocks) = &self.blocks {
            blocks.insert(pbn, Arc::from(content));
        }
    }

    /// The block is about to be written with other content.
    pub(crate) fn forget(&self, pbn: Pbn) {
        if let Some(blocks) = &self.blocks {
            blocks.remove(&pbn);
        }
    }

    pub(crate) fn status(&self) -> DataCacheStatus {
        let bytes = |blocks: u64| blocks * self.block_size;
        DataCacheStatus {
            size: self.blocks.as_ref().map_or(0, |blocks| bytes(blocks.capacity())),
            used: self.blocks.as_ref().map_or(0, |blocks| bytes(blocks.len() as u64)),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }
}
