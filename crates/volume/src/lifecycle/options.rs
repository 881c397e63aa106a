//! What an open may be told.

use crate::engine::CheckOnRead;
use crate::journal::JournalOptions;
use crate::lifecycle::progress::OpenProgress;
use crate::trees::runs::RunPolicy;
use dedup_schema::DigestAlgorithm;

/// How to open a volume.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Write nothing; the log is replayed in memory.
    pub read_only: bool,
    /// With `read_only`: open also if part of the log that was durable is lost. The volume then reads as it
    /// was before the loss, which acknowledged writes may be missing from.
    pub rescue: bool,
    /// How reads are verified.
    pub check_on_read: CheckOnRead,
    /// Compare the bytes of every match; `None`: as formatted. Always done for weak digests.
    pub verify_match: Option<bool>,
    /// Commit every so many block writes; `None`: as formatted.
    pub flushrq: Option<u32>,
    /// If given, must be what the volume was formatted with.
    pub block_size: Option<u32>,
    /// If given, must be what the volume was formatted with.
    pub algorithm: Option<DigestAlgorithm>,
    /// Bytes of metadata blocks kept in memory.
    pub cache_bytes: u64,
    /// Bytes of data kept in memory, each block once however many LBNs share it; 0: none. For data devices
    /// that are not read through the kernel's page cache.
    pub data_cache_bytes: u64,
    /// Operations at most that a delta holds; 180 to 250 bytes of memory each, twice, and a third time while
    /// lookups are in flight that began before a checkpoint ended. A small volume has smaller ones: a 512th
    /// of its blocks, but no less than 32 k.
    pub delta_max: u64,
    /// A commit of up to this many bytes of new data carries them in the log, which saves the flush of the
    /// data device; 0: never. As many bytes of memory.
    pub log_data: u64,
    /// Bytes at most of the filter that saves lookups in the index for what is not stored: 10 bits for each
    /// block of the data device, if they fit; 0: none. Taken as it fills.
    pub filter_bytes_max: u64,
    /// When checkpoints put changes of the LBN map and of the digest index into runs.
    pub runs: RunPolicy,
    /// Threads that compute digests.
    pub digest_threads: usize,
    /// Pass freed blocks down to the data device as discards.
    pub discard: bool,
    /// Do commits, checkpoints and collection in threads of their own. Without, the calling threads do them,
    /// and a run repeats exactly.
    pub background: bool,
    /// Keep the log and all metadata in memory: FLUSH flushes data only, and nothing can be reopened.
    pub in_ram: bool,
    /// Keep what is acknowledged where it survives the death of the process, and take in what is kept there;
    /// `None`: what was not committed is lost with the process, and a volume that was left with a journal is
    /// refused.
    pub journal: Option<JournalOptions>,
    /// Open also if the journal cannot be taken in: what was acknowledged and not committed is given up.
    pub force: bool,
    /// Where it is told how far the open is.
    pub progress: OpenProgress,
}

impl OpenOptions {
    /// Operations that a delta of a volume of so many logical blocks holds.
    pub fn delta_operations(&self, lbns: u64) -> u64 {
        self.delta_max.min((lbns / BLOCKS_PER_DELTA_OPERATION).max(DELTA_SMALL))
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            rescue: false,
            check_on_read: CheckOnRead::Crc,
            verify_match: None,
            flushrq: None,
            block_size: None,
            algorithm: None,
            cache_bytes: 128 << 20,
            data_cache_bytes: 0,
            delta_max: DELTA_MAX,
            log_data: LOG_DATA,
            filter_bytes_max: FILTER_BYTES_MAX,
            runs: RunPolicy::ByCost,
            digest_threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            discard: false,
            background: true,
            in_ram: false,
            journal: None,
            force: false,
            progress: OpenProgress::default(),
        }
    }
}

/// Default operations in a delta: 2 x 50 MiB of memory, and few enough leaf writes an operation (design: the
/// cost of checkpoints).
const DELTA_MAX: u64 = 256 << 10;
/// Logical blocks for each operation of a delta: the proportion at which a checkpoint of half a delta writes
/// no more an operation than at 1 TiB. The default is all that a volume of 512 GiB and more may have.
const BLOCKS_PER_DELTA_OPERATION: u64 = 512;
/// Operations that a delta of a small volume may have: 2 x 7 MiB, and a tenth of a second of a writer at full
/// rate.
const DELTA_SMALL: u64 = 32 << 10;
/// Default data of a commit in the log: about what a device writes in the time of a flush, and 32 blocks of 4
/// KiB.
const LOG_DATA: u64 = 128 << 10;
/// Default of `filter_bytes_max`: enough for 1.6 TiB stored, and of use, with fewer bits a key, for twice
/// that.
const FILTER_BYTES_MAX: u64 = 512 << 20;
