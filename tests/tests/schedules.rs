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

/// What is there after a power cut is a prefix of one order of what the clients did, with all that was acknowledged as
/// durable; nobody waits for ever; what is read is never older than what was overwritten before.
#[test]
fn many_clients_and_a_power_cut_leave_a_prefix_with_everything_durable() {
    (0..120).for_each(|seed| drop(run(seed)));
}

/// The harness can fail: each of these faults is found by one of the first seeds, without any hint of where to look.
#[cfg(feature = "planted-faults")]
#[test]
fn planted_faults_are_found() {
    use dedup_tests::schedule::run_with;
    use dedup_volume::Fault;
    use std::panic::catch_unwind;

    let faults = [
        Fault::DataFlushSkipped,
        Fault::LogFlushSkipped,
        Fault::DurableAtCut,
        Fault::FuaIgnored,
        Fault::RangesNotLocked,
        Fault::PublishedBeforeWritten,
        Fault::DeltaSwappedAfterCut,
        Fault::FrozenDroppedEarly,
        Fault::FreedReusedBeforeCommit,
        Fault::UnmapNotLogged,
        Fault::SuperblockBeforeTree,
        Fault::AheadFlushCoversAll,
    ];
    let seed = |fault: &Fault| {
        let run = |seed: &u64| catch_unwind(|| run_with(*seed, |options| options.planted = Some(*fault)));
        (0..400).find(|seed| run(seed).is_err())
    };
    let found: Vec<(Fault, Option<u64>)> = faults.into_iter().map(|fault| (fault, seed(&fault))).collect();
    assert!(found.iter().all(|(_, seed)| seed.is_some()), "not all are found: {found:?}");
}
