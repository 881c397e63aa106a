//! What is admitted, and what is not.

use super::ring::{CONTENT_BLOCKS_MAX, MARGIN_BLOCKS};
use super::*;
use crate::trees::run_filters::RunFilters;
use crate::trees::runs::RunPolicy;
use dedup_meta::{Root, RunSet, TxId};

fn tables() -> Tables {
    Tables {
        txid: TxId(1),
        mappings: RunSet::EMPTY,
        run_filters: RunFilters::default(),
        digests: Root::EMPTY,
        counts: Root::EMPTY,
        overflow: Root::EMPTY,
        hints: RunSet::EMPTY,
        bad: Root::EMPTY,
    }
}

fn budget(lbns: u64, pbns: u64) -> Budget {
    let bounds = TreeBounds { lbns, pbns, meta_blocks: 1 << 20, runs: RunPolicy::ByCost };
    Budget::new(bounds, Ring::new(1 << 20, 0, 0, 0), 32 << 10).paced(true)
}

/// A checkpoint of nothing (for space, or asked for) halves what may be taken, and nobody holds anything:
/// "short for good".
#[test]
fn beside_an_empty_checkpoint_what_fits_is_admitted() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    let needed = budget.metadata.worst_case(1024, &tables) + budget.metadata.reserve(Purpose::Grow);
    budget.meta(MetaUsage { free: needed + needed / 2, holes: 0, used: 0, held: 0 }, &tables);
    budget.froze(0);
    assert_eq!(budget.admit(1024, 0, &tables, Purpose::Grow), Ok(()));
}

/// What is in the log beside its records must leave room for those: the ring's last quarter, and what is
/// admitted already.
#[test]
fn data_goes_to_the_log_only_while_a_quarter_of_the_ring_stays_free() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    (budget.ring.blocks, budget.metadata.usage.free) = (256, u64::MAX / 4);
    let room = 192 - MARGIN_BLOCKS;
    assert!(budget.has_room_for_content(room) && !budget.has_room_for_content(room + 1));
    budget.admit(10, 0, &tables, Purpose::Grow).unwrap();
    assert!(
        budget.has_room_for_content(room - 10) && !budget.has_room_for_content(room - 9),
        "records that are admitted"
    );
    budget.published(10, true);
    assert!(
        budget.has_room_for_content(room - 1) && !budget.has_room_for_content(room),
        "one operation that waits for its commit"
    );
    budget.committed(100, true);
    assert!(
        budget.has_room_for_content(room - 100) && !budget.has_room_for_content(room - 99),
        "what is in the log"
    );
    budget.committed(120, true);
    assert!(budget.has_room_for_content(0) && !budget.has_room_for_content(1), "no data needs no room");
    // However large the ring is: an open has to keep the data in memory.
    budget.ring.blocks = 1 << 30;
    budget.ring.next = CONTENT_BLOCKS_MAX - MARGIN_BLOCKS - 1;
    assert!(budget.has_room_for_content(1) && !budget.has_room_for_content(2));
}

/// What is admitted and not yet published stays behind when the delta freezes: then it is a delta of its own.
#[test]
fn what_a_cut_makes_of_the_reserve_is_known_to_the_checkpoint() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    budget.metadata.with_hints = false;
    let free = budget.metadata.worst_case(4096, &tables) + budget.metadata.reserve(Purpose::Shrink);
    budget.metadata.usage.free = free;
    for published in [0, 1024, 2048] {
        budget.admit(1024, published, &tables, Purpose::Shrink).unwrap();
        budget.published(1024, true);
    }
    budget.admit(1024, 3072, &tables, Purpose::Shrink).unwrap();
    assert_eq!(budget.overdrawn(3072, &tables, free), 0);
    budget.froze(3072);
    let needed = [3072, 1024].map(|n| budget.metadata.worst_case(n, &tables)).iter().sum::<u64>();
    let missing = needed + budget.metadata.reserve(Purpose::Shrink) - free;
    assert!(missing > 1000, "{missing}");
    assert_eq!(budget.overdrawn(0, &tables, free), missing);
}

/// Who waits for a merge in a hurry finds no room because of it: that is no reason for another one.
#[test]
fn a_merge_in_a_hurry_is_not_followed_by_another_for_the_blocks_that_it_was_lent() {
    for frozen in [100, 2000, 8000, 16000] {
        let mut budget = budget(1 << 24, 1 << 24);
        let mut tables = tables();
        tables.mappings.runs = vec![Root { entries: frozen, ..Root::EMPTY }];
        // Room for ten deltas.
        let free = 10 * budget.metadata.worst_case(32 << 10, &tables);
        budget.meta(MetaUsage { free, holes: 0, used: 0, held: 0 }, &tables);
        // Left from before.
        budget.is_short = true;
        budget.froze(frozen);
        let spare = budget.lend_for_merges(0, &tables);
        let refused = budget.admit(1, 0, &tables, Purpose::Grow);
        assert!(spare > 0 && refused.is_err() && !budget.is_short, "frozen {frozen}");
    }
}

/// What the file system below has not given yet is promised to nobody: somebody else may take it before the
/// checkpoint.
#[test]
fn nothing_is_admitted_beyond_what_has_space() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    let usage = MetaUsage { free: 100, holes: 1 << 19, used: 0, held: 0 };
    budget.meta(usage, &tables);
    let Err(Shortage::Space { wanted, is_least: true }) = budget.admit(100, 0, &tables, Purpose::Grow) else {
        panic!("100 operations were admitted, or refused, where 100 blocks have space");
    };
    let holes = 1 << 19;
    budget.grew(wanted - 101, holes + 1);
    let short = Shortage::Space { wanted, is_least: true };
    assert_eq!(budget.admit(100, 0, &tables, Purpose::Grow), Err(short), "a block is missing");
    budget.grew(1, holes);
    assert_eq!(budget.meta_usage(), (0, wanted + holes), "what got space is no hole any more");
    assert_eq!(budget.admit(100, 0, &tables, Purpose::Grow), Ok(()));
    // And so for what comes on top, and for what is frozen.
    assert!(
        matches!(budget.admit(100, 0, &tables, Purpose::Grow), Err(Shortage::Space { wanted: more, is_least: false }) if more > wanted)
    );
    budget.published(100, true);
    budget.froze(100);
    assert!(
        matches!(budget.admit(100, 0, &tables, Purpose::Grow), Err(Shortage::Space { wanted: more, .. }) if more > wanted)
    );
}

/// Checkpoints are run for somebody who is short only as long as they may give back enough.
#[test]
fn a_full_device_is_known_to_be_full_without_checkpoints_that_free_nothing() {
    let (mut budget, mut tables) = (budget(1 << 24, 1 << 24), tables());
    let needed = budget.metadata.worst_case(64, &tables) + budget.metadata.reserve(Purpose::Grow);
    let mut found = |free, held, tables: &Tables, idle: u32| {
        budget.idle_checkpoints = idle;
        budget.meta(MetaUsage { free, holes: 0, used: 0, held }, tables);
        let admitted = budget.admit(1, 0, tables, Purpose::Grow);
        budget.give_back(u64::from(admitted.is_ok()));
        admitted
    };
    assert_eq!(found(needed - 1, 0, &tables, 0), Err(Shortage::Metadata));
    assert_eq!(found(needed - 5, 4, &tables, 0), Err(Shortage::Metadata));
    assert_eq!(
        found(needed - 5, 5, &tables, 0),
        Err(Shortage::Held),
        "older trees hold as much as is missing"
    );
    assert_eq!(found(needed - 5, 5, &tables, CHECKPOINTS_MAX), Err(Shortage::Metadata), "they did not");
    assert_eq!(found(needed, 0, &tables, 0), Ok(()));
    tables.mappings.runs = vec![Root { entries: 100, ..Root::EMPTY }];
    assert_eq!(found(needed - 5, 0, &tables, 0), Err(Shortage::Held), "runs may be merged");
}

/// A batch on a nearly full device was tried with a quarter of its blocks, a sixteenth and so on, each try
/// with checkpoints and at the end of the line.
#[test]
fn of_many_operations_as_many_are_admitted_as_there_is_room_for() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    let reserve = budget.metadata.reserve(Purpose::Grow);
    for (room, admitted) in [(1024, 1024), (256, 256), (300, 256), (100, 64)] {
        let free = budget.metadata.worst_case(room, &tables) + reserve;
        budget.meta(MetaUsage { free, holes: 0, used: 0, held: 0 }, &tables);
        assert_eq!(budget.admit_some(1024, 0, &tables, Purpose::Grow), Ok(admitted), "room for {room}");
        budget.give_back(admitted);
    }
    budget.meta(MetaUsage { free: reserve, holes: 0, used: 0, held: 0 }, &tables);
    assert_eq!(budget.admit_some(1024, 0, &tables, Purpose::Grow), Err(Shortage::Metadata));
    budget.admit(1, 0, &tables, Purpose::Shrink).unwrap();
    budget.published(1, true);
    assert_eq!(
        budget.admit_some(1024, 1, &tables, Purpose::Grow),
        Err(Shortage::Checkpoint),
        "what that frees is not known yet"
    );
}

/// On a nearly full device each operation had a checkpoint begin that gave back next to nothing.
#[test]
fn a_checkpoint_for_space_is_due_at_half_of_the_room_and_not_for_the_smallest_delta() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    let mut wants = |room: u64, active: u64| {
        let free = budget.metadata.worst_case(room, &tables) + budget.metadata.reserve(Purpose::Grow);
        budget.meta(MetaUsage { free, holes: 0, used: 0, held: 0 }, &tables);
        budget.wants_checkpoint(active, &tables)
    };
    assert!(wants(1000, 600) && !wants(1000, 100));
    assert!(wants(64, 64) && !wants(64, 63));
}
