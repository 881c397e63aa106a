//! The superblock: everything an open needs to know, in one block, and the only block that is written in
//! place.
//!
//! ```text
//!   block   0        256  257                                    last-256   last
//!           | slot 0 | slot 1 | intent log ring | tree nodes ... | spare 1 | spare 0 |
//! ```
//!
//! Superblock `txid` goes to slot `txid % 2`, so the newest valid one is never overwritten; once the slot is
//! durable the same content goes to spare `txid % 2`. Slots stand 1 MiB apart, so that one bad erase block or
//! track does not take both.
//!
//! Invariants: one function checks every field, right before a superblock is written and right after it was
//! read; an unknown *incompat* feature or a newer format version stops the decoding before anything else is
//! believed.
//!
//! Not here: when superblocks are written and flushed, and what the trees below the roots hold.

mod disk;
mod journal;
mod layout;
mod survey;

pub use disk::Unsupported;
pub use journal::{JOURNAL_PLACE_MAX, JournalRecord};
pub use layout::{Layout, MAX_LOG_BLOCKS, MAX_METADATA_BLOCKS, MIN_LOG_BLOCKS, MIN_METADATA_BLOCKS};
pub use survey::{CopyState, SuperblockCopy, SuperblockError, Survey, load_superblocks};

use crate::io::{failed, offset};
use crate::{
    Block, BlockFault, BlockType, Counters, Epoch, LogPosition, LogSeq, MetaBlock, MetaError, Root, Store,
    TxId, field,
};
use dedup_device::BlockDevice;
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Runs that a tree may have beside its base: the design's merge factor.
pub const MAX_RUNS: usize = 16;
/// Volumes that the table has room for; this version uses the first.
pub const MAX_VOLUMES: usize = 4;
/// The highest level a tree can have. 2^48 entries at the lowest fanout of 8 give 16 levels; more is damage.
pub const MAX_LEVEL: u8 = 16;
/// Bytes of the smallest block of data.
pub const BLOCK_SIZE_MIN: u32 = 512;
/// Bytes of the largest.
pub const BLOCK_SIZE_MAX: u32 = 1 << 20;

/// Physical and logical blocks have 48-bit numbers on disk.
const MAX_BLOCKS: u64 = 1 << 48;
/// Bytes of a device stay at or below this: the largest file.
const MAX_BYTES: u64 = 1 << 63;
/// Transactions, epochs and sequence numbers stay below this, so that arithmetic on them cannot overflow.
pub(crate) const MAX_SEQUENCE: u64 = 1 << 62;

/// Feature bits. A bit's meaning belongs to the version that introduced it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// A reader or writer may ignore unknown bits.
    pub compat: u64,
    /// A reader may ignore unknown bits, a writer may not.
    pub ro_compat: u64,
    /// Unknown bits forbid any use.
    pub incompat: u64,
}

impl Features {
    /// *incompat*: the log may carry data of the blocks that it allocates.
    pub const LOG_DATA: u64 = 1;
    /// *incompat*: the digest index has runs above its base.
    pub const INDEX_RUNS: u64 = 2;
    /// *incompat*: a volume's mapping has runs above its base.
    pub const MAPPING_RUNS: u64 = 4;
    /// The bits that follow from what the superblock names.
    pub const RUNS: u64 = Self::INDEX_RUNS | Self::MAPPING_RUNS;
}

/// How far this version may go with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything is known.
    ReadWrite,
    /// Only reading: these *ro_compat* bits are unknown.
    ReadOnly {
        /// The unknown bits.
        unknown: u64,
    },
}

/// A tree with its runs, newest last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSet {
    /// The base tree.
    pub base: Root,
    /// At most [`MAX_RUNS`] smaller trees that override it, the later the stronger. In the hint, a run is
    /// two: what it adds and what it removes.
    pub runs: Vec<Root>,
}

impl RunSet {
    /// An empty base without runs.
    pub const EMPTY: Self = Self { base: Root::EMPTY, runs: Vec::new() };
}

/// The roots of the pool's own trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// PBN -> digest.
    pub digest: Root,
    /// PBN -> 2-bit reference count.
    pub refcount: Root,
    /// PBN -> reference counts of 3 and more.
    pub overflow: Root,
    /// PBNs with damaged content.
    pub bad: Root,
    /// The metadata device's space map.
    pub metamap: Root,
}

impl Roots {
    /// No tree has a node.
    pub const EMPTY: Self = Self {
        digest: Root::EMPTY,
        refcount: Root::EMPTY,
        overflow: Root::EMPTY,
        bad: Root::EMPTY,
        metamap: Root::EMPTY,
    };
}

/// One logical device over the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its number, unique in the pool.
    pub id: u32,
    /// Size in blocks of the pool's block size.
    pub logical_blocks: u64,
    /// LBN -> PBN.
    pub mapping: RunSet,
}

/// The superblock in memory. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Feature bits.
    pub features: Features,
    /// The pool's UUID, which also seeds the checksum of every block of it.
    pub pool: Uuid,
    /// The data device's UUID, as in its label.
    pub data_device: Uuid,
    /// The transaction that this superblock completes.
    pub txid: TxId,
    /// Bytes of a data block, a power of two.
    pub block_size: u32,
    /// Digest algorithm by its number on disk, not 0. Which numbers there are is the dedup layer's knowledge.
    pub digest_algorithm: u8,
    /// Whether hits are compared byte for byte unless told otherwise.
    pub verify_match: bool,
    /// Block writes after which a commit is due unless told otherwise, 0 for never.
    pub flushrq: u32,
    /// Physical blocks, PBN 0 (the label) included.
    pub data_blocks: u64,
    /// Where things are on the metadata device.
    pub layout: Layout,
    /// Closed in good order. Informational: replay always runs.
    pub clean: bool,
    /// Metadata was found damaged or contradicting itself: the volume should be checked. Every open says so.
    pub needs_check: bool,
    /// A tree was dropped without walking it: the metadata map must be recomputed from the trees that are
    /// left.
    pub recount_needed: bool,
    /// The writable opening in which this was written.
    pub epoch: Epoch,
    /// First log block of that epoch: where the accepted log ended when the epoch began.
    pub epoch_start: LogSeq,
    /// Where replay begins.
    pub log: LogPosition,
    /// Sequence number of the last operation that the roots contain.
    pub op_seq: u64,
    /// The volume's counters as of that operation, absolute.
    pub counters: Counters,
    /// Physical blocks in use, PBN 0 not counted.
    pub data_used: u64,
    /// LBNs mapped, over all volumes.
    pub mapped: u64,
    /// Region of the data device (16256 blocks each) at which the allocator goes on.
    pub cursor: u64,
    /// PBN from which a rebuild of the hint has to go on, if one is under way.
    pub hint_rebuild_next: Option<u64>,
    /// The pool's own trees.
    pub roots: Roots,
    /// Digest prefix -> PBN.
    pub hint: RunSet,
    /// 1 to [`MAX_VOLUMES`] volumes.
    pub volumes: Vec<Volume>,
    /// The journal of acknowledged operations that the epoch's opening keeps; none once it was closed in good
    /// order.
    pub journal: Option<JournalRecord>,
}

impl Superblock {
    /// What this version may do with the volume. Unknown *incompat* bits never get this far.
    pub fn access(&self) -> Access {
        match self.features.ro_compat & !disk::RO_COMPAT_KNOWN {
            0 => Access::ReadWrite,
            unknown => Access::ReadOnly { unknown },
        }
    }

    /// Every root with its name in `docs/format.md`.
    pub fn roots(&self) -> impl Iterator<Item = (&'static str, BlockType, Root)> + '_ {
        use BlockType::*;
        let Roots { digest, refcount, overflow, bad, metamap } = self.roots;
        let own = [
            ("digest root", Digest, digest),
            ("refcount root", RefCount, refcount),
            ("overflow root", Overflow, overflow),
            ("bad root", Bad, bad),
            ("metamap root", MetaMap, metamap),
        ];
        let set = |set: &RunSet, name, base, run| {
            let runs = set.runs.clone().into_iter().map(move |root| (name, run, root));
            std::iter::once((name, base, set.base)).chain(runs)
        };
        let mappings =
            self.volumes.iter().flat_map(move |v| set(&v.mapping, "mapping root", Mapping, MappingRun));
        own.into_iter().chain(set(&self.hint, "hint root", Hint, Hint)).chain(mappings)
    }

    /// The *incompat* bits that the runs ask for.
    pub fn run_features(&self) -> u64 {
        let has_mapping_runs = self.volumes.iter().any(|volume| !volume.mapping.runs.is_empty());
        u64::from(!self.hint.runs.is_empty()) * Features::INDEX_RUNS
            + u64::from(has_mapping_runs) * Features::MAPPING_RUNS
    }

    /// Checks every field against its range and against the others.
    fn validate(&self) -> Result<(), BlockFault> {
        ensure("pool uuid", !self.pool.is_nil(), "not nil", self.pool)?;
        ensure("data device uuid", !self.data_device.is_nil(), "not nil", self.data_device)?;
        ensure_txid(self.txid)?;
        let block_size_ok =
            self.block_size.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&self.block_size);
        ensure(
            "block_size",
            block_size_ok,
            &format!("a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}"),
            self.block_size,
        )?;
        ensure("digest algorithm", self.digest_algorithm != 0, "not 0", 0)?;
        self.layout.validate()?;
        self.validate_log()?;
        self.validate_space()?;
        self.validate_volumes()?;
        self.journal.as_ref().map_or(Ok(()), journal::validate)?;
        self.roots().try_for_each(|(name, _, root)| self.validate_root(name, root))
    }

    fn validate_log(&self) -> Result<(), BlockFault> {
        let sequences = [
            ("epoch", self.epoch.0),
            ("epoch_start", self.epoch_start.0),
            ("log_next", self.log.next.0),
            ("op_seq", self.op_seq),
        ];
        let counters = self.counters.map(|n| ("counters", n));
        sequences
            .into_iter()
            .chain(counters)
            .try_for_each(|(name, n)| ensure(name, n < MAX_SEQUENCE, "below 2^62", n))
    }

    fn validate_space(&self) -> Result<(), BlockFault> {
        let blocks = self.data_blocks;
        ensure("data_blocks", (1..=MAX_BLOCKS).contains(&blocks), "1 to 2^48", blocks)?;
        self.ensure_bytes("data_blocks", blocks)?;
        let below = format!("below data_blocks = {blocks}");
        ensure("data_used", self.data_used < blocks, &below, self.data_used)?;
        let up_to = format!("at most data_blocks = {blocks}");
        ensure("cursor", self.cursor <= blocks, &up_to, self.cursor)?;
        let rebuild = self.hint_rebuild_next.unwrap_or(0);
        ensure("hint_rebuild_next", rebuild <= blocks, &up_to, rebuild)
    }

    /// So many blocks of data have a size in bytes, as a file can have it.
    fn ensure_bytes(&self, name: &'static str, blocks: u64) -> Result<(), BlockFault> {
        let most = MAX_BYTES / u64::from(self.block_size);
        ensure(name, blocks <= most, &format!("at most 2^63 bytes, {most} blocks"), blocks)
    }

    fn validate_volumes(&self) -> Result<(), BlockFault> {
        let count = self.volumes.len();
        ensure("volume_count", (1..=MAX_VOLUMES).contains(&count), "1 to 4", count)?;
        for (i, volume) in self.volumes.iter().enumerate() {
            let unique = self.volumes[..i].iter().all(|other| other.id != volume.id);
            ensure("volume id", unique, "unique", volume.id)?;
            ensure(
                "logical_blocks",
                volume.logical_blocks <= MAX_BLOCKS,
                "at most 2^48",
                volume.logical_blocks,
            )?;
            self.ensure_bytes("logical_blocks", volume.logical_blocks)?;
        }
        for set in self.volumes.iter().map(|v| &v.mapping).chain([&self.hint]) {
            ensure("run_count", set.runs.len() <= MAX_RUNS, "at most 16", set.runs.len())?;
        }
        ensure("run_count", self.hint.runs.len().is_multiple_of(2), "even", self.hint.runs.len())?;
        field("incompat", self.run_features(), self.features.incompat & Features::RUNS)?;
        let logical: u64 = self.volumes.iter().map(|v| v.logical_blocks).sum();
        let expected = format!("at most {logical} logical blocks");
        ensure("mapped", self.mapped <= logical, &expected, self.mapped)
    }

    fn validate_root(&self, name: &'static str, root: Root) -> Result<(), BlockFault> {
        let Some(node) = root.node else {
            return field(
                name,
                "level 0, 0 entries".to_string(),
                format!("level {}, {} entries", root.level, root.entries),
            );
        };
        let usable = node.block.0 < self.layout.metadata_blocks && !self.layout.is_reserved(node.block);
        ensure(name, usable, "a block for tree nodes", node.block)?;
        ensure(name, root.level <= MAX_LEVEL, "level of at most 16", root.level)
    }
}

/// In every version there is a next one.
fn ensure_txid(txid: TxId) -> Result<(), BlockFault> {
    ensure("txid", txid.0 < MAX_SEQUENCE, "below 2^62", txid)
}

/// `Ok` if a condition on a field holds.
fn ensure(
    name: &'static str,
    holds: bool,
    expected: &str,
    found: impl std::fmt::Display,
) -> Result<(), BlockFault> {
    if holds {
        return Ok(());
    }
    Err(BlockFault::Field { field: name, expected: expected.to_string(), found: found.to_string() })
}

/// Writes the slot of `superblock.txid`. The caller has flushed what the roots name, and flushes after.
///
/// # Panics
/// If the store is another pool's.
pub fn write_superblock(store: &Store, superblock: &Superblock) -> Result<(), MetaError> {
    write_copy(store, superblock, superblock.layout.slot(superblock.txid))
}

/// Writes the spare copy of `superblock.txid`, after the flush that made its slot durable.
///
/// # Panics
/// If the store is another pool's.
pub fn write_spare(store: &Store, superblock: &Superblock) -> Result<(), MetaError> {
    write_copy(store, superblock, superblock.layout.spare(superblock.txid))
}

/// Overwrites whatever stands in the place of a superblock copy with zeros.
pub fn erase_copy(device: &dyn BlockDevice, at: MetaBlock) -> Result<(), MetaError> {
    let at = offset(at.0);
    device.write(at, Block::zeroed().as_bytes()).map_err(|source| failed("write", at, source))
}

fn write_copy(store: &Store, superblock: &Superblock, at: MetaBlock) -> Result<(), MetaError> {
    assert_eq!(store.pool(), superblock.pool, "a superblock is written to its own pool");
    let damaged = |fault| MetaError::Damaged { block: at, kind: BlockType::Superblock, level: 0, fault };
    let block = superblock.encode(at).map_err(damaged)?;
    store.write_raw(&block)
}

#[cfg(test)]
mod tests;
