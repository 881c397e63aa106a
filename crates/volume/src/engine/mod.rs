//! What all parts of an open volume share. The parts add their methods to [`Engine`] in their own files.
//!
//! Locks, in the order in which they may be taken: ranges of LBNs, allocator, state, pins, claims; and a
//! checkpoint's turn, a commit's turn, backing, state; and the journal, state. Nobody holds the state's lock
//! over I/O, a digest or a wait for anything else.

pub(crate) mod backing;
pub(crate) mod commits;
pub(crate) mod data_cache;
pub(crate) mod discards;
pub(crate) mod fingerprint;
pub(crate) mod meta_side;
pub(crate) mod overwrites;
pub(crate) mod set_aside;
pub(crate) mod space;
pub(crate) mod sweep;

use crate::engine::backing::Backing;
use crate::engine::commits::Commits;
use crate::engine::data_cache::DataCache;
use crate::engine::fingerprint::Fingerprinter;
use crate::engine::meta_side::MetaSide;
use crate::engine::overwrites::Overwrites;
use crate::engine::space::Space;
use crate::engine::sweep::Sweep;
use crate::journal::Journal;
use crate::state::State;
use crate::state::pins::{Pin, Pins};
use crate::trees::filter::Filter;
use crate::trees::neighbours::Neighbours;
use crate::trees::run_filters::Filling;
use crate::trees::runs::RunPolicy;
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

impl Engine {
    /// A pin of this moment.
    pub(crate) fn pin(&self) -> Pin<'_> {
        self.pin_as_of(&self.state.lock())
    }

    /// A pin of the moment at which the caller looks at the state.
    pub(crate) fn pin_as_of(&self, state: &State) -> Pin<'_> {
        let tables = state.layers.tables().clone();
        self.pins.pin(state.seq, tables.txid, tables)
    }
}
