//! Mappings that stand in runs above their tree: they are read, overwritten, trimmed, told of, merged,
//! checked and lost like any others.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::BlockDevice;
use dedup_meta::Superblock;
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{Detail, FormatOptions, Label, OpenOptions, RequestError, RunPolicy, Volume};

/// Blocks of 512 bytes: a mapping of 700 leaves, of which a hundred scattered writes touch nearly a hundred.
const BLOCKS: u64 = 236_600;
const SIZE: u64 = 512;

fn options() -> OpenOptions {
    OpenOptions { delta_max: 4000, ..dedup_tests::options() }
}

fn made(metadata: u64) -> Disks {
    let disks = Disks::new((BLOCKS / 4) * SIZE, metadata);
    disks.format(&FormatOptions { block_size: SIZE as u32, ..format_options(BLOCKS * SIZE) });
    disks
}

fn newest(disks: &Disks) -> Superblock {
    let label = Label::read(&*disks.data).unwrap();
    dedup_meta::load_superblocks(&*disks.metadata).newest(Some(label.pool)).unwrap().clone()
}

/// A volume written, overwritten and trimmed at random places, with checkpoints between and now and then an
/// open; what its blocks hold; the most runs it had; and how often they became fewer.
fn aged(seed: u64, policy: RunPolicy, rounds: u64) -> (Disks, Vec<u64>, usize, usize) {
    let disks = made(32 << 20);
    let options = OpenOptions { runs: policy, ..options() };
    let mut volume = disks.open(&options).unwrap();
    let (mut rng, mut held) = (Rng::new(seed), vec![0; BLOCKS as usize]);
    let (mut runs_max, mut merged, mut before) = (0, 0, 0);
    for round in 0..rounds {
        for n in 0..[5, 100, 400][rng.below(3) as usize] {
            let lbn = rng.below(BLOCKS);
            // One in four has content that was stored before.
            let content = if rng.below(4) == 0 { 1 + rng.below(50) } else { 100 + round * 1000 + n };
            held[lbn as usize] = content;
            write(&volume, lbn, content);
        }
        let (lbn, blocks) = (rng.below(BLOCKS - 3000), rng.below(3000));
        trim(&volume, lbn, blocks);
        held[lbn as usize..][..blocks as usize].fill(0);
        volume.checkpoint().unwrap();
        let runs = newest(&disks).volumes[0].mapping.runs.len();
        (runs_max, merged, before) = (runs_max.max(runs), merged + usize::from(runs < before), runs);
        if round % 9 == 8 {
            // Whatever was not in a checkpoint is replayed over runs.
            write(&volume, 7, 99);
            trim(&volume, 20, 50);
            (held[7], _) = (99, held[20..70].fill(0));
            flush(&volume);
            drop(volume);
            volume = disks.lose_everything_unflushed().open(&options).unwrap();
            drop(volume);
            volume = disks.open(&options).unwrap();
        }
    }
    volume.close().unwrap();
    (disks, held, runs_max, merged)
}

fn assert_holds(volume: &Volume, held: &[u64]) {
    held.iter().enumerate().filter(|(lbn, content)| **content > 0 || lbn % 50 == 0).for_each(
        |(lbn, content)| {
            assert_content(volume, lbn as u64, *content);
        },
    );
    let mut at = 0;
    while at < BLOCKS {
        let extents = volume.extents(at * SIZE, (BLOCKS - at) * SIZE, Detail::Allocation, 1000).unwrap();
        for extent in extents {
            let blocks = extent.len / SIZE;
            let range = &held[at as usize..][..blocks as usize];
            assert!(
                range.iter().all(|content| (*content > 0) == (extent.level > 0)),
                "blocks {at}, {blocks}: {extent:?}"
            );
            at += blocks;
        }
    }
}

#[test]
fn a_volume_whose_mappings_are_in_runs_is_the_volume_that_was_written() {
    for (seed, policy) in [(1, RunPolicy::ByCost), (2, RunPolicy::Always), (3, RunPolicy::Always)] {
        let (disks, held, runs_max, merged) = aged(seed, policy, 60);
        assert!(runs_max > 2, "{policy:?}: {runs_max} runs at most: they were not tried");
        assert!(merged > 0, "{policy:?}: no run was ever joined or merged");
        disks.assert_clean("mappings in runs");
        assert_holds(&disks.open(&OpenOptions { read_only: true, ..options() }).unwrap(), &held);
        let volume = disks.open(&options()).unwrap();
        assert_holds(&volume, &held);
        trim(&volume, 0, BLOCKS);
        volume.checkpoint().unwrap();
        assert_eq!((volume.status().logical_used_blocks, volume.status().data_used_blocks), (0, 0));
        assert_holds(&volume, &vec![0; BLOCKS as usize]);
        volume.close().unwrap();
        disks.assert_clean("mappings in runs, trimmed");
    }
}

/// Half of the volume is trimmed, and what says so stands in a run above mappings in the base: the blocks are
/// gone for reads, for block status and for a second trim, which would take away references that others have
/// by then.
#[test]
fn what_a_run_says_is_unmapped_stays_unmapped_over_a_base_that_has_it() {
    let disks = made(32 << 20);
    let volume = disks.open(&options()).unwrap();
    let place = |n: u64| n * 337;
    (0..600).for_each(|n| write(&volume, place(n), 1 + n));
    volume.close().unwrap();
    let volume = disks.open(&OpenOptions { runs: RunPolicy::Never, ..options() }).unwrap();
    (0..600).for_each(|n| write(&volume, place(n), 1001 + n));
    volume.checkpoint().unwrap();
    volume.close().unwrap();
    let volume = disks.open(&options()).unwrap();
    trim(&volume, place(300), BLOCKS - place(300));
    volume.checkpoint().unwrap();
    let runs = newest(&disks).volumes[0].mapping.runs.clone();
    assert!(!runs.is_empty(), "nothing is in a run");
    // What was trimmed is stored again elsewhere.
    write(&volume, 5, 1001 + 400);
    trim(&volume, place(300), BLOCKS - place(300));
    (0..600).for_each(|n| assert_content(&volume, place(n), if n < 300 { 1001 + n } else { 0 }));
    assert_content(&volume, 5, 1001 + 400);
    assert_eq!(volume.status().logical_used_blocks, 301);
    volume.close().unwrap();
    disks.assert_clean("trimmed twice");
}

/// A damaged node of a run is damage to the truth: what may be below it is an error, never what stood there
/// before.
#[test]
fn a_damaged_run_gives_errors_and_never_older_content() {
    let (disks, held, _, _) = aged(5, RunPolicy::Always, 30);
    let run = newest(&disks).volumes[0].mapping.runs.iter().find_map(|root| root.node).unwrap();
    disks.metadata.write(run.block.0 * 4096 + 1024, &[0xff; 512]).unwrap();
    let volume = disks.open(&options()).unwrap();
    let (mut right, mut failed) = (0, 0);
    for (lbn, content) in held.iter().enumerate().filter(|(lbn, content)| **content > 0 || lbn % 500 == 0) {
        match read(&volume, lbn as u64) {
            Ok(found) => {
                let expected =
                    if *content == 0 { vec![0; SIZE as usize] } else { block(*content, SIZE as usize) };
                assert!(found == expected, "LBN {lbn}: other content than was written last");
                right += 1;
            }
            Err(error) => {
                assert_eq!(error, RequestError::Io, "LBN {lbn}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "{right} reads went through a damaged run");
    assert!(volume.is_read_only(), "the volume goes on with damaged mappings");
    assert!(try_write(&volume, 1, 9, false).is_err());
}

/// The metadata device fills up with scattered writes, as runs: they are refused, nothing fails, and trims
/// make room again.
#[test]
fn a_metadata_device_full_of_runs_says_no_space_and_trims_make_room_again() {
    let disks = made(6 << 20);
    let volume = disks.open(&options()).unwrap();
    let place = |n: u64| n * 7919 % BLOCKS;
    let (mut stored, mut runs_max) = (0, 0);
    let refused = (0..BLOCKS / 4 - 100).find(|n| match try_write(&volume, place(*n), n + 1, false) {
        Ok(()) => {
            stored += 1;
            if stored % 500 == 0 {
                runs_max = runs_max.max(newest(&disks).volumes[0].mapping.runs.len());
            }
            false
        }
        Err(error) => {
            assert_eq!(error, RequestError::NoSpace, "write {n}: {:?}", volume.status().failure);
            true
        }
    });
    assert!(refused.is_some(), "the metadata device never filled up: {:?}", volume.status());
    assert!(runs_max > 1, "{runs_max} runs at most: they were not tried");
    (0..stored).step_by(7).for_each(|n| assert_content(&volume, place(n), n + 1));
    (0..stored).for_each(|n| trim(&volume, place(n), 1));
    volume.checkpoint().unwrap();
    volume.checkpoint().unwrap();
    (0..stored / 32).for_each(|n| write(&volume, place(n), BLOCKS + n));
    volume.close().unwrap();
    disks.assert_clean("a metadata device that was full");
}

/// Trims, scattered over a volume whose metadata device had just room for them, filled runs; the write that
/// came next needed them merged. Each checkpoint merged what the free blocks allowed, was counted as one in
/// vain, and after six the write was told that there is no space, and the index had been given up for it.
#[test]
fn a_write_after_scattered_trims_waits_for_the_merge_and_is_not_refused() {
    const BLOCKS: u64 = 400_000;
    let make = |metadata_blocks: u64, trims: bool| {
        let disks = Disks::new(64 << 10, metadata_blocks * 4096);
        let format =
            FormatOptions { block_size: SIZE as u32, log_blocks: Some(256), ..format_options(BLOCKS * SIZE) };
        disks.format(&format);
        let volume = disks.open(&options()).unwrap();
        (0..BLOCKS).for_each(|lbn| write(&volume, lbn, 1 + lbn % 8));
        (0..3).for_each(|_| volume.checkpoint().unwrap());
        if trims {
            (7..BLOCKS).step_by(165).for_each(|lbn| trim(&volume, lbn, 1));
            (0..3).for_each(|_| volume.checkpoint().unwrap());
            assert!(!newest(&disks).volumes[0].mapping.runs.is_empty(), "nothing is in a run");
            (0..4).for_each(|n| write(&volume, 50 + n, 3));
        }
        volume.status().metadata_used_blocks
    };
    let used = make(4000 + BLOCKS / 200, false);
    make(used + 400, true);
}
