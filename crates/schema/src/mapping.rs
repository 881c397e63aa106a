//! The entries of the truth tables, and the trees that hold them.
//!
//! ```text
//! mapping  12 B   | pbn 6 | crc32c 4 | flags 2 |      all zero: unmapped
//! digest   32 B   | digest                     |      all zero: never allocated
//! count    2 bit  | 0, 1, 2, 3 = see overflow  |
//! hint     14 B   | digest prefix 8 | pbn 6    |      the pair is the key, there is no value
//! ```

use crate::digest::{DIGEST_SIZE, Digest};
use crate::ids::{ID_SIZE, Lbn, Pbn, get_u48, put_u48};
use dedup_btree::{ArrayTree, BTree, Key, KeySet, LeafCodec, RunMap, Value};
use dedup_meta::{BlockFault, BlockType, PAYLOAD_SIZE};
use dedup_spacemap::page;

/// Where an LBN's content is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The block on the data device, 0 if the LBN is unmapped and reads as zeros.
    pub pbn: Pbn,
    /// CRC32C of the block's content.
    pub crc: u32,
    /// None defined yet; 0.
    pub flags: u16,
}

impl Mapping {
    /// No content: reads as zeros.
    pub const UNMAPPED: Self = Self { pbn: Pbn(0), crc: 0, flags: 0 };
    /// Bytes on disk.
    pub(crate) const SIZE: usize = 12;

    /// Whether there is a block behind it.
    pub fn is_mapped(&self) -> bool {
        self.pbn.0 != 0
    }

    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        put_u48(bytes, self.pbn.0);
        bytes[6..10].copy_from_slice(&self.crc.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.flags.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let mut crc = [0; 4];
        crc.copy_from_slice(&bytes[6..10]);
        Self {
            pbn: Pbn(get_u48(bytes)),
            crc: u32::from_le_bytes(crc),
            flags: u16::from_le_bytes([bytes[10], bytes[11]]),
        }
    }
}

/// Leaves of the LBN -> mapping tree.
#[derive(Clone, Copy, Debug)]
pub enum MappingLeaf {}

impl LeafCodec for MappingLeaf {
    type Value = Mapping;
    const PER_LEAF: u64 = (PAYLOAD_SIZE / Mapping::SIZE) as u64;

    fn get(payload: &[u8], slot: usize) -> Mapping {
        Mapping::decode(&payload[slot * Mapping::SIZE..][..Mapping::SIZE])
    }

    fn set(payload: &mut [u8], slot: usize, value: Mapping) {
        value.encode(&mut payload[slot * Mapping::SIZE..][..Mapping::SIZE]);
    }

    fn used(payload: &[u8]) -> u32 {
        let entries = payload.chunks_exact(Mapping::SIZE).take(Self::PER_LEAF as usize);
        entries.filter(|e| get_u48(e) != 0).count() as u32
    }

    fn check(payload: &[u8]) -> Result<(), BlockFault> {
        let (entries, tail) = payload.split_at(Self::PER_LEAF as usize * Mapping::SIZE);
        for (slot, entry) in entries.chunks_exact(Mapping::SIZE).enumerate() {
            if get_u48(entry) == 0 && entry.iter().any(|b| *b != 0) {
                return Err(BlockFault::Field {
                    field: "mapping.pbn",
                    expected: format!("non-zero in slot {slot}, which has a checksum or flags"),
                    found: "0".into(),
                });
            }
        }
        zero_tail(tail)
    }
}

/// Leaves of the PBN -> digest tree.
#[derive(Clone, Copy, Debug)]
pub enum DigestLeaf {}

impl LeafCodec for DigestLeaf {
    type Value = Digest;
    const PER_LEAF: u64 = (PAYLOAD_SIZE / DIGEST_SIZE) as u64;

    fn get(payload: &[u8], slot: usize) -> Digest {
        let mut digest = Digest::default();
        digest.0.copy_from_slice(&payload[slot * DIGEST_SIZE..][..DIGEST_SIZE]);
        digest
    }

    fn set(payload: &mut [u8], slot: usize, value: Digest) {
        payload[slot * DIGEST_SIZE..][..DIGEST_SIZE].copy_from_slice(&value.0);
    }

    fn used(payload: &[u8]) -> u32 {
        let entries = payload.chunks_exact(DIGEST_SIZE).take(Self::PER_LEAF as usize);
        entries.filter(|e| e.iter().any(|b| *b != 0)).count() as u32
    }

    fn check(payload: &[u8]) -> Result<(), BlockFault> {
        zero_tail(&payload[Self::PER_LEAF as usize * DIGEST_SIZE..])
    }
}

/// Leaves of the PBN -> reference count tree: pages of the space map.
#[derive(Clone, Copy, Debug)]
pub enum CountLeaf {}

impl LeafCodec for CountLeaf {
    type Value = u8;
    const PER_LEAF: u64 = page::COUNTS_PER_PAGE as u64;

    fn get(payload: &[u8], slot: usize) -> u8 {
        page::get(payload, slot)
    }

    fn set(payload: &mut [u8], slot: usize, value: u8) {
        page::set(payload, slot, value);
    }

    fn used(payload: &[u8]) -> u32 {
        page::used(payload) as u32
    }

    fn check(_payload: &[u8]) -> Result<(), BlockFault> {
        Ok(())
    }
}

/// What a 2-bit count says when the count stands in the overflow tree.
pub const COUNT_OVERFLOW: u8 = 3;

/// A key of the digest index: the pair, so that two blocks whose digests begin alike are two neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HintKey {
    /// [`Digest::prefix`].
    pub prefix: u64,
    /// The block that had such a digest when the hint was made.
    pub pbn: Pbn,
}

impl Key for HintKey {
    const SIZE: usize = 14;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.prefix.to_be_bytes());
        put_u48(&mut bytes[8..], self.pbn.0);
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&bytes[..8]);
        Self { prefix: u64::from_be_bytes(prefix), pbn: Pbn(get_u48(&bytes[8..])) }
    }
}

macro_rules! number_as_key {
    ($number:ident) => {
        impl Key for $number {
            const SIZE: usize = ID_SIZE;

            fn encode(&self, bytes: &mut [u8]) {
                put_u48(bytes, self.0);
            }

            fn decode(bytes: &[u8]) -> Self {
                Self(get_u48(bytes))
            }
        }
    };
}

number_as_key!(Pbn);
number_as_key!(Lbn);

/// In a run, where [`Mapping::UNMAPPED`] hides what stands below it.
impl Value for Mapping {
    const SIZE: usize = Self::SIZE;

    fn encode(&self, bytes: &mut [u8]) {
        self.encode(bytes);
    }

    fn decode(bytes: &[u8]) -> Self {
        Self::decode(bytes)
    }

    fn check(&self) -> Result<(), BlockFault> {
        match self.is_mapped() || *self == Self::UNMAPPED {
            true => Ok(()),
            false => Err(BlockFault::Field {
                field: "mapping.pbn",
                expected: "non-zero beside a checksum or flags".into(),
                found: "0".into(),
            }),
        }
    }
}

/// A reference count of 3 and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

impl Value for Count {
    const SIZE: usize = 8;

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut count = [0; 8];
        count.copy_from_slice(&bytes[..8]);
        Self(u64::from_le_bytes(count))
    }
}

/// LBN -> mapping.
pub const MAPPINGS: ArrayTree<MappingLeaf> = ArrayTree::new(BlockType::Mapping);
/// What runs above it say.
pub const MAPPING_RUNS: RunMap<Lbn, Mapping> = RunMap::new(BlockType::MappingRun);
/// PBN -> digest.
pub const DIGESTS: ArrayTree<DigestLeaf> = ArrayTree::new(BlockType::Digest);
/// PBN -> reference count, saturated at 3.
pub const COUNTS: ArrayTree<CountLeaf> = ArrayTree::new(BlockType::RefCount);
/// PBN -> reference count, 3 and more.
pub const OVERFLOW: BTree<Pbn, Count> = BTree::new(BlockType::Overflow);
/// Digest prefix -> PBN: one tree of the index.
pub const HINTS: BTree<HintKey, ()> = BTree::new(BlockType::Hint);
/// The same with its runs.
pub const HINT_SET: KeySet<HintKey> = KeySet::new(BlockType::Hint);
/// Blocks whose content was found damaged.
pub const BAD: BTree<Pbn, ()> = BTree::new(BlockType::Bad);
/// The metadata device's own map: block -> 2-bit count.
pub const META_MAP: ArrayTree<CountLeaf> = ArrayTree::new(BlockType::MetaMap);

fn zero_tail(tail: &[u8]) -> Result<(), BlockFault> {
    match tail.iter().find(|b| **b != 0) {
        None => Ok(()),
        Some(byte) => Err(BlockFault::Field {
            field: "payload tail",
            expected: "zeros".into(),
            found: format!("{byte:#04x}"),
        }),
    }
}
