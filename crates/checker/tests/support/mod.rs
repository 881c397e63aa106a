//! What the checker's tests share: volumes made by the volume crate on simulated disks, images of them, and
//! ways to damage these.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use dedup_checker::{CheckOptions, Finding, Kind, Report, Severity, check};
use dedup_device::{BlockDevice, MemDevice, SimDevice, SparseImage};
use dedup_meta::{
    Block, BlockRef, META_BLOCK_SIZE, MetaBlock, Root, Store, Superblock, TxId, load_superblocks,
};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, Volume, format};
use std::sync::Arc;
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

/// Logical blocks of the volumes here. So few that each tree of most of them is one leaf.
pub(crate) const LBNS: u64 = 96;
/// Bytes of their blocks.
pub(crate) const BLOCK_SIZE: usize = 512;

/// Both disks of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Disks {
    pub(crate) data: Arc<SimDevice>,
    pub(crate) metadata: Arc<SimDevice>,
}

impl Disks {
    /// A fresh volume.
    pub(crate) fn formatted(lbns: u64) -> Self {
        let size = lbns * BLOCK_SIZE as u64;
        let disks = Self {
            data: Arc::new(SimDevice::new((size + (8 << 10)).max(64 << 10))),
            metadata: Arc::new(SimDevice::new(5 << 20)),
        };
        let options = FormatOptions {
            block_size: BLOCK_SIZE as u32,
            log_blocks: Some(64),
            ..FormatOptions::new(size, Uuid::from_u128(1), Uuid::from_u128(2))
        };
        let metadata: Arc<dyn BlockDevice> = disks.metadata.clone();
        format(&*disks.data, &metadata, &options).unwrap();
        disks
    }

    /// Opened without threads: a run repeats exactly.
    pub(crate) fn open(&self, flushrq: u32) -> Volume {
        let options = OpenOptions {
            background: false,
            digest_threads: 1,
            cache_bytes: 1 << 20,
            flushrq: Some(flushrq),
            log_data: 0,
            ..OpenOptions::default()
        };
        Volume::open(self.data.clone(), self.metadata.clone(), &options).unwrap()
    }

    /// After a power cut that keeps of what was not flushed only the sectors that `keep` says.
    pub(crate) fn crash(&self, mut keep: impl FnMut() -> bool) -> Self {
        Self {
            data: Arc::new(self.data.crash(|_, _| keep())),
            metadata: Arc::new(self.metadata.crash(|_, _| keep())),
        }
    }

    pub(crate) fn image(&self) -> Image {
        Image::new(self.data.image(), self.metadata.image())
    }
}

/// Content `n`; 0 is zeros.
pub(crate) fn content(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(BLOCK_SIZE);
    while bytes.len() < BLOCK_SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

pub(crate) fn run(volume: &Volume, op: Op<'_>) {
    volume.execute(vec![Request { tag: 0, op }], &mut |_, result| result.unwrap());
}

pub(crate) fn write(volume: &Volume, lbn: u64, n: u64) {
    run(volume, Op::Write { offset: lbn * BLOCK_SIZE as u64, data: &content(n), fua: false });
}

pub(crate) fn trim(volume: &Volume, lbn: u64, blocks: u64) {
    let size = BLOCK_SIZE as u64;
    run(volume, Op::Trim { offset: lbn * size, len: blocks * size, fua: false });
}

pub(crate) fn flush(volume: &Volume) {
    run(volume, Op::Flush);
}

/// A closed volume in which LBN 0 to 9 share one block, 10 to 12 another, and 13 to 59 have one each.
pub(crate) fn sample() -> Image {
    let disks = Disks::formatted(LBNS);
    let volume = disks.open(0);
    (0..10).for_each(|lbn| write(&volume, lbn, 1));
    (10..13).for_each(|lbn| write(&volume, lbn, 2));
    (13..60).for_each(|lbn| write(&volume, lbn, lbn));
    volume.close().unwrap();
    disks.image()
}

/// [`sample`], then a few more operations that are in the log only.
pub(crate) fn sample_with_log() -> Image {
    let disks = Disks::formatted(LBNS);
    let volume = disks.open(0);
    (0..60).for_each(|lbn| write(&volume, lbn, 1 + lbn / 2));
    (60..64).for_each(|lbn| write(&volume, lbn, 30));
    volume.checkpoint().unwrap();
    write(&volume, 0, 77);
    flush(&volume);
    write(&volume, 1, 77);
    flush(&volume);
    trim(&volume, 4, 9);
    flush(&volume);
    drop(volume);
    disks.crash(|| false).image()
}

/// The bytes of both devices.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) data: Arc<MemDevice>,
    pub(crate) metadata: Arc<MemDevice>,
}

impl Clone for Image {
    fn clone(&self) -> Self {
        Self::new(self.data.image(), self.metadata.image())
    }
}

/// Which root of a superblock is meant.
pub(crate) type Pick = fn(&mut Superblock) -> &mut Root;

pub(crate) fn mappings(sb: &mut Superblock) -> &mut Root {
    &mut sb.volumes[0].mapping.base
}
pub(crate) fn digests(sb: &mut Superblock) -> &mut Root {
    &mut sb.roots.digest
}
pub(crate) fn counts(sb: &mut Superblock) -> &mut Root {
    &mut sb.roots.refcount
}
pub(crate) fn overflow(sb: &mut Superblock) -> &mut Root {
    &mut sb.roots.overflow
}
pub(crate) fn hints(sb: &mut Superblock) -> &mut Root {
    &mut sb.hint.base
}
pub(crate) fn bad(sb: &mut Superblock) -> &mut Root {
    &mut sb.roots.bad
}
pub(crate) fn metamap(sb: &mut Superblock) -> &mut Root {
    &mut sb.roots.metamap
}

impl Image {
    pub(crate) fn new(data: SparseImage, metadata: SparseImage) -> Self {
        Self {
            data: Arc::new(MemDevice::from_image(data)),
            metadata: Arc::new(MemDevice::from_image(metadata)),
        }
    }

    /// Opens it for writing, without threads.
    pub(crate) fn open(&self) -> Result<Volume, dedup_volume::VolumeError> {
        let options = OpenOptions { background: false, digest_threads: 1, ..OpenOptions::default() };
        Volume::open(self.data.clone(), self.metadata.clone(), &options)
    }

    /// Checks everything, and that nothing was written.
    pub(crate) fn check(&self) -> Report {
        let before = (self.data.image(), self.metadata.image());
        let report =
            check(Some(&*self.data), self.metadata.clone(), &CheckOptions::tiny(), &mut |_| ()).unwrap();
        assert!(before == (self.data.image(), self.metadata.image()), "a check wrote something");
        report
    }

    /// The findings above info.
    pub(crate) fn problems(&self) -> Vec<Finding> {
        let report = self.check();
        report.findings.into_iter().filter(|f| f.severity > Severity::Info).collect()
    }

    /// That there is exactly one finding above info, and what it says.
    #[track_caller]
    pub(crate) fn assert_only(&self, kind: Kind, place: &str, field: &str, expected: &str, found: &str) {
        let problems = self.problems();
        let told: Vec<_> =
            problems.iter().map(|f| (f.kind, &*f.place, &*f.field, &*f.expected, &*f.found)).collect();
        assert_eq!(told, [(kind, place, field, expected, found)]);
    }

    pub(crate) fn superblock(&self) -> Superblock {
        load_superblocks(&*self.metadata).newest(None).unwrap().clone()
    }

    pub(crate) fn block(&self, at: MetaBlock) -> Box<Block> {
        let mut bytes = vec![0; META_BLOCK_SIZE];
        self.metadata.read(at.0 * META_BLOCK_SIZE as u64, &mut bytes).unwrap();
        Box::new(Block::read_from_bytes(&bytes).unwrap())
    }

    /// Puts a block at a place, as it is.
    pub(crate) fn put(&self, at: MetaBlock, block: &Block) {
        self.metadata.write(at.0 * META_BLOCK_SIZE as u64, block.as_bytes()).unwrap();
    }

    /// Flips bits of a byte of a metadata block.
    pub(crate) fn flip(&self, at: MetaBlock, byte: usize, bits: u8) {
        let offset = at.0 * META_BLOCK_SIZE as u64 + byte as u64;
        let mut value = [0];
        self.metadata.read(offset, &mut value).unwrap();
        self.metadata.write(offset, &[value[0] ^ bits]).unwrap();
    }

    /// Makes `superblock` the newest one and the one before it, so that no older trees are left to speak of.
    pub(crate) fn install(&self, superblock: &Superblock) {
        let store = Store::new(self.metadata.clone(), superblock.pool, 64);
        for txid in [superblock.txid.0 - 1, superblock.txid.0] {
            let superblock = Superblock { txid: TxId(txid), ..superblock.clone() };
            dedup_meta::write_superblock(&store, &superblock).unwrap();
            dedup_meta::write_spare(&store, &superblock).unwrap();
        }
    }

    /// Changes fields of the superblock.
    pub(crate) fn edit_superblock(&self, change: impl FnOnce(&mut Superblock)) {
        let mut superblock = self.superblock();
        change(&mut superblock);
        self.install(&superblock);
    }

    /// Changes a tree that is a single leaf, with all checksums right afterwards.
    pub(crate) fn edit(&self, pick: Pick, change: impl FnOnce(&mut Block, &mut Root)) {
        let mut superblock = self.superblock();
        let pool = superblock.pool;
        let root = pick(&mut superblock);
        assert_eq!(root.level, 0, "only a tree of one leaf can be edited");
        let at = root.node.expect("a tree that is not empty").block;
        let mut block = self.block(at);
        change(&mut block, root);
        let crc = block.seal(pool);
        root.node = Some(BlockRef { block: at, crc });
        self.put(at, &block);
        self.install(&superblock);
    }

    /// The block that holds a tree's root.
    pub(crate) fn root_block(&self, pick: Pick) -> MetaBlock {
        pick(&mut self.superblock()).node.expect("a tree that is not empty").block
    }
}

/// A repeatable source of numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
