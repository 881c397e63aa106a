//! The checker: holds everything that a stopped volume says about itself against everything else, and writes
//! nothing.
//!
//! [`check`] is the whole interface; it returns a [`Report`] of [`Finding`]s. It shares the trees' and the
//! log's *readers* with the volume, and none of its conclusions: reference counts are recounted from the
//! mappings, the metadata map from what the trees reach, and the log is replayed onto the recount, not onto
//! the stored counts. Two independent accounts find more than one.
//!
//! ```text
//!  label ── superblock copies ──┬─ newest ─ trees: every block, every total           (trees)
//!                               │           mappings ── recount ══ counts, digests    (truth)
//!                               │           index: stale, missing                     (hints)
//!                               │           reached blocks ══ metadata map            (space)
//!                               │           log: replayed onto the recount            (log)
//!                               │           data: read, digested, compared            (data, on request)
//!                               └─ older ── its blocks and its log are still there    (older)
//! ```
//!
//! # Severity
//!
//! *Info*: nothing to correct. *Warning*: something redundant or rebuildable is lost (a spare, the index, the
//! way back to the older superblock, a block's content already known bad). *Error*: truth is damaged or
//! contradicts itself. A volume with nothing above *info* [is clean](Report::is_clean).
//!
//! # What a crash leaves, and is therefore no error
//!
//! - the slot that the next superblock was being written to: torn (its spare still has the older one);
//! - a spare that was not flushed yet: torn, or still the one before, or empty on a young volume;
//! - blocks behind the log's end, torn or of lost epochs; records behind the last checkpoint;
//! - nodes of an unfinished checkpoint in blocks that no superblock reaches and the map calls free.
//!
//! The newest superblock standing in its spare alone is *not* among them: a spare is written after its slot
//! is durable.
//!
//! # After each simulated crash
//!
//! On a volume of a few megabytes in memory a check takes at most a few milliseconds, most of it for reading
//! the log ring twice; format with a small ring (`FormatOptions::log_blocks` of `dedup-volume`). Nothing in
//! it depends on time, and below 16 MiB of nodes and 64 KiB of data a run no thread but the caller's works.
//!
//! ```
//! # use dedup_device::{BlockDevice, MemDevice};
//! # use dedup_volume::{FormatOptions, format};
//! # use std::sync::Arc;
//! # let data = MemDevice::new(1 << 20);
//! # let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
//! # format(&data, &metadata, &FormatOptions::new(1 << 20, uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2))).unwrap();
//! use dedup_checker::{CheckOptions, check};
//!
//! let report = check(Some(&data), metadata, &CheckOptions::tiny(), &mut |_| ())?;
//! assert!(report.is_clean(), "{report}");
//! # Ok::<(), dedup_checker::CheckError>(())
//! ```
//!
//! # Bounds
//!
//! Memory, for data blocks *in use* (in pages of 16256 blocks): 2 bits each for the recount, or a byte in
//! pages of which many blocks have 3 references and more; half a byte for the index check; with `data` 4
//! bytes more. For metadata blocks in use, in such pages, 5 bytes. Beside that the log's changes, the cache,
//! and nodes that are read ahead: 10 MiB, 16 while a tree has runs, and up to twice that where what is read
//! is scattered. At most [`FINDINGS_PER_KIND_MAX`] findings of a kind are kept, all are counted. Recursion is
//! as deep as a tree.
//!
//! Each node that the newest superblock reaches is read once, in large pieces and in the order of the device,
//! by threads of its own if there are more than a few thousand; what comes of it does not depend on them.
//!
//! Not here: repair, and opening of files ([`dedup_device::FileDevice`] with `OpenMode::ReadOnly` takes the
//! shared lock).

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod batch;
mod data;
mod error;
mod hints;
mod log;
mod merge;
mod older;
mod pairing;
mod recount;
mod report;
mod space;
mod sparse;
mod superblocks;
mod tags;
mod trees;
mod truth;
mod walked;

pub use error::CheckError;
pub use report::{FINDINGS_PER_KIND_MAX, Finding, Kind, Report, Severity, Summary};

use dedup_btree::Reader;
use dedup_device::BlockDevice;
use dedup_meta::{META_BLOCK_SIZE, Store, Superblock};
use report::Findings;
use std::sync::Arc;
use trees::Reach;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Read every stored block and compare it with its digest and checksum.
    pub data: bool,
    /// Bytes of metadata blocks kept in memory.
    pub cache_bytes: u64,
}

impl Default for CheckOptions {
    /// Metadata only, 16 MiB of cache: each node is read once, so only those near the roots are worth
    /// keeping.
    fn default() -> Self {
        Self { data: false, cache_bytes: 16 << 20 }
    }
}

impl CheckOptions {
    /// For volumes of a few megabytes, as tests use them: all data, hardly any cache.
    pub fn tiny() -> Self {
        Self { data: true, cache_bytes: 1 << 20 }
    }
}

/// What is being done, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading the trees; the unit is a metadata block.
    Trees,
    /// Reading data; the unit is a data block.
    Data,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Units done.
    pub done: u64,
    /// Units there are, as far as the volume's own figures can be trusted.
    pub total: u64,
}

/// Cache blocks that a check has at least: the paths from a few roots to a few leaves.
const CACHE_BLOCKS_MIN: u64 = 64;

/// Everything that the parts of a check share.
struct Check<'a> {
    data: Option<&'a dyn BlockDevice>,
    store: Arc<Store>,
    reader: Reader,
    newest: Superblock,
    older: Option<Superblock>,
    options: CheckOptions,
    findings: Findings,
    summary: Summary,
    reach: Reach,
    progress: &'a mut dyn FnMut(Progress),
}

/// Checks the volume on these two devices, which nobody writes to meanwhile. Without `data` (a lost data
/// device) only the metadata is checked. An error means that there was nothing to check; everything found on
/// a volume is in the report.
pub fn check(
    data: Option<&dyn BlockDevice>,
    metadata: Arc<dyn BlockDevice>,
    options: &CheckOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, CheckError> {
    let mut findings = Findings::default();
    let label = data.map(|device| pairing::label(device, &mut findings));
    let mut survey = dedup_meta::load_superblocks(&*metadata);
    if survey.is_lost() && label.flatten().is_some() {
        survey.search(&*metadata);
    }
    let newest = pairing::superblock(&survey, label.flatten(), &mut findings)?.clone();
    let older = survey.older(&newest).cloned();
    superblocks::check(&survey, &newest, older.as_ref(), &mut findings);
    let data = data.filter(|device| pairing::check(*device, label.flatten(), &newest, &mut findings));
    let cache_blocks = (options.cache_bytes / META_BLOCK_SIZE as u64).max(CACHE_BLOCKS_MIN);
    let store =
        Arc::new(Store::new(metadata, newest.pool, usize::try_from(cache_blocks).unwrap_or(usize::MAX)));
    let reader = trees::reader(&store, &newest);
    let (options, summary) = (*options, Summary::of(&newest));
    let reach = Reach::new(&newest.layout);
    let mut this = Check { data, store, reader, newest, older, options, findings, summary, reach, progress };
    this.run();
    Ok(Report::new(this.findings, this.summary))
}

impl Check<'_> {
    fn run(&mut self) {
        let mut state = self.truth();
        self.hints(&mut state);
        self.bad_blocks(&mut state);
        self.space();
        self.older_trees();
        self.log(&mut state);
        if self.options.data && self.data.is_some() {
            self.content(&mut state);
        }
    }
}
