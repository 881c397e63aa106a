//! Many clients at once on schedules that seeds fix: see [`dedup_tests::schedule`].

use dedup_tests::schedule::run;

/// Without this no failure could be reproduced.
#[test]
fn a_seed_fixes_everything_that_happens() {
    for seed in [1, 2, 4] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).trace, run(2).trace);
}

/// What is there after a power cut is a prefix of one order of what the clients did, with all that was
/// acknowledged as durable; nobody waits for ever; what is read is never older than what was overwritten
/// before.
#[test]
fn many_clients_and_a_power_cut_leave_a_prefix_with_everything_durable() {
    (0..120).for_each(|seed| drop(run(seed)));
}

/// The harness can fail: each of these faults is found by one of the first seeds, without any hint of where
/// to look.
#[cfg(feature = "planted")]
#[test]
fn planted_faults_are_found() {
    use dedup_device::planted::plant;
    use std::panic::catch_unwind;

    let faults = [
        "DataFlushSkipped",
        "LogFlushSkipped",
        "DurableAtCut",
        "FuaIgnored",
        "RangesNotLocked",
        "PublishedBeforeWritten",
        "DeltaSwappedAfterCut",
        "FrozenDroppedEarly",
        "FreedReusedBeforeCommit",
        "UnmapNotLogged",
        "SuperblockBeforeTree",
        "AheadFlushCoversAll",
    ];
    let mut missed = Vec::from(faults);
    missed.retain(|fault| {
        plant(fault);
        let is_found = (0..400).any(|seed| catch_unwind(|| run(seed)).is_err());
        plant("");
        !is_found
    });
    assert!(missed.is_empty(), "not found: {missed:?}");
}
