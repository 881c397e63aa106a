//! Properties that are tests of their own (`tests/properties.rs`) and must also catch a planted fault (`tests/planted.rs`): each is
//! run with the options that it is given. Each sets up the one moment at which the fault would show, and names in its message
//! what went wrong.

pub mod abandoned;
pub mod blocks;
pub mod checkpoint;
pub mod content;
pub mod durable;
pub mod journal;
pub mod matching;
pub mod metadata;
pub mod open;
pub mod space;

use super::*;
use dedup_meta::LOG_PAYLOAD_SIZE;
use dedup_meta::{
    Block, BlockRef, BlockType, META_BLOCK_SIZE, MetaBlock, MetaError, NodeSink, NodeSource, RunSet,
    ShapeCheck, Store, Superblock, TxId, load_superblocks,
};
use dedup_volume::{DigestAlgorithm, HINTS, HintKey, Pbn};
use std::ops::Range;

/// Opens what a test has left, which must open.
fn reopened(disks: &Disks, options: &OpenOptions) -> Volume {
    disks.open(options).unwrap_or_else(|error| panic!("the volume does not open: {error}"))
}

/// The newest superblock.
fn superblock(disks: &Disks) -> Superblock {
    load_superblocks(&*disks.metadata).newest(None).unwrap().clone()
}

/// Puts other bytes in the place of a metadata block.
fn destroy(device: &SimDevice, block: u64) {
    device.write(block * META_BLOCK_SIZE as u64, &[0xff; META_BLOCK_SIZE]).unwrap();
    device.flush().unwrap();
}

/// A volume whose `blocks` data blocks are all in use: LBN n holds content n + 1, flushed, for n below `blocks`. It has
/// four times as many LBNs.
fn full(blocks: u64, options: &OpenOptions) -> Disks {
    let disks = Disks::new((blocks + 1) * 4096, 8 << 20);
    disks.format(&format_options(4 * blocks * 4096));
    let volume = disks.open(options).unwrap();
    (0..blocks).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    disks
}

/// On a [`full`] volume, gives one block back and takes it again: from now on the allocator has a region open, and a block that is given back
/// to it is the next to be taken.
fn make_one_go_round(volume: &Volume) {
    trim(volume, 15, 1);
    flush(volume);
    write(volume, 16, 50);
    flush(volume);
}

/// Takes what blocks are free: writes new content, from `content` on, as far as it gets.
fn fill(volume: &Volume, lbns: Range<u64>, content: u64) {
    for (n, lbn) in lbns.enumerate() {
        if try_write(volume, lbn, content + n as u64, false).is_err() {
            break;
        }
    }
}

/// Flips a bit of the block that holds `content`, on the data device.
fn damage_content(disks: &Disks, content: u64) {
    let content = block(content, 4096);
    let mut found = vec![0; 4096];
    let place = (1..disks.data.size() / 4096)
        .map(|pbn| pbn * 4096)
        .find(|offset| {
            disks.data.read(*offset, &mut found).unwrap();
            found == content
        })
        .unwrap();
    found[17] ^= 1;
    disks.data.write(place, &found).unwrap();
}
