//! What a volume tells about itself. The field names are stable: they are the JSON of `dedup-tool status`.

use crate::background::gc::GcStatus;
use crate::engine::CheckOnRead;
use crate::engine::data_cache::DataCacheStatus;
use crate::journal::JournalStatus;
use crate::state::Mode;
use crate::volume::Volume;
use dedup_schema::{Counters, DigestAlgorithm};

/// A snapshot of a volume's state. Sizes in bytes unless the name says blocks.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// UUID of the pool.
    pub pool: String,
    /// `read-write`, `read-only`, `closed` or `failed`.
    pub mode: &'static str,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// `cowbtree` or `inram`.
    pub mdbackend: &'static str,
    /// Bytes in a block.
    pub block_size: u64,
    /// The digest.
    pub crypto_alg: DigestAlgorithm,
    /// Block writes between commits, 0 = only on FLUSH and FUA.
    pub flushrq: u32,
    /// How reads are verified.
    pub check_on_read: CheckOnRead,
    /// Whether the bytes of every match are compared.
    pub verify_match: bool,
    /// Bytes that clients see.
    pub logical_size: u64,
    /// Logical blocks that hold data.
    pub logical_used_blocks: u64,
    /// Their bytes.
    pub logical_used: u64,
    /// Blocks of the data device that can hold data.
    pub data_total_blocks: u64,
    /// Of these, in use.
    pub data_used_blocks: u64,
    /// Of these, free; some may wait for a commit.
    pub data_free_blocks: u64,
    /// Of these, neither in use nor free: their write failed, for want of room below or for another reason.
    pub data_set_aside_blocks: u64,
    /// Of the free ones, those that the data device has yet to be told of (with `--discard`).
    pub data_undiscarded_blocks: u64,
    /// The file system below the data device was full at the last attempt: only free blocks that have space
    /// there can be written.
    pub data_full_below: bool,
    /// Bytes of data in use.
    pub data_used: u64,
    /// Logical blocks in use for each data block in use; 1 when nothing is stored.
    pub dedup_ratio: f64,
    /// Bytes that deduplication saves.
    pub space_saved: u64,
    /// Blocks that read as damaged and are not healed.
    pub bad_blocks_now: u64,
    /// Metadata was found damaged or contradicting itself: the volume should be checked.
    pub needs_check: bool,
    /// 4 KiB blocks of the metadata device.
    pub metadata_total_blocks: u64,
    /// Of these, in use at the last checkpoint, the log included.
    pub metadata_used_blocks: u64,
    /// Of these, allocatable at the last checkpoint; the rest waits for older superblocks to be overwritten.
    pub metadata_free_blocks: u64,
    /// Counters since format.
    pub counters: Counters,
    /// The log and the commits.
    pub commit: CommitStatus,
    /// The index and its collector.
    pub gc: GcStatus,
    /// Entries of the digest index at the last checkpoint.
    pub index_entries: u64,
    /// What outlives the process.
    pub journal: JournalStatus,
    /// Data in memory.
    pub data_cache: DataCacheStatus,
}

/// The log and the commits.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CommitStatus {
    /// Transaction of the newest superblock.
    pub transaction: u64,
    /// Epoch of the log.
    pub epoch: u64,
    /// Last operation published.
    pub published: u64,
    /// Last operation that is durable.
    pub durable: u64,
    /// Operations in memory that no checkpoint has begun to write.
    pub delta_operations: u64,
    /// Blocks of the log ring.
    pub log_blocks: u64,
    /// Of these, needed for a replay.
    pub log_used_blocks: u64,
    /// Metadata blocks that checkpoints have written since the open.
    pub checkpoint_blocks_written: u64,
}

impl Volume {
    /// A snapshot of the state. It waits for no I/O, a checkpoint's included.
    pub fn status(&self) -> Status {
        let engine = &*self.engine;
        let gc = engine.gc_status();
        let durable = engine.commits.durable();
        let (set_aside, undiscarded, full_below) = engine.space.status();
        let journal = engine.journal_status(durable);
        let state = engine.state.lock();
        let (mode, failure) = match &state.mode {
            Mode::ReadWrite => ("read-write", None),
            Mode::ReadOnly => ("read-only", None),
            Mode::Closed => ("closed", None),
            Mode::Failed(reason) => ("failed", Some(reason.clone())),
        };
        let (metadata_used, metadata_free) = state.budget.meta_usage();
        let total = engine.pbns - 1;
        Status {
            pool: engine.store.pool().hyphenated().to_string(),
            mode,
            failure,
            mdbackend: if state.logged { "cowbtree" } else { "inram" },
            block_size: engine.block_size,
            crypto_alg: engine.algorithm,
            flushrq: engine.options.flushrq,
            check_on_read: engine.options.check_on_read,
            verify_match: engine.options.verify_match,
            logical_size: engine.lbns * engine.block_size,
            logical_used_blocks: state.mapped,
            logical_used: state.mapped * engine.block_size,
            data_total_blocks: total,
            data_used_blocks: state.data_used,
            data_free_blocks: total.saturating_sub(state.data_used + set_aside),
            data_set_aside_blocks: set_aside,
            data_undiscarded_blocks: undiscarded,
            data_full_below: full_below,
            data_used: state.data_used * engine.block_size,
            dedup_ratio: if state.data_used == 0 {
                1.0
            } else {
                state.mapped as f64 / state.data_used as f64
            },
            space_saved: state.mapped.saturating_sub(state.data_used) * engine.block_size,
            bad_blocks_now: state.bad.len() as u64,
            needs_check: state.recorded.needs_check,
            metadata_total_blocks: state.budget.meta_blocks(),
            metadata_used_blocks: metadata_used,
            metadata_free_blocks: metadata_free,
            counters: state.counters,
            commit: CommitStatus {
                transaction: state.recorded.txid.0,
                epoch: state.recorded.epoch.0,
                published: state.seq.0,
                durable: durable.0,
                delta_operations: state.layers.active.operations,
                log_blocks: state.budget.ring().blocks(),
                log_used_blocks: state.budget.ring().used(),
                checkpoint_blocks_written: state.recorded.blocks_written,
            },
            gc,
            index_entries: state.layers.tables().index_entries(),
            journal,
            data_cache: engine.data_cache.status(),
        }
    }
}
