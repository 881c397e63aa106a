//! The superblock on disk.
//!
//! ```text
//!   header (32) | magic, version, block size, features (40) | UUIDs (32) | parameters, sizes, log | counters (128)
//!               | space | 5 roots (120) | hint: base, 16 runs, count | 4 volumes, each with base, 16 runs, count
//!               | journal (256)
//! ```
//!
//! The first 56 bytes of the payload (magic to pool UUID) keep their places in every version, so that any
//! version can tell whose superblock it is and why it cannot read it. The transaction's number is the
//! header's `birth`.

use super::journal::DiskJournal;
use super::*;
use crate::{BlockRef, PAYLOAD_SIZE};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"dedupsb1";
/// The format that this code writes, and the newest it reads.
const VERSION: u32 = 1;
/// Feature bits that this code knows.
const INCOMPAT_KNOWN: u64 = Features::LOG_DATA | Features::INDEX_RUNS | Features::MAPPING_RUNS;
pub(super) const RO_COMPAT_KNOWN: u64 = 0;

const FLAG_CLEAN: u32 = 1;
const FLAG_NEEDS_CHECK: u32 = 2;
const FLAG_RECOUNT_NEEDED: u32 = 4;
const FLAGS_KNOWN: u32 = FLAG_CLEAN | FLAG_NEEDS_CHECK | FLAG_RECOUNT_NEEDED;
/// In `hint_rebuild_next`: no rebuild is under way.
const NO_REBUILD: u64 = u64::MAX;

/// Why an intact superblock cannot be used by this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Written in a newer format.
    #[error("format version {found} is newer than {known}, the newest that this program knows")]
    Version {
        /// The superblock's.
        found: u32,
        /// This program's.
        known: u32,
    },
    /// Uses features that this program does not have.
    #[error("unknown incompatible features {unknown:#x}")]
    Incompat {
        /// The unknown bits.
        unknown: u64,
    },
}

/// What the bytes of an intact superblock turned out to be.
pub(super) enum Decoded {
    Known(Box<Superblock>),
    Unsupported(Unsupported),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskRoot {
    block: U64,
    crc: U32,
    level: u8,
    pad: [u8; 3],
    entries: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskRunSet {
    base: DiskRoot,
    runs: [DiskRoot; MAX_RUNS],
    run_count: U32,
    pad: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskVolume {
    id: U32,
    flags: U32,
    logical_blocks: U64,
    mapping: DiskRunSet,
}

/// What every version begins with.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskPrefix {
    magic: [u8; 8],
    version: U32,
    block_size: U32,
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    pool: [u8; 16],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskSuperblock {
    prefix: DiskPrefix,
    data_device: [u8; 16],
    digest_algorithm: u8,
    verify_match: u8,
    pad0: [u8; 2],
    flushrq: U32,
    data_blocks: U64,
    metadata_blocks: U64,
    log_start: U64,
    log_blocks: U64,
    flags: U32,
    volume_count: U32,
    epoch: U64,
    epoch_start: U64,
    log_next: U64,
    log_prev_crc: U32,
    pad1: U32,
    op_seq: U64,
    counters: [U64; crate::COUNTERS],
    data_used: U64,
    mapped: U64,
    cursor: U64,
    hint_rebuild_next: U64,
    digest: DiskRoot,
    refcount: DiskRoot,
    overflow: DiskRoot,
    bad: DiskRoot,
    metamap: DiskRoot,
    hint: DiskRunSet,
    volumes: [DiskVolume; MAX_VOLUMES],
    journal: DiskJournal,
}

const _: () = assert!(size_of::<DiskRoot>() == 24);
const _: () = assert!(size_of::<DiskRunSet>() == 416);
const _: () = assert!(size_of::<DiskVolume>() == 432);
const _: () = assert!(size_of::<DiskPrefix>() == 56);
const _: () = assert!(size_of::<DiskSuperblock>() == 2840);
const _: () = assert!(size_of::<DiskSuperblock>() <= PAYLOAD_SIZE);

impl DiskRoot {
    fn new(root: Root) -> Self {
        let node = root.node.unwrap_or(BlockRef { block: MetaBlock(0), crc: 0 });
        Self {
            block: node.block.0.into(),
            crc: node.crc.into(),
            level: root.level,
            pad: [0; 3],
            entries: root.entries.into(),
        }
    }

    fn decode(self) -> Result<Root, BlockFault> {
        let block = MetaBlock(self.block.get());
        let crc = self.crc.get();
        let node = (block.0 != 0).then_some(BlockRef { block, crc });
        ensure("root", node.is_some() || crc == 0, "checksum 0 beside block 0", crc)?;
        Ok(Root { node, level: self.level, entries: self.entries.get() })
    }
}

impl DiskRunSet {
    /// The caller has checked that there are at most [`MAX_RUNS`] runs.
    fn new(set: &RunSet) -> Self {
        let run = |i: usize| DiskRoot::new(set.runs.get(i).copied().unwrap_or(Root::EMPTY));
        Self {
            base: DiskRoot::new(set.base),
            runs: std::array::from_fn(run),
            run_count: (set.runs.len() as u32).into(),
            pad: U32::ZERO,
        }
    }

    fn decode(self) -> Result<RunSet, BlockFault> {
        let count = self.run_count.get() as usize;
        ensure("run_count", count <= MAX_RUNS, "at most 16", count)?;
        let (used, unused) = self.runs.split_at(count);
        let empty = unused.iter().all(|run| run.as_bytes().iter().all(|&b| b == 0));
        ensure("runs", empty, "zeros after the last run", "other bytes")?;
        let runs = used.iter().map(|run| run.decode()).collect::<Result<_, _>>()?;
        Ok(RunSet { base: self.base.decode()?, runs })
    }
}

impl DiskVolume {
    fn new(volume: Option<&Volume>) -> Self {
        let empty = Volume { id: 0, logical_blocks: 0, mapping: RunSet::EMPTY };
        let volume = volume.unwrap_or(&empty);
        Self {
            id: volume.id.into(),
            flags: U32::ZERO,
            logical_blocks: volume.logical_blocks.into(),
            mapping: DiskRunSet::new(&volume.mapping),
        }
    }

    fn decode(self) -> Result<Volume, BlockFault> {
        field("volume flags", 0, self.flags.get())?;
        Ok(Volume {
            id: self.id.get(),
            logical_blocks: self.logical_blocks.get(),
            mapping: self.mapping.decode()?,
        })
    }
}

/// The pool whose superblock these bytes claim to be, unverified; `None` if they do not look like a
/// superblock.
pub(super) fn claimed_pool(block: &Block) -> Option<Uuid> {
    let (prefix, _) = DiskPrefix::read_from_prefix(&block.payload).ok()?;
    (prefix.magic == MAGIC).then(|| Uuid::from_bytes(prefix.pool))
}

impl Superblock {
    /// The sealed block for the copy at `at`, or the field that must not be written as it is.
    pub(super) fn encode(&self, at: MetaBlock) -> Result<Box<Block>, BlockFault> {
        self.validate()?;
        self.require_place(at)?;
        let mut block = Block::new(BlockType::Superblock, 0, at, self.txid);
        let disk = self.to_disk();
        block.payload[..size_of::<DiskSuperblock>()].copy_from_slice(disk.as_bytes());
        block.seal(self.pool);
        Ok(block)
    }

    /// Reads a copy that was found at `at`: checksum, version, incompatible features, then every field.
    pub(super) fn decode(block: &Block, at: MetaBlock) -> Result<Decoded, BlockFault> {
        let short = |_| BlockFault::Field {
            field: "payload",
            expected: size_of::<DiskSuperblock>().to_string(),
            found: PAYLOAD_SIZE.to_string(),
        };
        let (disk, _) = DiskSuperblock::read_from_prefix(&block.payload).map_err(|e| short(e.to_string()))?;
        let prefix = &disk.prefix;
        ensure("magic", prefix.magic == MAGIC, "dedupsb1", prefix.magic.escape_ascii())?;
        block.verify(Uuid::from_bytes(prefix.pool), BlockType::Superblock, 0, at)?;

        let found = prefix.version.get();
        if found > VERSION {
            return Ok(Decoded::Unsupported(Unsupported::Version { found, known: VERSION }));
        }
        field("version", VERSION, found)?;
        match prefix.incompat.get() & !INCOMPAT_KNOWN {
            0 => {}
            unknown => return Ok(Decoded::Unsupported(Unsupported::Incompat { unknown })),
        }
        let superblock = Self::from_disk(&disk, TxId(block.header.birth.get()))?;
        superblock.validate()?;
        superblock.require_place(at)?;
        Ok(Decoded::Known(Box::new(superblock)))
    }

    fn require_place(&self, at: MetaBlock) -> Result<(), BlockFault> {
        let (slot, spare) = (self.layout.slot(self.txid), self.layout.spare(self.txid));
        ensure("place", at == slot || at == spare, &format!("block {slot} or {spare}"), at)
    }

    fn to_disk(&self) -> DiskSuperblock {
        let flags = [
            (self.clean, FLAG_CLEAN),
            (self.needs_check, FLAG_NEEDS_CHECK),
            (self.recount_needed, FLAG_RECOUNT_NEEDED),
        ];
        let flags: u32 = flags.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
        DiskSuperblock {
            prefix: DiskPrefix {
                magic: MAGIC,
                version: VERSION.into(),
                block_size: self.block_size.into(),
                compat: self.features.compat.into(),
                ro_compat: self.features.ro_compat.into(),
                incompat: self.features.incompat.into(),
                pool: self.pool.into_bytes(),
            },
            data_device: self.data_device.into_bytes(),
            digest_algorithm: self.digest_algorithm,
            verify_match: self.verify_match.into(),
            pad0: [0; 2],
            flushrq: self.flushrq.into(),
            data_blocks: self.data_blocks.into(),
            metadata_blocks: self.layout.metadata_blocks.into(),
            log_start: self.layout.log.start.0.into(),
            log_blocks: self.layout.log.blocks.into(),
            flags: flags.into(),
            volume_count: (self.volumes.len() as u32).into(),
            epoch: self.epoch.0.into(),
            epoch_start: self.epoch_start.0.into(),
            log_next: self.log.next.0.into(),
            log_prev_crc: self.log.prev_crc.into(),
            pad1: U32::ZERO,
            op_seq: self.op_seq.into(),
            counters: self.counters.map(U64::new),
            data_used: self.data_used.into(),
            mapped: self.mapped.into(),
            cursor: self.cursor.into(),
            hint_rebuild_next: self.hint_rebuild_next.unwrap_or(NO_REBUILD).into(),
            digest: DiskRoot::new(self.roots.digest),
            refcount: DiskRoot::new(self.roots.refcount),
            overflow: DiskRoot::new(self.roots.overflow),
            bad: DiskRoot::new(self.roots.bad),
            metamap: DiskRoot::new(self.roots.metamap),
            hint: DiskRunSet::new(&self.hint),
            volumes: std::array::from_fn(|i| DiskVolume::new(self.volumes.get(i))),
            journal: DiskJournal::new(self.journal.as_ref()),
        }
    }

    /// Parses what has a shape of its own; ranges are [`Superblock::validate`]'s.
    fn from_disk(disk: &DiskSuperblock, txid: TxId) -> Result<Self, BlockFault> {
        let flags = disk.flags.get();
        ensure("flags", flags & !FLAGS_KNOWN == 0, "bits 0 to 2", format!("{flags:#x}"))?;
        ensure("verify_match", disk.verify_match <= 1, "0 or 1", disk.verify_match)?;
        Ok(Self {
            features: Features {
                compat: disk.prefix.compat.get(),
                ro_compat: disk.prefix.ro_compat.get(),
                incompat: disk.prefix.incompat.get(),
            },
            pool: Uuid::from_bytes(disk.prefix.pool),
            data_device: Uuid::from_bytes(disk.data_device),
            txid,
            block_size: disk.prefix.block_size.get(),
            digest_algorithm: disk.digest_algorithm,
            verify_match: disk.verify_match == 1,
            flushrq: disk.flushrq.get(),
            data_blocks: disk.data_blocks.get(),
            layout: Layout {
                metadata_blocks: disk.metadata_blocks.get(),
                log: crate::LogGeometry {
                    start: MetaBlock(disk.log_start.get()),
                    blocks: disk.log_blocks.get(),
                },
            },
            clean: flags & FLAG_CLEAN != 0,
            needs_check: flags & FLAG_NEEDS_CHECK != 0,
            recount_needed: flags & FLAG_RECOUNT_NEEDED != 0,
            epoch: Epoch(disk.epoch.get()),
            epoch_start: LogSeq(disk.epoch_start.get()),
            log: LogPosition { next: LogSeq(disk.log_next.get()), prev_crc: disk.log_prev_crc.get() },
            op_seq: disk.op_seq.get(),
            counters: disk.counters.map(U64::get),
            data_used: disk.data_used.get(),
            mapped: disk.mapped.get(),
            cursor: disk.cursor.get(),
            hint_rebuild_next: Some(disk.hint_rebuild_next.get()).filter(|&n| n != NO_REBUILD),
            roots: Roots {
                digest: disk.digest.decode()?,
                refcount: disk.refcount.decode()?,
                overflow: disk.overflow.decode()?,
                bad: disk.bad.decode()?,
                metamap: disk.metamap.decode()?,
            },
            hint: disk.hint.decode()?,
            volumes: decode_volumes(disk)?,
            journal: disk.journal.decode()?,
        })
    }
}

fn decode_volumes(disk: &DiskSuperblock) -> Result<Vec<Volume>, BlockFault> {
    let count = disk.volume_count.get() as usize;
    ensure("volume_count", (1..=MAX_VOLUMES).contains(&count), "1 to 4", count)?;
    let (used, unused) = disk.volumes.split_at(count);
    let empty = unused.iter().all(|volume| volume.as_bytes().iter().all(|&b| b == 0));
    ensure("volumes", empty, "zeros after the last volume", "other bytes")?;
    used.iter().map(|volume| volume.decode()).collect()
}
