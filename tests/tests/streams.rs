//! Data that comes again in the order in which it came first is found without a metadata read for each block.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::*;
use dedup_volume::{Op, OpenOptions, Request, Volume};

const BLOCKS: u64 = 40_000;
const BLOCK_SIZE: u64 = 512;

/// Content n + 1 goes to LBN `first + n`, 32 blocks a batch.
fn write_stream(volume: &Volume, first: u64) {
    for start in (0..BLOCKS).step_by(32) {
        let blocks: Vec<Vec<u8>> = (start..start + 32).map(|n| block(n + 1, BLOCK_SIZE as usize)).collect();
        let batch = blocks.iter().zip(start..).map(|(data, n)| Request {
            tag: n,
            op: Op::Write { offset: (first + n) * BLOCK_SIZE, data, fua: false },
        });
        volume.execute(batch.collect(), &mut |_, result| result.unwrap());
    }
}

/// An index of some 250 leaves, a cache of 64 blocks: without knowing its neighbours, nearly each block would
/// cost a read.
#[test]
fn a_stream_of_duplicates_costs_a_metadata_read_for_eighty_blocks() {
    let size = 2 * BLOCKS * BLOCK_SIZE;
    let disks = Disks::new(size, 64 << 20);
    disks.format(&dedup_volume::FormatOptions { block_size: BLOCK_SIZE as u32, ..format_options(size) });
    let volume = disks.open(&options()).unwrap();
    write_stream(&volume, 0);
    volume.close().unwrap();
    let volume = disks.open(&OpenOptions { cache_bytes: 0, ..options() }).unwrap();
    let before = disks.metadata.operations(IoKind::Read);
    write_stream(&volume, BLOCKS);
    let reads = disks.metadata.operations(IoKind::Read) - before;
    assert_eq!(volume.status().counters.dupwrites, BLOCKS, "blocks that were found");
    assert!(reads < BLOCKS / 80, "{reads} metadata reads for {BLOCKS} duplicates in a stream");
    println!("{reads} metadata reads for {BLOCKS} duplicates");
}
