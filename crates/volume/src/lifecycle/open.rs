//! Opening a volume: the newest valid superblock, then the valid suffix of the log.
//!
//! ```text
//!  flush data, flush metadata             R5: what a killed process left in the cache may be readable and not durable
//!  label ─> pool ─> superblocks           only those of the pool that the label names (R11)
//!  metadata map of both superblocks       blocks of either are never written (I1)
//!  scan the log, and where it may have been  stops at damage (R6), takes no stale blocks (R4)
//!  replay into the active delta           the trees are not touched: the log stays until the next checkpoint
//!  write the data that the log carries    to its place; it is there again until a checkpoint has flushed it
//!  take in the journal                    what a killed process had acknowledged and not committed (I16), see `journal`
//!  both superblocks stand in their spares  lost in a crash, they are written again: the next one goes over the older one's slot;
//!                                         a spare that cannot be read is erased: it may be one of the same number
//!  write a superblock with a new epoch    where the accepted log ended; flush; only then may anything be appended (R4)
//!  commit what was taken in               before anything is answered
//! ```
//!
//! Time and memory are bounded by the log ring, by the operations that two deltas may hold, and by the
//! metadata map (2 bits for each 4 KiB of metadata); nothing walks the volume. A read-only open does the same
//! in memory and writes nothing.
//!
//! What can be told anew is needed by no open: the label, which the superblock has (`label`), and the
//! metadata map, which the trees have (`maps`). Damage that is no matter of what reads return does not keep a
//! volume from being opened for reading.

mod assemble;
mod epoch;
mod find;
mod label;
mod maps;
mod scan;

use crate::background::maintenance::Threads;
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::lifecycle::options::OpenOptions;
use crate::lifecycle::take_in;
use dedup_device::BlockDevice;
use dedup_meta::{META_BLOCK_SIZE, MetaBlock, MetaError, Store};
use dedup_sync::Arc;

/// Cache blocks that an open volume has at least: the paths from a few roots to a few leaves.
const CACHE_BLOCKS_MIN: u64 = 64;

/// What an open does with the journal that it expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Journaled {
    /// It refuses if it cannot.
    TakeIn,
    GiveUp,
}

/// An open volume, and its threads unless it is open for reading, or does without.
pub(crate) type Opened = (Arc<Engine>, Option<Threads>);

/// Opens the volume on these two devices, which the caller has locked (exclusively unless read-only).
pub(crate) fn open(
    data: Arc<dyn BlockDevice>,
    metadata: Arc<dyn BlockDevice>,
    options: &OpenOptions,
) -> Result<Opened, VolumeError> {
    match open_with(Arc::clone(&data), Arc::clone(&metadata), options, Journaled::TakeIn) {
        Err(error) if take_in::gives_up(options, &error) => {
            tracing::warn!("opened without what was acknowledged and not committed: {error}");
            open_with(data, metadata, options, Journaled::GiveUp)
        }
        result => result,
    }
}

fn open_with(
    data: Arc<dyn BlockDevice>,
    metadata: Arc<dyn BlockDevice>,
    options: &OpenOptions,
    journaled: Journaled,
) -> Result<Opened, VolumeError> {
    if !options.read_only {
        data.flush().map_err(|source| VolumeError::Data { operation: "flush", source })?;
        metadata.flush().map_err(|source| meta_io("flush", source))?;
    }
    let from_medium = metadata.bypass_cache().map_err(|source| meta_io("read", source))?;
    let found = find::find(&*data, &*metadata, options)?;
    let algorithm = find::check_parameters(&found.newest, &*data, options)?;
    let cache_blocks = (options.cache_bytes / META_BLOCK_SIZE as u64).max(CACHE_BLOCKS_MIN);
    let store = Store::new(metadata, found.newest.pool, cache_blocks as usize);
    if let Some(lost) = &found.label_lost {
        match options.read_only {
            true => tracing::warn!("opened without the label of the data device: {lost}"),
            false => label::renew(&*data, &store, &found.newest, algorithm, lost)?,
        }
    }
    let log = scan::scan_log(&store, &found, options, from_medium)?;
    let existing = match journaled {
        Journaled::TakeIn => take_in::find(&found.newest, options.journal.as_ref())?,
        _ => None,
    };
    let engine = assemble::assemble(data, store, found, (log, existing), algorithm, options)?;
    let engine = Arc::new(engine);
    let threads = match options.background && !options.read_only {
        true => Some(Threads::start(&engine)?),
        false => None,
    };
    Ok((engine, threads))
}

fn meta_io(operation: &'static str, source: std::io::Error) -> VolumeError {
    MetaError::Io { operation, block: MetaBlock(0), source }.into()
}
