//! Data and metadata as sparse files on one file system, as `./run` makes them, and that file system full.
//!
//! The story: a trim was answered, the checkpoint that followed needed a block of metadata for which the file
//! system had no room, and the volume stopped; so did each one after it, at the same place, for no restart
//! made room. Nothing but more room below got it out. What a checkpoint may write is set aside on disk now
//! before it is promised.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, SimDevice, SimFileSystem};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{FormatOptions, Op, OpenOptions, RequestError, RunPolicy, Volume};

const BLOCK: u64 = 4096;
const LBNS: u64 = 1000;

/// Puts both devices on a file system that has so many blocks left.
fn share(disks: &Disks, free: u64) -> SimFileSystem {
    let file_system = SimFileSystem::new(free * BLOCK);
    disks.data.put_on(&file_system);
    disks.metadata.put_on(&file_system);
    file_system
}

fn fresh() -> Disks {
    let disks = Disks::new(LBNS * BLOCK, 8 << 20);
    disks.format(&FormatOptions { log_blocks: Some(32), ..format_options(LBNS * BLOCK) });
    disks
}

/// Blocks that have space.
fn taken(device: &SimDevice) -> u64 {
    let (mut at, mut bytes) = (0, 0);
    while at < device.size()
        && let Some(range) = device.allocated(at..device.size()).unwrap()
    {
        bytes += range.end - range.start;
        at = range.end;
    }
    bytes / BLOCK
}

/// A life of writes, trims, commits and checkpoints. Whatever is refused is refused for space, and nothing
/// stops the volume.
fn live(volume: &Volume, model: &mut [u64], rng: &mut Rng, story: &str) -> u64 {
    let mut refused = 0;
    for step in 0..150 {
        let first = rng.below(LBNS - 40);
        match rng.below(10) {
            0 => flush(volume),
            1 => volume.checkpoint().unwrap_or_else(|error| panic!("{story}, step {step}: {error}")),
            2 => {
                trim(volume, first, 40);
                model[first as usize..][..40].fill(0);
            }
            _ => {
                for lbn in first..first + 1 + rng.below(40) {
                    let content = 1 + rng.below(1 << 40);
                    match try_write(volume, lbn, content, false) {
                        Ok(()) => model[lbn as usize] = content,
                        Err(error) => {
                            assert_eq!(
                                error,
                                RequestError::NoSpace,
                                "{story}, step {step}: {:?}",
                                volume.status().failure
                            );
                            refused += 1;
                            break;
                        }
                    }
                }
            }
        }
    }
    (0..LBNS).for_each(|lbn| assert_content(volume, lbn, model[lbn as usize]));
    refused
}

#[test]
fn data_that_fills_the_file_system_up_does_not_stop_the_metadata() {
    for seed in 0..10 {
        let runs = if seed % 2 == 0 { RunPolicy::ByCost } else { RunPolicy::Always };
        let options = OpenOptions { runs, discard: seed % 3 == 0, delta_max: 200, ..options() };
        let mut disks = fresh();
        let total = 300 + 60 * seed + taken(&disks.data) + taken(&disks.metadata);
        let (mut rng, mut model, mut refused) = (Rng::new(seed), vec![0; LBNS as usize], 0);
        for life in 0..3 {
            let story = format!("seed {seed}, life {life}");
            share(&disks, total.saturating_sub(taken(&disks.data) + taken(&disks.metadata)));
            let volume = disks.open(&options).unwrap();
            refused += live(&volume, &mut model, &mut rng, &story);
            if life == 1 {
                volume.close().unwrap();
            } else {
                flush(&volume);
                drop(volume);
            }
            disks = disks.lose_everything_unflushed();
            disks.assert_clean(&story);
        }
        assert!(refused > 0, "seed {seed}: the file system was never full");
    }
}

/// What a delta may need at worst is some four blocks of metadata an operation, and hardly ever needed. On a
/// small file system it was more than the data that the file system could have held.
#[test]
fn metadata_leaves_most_of_a_small_file_systems_room_to_data() {
    let disks = Disks::new(8000 * BLOCK, 64 << 20);
    disks.format(&FormatOptions { log_blocks: Some(256), ..format_options(8000 * BLOCK) });
    share(&disks, 4000);
    let volume = disks.open(&options()).unwrap();
    let written = (0..8000).take_while(|lbn| try_write(&volume, *lbn, 1 + lbn, false).is_ok()).count();
    assert!(written > 2400, "{written} of 4000 blocks");
    assert!(!volume.is_read_only());
}

/// Logical blocks of 512 bytes, so far apart that each change takes leaves of its own: metadata grows by some
/// blocks with each.
const SCATTERED: u64 = 400_000;

/// A volume of these, whose metadata is a file of 64 MiB on a file system with so many blocks left.
fn scattered(free: u64) -> (Disks, SimFileSystem) {
    let disks = Disks::new((SCATTERED + 50) * 512, 64 << 20);
    let file_system = SimFileSystem::new(1 << 30);
    disks.metadata.put_on(&file_system);
    disks.format(&FormatOptions {
        log_blocks: Some(1024),
        block_size: 512,
        ..format_options(SCATTERED * 512)
    });
    file_system.set_free(free * BLOCK);
    (disks, file_system)
}

fn scattered_options() -> OpenOptions {
    OpenOptions { runs: RunPolicy::Never, ..options() }
}

/// Writes content that is nowhere else to the `n`-th of the scattered blocks.
fn write_scattered(volume: &Volume, n: u64) -> Result<(), RequestError> {
    try_write(volume, n * 7919 % SCATTERED, 1 + n, false)
}

/// Nobody else may have what was promised: data fills up the file system between the write and its
/// checkpoint.
#[test]
fn what_was_admitted_has_space_when_its_checkpoint_comes() {
    for room in [2000, 3000, 6000] {
        let (disks, _) = scattered(0);
        // As after a copy, which has no more space than what was written.
        let file_system = SimFileSystem::new(room * BLOCK);
        disks.metadata.put_on(&file_system);
        let volume = disks.open(&scattered_options()).unwrap();
        let written = (0..900).take_while(|n| write_scattered(&volume, *n).is_ok()).count();
        assert!(written > 10, "room for {room} blocks: {written} written");
        file_system.set_free(0);
        for _ in 0..3 {
            volume.checkpoint().unwrap_or_else(|error| panic!("room for {room} blocks: {error}"));
        }
        volume.close().unwrap();
        disks.assert_clean(&format!("room for {room} blocks"));
    }
}

/// What a file system has preallocated it does not tell apart from a hole. So what the log of a killed volume
/// needs is set aside at the open, before anybody else can take it.
#[test]
fn what_a_replay_brings_has_space_from_the_open_on() {
    let (disks, _) = scattered(20_000);
    let volume = disks.open(&scattered_options()).unwrap();
    (0..900).for_each(|n| write_scattered(&volume, n).unwrap());
    flush(&volume);
    drop(volume);
    let disks = disks.lose_everything_unflushed();
    let file_system = SimFileSystem::new(20_000 * BLOCK);
    disks.metadata.put_on(&file_system);
    let volume = disks.open(&scattered_options()).unwrap();
    assert!(volume.status().commit.delta_operations >= 900, "nothing was replayed");
    file_system.set_free(0);
    volume.checkpoint().unwrap();
    volume.close().unwrap();
    disks.assert_clean("a replay on a file system that fills up");
}

/// Fills the metadata until a write is refused; says how many were not.
fn fill(volume: &Volume, from: u64) -> u64 {
    let refused = (from..).find(|n| write_scattered(volume, *n).is_err()).unwrap();
    assert!(!volume.is_read_only(), "{:?}", volume.status().failure);
    refused - from
}

/// Holes that can get no space went on counting as free: the status said so, and small deltas were not seen
/// to be small.
#[test]
fn holes_count_as_free_metadata_only_while_the_file_system_may_have_room_for_them() {
    let (disks, file_system) = scattered(200);
    let volume = disks.open(&scattered_options()).unwrap();
    let free = || volume.status().metadata_free_blocks;
    assert!(free() > 10_000, "{} free blocks of 16384", free());
    fill(&volume, 0);
    volume.checkpoint().unwrap();
    assert!(free() < 1500, "{} free blocks with room for 200", free());
    // A checkpoint finds out that there is room again, and nobody has to be refused for that.
    file_system.set_free(10_000 * BLOCK);
    volume.checkpoint().unwrap();
    assert!(free() > 10_000, "{} free blocks with room again", free());
}

/// Ahead of its use, metadata took what a delta of any size could need at worst, some five blocks for each
/// operation.
#[test]
fn metadata_takes_a_quarter_of_the_room_ahead_of_its_use_and_no_more() {
    const ROOM: u64 = 8000;
    let (disks, _) = scattered(ROOM);
    let had = taken(&disks.metadata);
    let volume = disks.open(&scattered_options()).unwrap();
    let used = volume.status().metadata_used_blocks;
    for n in 0..2500 {
        write_scattered(&volume, n).unwrap();
        if n % 100 != 0 {
            continue;
        }
        let (took, uses) = (taken(&disks.metadata) - had, volume.status().metadata_used_blocks - used);
        assert!(took <= uses + ROOM / 4 + 600, "{took} of {ROOM} blocks for {uses} after {n} writes");
    }
}

/// Each refused write on a full file system cost three checkpoints, and six tries with ever fewer blocks:
/// with many clients, one after the other, a refusal took a minute.
#[test]
fn a_refusal_for_want_of_metadata_asks_the_file_system_once_and_costs_no_checkpoint() {
    let (disks, file_system) = scattered(200);
    let volume = disks.open(&scattered_options()).unwrap();
    let written = fill(&volume, 0);
    let before = (disks.metadata.questions().preallocations, volume.status().commit.transaction);
    for n in 0..50 {
        assert_eq!(write_scattered(&volume, written + n), Err(RequestError::NoSpace));
    }
    let after = (disks.metadata.questions().preallocations, volume.status().commit.transaction);
    assert_eq!((after.0 - before.0, after.1 - before.1), (50, 0), "preallocations, checkpoints");
    // And none is refused that has room.
    file_system.set_free(300 * BLOCK);
    assert!(fill(&volume, written) > 100);
    volume.close().unwrap();
    disks.assert_clean("after refusals");
}

/// A trim in between changes something: one checkpoint tells what it has freed.
#[test]
fn a_refusal_after_a_trim_costs_the_checkpoint_that_tells_what_that_has_freed() {
    let (disks, _) = scattered(200);
    let volume = disks.open(&scattered_options()).unwrap();
    let mut written = fill(&volume, 0);
    let before = volume.status().commit.transaction;
    for n in 0..20 {
        let offset = n * 7919 % SCATTERED * 512;
        run(&volume, Op::Trim { offset, len: 512, fua: false }).unwrap();
        written += fill(&volume, written);
    }
    let checkpoints = volume.status().commit.transaction - before;
    assert!(checkpoints <= 60, "{checkpoints} checkpoints for 20 refusals");
}
