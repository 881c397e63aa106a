//! Volumes that have every type of block, and what they hold.
//!
//! [`wide`] has index nodes in the trees of mappings, digests, large counts, index and marks, and a log that
//! was not replayed into them; [`deep`] has them in the trees of counts and in the metadata map, whose leaves
//! cover 16256 blocks. Both are small in everything else, since each of their fields is damaged in turn.
//! Their blocks have 512 bytes.

use super::Image;
use crate::{block, format_options, options, run};
use dedup_device::{BlockDevice, MemDevice, SparseImage};
use dedup_meta::META_BLOCK_SIZE;
use dedup_volume::{DigestAlgorithm, FormatOptions, Op, OpenOptions, RunPolicy, Volume, format};
use std::sync::Arc;

/// Bytes of a data block of the samples.
pub const BLOCK_SIZE: usize = 512;

/// A volume, stopped without being closed, and what it holds.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its devices.
    pub image: Image,
    /// What stood on them before the last checkpoint.
    pub before: Image,
    /// The number of the content of each logical block; see [`block`]. 0 is zeros.
    pub now: Vec<u64>,
    /// What each has held since the older superblock, the present last: a log that ends early leads back to
    /// one of these.
    pub ever: Vec<Vec<u64>>,
    /// Bytes of a data block.
    pub block_size: usize,
}

/// What a volume is made with.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Logical blocks.
    pub lbns: u64,
    /// Blocks of the data device.
    pub data_blocks: u64,
    /// Blocks of the metadata device.
    pub metadata_blocks: u64,
    /// Bytes of a data block.
    pub block_size: u32,
    /// The digest.
    pub algorithm: DigestAlgorithm,
    /// When changes of the index become runs.
    pub runs: RunPolicy,
}

impl Plan {
    /// Has the allocator begin with the last region of the data device, so that a small volume has counts in
    /// more than one.
    fn start_in_last_region(&self, metadata: &Arc<dyn BlockDevice>) {
        let cursor = (self.data_blocks - 1) / BLOCKS_PER_REGION;
        if cursor > 0 {
            let survey = dedup_meta::load_superblocks(&**metadata);
            let fresh = survey.newest(None).unwrap();
            let store = dedup_meta::Store::new(metadata.clone(), fresh.pool, 64);
            let superblock = dedup_meta::Superblock { cursor, ..fresh.clone() };
            dedup_meta::write_superblock(&store, &superblock).unwrap();
            dedup_meta::write_spare(&store, &superblock).unwrap();
        }
    }
}

/// Blocks of a region of the allocator: those of a leaf of counts.
const BLOCKS_PER_REGION: u64 = 16256;

/// A volume while it is made.
pub struct Maker {
    data: Arc<MemDevice>,
    metadata: Arc<MemDevice>,
    volume: Volume,
    before: Image,
    ever: Vec<Vec<u64>>,
    block_size: usize,
}

impl Maker {
    /// A fresh volume.
    pub fn new(plan: Plan) -> Self {
        let data = Arc::new(MemDevice::new(plan.data_blocks * u64::from(plan.block_size)));
        let metadata = Arc::new(MemDevice::new(plan.metadata_blocks * META_BLOCK_SIZE as u64));
        let device: Arc<dyn BlockDevice> = metadata.clone();
        let format_options = FormatOptions {
            block_size: plan.block_size,
            algorithm: plan.algorithm,
            log_blocks: Some(64),
            ..format_options(plan.lbns * u64::from(plan.block_size))
        };
        format(&*data, &device, &format_options).unwrap();
        plan.start_in_last_region(&device);
        let options = OpenOptions { flushrq: Some(0), runs: plan.runs, ..options() };
        let volume = Volume::open(data.clone(), metadata.clone(), &options).unwrap();
        let empty = Image { data: SparseImage::new(0), metadata: SparseImage::new(0) };
        let ever = vec![vec![0]; plan.lbns as usize];
        Self { data, metadata, volume, before: empty, ever, block_size: plan.block_size as usize }
    }

    /// Writes a whole block.
    pub fn write(&mut self, lbn: u64, content: u64) {
        crate::write(&self.volume, lbn, content);
        self.ever[lbn as usize].push(content);
    }

    /// Trims whole blocks.
    pub fn trim(&mut self, lbn: u64, blocks: u64) {
        crate::trim(&self.volume, lbn, blocks);
        (lbn..lbn + blocks).for_each(|lbn| self.ever[lbn as usize].push(0));
    }

    /// Makes everything durable.
    pub fn flush(&self) {
        crate::flush(&self.volume);
    }

    /// A checkpoint. What was held before the last but one is forgotten.
    pub fn checkpoint(&mut self) {
        self.before = self.image();
        self.volume.checkpoint().unwrap();
    }

    /// From here on is what an open may lead back to.
    pub fn forget(&mut self) {
        self.ever.iter_mut().for_each(|held| drop(held.drain(..held.len() - 1)));
    }

    /// Has the block of an LBN found damaged, and puts its content right again: the mark stays.
    pub fn mark_bad(&self, lbn: u64) {
        let wanted = block(*self.ever[lbn as usize].last().unwrap(), self.block_size);
        let at = self.find(&wanted);
        let mut spoilt = wanted.clone();
        spoilt[0] ^= 1;
        self.data.write(at, &spoilt).unwrap();
        let mut buf = vec![0; self.block_size];
        let offset = lbn * self.block_size as u64;
        run(&self.volume, Op::Read { offset, buf: &mut buf }).unwrap_err();
        self.data.write(at, &wanted).unwrap();
    }

    /// The byte at which a content is stored.
    fn find(&self, wanted: &[u8]) -> u64 {
        let image = self.data.image();
        let mut found = vec![0; self.block_size];
        (1..self.data.size() / self.block_size as u64)
            .map(|pbn| pbn * self.block_size as u64)
            .find(|at| {
                image.read(*at, &mut found).unwrap();
                found == wanted
            })
            .unwrap()
    }

    fn image(&self) -> Image {
        Image { data: self.data.image(), metadata: self.metadata.image() }
    }

    /// The volume as it is on its devices, as if its process had been killed.
    pub fn killed(self) -> Sample {
        let Self { data, metadata, volume, before, ever, block_size } = self;
        drop(volume);
        let image = Image { data: data.image(), metadata: metadata.image() };
        let now = ever.iter().map(|held| *held.last().unwrap()).collect();
        Sample { image, before, now, ever, block_size }
    }

    /// The volume after it was closed in good order.
    pub fn closed(self) -> Sample {
        let (data, metadata) = (self.data.clone(), self.metadata.clone());
        let Self { volume, before, ever, block_size, .. } = self;
        volume.close().unwrap();
        let image = Image { data: data.image(), metadata: metadata.image() };
        let now = ever.iter().map(|held| *held.last().unwrap()).collect();
        Sample { image, before, now, ever, block_size }
    }
}

/// LBNs of [`wide`] whose contents are shared by three.
const SHARED: u64 = 900;
/// LBNs of [`wide`] that were written.
const WRITTEN: u64 = 1290;

/// A volume with index nodes in every tree whose leaves are small.
pub fn wide() -> Sample {
    wide_maker().killed()
}

/// [`wide`], closed in good order: its log is part of its trees.
pub fn wide_closed() -> Sample {
    wide_maker().closed()
}

fn wide_maker() -> Maker {
    let plan = Plan {
        lbns: 1300,
        data_blocks: 800,
        metadata_blocks: 1280,
        block_size: BLOCK_SIZE as u32,
        algorithm: DigestAlgorithm::Sha256,
        runs: RunPolicy::ByCost,
    };
    let mut maker = Maker::new(plan);
    (0..SHARED).for_each(|lbn| maker.write(lbn, 1 + lbn % 300));
    (SHARED..WRITTEN).for_each(|lbn| maker.write(lbn, 1000 + lbn));
    maker.checkpoint();
    // More than the 677 marks of a leaf.
    (0..300).chain(SHARED..WRITTEN - 10).for_each(|lbn| maker.mark_bad(lbn));
    maker.checkpoint();
    maker.forget();
    (0..6).for_each(|i| maker.write(i * 200, 5000 + i));
    maker.trim(1270, 3);
    (301..305).for_each(|lbn| maker.write(lbn, 290));
    maker.checkpoint();
    tail(&mut maker);
    maker
}

/// Operations that are in the log only: every type of record, several groups.
fn tail(maker: &mut Maker) {
    maker.write(10, 6000);
    maker.write(11, 6000);
    maker.flush();
    maker.write(12, 6001);
    maker.trim(20, 5);
    maker.flush();
    maker.mark_bad(1285);
    maker.mark_bad(1286);
    maker.flush();
    // The same content again heals the block.
    let healed = maker.ever[1286].last().copied().unwrap();
    maker.write(1295, healed);
    maker.write(21, 6002);
    maker.flush();
    maker.write(13, 6003);
    maker.flush();
}

/// A volume whose index and mapping stand in bases and runs, the largest with an index node, one of them
/// merged in part.
pub fn runs() -> Sample {
    let plan = Plan {
        lbns: 700,
        data_blocks: 620,
        metadata_blocks: 1200,
        block_size: BLOCK_SIZE as u32,
        algorithm: DigestAlgorithm::Sha256,
        runs: RunPolicy::Always,
    };
    let mut maker = Maker::new(plan);
    (0..500).for_each(|lbn| maker.write(lbn, 1 + lbn));
    maker.checkpoint();
    (0..4).for_each(|i| maker.write(i * 80, 5000 + i));
    maker.trim(401, 3);
    maker.checkpoint();
    maker.forget();
    (0..4).for_each(|i| maker.write(i * 90 + 7, 5100 + i));
    maker.trim(407, 2);
    maker.checkpoint();
    maker.write(10, 6000);
    maker.flush();
    maker.trim(20, 5);
    maker.write(11, 6000);
    maker.flush();
    maker.write(13, 6003);
    maker.flush();
    maker.killed()
}

/// A volume with index nodes above the counts and in the metadata map.
pub fn deep() -> Sample {
    let plan = Plan {
        lbns: 400,
        // A few blocks in the second region, which are used first.
        data_blocks: BLOCKS_PER_REGION + 40,
        metadata_blocks: BLOCKS_PER_REGION + 600,
        block_size: BLOCK_SIZE as u32,
        algorithm: DigestAlgorithm::Sha256,
        runs: RunPolicy::ByCost,
    };
    let mut maker = Maker::new(plan);
    (0..30).for_each(|lbn| maker.write(lbn, 1 + lbn / 2));
    maker.checkpoint();
    (30..60).for_each(|lbn| maker.write(lbn, 100 + lbn));
    (60..70).for_each(|lbn| maker.write(lbn, 7));
    maker.mark_bad(33);
    maker.checkpoint();
    maker.forget();
    (0..4).for_each(|lbn| maker.write(lbn, 200 + lbn));
    maker.checkpoint();
    maker.write(390, 300);
    maker.flush();
    maker.trim(5, 3);
    maker.flush();
    maker.killed()
}
