//! The n-th operation of a device fails, for every n that a script has, every kind, both devices: the request
//! that needs it fails or does not need it, nothing acknowledged as durable is lost, and after a failed flush
//! or metadata write nothing more is acknowledged as durable.
//!
//! The scripts reach every path that does I/O: format, open with replay, each kind of write, commit,
//! checkpoint, collection, rebuilding, healing, closing, checking. What each run asserts is in
//! [`dedup_tests::sweep`].

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, IoKind, SimFault, When};
use dedup_tests::sweep::scripts::scripts;
use dedup_tests::sweep::*;
use dedup_tests::*;
use dedup_volume::{FormatOptions, format};
use uuid::Uuid;

/// What the scripts are for, as the volume's own figures show it.
#[test]
fn the_scripts_replay_wrap_the_ring_heal_sweep_rebuild_and_run_full() {
    let (mut replayed, mut wrapped, mut healed, mut swept) = (0, false, 0, 0);
    let (mut rebuilt, mut full, mut discards) = (false, 0, 0);
    for (name, scene, script) in scripts() {
        let mut run = Run::start(&scene);
        run.story = name.into();
        run.play(&[]);
        replayed = replayed.max(run.volume.as_ref().unwrap().status().commit.delta_operations);
        for step in script {
            run.play(std::slice::from_ref(step));
            let status = run.volume.as_ref().unwrap().status();
            healed = healed.max(status.counters.healed_blocks);
            swept = swept.max(status.counters.gc_counter);
            // The damaged index is dropped as a whole: entries are those of the rebuilt one.
            rebuilt |= name == "index" && matches!(step, Step::Checkpoint) && status.index_entries >= 7;
            full += u64::from(status.data_free_blocks == 0);
        }
        let newest = superblock(&run.disks);
        wrapped |= newest.log.next.0 > newest.layout.log.blocks;
        discards += run.disks.data.operations(IoKind::Discard);
    }
    assert!(replayed > 10, "{replayed} operations replayed");
    assert!(wrapped, "the ring was never wrapped");
    assert!(healed > 0 && swept > 0 && rebuilt, "healed {healed}, swept {swept}, rebuilt {rebuilt}");
    assert!(full > 0 && discards > 0, "full {full} times, {discards} discards");
}

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
                run.end(&ENDINGS);
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

/// Format over a volume. Until the new one is whole there is the old one or none; a format that failed can be
/// repeated.
#[test]
fn any_failure_of_a_format_is_an_error_and_leaves_the_old_volume_the_new_one_or_none() {
    let scene = Scene::small(8).after(&[Step::Write(0, &[1, 2, 3, 1]), Step::Close, Step::WriteFua(4, &[4])]);
    let new = FormatOptions {
        force: true,
        log_blocks: Some(16),
        ..FormatOptions::new(LBNS * 4096, Uuid::from_u128(8), Uuid::from_u128(9))
    };
    let mut points = 0;
    for (device, kind) in [0, 1].into_iter().flat_map(|device| KINDS.map(|kind| (device, kind))) {
        for fault in failures(kind).iter().copied() {
            for n in 0.. {
                let mut run = Run::start(&scene);
                run.order(Target { device, kind, n, fault, lasting: false });
                let formatted = format(&*run.disks.data, &run.disks.metadata(), &new).is_ok();
                if run.met() == 0 {
                    assert!(formatted);
                    break;
                }
                points += 1;
                // A superblock copy that cannot be read is overwritten like one that can.
                let matters = kind != IoKind::Read;
                assert!(!formatted || !matters, "{}: the error did not arrive", run.story);
                run.device(device).clear_faults();
                for ending in ENDINGS {
                    assert_old_new_or_none(&scene, &new, &ending.of(&run.disks), formatted, &run.story);
                }
            }
        }
    }
    println!("format: {points} failures");
}

fn assert_old_new_or_none(scene: &Scene, new: &FormatOptions, disks: &Disks, formatted: bool, story: &str) {
    match disks.open(&scene.options) {
        Ok(volume) if volume.status().pool == new.pool.to_string() => {
            (0..LBNS).for_each(|lbn| assert_content(&volume, lbn, 0));
        }
        Ok(volume) => {
            assert!(!formatted, "{story}: the old volume is still there");
            scene.ledger.clone().recover(&volume, false, story);
        }
        Err(error) => assert!(!formatted, "{story}: {error}"),
    }
    disks.format(new);
    let volume = disks.open(&scene.options).unwrap();
    (0..LBNS).for_each(|lbn| assert_content(&volume, lbn, 0));
    write(&volume, 0, 1);
    volume.close().unwrap();
    disks.assert_clean(story);
}

#[test]
fn any_failed_read_of_a_check_is_an_error_or_a_finding() {
    let mut points = 0;
    for (name, scene, script) in scripts() {
        let mut run = Run::start(&scene);
        run.story = name.into();
        run.play(script);
        // Whether the checker is content, and how many reads it took.
        let clean = |device: usize, failing: Option<When>| {
            let disks = run.disks.crash(|_, _, _| true);
            let faulty = [&disks.data, &disks.metadata][device];
            failing.into_iter().for_each(|when| faulty.inject(when, SimFault::Fail(IoKind::Read)));
            let report = check(Some(&*disks.data), disks.metadata(), &CheckOptions::tiny(), &mut |_| ());
            (report.is_ok_and(|report| report.is_clean()), faulty.operations(IoKind::Read))
        };
        for device in 0..2 {
            let (healthy, reads) = clean(device, None);
            assert!(healthy, "{name}: not clean without a failure");
            for n in 0..reads {
                // Data blocks and log blocks that could not be read together are read one by one.
                let (once, reads_then) = clean(device, Some(When::Nth(n)));
                assert!(!once || reads_then > reads, "{name}: device {device}: read {n} did not matter");
                let (lasting, _) = clean(device, Some(When::From(n)));
                assert!(!lasting, "{name}: device {device}: reads from {n} on did not matter");
                points += 2;
            }
        }
    }
    println!("check: {points} failures");
}

#[test]
fn any_failed_read_of_a_read_only_open_is_an_error_and_no_other_bytes() {
    let mut points = 0;
    for (name, scene, _) in scripts() {
        let scene = scene.opened(|options| options.read_only = true);
        for device in 0..2 {
            for (n, lasting) in (0..).flat_map(|n| [(n, false), (n, true)]) {
                let mut run = Run::start(&scene);
                run.story = name.into();
                let fault = SimFault::Fail(IoKind::Read);
                run.order(Target { device, kind: IoKind::Read, n, fault, lasting });
                if let Ok(volume) = run.disks.open(&scene.options) {
                    run.ledger.recover(&volume, true, &run.story);
                }
                assert_eq!(run.disks.data.events() + run.disks.metadata.events(), 0, "{}: wrote", run.story);
                if run.met() == 0 {
                    break;
                }
                points += 1;
            }
        }
    }
    println!("read-only: {points} failures");
}

/// The metadata is in memory, so only the data device can fail, and nothing can be opened again.
#[test]
fn any_failure_of_a_volume_without_a_log_is_an_error_and_no_other_bytes() {
    let scene = Scene::small(2).opened(|options| {
        options.in_ram = true;
        options.discard = true;
        options.verify_match = Some(true);
    });
    let script = [
        Step::Write(0, &[1, 2, 3, 1]),
        Step::Flush,
        Step::Part(4, 8, 5),
        Step::Trim(2, 2),
        Step::Batch(&[(4, 6), (5, 6), (6, 2)]),
        Step::WriteFua(7, &[7]),
        Step::Checkpoint,
        Step::Read,
        Step::Write(0, &[8, 9, 10, 11, 12]),
        Step::Flush,
    ];
    let mut points = 0;
    for kind in KINDS {
        for fault in failures(kind).iter().copied() {
            for (n, lasting) in (0..).flat_map(|n| [(n, false), (n, true)]) {
                let mut run = Run::start(&scene);
                run.order(Target { device: 0, kind, n, fault, lasting });
                run.play(&script);
                if run.met() == 0 {
                    break;
                }
                points += 1;
            }
        }
    }
    println!("without a log: {points} failures");
}

/// A node of the mapping is damaged: whoever needs it gets an error, the volume stops, and a superblock says
/// that it needs a check. With one thing more going wrong that is still so, and what can be read is right,
/// now and after a reopen.
#[test]
fn any_failure_while_damage_is_recorded_is_no_worse_than_the_damage() {
    let scene = Scene::small(4)
        .after(&[Step::Write(0, &[1, 2, 3, 1]), Step::Checkpoint, Step::WriteFua(6, &[4, 2]), Step::Close])
        .with_damaged_mapping();
    let script = [Step::WriteFua(5, &[6]), Step::Read, Step::Write(0, &[5]), Step::Flush, Step::Checkpoint];
    let mut points = 0;
    for (device, kind) in [0, 1].into_iter().flat_map(|device| KINDS.map(|kind| (device, kind))) {
        for fault in failures(kind).iter().copied() {
            for (n, lasting) in (0..).flat_map(|n| [(n, false), (n, true)]) {
                let mut run = Run::start(&scene);
                run.order(Target { device, kind, n, fault, lasting });
                run.play(&script);
                if run.met() == 0 {
                    break;
                }
                points += 1;
                run.volume = None;
                run.device(device).clear_faults();
                for ending in ENDINGS {
                    let disks = ending.of(&run.disks);
                    let report =
                        check(Some(&*disks.data), disks.metadata(), &CheckOptions::tiny(), &mut |_| ());
                    assert!(!report.unwrap().is_clean(), "{}: the damage is gone", run.story);
                    let volume =
                        disks.open(&scene.options).unwrap_or_else(|error| panic!("{}: {error}", run.story));
                    run.ledger.clone().recover(&volume, true, &run.story);
                }
            }
        }
    }
    println!("damage: {points} failures");
}

/// Two operations fail, for every pair that two short scripts have: the volume is opened again after the
/// first that stops it, and meets the second wherever that is. Each pair ends in one way, taken in turn.
/// `SWEEP_LONG=1` does this with all scripts, and `SWEEP_LONG=full:wrap` with those.
#[test]
fn no_pair_of_failures_loses_what_was_acknowledged_as_durable() {
    let fresh = Scene::small(2);
    let used = fresh.after(&[Step::Write(0, &[1, 2, 1]), Step::Checkpoint, Step::WriteFua(1, &[3])]);
    let mut all: Vec<(&str, Scene, &[Step])> = vec![
        ("writes", fresh, &[Step::Write(0, &[1, 2]), Step::Flush, Step::Write(1, &[1]), Step::Checkpoint]),
        ("restart", used, &[Step::Trim(0, 1), Step::Flush, Step::Kill, Step::WriteFua(4, &[2])]),
    ];
    if let Ok(names) = std::env::var("SWEEP_LONG") {
        let named = |script: &str| names.split(':').any(|name| name == script);
        all = scripts().into_iter().filter(|(script, ..)| names == "1" || named(script)).collect();
        assert!(!all.is_empty(), "SWEEP_LONG={names} names no script");
    }
    for (name, scene, script) in &all {
        let mut pairs = 0;
        let kinds: Vec<(usize, IoKind)> =
            [0, 1].into_iter().flat_map(|device| KINDS.map(|k| (device, k))).collect();
        for (first, &(device, kind)) in kinds.iter().enumerate() {
            for n in 0.. {
                let one = Target { device, kind, n, fault: SimFault::Fail(kind), lasting: false };
                let mut run = Run::start(scene);
                run.order(one);
                run.play(script);
                if run.met() == 0 {
                    break;
                }
                for &(device, kind) in &kinds[first..] {
                    let from = if (device, kind) == (one.device, one.kind) { n + 1 } else { 0 };
                    for m in from.. {
                        let mut run = Run::start(scene);
                        run.story = (*name).into();
                        run.order(one);
                        run.order(Target { device, kind, n: m, fault: SimFault::Fail(kind), lasting: false });
                        run.play(script);
                        if run.met() < 2 {
                            break;
                        }
                        pairs += 1;
                        run.end(&[ENDINGS[pairs % ENDINGS.len()]]);
                    }
                }
            }
        }
        println!("{name}: {pairs} pairs of failures");
    }
}

/// Each block of either device cannot be read, or written, or has no room, while a script runs; then it can
/// again.
#[test]
fn a_region_that_fails_for_a_while_loses_nothing_that_was_acknowledged_as_durable() {
    let mut regions = 0;
    for (name, scene, script) in
        scripts().into_iter().filter(|(name, ..)| ["strict", "replay"].contains(name))
    {
        let mut whole = Run::start(&scene);
        whole.play(script);
        for device in 0..2 {
            let image = whole.device(device).image();
            let mut bytes = [0; 4096];
            for offset in (0..image.size() / 4096).map(|page| page * 4096) {
                image.read(offset, &mut bytes).unwrap();
                if bytes == [0; 4096] {
                    continue;
                }
                let faults = [IoKind::Read, IoKind::Write, IoKind::Discard].map(SimFault::Fail);
                for fault in faults.into_iter().chain([SimFault::FullWrite]) {
                    let mut run = Run::start(&scene);
                    run.story = name.into();
                    run.order_region(device, offset..offset + 4096, fault);
                    run.play(script);
                    run.end(&[ENDINGS[regions % ENDINGS.len()]]);
                    regions += 1;
                }
            }
        }
    }
    println!("{regions} regions");
}

/// The flush behind a superblock failed, and the process started again on a file system without direct I/O.
/// It read that superblock from the cache, took it to be in its slot, and wrote the next one over the only
/// other copy: after a power cut there was no way back behind the newest.
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

/// Both copies of the newest superblock could not be read, once; so the open went on from the older one, and
/// wrote a superblock with the number of the newest. When power failed before its spare was durable, the old
/// spare of that number was there again and was taken for the newest: its trees stood in blocks that the
/// checkpoint under way had taken for free.
#[test]
fn a_superblock_that_could_not_be_read_does_not_come_back_with_the_number_of_its_successor() {
    let disks = formatted(LBNS, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    drop(volume);
    disks.metadata.flush().unwrap();
    let newest = superblock(&disks);
    for events in 0.. {
        let disks = disks.lose_everything_unflushed();
        for place in [newest.layout.slot(newest.txid), newest.layout.spare(newest.txid)] {
            disks.metadata.fail_region(IoKind::Read, place.0 * 4096..(place.0 + 1) * 4096);
        }
        let volume = disks.open(&options()).unwrap();
        disks.metadata.clear_faults();
        disks.metadata.set_cut_after(events);
        let done = volume.checkpoint().is_ok();
        drop(volume);
        // The first write that no flush has covered is lost, which may be the spare; the trees behind it are
        // there.
        let cut = disks.crash(|device, write, _| (device, write) != (1, 0));
        cut.assert_clean(&format!("power fails after {events} events of a checkpoint"));
        let volume = cut.open(&options()).unwrap();
        (0..4).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
        if done {
            return;
        }
    }
}
