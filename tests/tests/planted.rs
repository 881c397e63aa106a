//! The tests can fail: each fault planted in the engine is caught by a property that holds without it.
//!
//! Runs in the copy of the sources that `cargo run -p dedup-tests --bin planted` makes, where the faults are
//! (`dedup_tests::planted`). A property counts as having caught its fault only if it fails by its own words,
//! or by an assertion of the engine that the fault names, and within its budget.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::SimFileSystem;
use dedup_device::planted::plant;
use dedup_meta::load_superblocks;
use dedup_tests::explore::{Session, random};
use dedup_tests::hooked::watched;
use dedup_tests::planted::{Fault, faults};
use dedup_tests::properties::{ALL, Property};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{FormatOptions, Op, OpenOptions};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a property may take, with or without its fault: on a busy machine too, some ten times what it does on
/// an idle one.
const BUDGET: Duration = Duration::from_secs(5);
/// Seeds within which the random crash explorer must come upon each fault that ordinary use shows.
const SEEDS: u64 = 12;

/// Those that were asked for, or all.
fn wanted() -> Vec<Fault> {
    let names = std::env::var("DEDUP_PLANTED").unwrap_or_default();
    let is_wanted = |fault: &Fault| names.is_empty() || names.split(',').any(|name| name == fault.name);
    faults().unwrap().into_iter().filter(is_wanted).collect()
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// Runs a property, under the watchdog, with this fault; its message if it fails, and its time.
fn outcome(property: Property, planted: &str) -> (Result<(), String>, Duration) {
    plant(planted);
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(move || watched(BUDGET, move || property(&options()))));
    plant("");
    (result.map_err(|panic| message(&*panic)), start.elapsed())
}

/// The properties know what they look for. The explorer does not: that it finds these says what its silence
/// is worth.
#[test]
fn the_random_crash_explorer_finds_by_chance_what_ordinary_use_can_show() {
    let explore = |seed| {
        let mut session = Session::default();
        !matches!(catch_unwind(AssertUnwindSafe(|| random::explore(seed, &mut session))), Ok(Ok(())))
    };
    let mut missed = Vec::new();
    for fault in wanted().into_iter().filter(|fault| fault.found_by_chance) {
        plant(&fault.name);
        let seed = (0..SEEDS).find(|seed| explore(*seed));
        plant("");
        println!("{}: {}", fault.name, seed.map_or("not found".into(), |seed| format!("seed {seed}")));
        missed.extend(seed.is_none().then_some(fault.name));
    }
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

#[test]
fn every_planted_fault_is_caught_by_its_property() {
    let mut wrong = Vec::new();
    let faults = wanted();
    println!("| fault | caught by | budget | spent |\n|---|---|---|---|");
    for Fault { name, caught_by, says, .. } in &faults {
        let (_, property) = ALL.iter().find(|(name, _)| name == caught_by).unwrap();
        let (whole, whole_time) = outcome(*property, "");
        if let Err(message) = whole {
            wrong.push(format!("{caught_by} fails without {name}: {message}"));
        }
        let (broken, time) = outcome(*property, name);
        println!("| {name} | `{caught_by}` | {BUDGET:?} | {time:.2?} |");
        match broken {
            Ok(()) => wrong.push(format!("{name} is not caught by {caught_by}")),
            Err(message) if !message.contains(says) => {
                wrong.push(format!("{name}: {caught_by} failed, but by other words: {message}"))
            }
            Err(_) => {}
        }
        if whole_time > BUDGET {
            wrong
                .push(format!("{caught_by}: {whole_time:?} without {name}, {time:?} with it, of {BUDGET:?}"));
        }
    }
    println!("{} faults", faults.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A write that met a contradiction in the metadata failed, and the next ones built upon it.
#[test]
fn a_contradiction_met_while_writing_stops_the_volume_and_asks_for_a_check() {
    let disks = formatted(32, 4096);
    let volume = disks.open(&options()).unwrap();
    plant("CountTooLow");
    write(&volume, 0, 1);
    write(&volume, 1, 1);
    plant("");
    write(&volume, 0, 2);
    assert!(try_write(&volume, 1, 3, false).is_err(), "the last reference was given back before");
    assert!(volume.is_read_only(), "it goes on");
    drop(volume);
    assert!(load_superblocks(&*disks.metadata).newest(None).unwrap().needs_check);
}

/// Volumes of earlier versions had their metadata on a file system without setting space aside. Where that
/// became full, they stopped for good: the blocks that were freed and have space have to do.
#[test]
fn a_volume_that_stopped_for_want_of_metadata_goes_on_after_an_open() {
    const LBNS: u64 = 1000;
    let mut stopped = 0;
    for seed in 0..12 {
        let options = OpenOptions { delta_max: 100, discard: true, ..options() };
        let of_then = OpenOptions { discard: false, ..options.clone() };
        let disks = Disks::new(LBNS * 4096, 8 << 20);
        disks.format(&FormatOptions { log_blocks: Some(32), ..format_options(LBNS * 4096) });
        plant("SpaceNotSetAside");
        let volume = disks.open(&of_then).unwrap();
        (0..LBNS / 2).for_each(|lbn| write(&volume, lbn, 1 + lbn));
        volume.close().unwrap();
        // Room for a checkpoint or two, and nothing else.
        let file_system = SimFileSystem::new(10 * seed * 4096);
        [&disks.data, &disks.metadata].iter().for_each(|device| device.put_on(&file_system));
        let volume = disks.open(&of_then).unwrap();
        let mut rng = Rng::new(seed);
        for _ in 0..200 {
            let _ = run(&volume, Op::Trim { offset: rng.below(LBNS / 2) * 4096, len: 4096, fua: true });
        }
        stopped += u64::from(volume.is_read_only());
        drop(volume);
        plant("");
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
