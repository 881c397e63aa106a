//! Sparse files on a file system that is full: what lies below the volume has less room than the volume was
//! promised.
//!
//! A place of a file that has been written has space; a hole needs some. So on a full file system a volume
//! can go on as long as it writes where it has written before, and it has to know where that is.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind, SimFileSystem};
use dedup_tests::hooked::{Rig, WATCHDOG, watched};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{Op, OpenOptions, RequestError, Volume};
use std::collections::BTreeSet;
use std::sync::mpsc::channel;

const BLOCK: u64 = 4096;

/// A volume of 256 blocks whose data file is on a file system with room for so many of them.
fn cramped(blocks: u64) -> (Disks, SimFileSystem) {
    let disks = Disks::new(300 * BLOCK, 8 << 20);
    disks.format(&format_options(256 * BLOCK));
    let file_system = SimFileSystem::new(blocks * BLOCK);
    disks.data.put_on(&file_system);
    (disks, file_system)
}

/// Writes new content until there is no room, and says how much went in.
fn write_all(volume: &Volume, lbns: std::ops::Range<u64>, content: u64) -> u64 {
    let refused = |lbn: &u64| {
        try_write(volume, *lbn, content + lbn, false)
            .inspect_err(|e| assert_eq!(*e, RequestError::NoSpace))
            .is_err()
    };
    lbns.clone().find(refused).unwrap_or(lbns.end) - lbns.start
}

/// The block whose write was refused for want of room was given back, and handed out again first: of a
/// thousand writes each failed, with hundreds of free blocks that had space, after a restart, too.
#[test]
fn after_a_full_file_system_what_is_freed_can_be_written_again() {
    for (discard, restart) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = OpenOptions { discard, ..options() };
        let (disks, file_system) = cramped(100);
        let mut volume = disks.open(&options).unwrap();
        assert_eq!(write_all(&volume, 0..256, 1000), 100, "as many as there is room for");
        assert_eq!(write_all(&volume, 200..256, 2000), 0);
        trim(&volume, 0, 50);
        flush(&volume);
        if restart {
            volume.close().unwrap();
            volume = disks.open(&options).unwrap();
        }
        assert_eq!(write_all(&volume, 100..256, 3000), 50, "discard {discard}, restart {restart}");
        (50..100).for_each(|lbn| assert_content(&volume, lbn, 1000 + lbn));
        (100..150).for_each(|lbn| assert_content(&volume, lbn, 3000 + lbn));
        // Somebody makes room.
        file_system.set_free(20 * BLOCK);
        assert_eq!(write_all(&volume, 150..256, 4000), 20, "discard {discard}, restart {restart}");
        file_system.set_free(1000 * BLOCK);
        assert_eq!(write_all(&volume, 170..256, 5000), 86);
        let status = volume.status();
        assert_eq!((status.data_set_aside_blocks, status.data_full_below), (0, false));
    }
}

/// A write fails if and only if its content is not stored and neither a free block has space nor the file
/// system any.
#[test]
fn on_a_full_file_system_exactly_what_has_no_room_is_refused() {
    for seed in 0..8 {
        let discard = seed % 2 == 1;
        let options = OpenOptions { discard, ..options() };
        let (disks, file_system) = cramped(6 + seed);
        let volume = disks.open(&options).unwrap();
        let (mut rng, mut model, mut refused) = (Rng::new(seed), vec![0u64; 24], 0);
        for round in 0..400 {
            let lbn = rng.below(24);
            let stored: BTreeSet<u64> = model.iter().copied().filter(|content| *content != 0).collect();
            match rng.below(12) {
                0 | 1 => {
                    trim(&volume, lbn, 1);
                    model[lbn as usize] = 0;
                    continue;
                }
                2 => flush(&volume),
                3 => file_system.set_free(rng.below(3) * BLOCK),
                _ => {}
            }
            let content = 1 + rng.below(60);
            // Block 0 has the label. What was committed and freed is punched, or has its space still.
            let backed = (1..300).filter(|pbn| has_space(&disks, *pbn)).count() as u64;
            let room = backed + file_system.free() / BLOCK;
            let fits = stored.contains(&content) || (stored.len() as u64) < room;
            let written = try_write(&volume, lbn, content, rng.below(6) == 0);
            let story = format!("seed {seed}, round {round}: {} stored, room for {room}", stored.len());
            match written {
                Ok(()) => model[lbn as usize] = content,
                Err(error) => {
                    assert!(error == RequestError::NoSpace && !fits, "{story}: {error}");
                    refused += 1;
                }
            }
            assert!(fits || written.is_err(), "{story}: written");
        }
        (0..24).for_each(|lbn| assert_content(&volume, lbn, model[lbn as usize]));
        assert!(refused > 0, "seed {seed}: never full");
        volume.close().unwrap();
        disks.assert_clean(&format!("seed {seed}"));
    }
}

fn has_space(disks: &Disks, pbn: u64) -> bool {
    disks.data.allocated(pbn * BLOCK..(pbn + 1) * BLOCK).unwrap().is_some()
}

/// Free blocks were said to be all that are not in use, those among them that nobody is given any more, too.
#[test]
fn blocks_set_aside_after_a_failed_write_do_not_count_as_free() {
    let disks = formatted(16, BLOCK as u32);
    let volume = disks.open(&options()).unwrap();
    let free = volume.status().data_free_blocks;
    disks.data.fail_nth(IoKind::Write, 0);
    assert_eq!(
        try_write(&volume, 0, 1, false),
        Err(RequestError::Io),
        "a device that fails is not one that is full"
    );
    let status = volume.status();
    assert_eq!((status.data_free_blocks, status.data_set_aside_blocks), (free - 1, 1));
    assert!(!status.data_full_below);
    write(&volume, 0, 1);
    assert_eq!(volume.status().data_free_blocks, free - 2);
    disks.data.set_capacity_left(0);
    assert_eq!(try_write(&volume, 1, 2, false), Err(RequestError::NoSpace));
    assert!(volume.status().data_full_below && volume.status().data_free_blocks < free - 2);
}

/// A volume larger than its store ran full while a file system was busy. The journal could not be replayed,
/// the check could repair nothing, so nothing could be deleted and trimmed: each of these overwrites, and an
/// overwrite needs a free block first.
#[test]
fn a_volume_larger_than_its_store_can_be_overwritten_when_it_is_full() {
    let disks = Disks::new(641 * BLOCK, 8 << 20);
    disks.format(&format_options(2000 * BLOCK));
    let volume = disks.open(&options()).unwrap();
    let data: Vec<u8> = (0..20).flat_map(|n| block(1 + n, 4096)).collect();
    let large = |lbn: u64, content: u64| {
        let data: Vec<u8> =
            data.chunks(4096).flat_map(|b| [&content.to_le_bytes(), &b[8..]].concat()).collect();
        run(&volume, Op::Write { offset: lbn * BLOCK, data: &data, fua: false })
    };
    let filled = (0..100).take_while(|n| large(n * 20, n + 1).is_ok()).count() as u64;
    assert!((30..32).contains(&filled), "{filled} large requests");
    let small = write_all(&volume, 1000..2000, 100_000);
    assert!((3..24).contains(&small), "{small} small requests");
    for round in 0..20 {
        (0..200).for_each(|lbn| write(&volume, lbn, 200_000 + round * 1000 + lbn));
    }
    let before = volume.status().commit.transaction;
    assert_eq!(try_write(&volume, 1999, 7, false), Err(RequestError::NoSpace));
    assert_eq!(
        volume.status().commit.transaction,
        before,
        "a checkpoint for blocks that are kept from the write"
    );
    trim(&volume, 0, 100);
    flush(&volume);
    assert_eq!(large(1900, 300_000), Ok(()));
}

/// With `--discard`, every freed block was discarded before the commit that freed it was answered: 31,100
/// writes a second fell to 1,808.
#[test]
fn a_commit_is_answered_before_its_frees_are_discarded() {
    watched(WATCHDOG, || {
        let options = OpenOptions { discard: true, background: true, ..options() };
        let rig = Rig::open(formatted(16, BLOCK as u32), &options).unwrap();
        (0..16).for_each(|lbn| write(&rig.volume, lbn, lbn + 1));
        flush(&rig.volume);
        let (arrived, at_device) = channel();
        let (go, held) = channel::<()>();
        rig.data.before(IoKind::Discard, 0, move || {
            arrived.send(()).unwrap();
            let _ = held.recv();
        });
        // Blocks that do not lie side by side.
        [1, 4, 7].iter().for_each(|lbn| trim(&rig.volume, *lbn, 1));
        flush(&rig.volume);
        at_device.recv().unwrap();
        assert_eq!(rig.volume.status().data_undiscarded_blocks, 2, "one of three is under way");
        // Four blocks are free beside those three, and the two that wait are taken back.
        (0..6).for_each(|n| write(&rig.volume, [1, 4, 7, 0, 2, 3][n], 100 + n as u64));
        drop(go);
        write(&rig.volume, 8, 200);
        assert_content(&rig.volume, 8, 200);
    });
}

/// The device is told of what was freed, joined, and of nothing else.
#[test]
fn all_that_is_freed_is_discarded_once_and_side_by_side_together() {
    for background in [false, true] {
        let options = OpenOptions { discard: true, background, ..options() };
        let disks = formatted(64, BLOCK as u32);
        let volume = disks.open(&options).unwrap();
        (0..64).for_each(|lbn| write(&volume, lbn, lbn + 1));
        flush(&volume);
        disks.data.keep_trace();
        trim(&volume, 8, 32);
        flush(&volume);
        volume.close().unwrap();
        let discards: Vec<_> =
            disks.data.trace().into_iter().filter(|(kind, _)| *kind == IoKind::Discard).collect();
        let bytes: u64 = discards.iter().map(|(_, range)| range.end - range.start).sum();
        assert_eq!(bytes, 32 * BLOCK, "background {background}: {discards:?}");
        assert!(discards.len() <= 2, "background {background}: {discards:?}");
        let volume = disks.open(&options).unwrap();
        (0..8).chain(40..64).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
    }
}

/// Each place that was refused is set aside, and after as many refusals as there are holes, none was left to
/// be tried: there was no room for ever.
#[test]
fn holes_that_were_all_refused_are_tried_again_and_found_when_there_is_room() {
    let disks = Disks::new(48 * BLOCK, 8 << 20);
    disks.format(&format_options(256 * BLOCK));
    let file_system = SimFileSystem::new(10 * BLOCK);
    disks.data.put_on(&file_system);
    let volume = disks.open(&options()).unwrap();
    assert_eq!(write_all(&volume, 0..256, 1000), 10);
    for round in 0..100 {
        let refused = try_write(&volume, 20, 2000 + round, false);
        assert_eq!(refused, Err(RequestError::NoSpace), "round {round}");
    }
    file_system.set_free(20 * BLOCK);
    let before = disks.data.questions().preallocations;
    assert_eq!(write_all(&volume, 100..256, 3000), 20);
    assert!(
        disks.data.questions().preallocations > before,
        "space is taken a bit with each write from now on"
    );
}

/// A place whose write has failed is bad until a reopen. It was known to the open region only: once that was
/// used up and opened anew, the place was given out again.
#[test]
fn a_place_whose_write_failed_is_not_used_again_however_often_its_region_is_opened() {
    let disks = formatted(16, BLOCK as u32);
    let volume = disks.open(&options()).unwrap();
    write(&volume, 0, 1);
    disks.data.keep_trace();
    disks.data.fail_nth(IoKind::Write, 0);
    assert_eq!(try_write(&volume, 1, 2, false), Err(RequestError::Io));
    let (_, bad) = disks.data.trace().pop().unwrap();
    // A file system that becomes full, and one that has room again, close the region that is open.
    disks.data.set_capacity_left(0);
    assert_eq!(try_write(&volume, 1, 2, false), Err(RequestError::NoSpace));
    disks.data.set_capacity_left(1 << 20);
    for round in 0..3 {
        (0..16).for_each(|lbn| write(&volume, lbn, 100 + round * 16 + lbn));
    }
    let touches_it = |range: &std::ops::Range<u64>| range.start < bad.end && bad.start < range.end;
    let writes = disks.data.trace().into_iter().filter(|(_, range)| touches_it(range)).count();
    assert_eq!(writes, 1, "the bad place {bad:?} was written again");
}

/// Each refused write looked for blocks with space in every region of the store, two and three times, and
/// tried eight holes, of which each costs a file system a search and a commit of its own. All that while
/// commits waited. A full file system stays full until something frees.
#[test]
fn a_refusal_asks_a_full_file_system_once_and_looks_again_only_for_what_came_free() {
    let (disks, _file_system) = cramped(100);
    let volume = disks.open(&options()).unwrap();
    assert_eq!(write_all(&volume, 0..256, 1000), 100);
    assert_eq!(try_write(&volume, 200, 2000, false), Err(RequestError::NoSpace));
    let asked = |volume: &Volume| {
        let writes = disks.data.operations(IoKind::Write);
        (writes, disks.data.questions(), volume.status().commit.transaction)
    };
    let before = asked(&volume);
    for n in 0..50 {
        assert_eq!(try_write(&volume, 200 + n % 7, 3000 + n, false), Err(RequestError::NoSpace));
        write(&volume, 110 + n, 1000 + n);
    }
    let after = asked(&volume);
    assert_eq!(after.0 - before.0, 50, "one write each, to see whether there is room again");
    assert_eq!((after.1, after.2), (before.1, before.2), "searches, checkpoints for nothing");
    // As many as come free, by trims or by overwrites: of contents that nothing else is mapped to.
    trim(&volume, 60, 10);
    write(&volume, 70, 1000);
    assert_eq!(write_all(&volume, 200..256, 4000), 11);
}

/// Of blocks that are alike in a batch one is written; what was reserved for the others is given out next, so
/// that new blocks go on lying side by side.
#[test]
fn blocks_that_were_reserved_and_not_needed_are_the_next_to_be_written() {
    let disks = formatted(64, BLOCK as u32);
    let volume = disks.open(&options()).unwrap();
    disks.data.keep_trace();
    for n in 0..10 {
        let alike: Vec<u8> = (0..4).flat_map(|_| block(1 + n, 4096)).collect();
        assert_eq!(run(&volume, Op::Write { offset: 4 * n * BLOCK, data: &alike, fua: false }), Ok(()));
    }
    let places: Vec<u64> = disks.data.trace().into_iter().map(|(_, range)| range.start / BLOCK).collect();
    assert_eq!(places, Vec::from_iter(1..11));
}
