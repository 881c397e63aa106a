//! The tests can fail: each fault planted in the volume is caught by a test that passes without it.
//!
//! Run with `--features planted-faults`.
#![cfg(feature = "planted-faults")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_tests::history::one_history;
use dedup_volume::{Fault, OpenOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Histories of power cuts within which a fault must show.
const BUDGET: u64 = 400;

/// Runs a test of the volume with options of its own.
type Test = fn(&OpenOptions);

/// The histories, as a test like the others.
fn histories(options: &OpenOptions) {
    (0..BUDGET).for_each(|seed| one_history(seed, |own| own.planted = options.planted));
}

const FAULTS: &[(Fault, &str, Test)] = &[
    (Fault::DataFlushSkipped, "histories", histories),
    (Fault::LogFlushSkipped, "histories", histories),
    (Fault::TreeFlushSkipped, "histories", histories),
    (Fault::HitNotRechecked, "histories", histories),
    (Fault::FuaIgnored, "histories", histories),
    (
        Fault::SuperblockFlushSkipped,
        "a checkpoint is durable when it returns",
        dedup_tests::properties::a_checkpoint_is_durable_when_it_returns,
    ),
    (
        Fault::HintTrusted,
        "a prefix collision is no match",
        dedup_tests::properties::a_hint_whose_digest_only_begins_alike_is_no_match,
    ),
    (
        Fault::TrimRoundsOut,
        "a trim leaves partly covered blocks alone",
        dedup_tests::properties::a_trim_leaves_partly_covered_blocks_alone_and_zeroing_does_not,
    ),
    (
        Fault::ChecksumIgnored,
        "damaged content is an error",
        dedup_tests::properties::damaged_content_is_an_error_marked_and_healed_by_a_duplicate,
    ),
    (
        Fault::EpochKept,
        "blocks behind a gap in the log stay dead",
        dedup_tests::properties::blocks_behind_a_gap_in_the_log_stay_dead,
    ),
];

#[test]
fn every_planted_fault_is_caught_by_its_test() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (fault, name, test) in FAULTS {
        let options = OpenOptions { planted: Some(*fault), ..dedup_tests::options() };
        match catch_unwind(AssertUnwindSafe(|| test(&options))) {
            Err(_) => println!("{fault:?}: caught by {name}"),
            Ok(()) => missed.push(fault),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
