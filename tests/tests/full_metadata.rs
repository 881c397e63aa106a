//! Data and metadata as sparse files on one file system, as `./run` makes them, and that file system full.
//!
//! The story: a trim was answered, the checkpoint that followed needed a block of metadata for which the file system had no room, and the volume
//! stopped; so did each one after it, at the same place, for no restart made room. Nothing but more room below got it out. What a checkpoint may
//! write is set aside on disk now before it is promised.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, SimDevice, SimFileSystem};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{FormatOptions, OpenOptions, RequestError, RunPolicy, Volume};

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

/// A life of writes, trims, commits and checkpoints. Whatever is refused is refused for space, and nothing stops the volume.
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

/// What a delta may need at worst is some four blocks of metadata an operation, and hardly ever needed. On a small file system it was more than
/// the data that the file system could have held.
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

/// Volumes of earlier versions are in that hole already: their metadata has blocks that were freed and have space, and these have to do.
#[cfg(feature = "planted-faults")]
#[test]
fn a_volume_that_stopped_for_want_of_metadata_goes_on_after_an_open() {
    use dedup_volume::Fault;
    let mut stopped = 0;
    for seed in 0..12 {
        let options = OpenOptions { delta_max: 100, discard: true, ..options() };
        let unaware =
            OpenOptions { planted: Some(Fault::SpaceNotSetAside), discard: false, ..options.clone() };
        let disks = fresh();
        let volume = disks.open(&unaware).unwrap();
        (0..LBNS / 2).for_each(|lbn| write(&volume, lbn, 1 + lbn));
        volume.close().unwrap();
        // Room for a checkpoint or two, and nothing else.
        share(&disks, 10 * seed);
        let volume = disks.open(&unaware).unwrap();
        let mut rng = Rng::new(seed);
        for _ in 0..200 {
            let lbn = rng.below(LBNS / 2);
            let size = u64::from(volume.block_size());
            let _ = run(&volume, dedup_volume::Op::Trim { offset: lbn * size, len: size, fua: true });
        }
        stopped += u64::from(volume.is_read_only());
        drop(volume);
        let volume = disks.open(&options).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        trim(&volume, 0, LBNS / 2);
        flush(&volume);
        volume.checkpoint().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        // What the trim gave back to the file system has room for new metadata.
        volume.checkpoint().unwrap();
        write(&volume, 0, 7);
        flush(&volume);
        volume.close().unwrap();
        disks.assert_clean(&format!("seed {seed}"));
    }
    assert!(stopped > 0, "no volume was ever in that hole");
}
