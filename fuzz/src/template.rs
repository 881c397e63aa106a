//! A small valid volume in memory, and the means to change its metadata so that the checksums are right
//! again.
//!
//! ```text
//!   mapping leaf ──> mapping index node ──┐
//!   digest leaf ──> ...                   ├──> superblock: slot, spare     each arrow: "its checksum stands in"
//!   log 5 ──> log 6 ──> log 7             ┘
//! ```
//!
//! [`Template::seals`] holds the arrows, a block before those that name it; [`Disks::reseal`] follows them
//! once.
//!
//! The volume has index nodes in its larger trees, shared blocks and some with counts of 3 and more, a block
//! marked bad, two superblocks whose trees differ, and a log behind the newer one.

use crate::seal::{self, POOL};
use dedup_btree::{Descend, Visit, Visitor};
use dedup_device::{BlockDevice, MemDevice, SparseImage};
use dedup_meta::{
    BlockType, HEADER_SIZE, LogSeq, META_BLOCK_SIZE, MIN_METADATA_BLOCKS, MetaBlock, Store, Superblock,
    load_superblocks,
};
use dedup_schema::{BAD, COUNTS, DIGESTS, HINTS, MAPPING_RUNS, MAPPINGS, META_MAP, OVERFLOW};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RequestError, Volume, format};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Bytes in a data block: the smallest, so that an input need not be long to fill one.
pub const BLOCK_SIZE: usize = 512;
/// Logical blocks: more than a mapping leaf holds.
pub const LBNS: u64 = 400;
/// Data blocks, few enough to run out of.
const DATA_BLOCKS: u64 = 330;
/// Blocks of the log ring.
const LOG_BLOCKS: u64 = 48;
/// Where a log block names the one before it, in bytes from the block's start.
const LOG_PREV_CRC_AT: usize = HEADER_SIZE + 32;

/// Both devices of a volume.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Label and blocks.
    pub data: Arc<MemDevice>,
    /// Everything else.
    pub metadata: Arc<MemDevice>,
}

/// What stands in a logical block.
pub type Content = [u8; BLOCK_SIZE];

/// Where a block's checksum stands: the block, and the byte in it.
type Place = (MetaBlock, usize);

/// The volume; see the module.
pub struct Template {
    data: SparseImage,
    metadata: SparseImage,
    /// Blocks of the metadata device that mean something: superblocks, log, nodes.
    pub blocks: Vec<MetaBlock>,
    /// Each sealed block, and where its checksum stands beside its own header. A block comes before those
    /// that name it.
    pub seals: Vec<(MetaBlock, Vec<Place>)>,
    /// What each logical block has held since the older superblock, the present last. A log that ends early,
    /// as a torn one does, leads back to one of these.
    pub held: Vec<Vec<Content>>,
}

/// The one that all inputs begin with.
pub static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::new);

/// Content number `n`; 0 is zeros.
pub fn content(n: u8) -> Content {
    std::array::from_fn(|i| if i % 64 == 0 { n } else { n.wrapping_mul(i as u8 | 1) })
}

/// Options of an open without threads: a run repeats exactly.
pub fn options(read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        background: false,
        digest_threads: 1,
        cache_bytes: 1 << 20,
        ..OpenOptions::default()
    }
}

/// Runs one request.
pub fn run(volume: &Volume, op: Op<'_>) -> Result<(), RequestError> {
    let mut answer = None;
    volume.execute(vec![Request { tag: 0, op }], &mut |_, result| {
        assert!(answer.replace(result).is_none(), "answered twice");
    });
    answer.expect("answered")
}

/// Reads whole blocks, in one batch; what each reads as, or why it does not.
pub fn read(volume: &Volume, lbns: impl Iterator<Item = u64>) -> Vec<(u64, Result<Content, RequestError>)> {
    let mut blocks: Vec<(u64, Content)> = lbns.map(|lbn| (lbn, [0; BLOCK_SIZE])).collect();
    let mut results = vec![None; blocks.len()];
    let requests = blocks.iter_mut().enumerate().map(|(place, (lbn, buf))| Request {
        tag: place as u64,
        op: Op::Read { offset: *lbn * BLOCK_SIZE as u64, buf },
    });
    volume.execute(requests.collect(), &mut |request, result| {
        assert!(results[request.tag as usize].replace(result).is_none(), "answered twice");
    });
    blocks
        .into_iter()
        .zip(results)
        .map(|((lbn, content), result)| (lbn, result.expect("answered").map(|()| content)))
        .collect()
}

impl Disks {
    /// Opens the volume.
    pub fn open(&self, read_only: bool) -> Result<Volume, dedup_volume::VolumeError> {
        Volume::open(self.data.clone(), self.metadata.clone(), &options(read_only))
    }

    /// Copies of both, as they are now.
    pub fn copy(&self) -> Self {
        Self::of(self.data.image(), self.metadata.image())
    }

    fn of(data: SparseImage, metadata: SparseImage) -> Self {
        Self {
            data: Arc::new(MemDevice::from_image(data)),
            metadata: Arc::new(MemDevice::from_image(metadata)),
        }
    }

    /// Flips bits of a byte.
    pub fn flip(device: &MemDevice, offset: u64, bits: u8) {
        let mut byte = [0];
        device.read(offset, &mut byte).expect("a place on the device");
        device.write(offset, &[byte[0] ^ bits]).expect("a place on the device");
    }

    /// Gives every block of the template its right checksum again, and every block that names it.
    pub fn reseal(&self, template: &Template) {
        for (at, named_at) in &template.seals {
            let mut block = seal::get(&self.metadata, *at);
            let before = block.header.crc.get();
            let crc = block.seal(POOL);
            if crc == before {
                continue;
            }
            seal::put_at(&self.metadata, *at, &block);
            for (namer, offset) in named_at {
                let mut namer_block = seal::get(&self.metadata, *namer);
                namer_block.as_mut_bytes()[*offset..][..4].copy_from_slice(&crc.to_le_bytes());
                seal::put_at(&self.metadata, *namer, &namer_block);
            }
        }
    }
}

/// The volume while it is made, and what it holds.
struct Maker {
    disks: Disks,
    volume: Volume,
    held: Vec<Vec<Content>>,
}

impl Maker {
    fn write(&mut self, lbn: u64, n: u8) {
        let data = content(n);
        run(&self.volume, Op::Write { offset: lbn * BLOCK_SIZE as u64, data: &data, fua: false })
            .expect("written");
        self.held[lbn as usize].push(data);
    }

    fn trim(&mut self, lbn: u64, blocks: u64) {
        let size = BLOCK_SIZE as u64;
        run(&self.volume, Op::Trim { offset: lbn * size, len: blocks * size, fua: true }).expect("trimmed");
        (lbn..lbn + blocks).for_each(|lbn| self.held[lbn as usize].push(content(0)));
    }

    fn flush(&self) {
        run(&self.volume, Op::Flush).expect("flushed");
    }

    fn checkpoint(&self) {
        self.volume.checkpoint().expect("a checkpoint");
    }

    /// Damages the data of a block, and lets the volume find it.
    fn spoil(&self, n: u8) {
        let wanted = content(n);
        let mut found = [0; BLOCK_SIZE];
        let offset = (1..DATA_BLOCKS).map(|pbn| pbn * BLOCK_SIZE as u64).find(|offset| {
            self.disks.data.read(*offset, &mut found).expect("memory can be read");
            found == wanted
        });
        Disks::flip(&self.disks.data, offset.expect("the content is stored"), 1);
    }
}

impl Template {
    fn new() -> Self {
        let disks = Disks::of(
            SparseImage::new(DATA_BLOCKS * BLOCK_SIZE as u64),
            SparseImage::new(MIN_METADATA_BLOCKS * META_BLOCK_SIZE as u64),
        );
        let format_options = FormatOptions {
            block_size: BLOCK_SIZE as u32,
            log_blocks: Some(LOG_BLOCKS),
            ..FormatOptions::new(LBNS * BLOCK_SIZE as u64, POOL, Uuid::from_u128(2))
        };
        let metadata: Arc<dyn BlockDevice> = disks.metadata.clone();
        format(&*disks.data, &metadata, &format_options).expect("formatted");
        let volume = disks.open(false).expect("opened");
        let mut maker = Maker { disks: disks.clone(), volume, held: vec![vec![content(0)]; LBNS as usize] };
        (0..390).for_each(|lbn| maker.write(lbn, 1 + (lbn % 160) as u8));
        maker.flush();
        maker.spoil(160);
        read(&maker.volume, 159..160)[0].1.expect_err("its data is damaged");
        maker.checkpoint();
        (0..20).for_each(|lbn| maker.write(lbn, 200 + (lbn / 5) as u8));
        maker.checkpoint();
        // From here on is what an open may lead back to: the older superblock is the one before the last.
        maker.held.iter_mut().for_each(|held| drop(held.drain(..held.len() - 1)));
        maker.trim(100, 7);
        maker.checkpoint();
        for lbn in 0..6 {
            maker.write(lbn * 3, 210 + lbn as u8);
            maker.flush();
        }
        maker.trim(300, 3);
        maker.write(301, 1);
        maker.flush();
        let Maker { disks, volume, held } = maker;
        drop(volume);
        let (blocks, seals) = map(&disks);
        Self { data: disks.data.image(), metadata: disks.metadata.image(), blocks, seals, held }
    }

    /// The volume's devices, to be changed.
    pub fn disks(&self) -> Disks {
        Disks::of(self.data.clone(), self.metadata.clone())
    }
}

/// Collects the nodes of trees, by block: level, and the nodes above.
#[derive(Default)]
struct Nodes(BTreeMap<MetaBlock, (u8, Vec<MetaBlock>)>);

impl Visitor for Nodes {
    fn node(&mut self, visit: Visit<'_>) -> Descend {
        visit.node.expect("the template is whole");
        let (_, parents) = self.0.entry(visit.at.block).or_insert((visit.level, Vec::new()));
        parents.extend(visit.parent.filter(|parent| !parents.contains(parent)));
        Descend::Yes
    }
}

/// The blocks that mean something, and where their checksums stand.
fn map(disks: &Disks) -> (Vec<MetaBlock>, Vec<(MetaBlock, Vec<Place>)>) {
    let survey = load_superblocks(&*disks.metadata);
    let newest = survey.newest(Some(POOL)).expect("the template has a superblock");
    let older = survey.older(newest).expect("the template has had more than one checkpoint");
    let copies: Vec<MetaBlock> =
        [newest, older].iter().flat_map(|sb| [sb.layout.slot(sb.txid), sb.layout.spare(sb.txid)]).collect();
    let mut nodes = Nodes::default();
    [newest, older].iter().for_each(|superblock| walk(disks, superblock, &mut nodes));

    let mut seals = log(disks, older, &copies);
    let mut by_level: Vec<_> = nodes.0.into_iter().collect();
    by_level.sort_by_key(|(at, (level, _))| (*level, *at));
    for (at, (_, parents)) in by_level {
        let crc = seal::get(&disks.metadata, at).header.crc.get();
        let reference = [&at.0.to_le_bytes()[..6], &crc.to_le_bytes()[..]].concat();
        let mut places: Vec<Place> =
            parents.iter().filter_map(|parent| find(disks, *parent, &reference, 6)).collect();
        // A superblock's root has the block number in 8 bytes.
        let root = [&at.0.to_le_bytes()[..], &crc.to_le_bytes()[..]].concat();
        places.extend(copies.iter().filter_map(|copy| find(disks, *copy, &root, 8)));
        assert!(!places.is_empty(), "something names block {at}");
        seals.push((at, places));
    }
    seals.extend(copies.iter().map(|copy| (*copy, Vec::new())));
    (seals.iter().map(|(at, _)| *at).collect(), seals)
}

fn walk(disks: &Disks, superblock: &Superblock, nodes: &mut Nodes) {
    let store = Store::new(disks.metadata.clone(), POOL, 64);
    for (_, tree, root) in superblock.roots() {
        match tree {
            BlockType::Mapping => MAPPINGS.walk(&store, &root, nodes),
            BlockType::MappingRun => MAPPING_RUNS.tree().walk(&store, &root, nodes),
            BlockType::Digest => DIGESTS.walk(&store, &root, nodes),
            BlockType::RefCount => COUNTS.walk(&store, &root, nodes),
            BlockType::Overflow => OVERFLOW.walk(&store, &root, nodes),
            BlockType::Hint => HINTS.walk(&store, &root, nodes),
            BlockType::Bad => BAD.walk(&store, &root, nodes),
            BlockType::MetaMap => META_MAP.walk(&store, &root, nodes),
            BlockType::Superblock | BlockType::Log => unreachable!("no tree's type"),
        }
    }
}

/// The log from where the older superblock's replay begins, each block with the place of its checksum in the
/// next.
fn log(disks: &Disks, older: &Superblock, copies: &[MetaBlock]) -> Vec<(MetaBlock, Vec<Place>)> {
    let place = |seq| older.layout.log.place(seq);
    let mut seals = Vec::new();
    let mut seq = older.log.next;
    loop {
        let block = seal::get(&disks.metadata, place(seq));
        if block.verify(POOL, BlockType::Log, 0, place(seq)).is_err() {
            return seals;
        }
        let next = LogSeq(seq.0 + 1);
        let log_next = [&next.0.to_le_bytes()[..], &block.header.crc.get().to_le_bytes()[..]].concat();
        let mut places: Vec<Place> =
            copies.iter().filter_map(|copy| find(disks, *copy, &log_next, 8)).collect();
        let next_block = seal::get(&disks.metadata, place(next));
        if next_block.verify(POOL, BlockType::Log, 0, place(next)).is_ok() {
            places.push((place(next), LOG_PREV_CRC_AT));
        }
        seals.push((place(seq), places));
        seq = next;
    }
}

/// Where `pattern` stands in a block, and the byte `skip` further on.
fn find(disks: &Disks, at: MetaBlock, pattern: &[u8], skip: usize) -> Option<Place> {
    let block = seal::get(&disks.metadata, at);
    let start = block.as_bytes().windows(pattern.len()).position(|bytes| bytes == pattern)?;
    Some((at, start + skip))
}
