//! The n-th operation of a device fails, for every n that a script has, every kind, both devices: the request that needs it
//! fails or does not need it, nothing acknowledged as durable is lost, and after a failed flush or metadata
//! write nothing more is acknowledged as durable.
//!
//! The scripts reach every path that does I/O: format, open with replay, each kind of write, commit, checkpoint, collection,
//! rebuilding, healing, closing, checking. What each run asserts is in [`dedup_tests::sweep`].

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{IoKind, SimFault};
use dedup_tests::sweep::*;
use dedup_tests::*;

/// Every kind of request, with checkpoints and restarts between them.
const MIXED: &[Step] = &[
    Step::Write(0, &[1, 2, 3, 1]),
    Step::Flush,
    Step::Batch(&[(4, 4), (5, 4), (6, 2), (0, 5)]),
    Step::Part(5000, 9000, 7),
    Step::WriteFua(8, &[6, 0]),
    Step::Trim(1, 5),
    Step::Zero(6 * 4096 + 100, 9000),
    Step::Checkpoint,
    Step::Write(1, &[1, 8]),
    Step::Read,
    Step::Kill,
    Step::Write(3, &[3, 9]),
    Step::Close,
];

/// Points at which something was made to fail, for a script from a scene.
fn every_failure(name: &str, scene: &Scene, script: &[Step], failures: &[(usize, IoKind, SimFault)]) {
    let mut points = 0;
    for (device, kind, fault) in failures.iter().copied() {
        for n in 0.. {
            let mut run = Run::start(scene);
            run.story = name.into();
            run.order(Target { device, kind, n, fault });
            run.play(script);
            let met = run.met() > 0;
            run.end(1);
            if !met {
                break;
            }
            points += 1;
        }
    }
    println!("{name}: {points} points of failure");
}

fn mixed() -> Scene {
    Scene::small(8)
}

#[test]
fn every_failure_of_mixed_requests() {
    every_failure("mixed", &mixed(), MIXED, &FAILURES);
}

#[test]
fn every_failure_when_each_write_is_a_commit_and_matches_are_compared_and_frees_discarded() {
    let scene = mixed().opened(|options| {
        options.flushrq = Some(1);
        options.verify_match = Some(true);
        options.discard = true;
    });
    every_failure("commits", &scene, MIXED, &FAILURES);
}

/// A log that fills the ring, of records of every kind.
#[test]
fn every_failure_of_an_open_that_replays_much() {
    let scene = mixed().after(&[
        Step::Write(0, &[1, 2, 3, 4]),
        Step::Checkpoint,
        Step::WriteFua(4, &[5, 6, 1]),
        Step::Trim(0, 2),
        Step::Flush,
        Step::Zero(5 * 4096 + 5, 4096),
        Step::WriteFua(7, &[7, 8, 9]),
        Step::Rot(7),
        Step::Read,
        Step::WriteFua(10, &[7]),
        Step::Flush,
    ]);
    let script = [Step::ReadOnly, Step::Kill, Step::Write(0, &[2, 10]), Step::Flush, Step::Kill];
    for bypass in [true, false] {
        let mut scene = scene.clone();
        scene.bypass = bypass;
        every_failure("replay", &scene, &script, &FAILURES);
    }
}

#[test]
fn every_failure_of_rebuilding_and_sweeping_the_index() {
    let scene = mixed().after(&[Step::Write(0, &[1, 2, 3, 4, 5, 6]), Step::Close]).without_index();
    let script = [
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
    every_failure("index", &scene, &script, &FAILURES);
}

#[test]
fn every_failure_of_finding_and_healing_a_rotten_block() {
    let scene = mixed().after(&[Step::Write(0, &[1, 2, 3, 2]), Step::Checkpoint]);
    let script = [
        Step::Rot(2),
        Step::Read,
        Step::Flush,
        Step::Kill,
        Step::Part(4096, 100, 9),
        Step::Write(5, &[2]),
        Step::Flush,
        Step::Read,
        Step::Close,
    ];
    every_failure("heal", &scene, &script, &FAILURES);
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
