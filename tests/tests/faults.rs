//! The n-th operation of a device fails, for every n that a script has, every kind, both devices: the request that needs it
//! fails or does not need it, nothing acknowledged as durable is lost, and after a failed flush or metadata
//! write nothing more is acknowledged as durable.
//!
//! The scripts reach every path that does I/O: format, open with replay, each kind of write, commit, checkpoint, collection,
//! rebuilding, healing, closing, checking. What each run asserts is in [`dedup_tests::sweep`].

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::sweep::*;
use dedup_tests::*;

/// Every kind of request, with checkpoints and restarts between them.
const MIXED: &[Step] = &[
    Step::Write(0, &[1, 2, 3, 1]),
    Step::Flush,
    Step::Batch(&[(4, 4), (5, 4), (6, 2), (0, 5)]),
    Step::Part(10, 18, 7),
    Step::WriteFua(8, &[6, 0]),
    Step::Trim(1, 5),
    Step::Zero(49, 18),
    Step::Checkpoint,
    Step::Write(1, &[1, 8]),
    Step::Read,
    Step::Kill,
    Step::Write(3, &[3, 9]),
    Step::Close,
];

/// What the sweeps go through: names, where they begin, and what is done.
fn scripts() -> Vec<(&'static str, Scene, &'static [Step])> {
    let mixed = Scene::small(8);
    let strict = mixed.opened(|options| {
        options.flushrq = Some(1);
        options.verify_match = Some(true);
        options.discard = true;
    });
    // A log of records of every kind.
    let replay = mixed.after(&[
        Step::Write(0, &[1, 2, 3, 4]),
        Step::Checkpoint,
        Step::WriteFua(4, &[5, 6, 1]),
        Step::Trim(0, 2),
        Step::Flush,
        Step::Zero(41, 8),
        Step::WriteFua(7, &[7, 8, 9]),
        Step::Rot(7),
        Step::Read,
        Step::WriteFua(10, &[7]),
        Step::Flush,
    ]);
    let mut cached = replay.clone();
    cached.bypass = false;
    let index = mixed.after(&[Step::Write(0, &[1, 2, 3, 4, 5, 6]), Step::Close]).without_index();
    let heal = mixed.after(&[Step::Write(0, &[1, 2, 3, 2]), Step::Checkpoint]);
    let full = Scene::small(0).opened(|options| options.delta_max = 1);
    vec![
        ("mixed", mixed.clone(), MIXED),
        ("strict", strict, MIXED),
        ("replay", replay, REPLAY),
        ("replay, cached", cached, REPLAY),
        ("index", index, INDEX),
        ("heal", heal, HEAL),
        ("full", full, FULL),
        ("wrap", mixed, WRAP),
        ("small blocks", Scene::of_block_size(512, 8), MIXED),
        ("large blocks", Scene::of_block_size(65536, 8), MIXED),
    ]
}

const REPLAY: &[Step] =
    &[Step::ReadOnly, Step::Kill, Step::Write(0, &[2, 10]), Step::Flush, Step::Kill, Step::Checkpoint];

const INDEX: &[Step] = &[
    Step::Write(6, &[1, 7]),
    Step::Collect,
    Step::Checkpoint,
    Step::Trim(0, 4),
    Step::Checkpoint,
    Step::Collect,
    Step::Checkpoint,
    Step::Write(0, &[5, 2]),
    Step::Close,
];

const HEAL: &[Step] = &[
    Step::Rot(2),
    Step::Read,
    Step::Flush,
    Step::Kill,
    Step::Part(8, 1, 9),
    Step::Write(5, &[2]),
    Step::Flush,
    Step::Read,
    Step::Close,
];

/// As many data blocks as LBNs and the smallest delta: overwriting takes commits and checkpoints, and what still finds no room fails.
const FULL: &[Step] = &[
    Step::Write(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    Step::Write(0, &[13, 14]),
    Step::Trim(3, 3),
    Step::Batch(&[(0, 15), (3, 16), (4, 16), (8, 17)]),
    Step::Flush,
    Step::Write(0, &[9, 9, 9, 9, 9, 9]),
    Step::Close,
];

/// More commits than the ring has blocks, and a block with more references than two bits count.
const WRAP: &[Step] = &[
    Step::WriteFua(0, &[1, 1, 1, 1, 1, 1]),
    Step::WriteFua(0, &[2]),
    Step::WriteFua(1, &[3]),
    Step::WriteFua(0, &[1]),
    Step::WriteFua(1, &[2]),
    Step::WriteFua(0, &[3]),
    Step::WriteFua(1, &[1]),
    Step::WriteFua(0, &[2]),
    Step::WriteFua(1, &[3]),
    Step::WriteFua(2, &[4]),
    Step::WriteFua(3, &[5]),
    Step::WriteFua(2, &[1]),
    Step::WriteFua(3, &[1]),
    Step::WriteFua(2, &[6]),
    Step::WriteFua(4, &[6]),
    Step::WriteFua(2, &[7]),
    Step::WriteFua(4, &[8]),
    Step::WriteFua(2, &[9]),
];

/// Every operation of a kind on a device, each in every way, once and for good.
fn every_n(device: usize, kind: IoKind) {
    for (name, scene, script) in scripts() {
        let mut points = 0;
        for fault in failures(kind).iter().copied() {
            for (n, lasting) in (0..).flat_map(|n| [(n, false), (n, true)]) {
                let mut run = Run::start(&scene);
                run.story = name.into();
                run.order(Target { device, kind, n, fault, lasting });
                run.play(script);
                let met = run.met() > 0;
                run.end(1);
                if !met {
                    break;
                }
                points += 1;
            }
        }
        println!("{name}: {points} failures of a {kind:?} on device {device}");
    }
}

#[test]
fn any_failed_data_write_fails_its_own_request_only() {
    every_n(0, IoKind::Write);
}

#[test]
fn any_failed_data_read_is_an_error_and_no_other_bytes() {
    every_n(0, IoKind::Read);
}

#[test]
fn any_failed_discard_costs_nothing() {
    every_n(0, IoKind::Discard);
}

#[test]
fn after_any_failed_data_flush_nothing_more_is_acknowledged_as_durable() {
    every_n(0, IoKind::Flush);
}

#[test]
fn after_any_failed_metadata_write_nothing_more_is_acknowledged_as_durable() {
    every_n(1, IoKind::Write);
}

#[test]
fn after_any_failed_metadata_flush_nothing_more_is_acknowledged_as_durable() {
    every_n(1, IoKind::Flush);
}

#[test]
fn any_failed_metadata_read_is_an_error_and_no_other_bytes() {
    every_n(1, IoKind::Read);
}

/// The flush behind a superblock failed, and the process started again on a file system without direct I/O. It read that superblock
/// from the cache, took it to be in its slot, and wrote the next one over the only other copy: after a power cut there was no way
/// back behind the newest.
#[test]
fn a_superblock_that_only_the_cache_has_is_not_built_upon() {
    let disks = formatted(LBNS, 4096);
    disks.metadata.refuse_bypass();
    let volume = disks.open(&options()).unwrap();
    write(&volume, 0, 1);
    flush(&volume);
    disks.metadata.fail_nth(IoKind::Flush, 1);
    volume.checkpoint().unwrap_err();
    drop(volume);
    let volume = disks.open(&options()).unwrap();
    assert_content(&volume, 0, 1);
    disks.lose_everything_unflushed().assert_clean("after the restart");
}
