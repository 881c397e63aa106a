//! The metadata device: checksummed 4 KiB blocks and everything that keeps them.
//!
//! The device below is an array of bytes; the trees above want nodes that are never half-written, a single
//! moment at which a whole new state replaces the old one, and a cheap way to make one more operation
//! durable. This crate stands between them and knows nothing about what a node or a log record means.
//!
//! ```text
//!     trees (B-tree, array tree)                    dedup layer
//!        |  NodeSource / NodeSink                      |  records
//!   +----v--------------------+      +-----------------v----------+      +------------------+
//!   | Transaction             |      | LogBuilder -> LogWriter    |      | Superblock       |
//!   |  allocate, write, free  |      | scan                       |      | Survey           |
//!   +----|----------------|---+      +-----------------|----------+      +---------|--------+
//!        |                v                            |                           |
//!        |           SpaceMap (in memory)              |                           |
//!   +----v---------------------------------------------v---------------------------v--------+
//!   | Store: verified blocks, bounded cache              | BlockDevice                       |
//!   +----------------------------------------------------------------------------------------+
//! ```
//!
//! - A [`Block`] is 4 KiB with a header that says what it is, where it belongs and who wrote it, sealed by a
//!   CRC32C that is seeded with the pool's UUID. A parent's [`BlockRef`] repeats the child's CRC, so a write
//!   that was lost is seen as surely as one that was torn.
//! - A [`Store`] reads blocks, verifies each one once and caches it. Nothing unverified leaves it.
//! - A [`Transaction`] writes nodes copy-on-write: only to blocks that it allocated itself, merged into large
//!   writes. It makes nothing durable and nothing reachable; until a superblock names its roots it can be
//!   dropped without a trace.
//! - A [`Superblock`] is the one thing written in place, alternating between two slots. [`load_superblocks`]
//!   looks at all copies and says which is the newest.
//! - The intent log makes single operations durable between two superblocks: a ring of chained blocks,
//!   written by a [`LogWriter`] and read back by [`scan`], which tells the log's end (a torn write) from
//!   damage (a hole in front of something that was known durable).
//!
//! # A checkpoint, in order
//!
//! 1. Inside a [`Transaction`], apply the changes to the trees, [`Transaction::finish`]: all nodes are
//!    written.
//! 2. [`Store::flush`]. 3. [`write_superblock`] with the new roots. 4. [`Store::flush`]: the new state is the
//!    state.
//! 5. [`write_spare`], whose loss costs nothing.
//! 6. Blocks that the transaction freed become allocatable when the *older* superblock has been replaced too;
//!    the log is released ([`LogWriter::release`]) up to where the older superblock's replay begins.
//!
//! ```
//! use dedup_device::MemDevice;
//! use dedup_meta::{Block, BlockType, MetaBlock, NodeSink, NodeSource, Store, Transaction, TxId};
//! use dedup_spacemap::SpaceMap;
//! use std::sync::Arc;
//!
//! let pool = uuid::Uuid::from_u128(1);
//! let store = Store::new(Arc::new(MemDevice::new(1 << 20)), pool, 64);
//! let mut map = SpaceMap::new(store.blocks());
//! let mut transaction = Transaction::new(&store, &mut map, TxId(2));
//! let at = transaction.allocate()?;
//! let mut node = Block::new(BlockType::Digest, 0, at, transaction.birth());
//! node.payload[0] = 42;
//! let node = transaction.write(node, &|_| Ok(()))?;
//! transaction.finish()?;
//! store.flush()?;
//! // Whoever has the reference gets this very version of the block, or an error.
//! let read = store.read(node, BlockType::Digest, 0, &|_| Ok(()))?;
//! assert_eq!(read.payload[0], 42);
//! # Ok::<(), dedup_meta::MetaError>(())
//! ```
//!
//! Not here: the order of those steps (the dedup layer's commit), the meaning of tree nodes and log records,
//! and any retry. A failed write or flush is final: the object that saw it refuses to go on.

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod block;
mod error;
mod ids;
mod io;
mod log;
mod node;
mod store;
mod superblock;
#[cfg(test)]
mod test_device;
mod transaction;

pub use block::{Block, BlockFault, BlockType, HEADER_SIZE, Header, META_BLOCK_SIZE, PAYLOAD_SIZE, field};
pub use error::{MetaError, advice};
pub use ids::{Epoch, LogSeq, MetaBlock, TxId};
pub use log::{
    COUNTERS, Counters, LOG_PAYLOAD_SIZE, LogBlock, LogBuilder, LogDamage, LogGeometry, LogPosition,
    LogWriter, PendingBlock, Reach, Scan, scan, scan_log, write_milestones,
};
pub use node::{BlockRef, NodeSink, NodeSource, Root, ShapeCheck};
pub use store::{Bulk, Store};
pub use superblock::{
    Access, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, CopyState, Features, JOURNAL_PLACE_MAX, JournalRecord, Layout,
    MAX_LEVEL, MAX_LOG_BLOCKS, MAX_METADATA_BLOCKS, MAX_RUNS, MAX_VOLUMES, MIN_LOG_BLOCKS,
    MIN_METADATA_BLOCKS, Roots, RunSet, Superblock, SuperblockCopy, SuperblockError, Survey, Unsupported,
    Volume, erase_copy, load_superblocks, write_spare, write_superblock,
};
pub use transaction::{Outcome, Transaction};
