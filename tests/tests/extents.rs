//! What a volume tells of ranges without reading them: where it holds nothing, and how shared the rest is.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::BlockDevice;
use dedup_tests::*;
use dedup_volume::{Detail, Extent, RequestError, Volume};
use std::ops::Range;

const BLOCKS: u64 = 64;
const SIZE: u64 = 512;

/// Levels, a byte each, of a range, gathered in as many calls as it takes.
fn levels(volume: &Volume, range: Range<u64>, detail: Detail, max: usize) -> Vec<u32> {
    let mut levels = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let extents = volume.extents(at, range.end - at, detail, max).unwrap();
        assert!((1..=max).contains(&extents.len()), "{extents:?}");
        assert!(extents.windows(2).all(|pair| pair[0].level != pair[1].level), "{extents:?}");
        for Extent { len, level } in extents {
            assert!(len > 0);
            levels.extend((0..len).map(|_| level));
            at += len;
        }
    }
    assert_eq!(at, range.end, "no extent reaches beyond what was asked for");
    levels
}

/// What `levels` should find, from the content of each block.
fn expected(content: &[u64], range: Range<u64>, detail: Detail) -> Vec<u32> {
    range
        .map(|byte| match content[(byte / SIZE) as usize] {
            0 => 0,
            _ if detail == Detail::Allocation => 1,
            own => content.iter().filter(|other| **other == own).count().ilog2() + 1,
        })
        .collect()
}

#[test]
fn extents_are_those_of_what_was_written_whatever_is_in_deltas_and_whatever_in_trees() {
    let disks = formatted(BLOCKS, SIZE as u32);
    let mut volume = disks.open(&options()).unwrap();
    let mut content = [0; BLOCKS as usize];
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for step in 0..600 {
        let lbn = random(BLOCKS);
        match random(12) {
            0 => {
                let blocks = random(BLOCKS - lbn) + 1;
                trim(&volume, lbn, blocks);
                content[lbn as usize..(lbn + blocks) as usize].fill(0);
            }
            1 => volume.checkpoint().unwrap(),
            2 if step % 7 == 0 => {
                volume.close().unwrap();
                volume = disks.open(&options()).unwrap();
            }
            _ => {
                let value = random(12);
                write(&volume, lbn, value);
                content[lbn as usize] = value;
            }
        }
        let start = random(BLOCKS * SIZE);
        let range = start..start + 1 + random(BLOCKS * SIZE - start);
        for detail in [Detail::Allocation, Detail::Sharing] {
            let max = 1 + random(5) as usize;
            let found = levels(&volume, range.clone(), detail, max);
            assert_eq!(found, expected(&content, range.clone(), detail), "step {step}, {detail:?}");
        }
    }
}

#[test]
fn a_large_hole_is_one_extent_and_costs_no_data_read() {
    let disks = Disks::new(1 << 20, 8 << 20);
    disks.format(&format_options(1 << 45));
    let volume = disks.open(&options()).unwrap();
    write(&volume, 1 << 32, 5);
    volume.checkpoint().unwrap();
    let reads = disks.data.counters().reads;
    let extents = volume.extents(0, 1 << 45, Detail::Allocation, 10).unwrap();
    let (before, after) = ((1 << 32) * 4096, (1 << 45) - ((1 << 32) + 1) * 4096);
    let expected = [(before, 0), (4096, 1), (after, 0)].map(|(len, level)| Extent { len, level });
    assert_eq!(extents, expected);
    assert_eq!(disks.data.counters().reads, reads);
}

#[test]
fn a_range_beyond_the_device_or_without_bytes_has_no_extents() {
    let disks = formatted(8, 4096);
    let volume = disks.open(&options()).unwrap();
    for (offset, len) in [(0, 0), (8 * 4096, 1), (0, 8 * 4096 + 1), (u64::MAX, 2), (1, u64::MAX)] {
        let found = volume.extents(offset, len, Detail::Allocation, 1);
        assert_eq!(found, Err(RequestError::OutOfRange), "{offset}+{len}");
    }
}

/// Whoever copies a volume by its block status skips what is told as empty.
#[test]
fn what_the_map_cannot_tell_is_an_error_and_no_hole() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.close().unwrap();
    let survey = dedup_meta::load_superblocks(&*disks.metadata);
    let leaf = survey.newest(None).unwrap().volumes[0].mapping.base.node.unwrap().block.0;
    disks.metadata.write(leaf * 4096 + 1024, &[0xff; 512]).unwrap();
    let volume = disks.open(&options()).unwrap();
    for detail in [Detail::Allocation, Detail::Sharing] {
        assert_eq!(volume.extents(0, 64 * 4096, detail, 10), Err(RequestError::Io));
    }
    assert_eq!(volume.status().mode, "failed");
}

#[test]
fn a_block_with_more_uses_than_two_bits_count_is_told_as_such() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&options()).unwrap();
    for lbn in 0..40 {
        write(&volume, lbn, 1);
    }
    for checkpointed in [false, true] {
        let extents = volume.extents(0, 64 * 4096, Detail::Sharing, 10).unwrap();
        let expected = [Extent { len: 40 * 4096, level: 6 }, Extent { len: 24 * 4096, level: 0 }];
        assert_eq!(extents, expected, "checkpointed: {checkpointed}");
        volume.checkpoint().unwrap();
    }
}
