//! Metadata blocks of any bytes, with a right checksum.

use dedup_device::{BlockDevice, MemDevice};
use dedup_meta::{Block, BlockType, META_BLOCK_SIZE, MetaBlock};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

/// The pool of all blocks here.
pub const POOL: Uuid = Uuid::from_u128(0x6465_6475_702d_6675_7a7a_2d70_6f6f_6c21);
/// Bytes of a block in front of which nothing is fuzzed: the checksum.
pub const CRC_SIZE: usize = 4;

/// A block whose bytes after the checksum are `bytes`, then zeros. Its type and place are set, since a block
/// of another type or from another place is refused before anything else is looked at.
pub fn block(kind: BlockType, at: MetaBlock, bytes: &[u8]) -> Box<Block> {
    let mut block = Block::zeroed();
    let len = bytes.len().min(META_BLOCK_SIZE - CRC_SIZE);
    block.as_mut_bytes()[CRC_SIZE..][..len].copy_from_slice(&bytes[..len]);
    block.header.block_type = kind as u8;
    block.header.block = at.0.into();
    block
}

/// Puts a block where its header says, as it is.
pub fn put(device: &MemDevice, block: &Block) {
    put_at(device, MetaBlock(block.header.block.get()), block);
}

/// Puts a block at a place, as it is.
pub fn put_at(device: &MemDevice, at: MetaBlock, block: &Block) {
    device.write(at.0 * META_BLOCK_SIZE as u64, block.as_bytes()).expect("a place on the device");
}

/// The block at a place, as it is.
pub fn get(device: &MemDevice, at: MetaBlock) -> Box<Block> {
    let mut bytes = vec![0; META_BLOCK_SIZE];
    device.read(at.0 * META_BLOCK_SIZE as u64, &mut bytes).expect("a place on the device");
    Box::new(Block::read_from_bytes(&bytes).expect("a block's size"))
}
