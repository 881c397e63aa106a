//! The metadata block: 4 KiB with a 32-byte header, sealed by a CRC32C.
//!
//! ```text
//!  0        4      5       6         8              16             24            32             4096
//!  | crc32c | type | level | entries | block number | birth (TxId) | first index | payload ...   |
//! ```
//!
//! The CRC covers the pool's UUID, then bytes 4..4096: a block of another pool, of another type or from
//! another place never passes. `first index` is what an array node covers first, and 0 in every other block.

use crate::MetaBlock;
use crate::TxId;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes in a metadata block.
pub const META_BLOCK_SIZE: usize = 4096;
/// Bytes of header in each.
pub const HEADER_SIZE: usize = 32;
/// Bytes after the header.
pub const PAYLOAD_SIZE: usize = META_BLOCK_SIZE - HEADER_SIZE;

/// What a block holds. The discriminants are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockType {
    /// One of the superblock copies.
    Superblock = 1,
    /// A block of the intent log.
    Log = 2,
    /// LBN -> mapping array tree.
    Mapping = 3,
    /// PBN -> digest array tree.
    Digest = 4,
    /// PBN -> 2-bit reference count array tree (the data space map).
    RefCount = 5,
    /// PBN -> reference count of 3 and more, B-tree.
    Overflow = 6,
    /// (digest prefix, PBN) B-tree.
    Hint = 7,
    /// PBNs whose content was found damaged, B-tree.
    Bad = 8,
    /// The metadata device's own space map.
    MetaMap = 9,
    /// Runs of the LBN -> mapping tree: (LBN, mapping) B-trees.
    MappingRun = 10,
}

impl BlockType {
    /// The type with this discriminant, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        use BlockType::*;
        [Superblock, Log, Mapping, Digest, RefCount, Overflow, Hint, Bad, MetaMap, MappingRun]
            .into_iter()
            .find(|t| *t as u8 == value)
    }

    /// What to call it, to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Log => "log",
            Self::Mapping => "mapping tree",
            Self::MappingRun => "mapping run",
            Self::Digest => "digest tree",
            Self::RefCount => "reference count tree",
            Self::Overflow => "overflow tree",
            Self::Hint => "index",
            Self::Bad => "bad block tree",
            Self::MetaMap => "metadata map",
        }
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The first 32 bytes of every metadata block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// CRC32C of the pool's UUID and of the bytes after this field.
    pub crc: U32,
    /// [`BlockType`].
    pub block_type: u8,
    /// 0 for leaves and for blocks outside trees.
    pub level: u8,
    /// Entries in the payload, in the type's own sense.
    pub entries: U16,
    /// Where this block belongs.
    pub block: U64,
    /// The transaction that wrote it.
    pub birth: U64,
    /// First index covered by an array node.
    pub first: U64,
}

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);

/// A 4 KiB block in memory. Not aligned: an aligned one behind an `Arc` takes 12 KiB, and the cache is full
/// of them; a device that wants alignment copies, which is nothing beside its I/O.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Block {
    /// The header.
    pub header: Header,
    /// The rest.
    pub payload: [u8; PAYLOAD_SIZE],
}

const _: () = assert!(size_of::<Block>() == META_BLOCK_SIZE);

impl std::fmt::Debug for Block {
    /// The header only: 4 KiB of payload help nobody.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("header", &self.header).finish_non_exhaustive()
    }
}

/// What is wrong with a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockFault {
    /// The bytes do not have the checksum that stands in their header.
    #[error("checksum: header says {expected:#010x}, bytes give {found:#010x}")]
    Checksum {
        /// From the header.
        expected: u32,
        /// Computed.
        found: u32,
    },
    /// The block is intact but not the version its parent names (a lost or stale write).
    #[error("stale or foreign version: parent names checksum {expected:#010x}, block has {found:#010x}")]
    Version {
        /// From the parent.
        expected: u32,
        /// From the block.
        found: u32,
    },
    /// A header or payload field has a value that it cannot have.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// The field's name in `docs/format.md`.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl Block {
    /// A zeroed block with its header filled in, to be sealed once its payload is.
    pub fn new(block_type: BlockType, level: u8, block: MetaBlock, birth: TxId) -> Box<Self> {
        let mut this = Self::zeroed();
        this.header.block_type = block_type as u8;
        this.header.level = level;
        this.header.block = U64::new(block.0);
        this.header.birth = U64::new(birth.0);
        this
    }

    /// A block of zeros.
    pub fn zeroed() -> Box<Self> {
        Box::new(Self {
            header: Header {
                crc: U32::ZERO,
                block_type: 0,
                level: 0,
                entries: U16::ZERO,
                block: U64::ZERO,
                birth: U64::ZERO,
                first: U64::ZERO,
            },
            payload: [0; PAYLOAD_SIZE],
        })
    }

    /// The CRC that the bytes give in the pool `pool`.
    pub fn checksum(&self, pool: Uuid) -> u32 {
        let seed = crc32c::crc32c(pool.as_bytes());
        crc32c::crc32c_append(seed, &self.as_bytes()[4..])
    }

    /// Computes the CRC, writes it into the header and returns it.
    pub fn seal(&mut self, pool: Uuid) -> u32 {
        let crc = self.checksum(pool);
        self.header.crc = U32::new(crc);
        crc
    }

    /// Whether this is an intact block of the given pool, type, level and place. Shape of the payload is the
    /// type's own check.
    pub fn verify(
        &self,
        pool: Uuid,
        block_type: BlockType,
        level: u8,
        at: MetaBlock,
    ) -> Result<(), BlockFault> {
        let (expected, found) = (self.header.crc.get(), self.checksum(pool));
        if expected != found {
            return Err(BlockFault::Checksum { expected, found });
        }
        field("type", block_type as u8, self.header.block_type)?;
        field("level", level, self.header.level)?;
        field("block number", at.0, self.header.block.get())
    }
}

/// `Ok` if a field has its expected value.
pub fn field<T: PartialEq + std::fmt::Display>(
    name: &'static str,
    expected: T,
    found: T,
) -> Result<(), BlockFault> {
    if expected == found {
        return Ok(());
    }
    Err(BlockFault::Field { field: name, expected: expected.to_string(), found: found.to_string() })
}
