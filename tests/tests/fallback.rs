//! The way back: with the newest superblock gone, the older one and the log behind it lead to the same
//! content, also where the log carries data of blocks that were freed and taken anew between the two.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind, SimDevice};
use dedup_meta::{CopyState, load_superblocks};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{FormatOptions, Op, OpenOptions, Volume, VolumeError};
use std::sync::Arc;

const SEEDS: u64 = 150;

fn copy(disks: &Disks) -> Disks {
    let again = |device: &SimDevice| Arc::new(SimDevice::from_image(device.image()));
    Disks { data: again(&disks.data), metadata: again(&disks.metadata) }
}

fn content(volume: &Volume) -> Vec<Vec<u8>> {
    let lbns = volume.logical_size() / u64::from(volume.block_size());
    (0..lbns).map(|lbn| read(volume, lbn).unwrap_or_else(|error| panic!("LBN {lbn}: {error}"))).collect()
}

/// Does something, all of which may fail for want of space.
fn live(volume: &Volume, rng: &mut Rng) {
    let size = u64::from(volume.block_size());
    let lbns = volume.logical_size() / size;
    for _ in 0..rng.below(60) {
        let lbn = rng.below(lbns);
        let (offset, room) = (lbn * size, lbns - lbn);
        let data: Vec<u8> =
            (0..room.min(1 + rng.below(4))).flat_map(|_| block(1 + rng.below(200), size as usize)).collect();
        let op = match rng.below(20) {
            0..9 => Op::Write { offset, data: &data[..size as usize], fua: rng.below(3) == 0 },
            9..11 => Op::Write { offset, data: &data, fua: false },
            11..14 => Op::Trim { offset, len: (1 + rng.below(room)) * size, fua: false },
            14..19 => Op::Flush,
            _ => {
                volume.checkpoint().unwrap();
                continue;
            }
        };
        let _ = run(volume, op);
    }
}

/// The same devices without any copy of the newest superblock; `None` if there is no older one. Also whether
/// its log begins elsewhere.
fn without_newest(disks: &Disks) -> Option<(Disks, bool)> {
    let survey = load_superblocks(&*disks.metadata);
    let newest = survey.newest(None).unwrap();
    let older = survey.older(newest)?;
    let damaged = copy(disks);
    for copy in &survey.copies {
        if matches!(&copy.state, CopyState::Valid(superblock) if superblock.txid == newest.txid) {
            damaged.metadata.write(copy.block.0 * 4096, &[0; 4096]).unwrap();
        }
    }
    damaged.metadata.flush().unwrap();
    Some((damaged, older.log != newest.log))
}

#[test]
fn the_older_superblock_leads_to_the_same_content_whatever_the_log_carries() {
    let mut further_back = 0;
    for seed in 1..=SEEDS {
        let mut rng = Rng::new(seed);
        let size = [512, 1024, 4096][rng.below(3) as usize];
        let bytes = [4, 8, 16][rng.below(3) as usize] * size;
        let disks = Disks::new((bytes + (2 + rng.below(8)) * size).max(16 << 10), 8 << 20);
        let log_blocks = Some([24, 48, 96][rng.below(3) as usize]);
        disks.format(&FormatOptions { block_size: size as u32, log_blocks, ..format_options(bytes) });
        let writing = OpenOptions {
            log_data: [600, 5000, 65536][rng.below(3) as usize],
            discard: rng.below(3) == 0,
            delta_max: [8, 64, 1000][rng.below(3) as usize],
            ..options()
        };
        let reading = OpenOptions { read_only: true, ..writing.clone() };
        let mut disks = disks;
        for life in 0..4 {
            let story = format!("seed {seed}, life {life}");
            let volume = disks.open(&writing).unwrap_or_else(|error| panic!("{story}: {error}"));
            live(&volume, &mut rng);
            if rng.below(6) == 0 {
                volume.close().unwrap();
            } else {
                drop(volume);
            }
            let kept = rng.below(3);
            disks = disks.crash(|_, _, _| kept == 1 || kept == 2 && rng.below(2) == 0);
            let expected = content(&copy(&disks).open(&reading).unwrap());
            let Some((damaged, elsewhere)) = without_newest(&disks) else { continue };
            further_back += u64::from(elsewhere);
            assert!(content(&damaged.open(&reading).unwrap()) == expected, "{story}: read-only");
            assert!(content(&damaged.open(&writing).unwrap()) == expected, "{story}: for writing");
            let again = damaged.crash(|_, _, _| rng.below(2) == 0);
            assert!(content(&again.open(&writing).unwrap()) == expected, "{story}: again, after a power cut");
            if rng.below(2) == 0 {
                disks = again.lose_everything_unflushed();
            }
        }
    }
    assert!(further_back > SEEDS, "only {further_back} ways back went further than the newest superblock");
}

/// The data device refuses what the log has for it. The volume is refused for writing, with the block's
/// number; read-only nothing is missing, and once the device takes it, it opens.
#[test]
fn data_in_the_log_that_cannot_be_written_to_its_place_is_not_lost() {
    let disks = Disks::new(1 << 20, 8 << 20);
    disks.format(&format_options(16 * 4096));
    let writing = OpenOptions { log_data: 1 << 20, ..options() };
    let volume = disks.open(&writing).unwrap();
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    drop(volume);
    let disks = disks.lose_everything_unflushed();
    let damaged = copy(&disks);
    damaged.data.fail_region(IoKind::Write, 2 * 4096..3 * 4096);
    damaged.data.fail_region(IoKind::Read, 2 * 4096..3 * 4096);
    let refused = damaged.open(&writing).unwrap_err();
    assert!(matches!(refused, VolumeError::NotRestored { .. }), "{refused}");
    let volume = damaged.open(&OpenOptions { read_only: true, ..writing.clone() }).unwrap();
    (0..4).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
    drop(volume);
    damaged.data.clear_faults();
    let volume = damaged.open(&writing).unwrap();
    (0..4).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
}
