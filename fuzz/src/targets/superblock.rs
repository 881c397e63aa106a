//! Any bytes as superblock copies, with a right checksum: a survey never panics, and a superblock that it
//! calls valid is written as one that reads the same.

use crate::{Input, seal};
use dedup_device::{BlockDevice, MemDevice};
use dedup_meta::{
    BlockType, META_BLOCK_SIZE, MIN_METADATA_BLOCKS, MetaBlock, Store, Superblock, load_superblocks,
    write_spare, write_superblock,
};
use std::sync::Arc;
use uuid::Uuid;

const BLOCKS: u64 = MIN_METADATA_BLOCKS;
/// Where copies stand on a device of that size.
const PLACES: [u64; 4] = [0, 256, BLOCKS - 257, BLOCKS - 1];
/// The pool's UUID, which seeds the checksum, in bytes from the block's start.
const POOL_AT: std::ops::Range<usize> = 72..88;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let device = Arc::new(MemDevice::new(BLOCKS * META_BLOCK_SIZE as u64));
    let mut input = Input::new(bytes);
    let mut pool = Uuid::nil();
    for place in PLACES {
        let control = input.u8();
        if control == 0 {
            continue;
        }
        let len = usize::from(input.u16());
        let mut block = seal::block(BlockType::Superblock, MetaBlock(place), input.bytes(len));
        let bytes = zerocopy::IntoBytes::as_bytes(&*block);
        pool = Uuid::from_slice(&bytes[POOL_AT]).expect("16 bytes");
        block.seal(pool);
        seal::put(&device, &block);
    }
    let survey = load_superblocks(&*device);
    let _ = survey.next_txid(pool);
    let _ = survey.highest_epoch(pool);
    for newest in [survey.newest(None), survey.newest(Some(pool)), survey.newest(Some(seal::POOL))]
        .into_iter()
        .flatten()
    {
        let _ = (survey.older(newest), newest.access(), newest.roots().count());
        let _ = survey.next_txid(newest.pool);
        let reserved =
            newest.layout.reserved().filter(|block| newest.layout.is_reserved(*block)).count() as u64;
        assert_eq!(reserved, newest.layout.log.blocks + PLACES.len() as u64);
        written_reads_the_same(newest);
    }
}

fn written_reads_the_same(superblock: &Superblock) {
    let device: Arc<dyn BlockDevice> =
        Arc::new(MemDevice::new(superblock.layout.metadata_blocks * META_BLOCK_SIZE as u64));
    let store = Store::new(Arc::clone(&device), superblock.pool, 1);
    write_superblock(&store, superblock).expect("a valid superblock can be written");
    write_spare(&store, superblock).expect("a valid superblock can be written");
    let survey = load_superblocks(&*device);
    assert_eq!(survey.newest(None), Ok(superblock));
}
