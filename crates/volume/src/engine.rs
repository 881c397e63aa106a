//! What all parts of an open volume share. The parts add their methods to [`Engine`] in their own files.
//!
//! Locks, in the order in which they may be taken: ranges of LBNs, allocator, state, pins, claims; and a
//! checkpoint's turn, a commit's turn, backing, state; and the journal, state. Nobody holds the state's lock over I/O, a digest or a wait for
//! anything else.

use crate::backing::Backing;
use crate::checkpoint::MetaSide;
use crate::commit::Commits;
use crate::data_cache::DataCache;
use crate::filter::Filter;
use crate::fingerprint::Fingerprinter;
use crate::gc::Sweep;
use crate::journal::Journal;
use crate::neighbours::Neighbours;
use crate::overwrites::Overwrites;
use crate::pins::Pins;
use crate::run_filters::Filling;
use crate::runs::RunPolicy;
use crate::space::Space;
use crate::state::State;
use dedup_device::BlockDevice;
use dedup_meta::Store;
use dedup_schema::{Digest, DigestAlgorithm, Lbn, Pbn};
use dedup_sync::{Arc, Barrier, Claims, Line, Mutex, RangeLocks, Turns, Wakeup};

/// How reads are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOnRead {
    /// Against the CRC that stands beside the mapping: no extra I/O.
    Crc,
    /// Against the CRC and the digest of the block.
    Digest,
    /// Not at all.
    Off,
}

/// What holds for one opening of a volume.
#[derive(Clone, Debug)]
pub(crate) struct EngineOptions {
    pub(crate) check_on_read: CheckOnRead,
    /// Compare the bytes of every digest match.
    pub(crate) verify_match: bool,
    /// Commit every so many block writes; 0 = only on FLUSH and FUA.
    pub(crate) flushrq: u32,
    /// Pass freed blocks down as discards.
    pub(crate) discard: bool,
    /// Whether threads do commits, checkpoints and collection in the background. Without, whoever needs one
    /// does it.
    pub(crate) background: bool,
    /// When changes become runs.
    pub(crate) runs: RunPolicy,
    /// Bytes at most of the filter of a run.
    pub(crate) filter_bytes_max: u64,
}

/// An open volume.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) data: Arc<dyn BlockDevice>,
    /// Content of its blocks.
    pub(crate) data_cache: DataCache,
    /// The metadata device behind its cache.
    pub(crate) store: Store,
    /// Bytes in a block.
    pub(crate) block_size: u64,
    /// Logical blocks.
    pub(crate) lbns: u64,
    /// Data blocks, the label included.
    pub(crate) pbns: u64,
    /// How many operations may be admitted at once: a fraction of the log ring.
    pub(crate) slice_max: usize,
    pub(crate) algorithm: DigestAlgorithm,
    pub(crate) options: EngineOptions,
    pub(crate) fingerprints: Fingerprinter,
    pub(crate) ranges: RangeLocks<Lbn>,
    pub(crate) space: Space,
    /// Who may have the last free blocks.
    pub(crate) overwrites: Overwrites,
    pub(crate) state: Mutex<State>,
    /// Digests whose first block is being written: whoever has the same content waits (invariant I8).
    pub(crate) claims: Claims<Digest>,
    /// Damaged blocks that are being written again in place.
    pub(crate) healing: Claims<Pbn>,
    /// Who waits for what others were admitted for. Goes with `state`.
    pub(crate) admissions: Line,
    pub(crate) pins: Pins,
    pub(crate) neighbours: Mutex<Neighbours>,
    pub(crate) commits: Commits,
    /// What outlives the process; who holds it may take the state's lock, and nobody the other way round.
    pub(crate) journal: Journal,
    /// Flushes of the metadata device, past the open.
    pub(crate) barrier: Barrier,
    /// Those of the data device.
    pub(crate) data_barrier: Barrier,
    /// Who runs a checkpoint; positions are numbers of checkpoints.
    pub(crate) checkpoints: Turns,
    pub(crate) meta: Mutex<MetaSide>,
    /// Space on disk for the metadata device. Goes before the state.
    pub(crate) backing: Backing,
    pub(crate) sweep: Mutex<Sweep>,
    /// What the index does not have.
    pub(crate) filter: Mutex<Filter>,
    pub(crate) filling: Mutex<Option<Filling>>,
    pub(crate) wakeup: Wakeup,
}
