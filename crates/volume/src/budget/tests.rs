//! What is admitted, and what is not.

use super::ring::{CONTENT_BLOCKS_MAX, MARGIN_BLOCKS};
use super::*;
use crate::run_filters::RunFilters;
use crate::runs::RunPolicy;
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
    Budget::new(bounds, Ring::new(1 << 20, 0, 0, 0), 32 << 10, Planted::default()).paced(true)
}

/// A checkpoint of nothing (for space, or asked for) halves what may be taken, and nobody holds anything: "short for good".
#[test]
fn beside_an_empty_checkpoint_what_fits_is_admitted() {
    let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
    let needed = budget.metadata.worst_case(1024, &tables) + budget.metadata.reserve(Purpose::Grow);
    budget.meta(MetaUsage { free: needed + needed / 2, holes: 0, used: 0 }, &tables);
    budget.froze(0);
    assert_eq!(budget.admit(1024, 0, &tables, Purpose::Grow), Ok(()));
}

/// What is in the log beside its records must leave room for those: the ring's last quarter, and what is admitted already.
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
        budget.meta(MetaUsage { free, holes: 0, used: 0 }, &tables);
        // Left from before.
        budget.is_short = true;
        budget.froze(frozen);
        let spare = budget.lend_for_merges(0, &tables);
        let refused = budget.admit(1, 0, &tables, Purpose::Grow);
        assert!(spare > 0 && refused.is_err() && !budget.is_short, "frozen {frozen}");
    }
}
