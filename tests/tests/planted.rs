//! The tests can fail: each fault planted in the engine is caught by a property that holds without it.
//!
//! Run with `--features planted-faults`. [`catcher`] names the property for each fault; its `match` is exhaustive, so a fault
//! without a test does not compile. A property counts as having caught its fault only if it fails by its own words, or by an assertion of the engine
//! that the table names, and within its budget.
#![cfg(feature = "planted-faults")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_meta::Fault as MetaFault;
use dedup_tests::explore::{Session, random};
use dedup_tests::hooked::watched;
use dedup_tests::properties::{
    abandoned, blocks, checkpoint, content, durable, journal, matching, metadata, open, space,
};
use dedup_volume::{Fault, OpenOptions};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a property may take, with or without its fault: on a busy machine too, some ten times what it does on an idle one.
const BUDGET: Duration = Duration::from_secs(5);

/// The test that catches a fault.
struct Catcher {
    name: &'static str,
    property: fn(&OpenOptions),
    /// Part of the message that it fails with.
    says: &'static str,
}

macro_rules! by {
    ($module:ident::$property:ident, $says:literal) => {
        Catcher { name: stringify!($property), property: $module::$property, says: $says }
    };
}

/// Which test catches which fault.
fn catcher(fault: Fault) -> Catcher {
    match fault {
        Fault::DataFlushSkipped => {
            by!(durable::what_was_flushed_is_there_after_a_power_cut, "expected content")
        }
        Fault::CheckpointDataFlushSkipped => {
            by!(checkpoint::a_checkpoint_is_durable_when_it_returns, "expected content")
        }
        Fault::LogBeforeData => {
            by!(durable::a_power_cut_anywhere_in_a_commit_leaves_old_or_new, "expected content")
        }
        Fault::HealNotFlushed => by!(durable::a_healed_block_is_durable_when_flushed, "expected content"),
        Fault::HealNotLogged => by!(durable::a_healed_block_is_durable_when_flushed, "marked damaged after"),
        Fault::LogFlushSkipped => {
            by!(durable::what_was_flushed_is_there_after_a_power_cut, "expected content")
        }
        Fault::FuaIgnored => by!(durable::fua_is_durable_when_answered, "expected content"),
        Fault::EmptyTrimNotCommitted => by!(durable::fua_covers_what_was_trimmed_before, "expected content"),
        Fault::FlushrqIgnored => {
            by!(durable::the_write_that_flushrq_counts_to_is_durable, "expected content")
        }
        Fault::DurableAtCut => {
            by!(durable::who_waits_for_a_commit_is_woken_after_its_flushes, "answered before")
        }
        Fault::DataFlushRetried | Fault::MetadataFlushRetried => {
            by!(durable::a_failed_flush_is_final, "flush failed")
        }
        Fault::FailStopForgotten => by!(durable::a_failed_flush_is_final, "succeeded after a failed"),
        Fault::FailedFlushForgotten => {
            by!(durable::a_checkpoint_ends_when_a_commits_flush_fails_beside_it, "expected content")
        }
        Fault::EndedTurnAcknowledged => {
            by!(
                durable::a_commit_that_anothers_failure_has_ended_is_not_acknowledged,
                "answered after another one had failed"
            )
        }
        Fault::CountersNotLogged => {
            by!(durable::counters_are_those_of_the_recovered_operations, "counters after a power cut")
        }
        Fault::DigestNotLogged => by!(durable::what_is_replayed_finds_its_duplicates, "never allocated"),
        Fault::UnmapNotLogged => by!(durable::a_trim_that_was_flushed_stays, "expected content"),

        Fault::AnsweredBeforeKept | Fault::JournalNotTakenIn | Fault::JournalPassedBy => {
            by!(journal::what_was_answered_is_there_after_a_kill, "expected content")
        }
        Fault::JournalNamedOnce => {
            by!(journal::without_the_newest_superblock_the_journal_is_found_all_the_same, "expected content")
        }
        Fault::TakenInNotCommitted => {
            by!(journal::what_an_open_takes_in_is_durable_when_it_returns, "expected content")
        }
        Fault::TakenInNotRewritten => {
            by!(journal::what_is_taken_in_after_a_failed_flush_is_on_the_device, "expected content")
        }

        Fault::SealedContentNotFlushed => {
            by!(content::a_checkpoint_flushes_the_data_that_the_log_carries, "expected content")
        }
        Fault::AheadFlushCoversAll => {
            by!(
                content::what_is_written_during_the_flush_ahead_of_a_checkpoint_is_durable_with_it,
                "expected content"
            )
        }
        Fault::ContentBehindRecords => {
            by!(content::a_commit_with_data_that_is_torn_anywhere_leaves_old_or_new, "after a torn commit")
        }
        Fault::ContentNotRestored => {
            by!(content::data_in_the_log_outlives_the_data_device_cache, "expected content")
        }
        Fault::EarlierContentRestored => {
            by!(content::a_block_taken_anew_holds_its_new_content_after_a_replay, "does not have the digest")
        }

        Fault::DeltaSwappedAfterCut => {
            by!(checkpoint::a_write_during_a_checkpoints_commit_is_no_part_of_it, "expected content")
        }
        Fault::FrozenDroppedEarly => {
            by!(checkpoint::reads_during_a_checkpoint_see_the_latest, "see the newest content")
        }
        Fault::SuperblockBeforeTree => {
            by!(checkpoint::a_power_cut_anywhere_in_a_checkpoint_loses_nothing, "expected content 101")
        }
        Fault::SuperblockFlushSkipped => {
            by!(checkpoint::a_checkpoint_is_durable_when_it_returns, "one more for the open")
        }
        Fault::SlotNotAlternated => by!(checkpoint::a_torn_superblock_leaves_the_other_slot, "does not open"),
        Fault::SpareBeforeSlotFlush => {
            by!(
                checkpoint::both_copies_of_a_superblock_are_never_at_risk_together,
                "not durable when a spare"
            )
        }
        Fault::LogReleasedToNewer => by!(checkpoint::either_superblock_is_enough, "does not open"),
        Fault::MetadataReusedUnderLookup => {
            by!(checkpoint::a_lookup_in_flight_keeps_its_nodes, "expected content")
        }
        Fault::OlderTreesReused => {
            by!(metadata::the_older_superblocks_trees_stay_whole_on_a_nearly_full_device, "does not open")
        }
        Fault::MapBlocksLeaked => by!(checkpoint::checkpoints_give_back_what_they_take, "nearly empty"),
        Fault::RecountForgetsTree => {
            by!(
                metadata::a_damaged_index_is_built_anew_and_costs_no_other_tree_a_block,
                "freed but not in use"
            )
        }
        Fault::RecountForgetsRuns => {
            by!(metadata::a_recount_keeps_the_blocks_of_runs, "free to be overwritten")
        }
        Fault::RunsReversed | Fault::RunDroppedEarly => {
            by!(metadata::a_merge_in_slices_loses_no_mapping_and_brings_none_back, "expected content")
        }
        Fault::RunFilterForgets => {
            by!(metadata::a_mapping_in_a_run_is_found_through_its_filter, "expected content")
        }
        Fault::IndexNotRebuilt => {
            by!(
                metadata::a_damaged_index_is_built_anew_and_costs_no_other_tree_a_block,
                "found by the new index"
            )
        }
        Fault::NeedsCheckLost => by!(checkpoint::damage_that_was_found_is_remembered, "need for a check"),
        Fault::StaleHintKept => by!(matching::the_index_stays_as_large_as_what_is_stored, "the index has"),
        Fault::OverflowCountLost => {
            by!(space::a_block_stays_as_long_as_anything_is_mapped_to_it, "expected content")
        }

        Fault::OpenNotFlushed => {
            by!(open::a_power_cut_in_the_open_after_a_kill_leaves_a_volume_that_opens, "does not open")
        }
        Fault::EpochKept => by!(open::blocks_behind_a_gap_in_the_log_stay_dead, "expected content"),
        Fault::LostEpochNotSearched => {
            by!(open::an_epoch_of_a_lost_superblock_is_not_used_again, "the log has blocks of epoch 9")
        }
        Fault::EpochStartNotRecorded => {
            by!(open::an_accepted_log_that_is_gone_is_refused, "an accepted record is lost")
        }
        Fault::CachedLogBelieved => by!(open::what_only_the_cache_has_is_written_again, "does not open"),
        Fault::SparesNotRestored => {
            by!(open::after_an_open_every_superblock_has_its_spare, "copies after an open")
        }
        Fault::MidLogDamageTakenForTail => {
            by!(open::a_hole_in_front_of_a_durable_claim_is_refused, "although acknowledged records are lost")
        }
        Fault::BadMarksForgotten => {
            by!(blocks::damaged_content_is_an_error_marked_and_healed_by_a_duplicate, "the mark survives")
        }
        Fault::ReplayedReuseForgotten => {
            by!(space::a_block_that_the_log_reused_is_not_given_out, "expected content")
        }
        Fault::ReadOnlyOpenWrites => by!(open::a_read_only_open_writes_nothing, "of a read-only volume"),
        Fault::LabelNotChecked => {
            by!(open::data_and_metadata_of_two_volumes_do_not_open, "made of halves of two")
        }

        Fault::LookupNotValidated | Fault::CountsNotReadAgain => {
            by!(space::a_reference_taken_during_an_overwrite_counts, "expected content")
        }
        Fault::TrimNotValidated => by!(space::a_reference_taken_during_a_trim_counts, "expected content"),
        Fault::HitNotRechecked => {
            by!(matching::a_hit_whose_block_was_freed_meanwhile_is_a_miss, "expected content")
        }
        Fault::ReservedBlockPinned => {
            by!(matching::a_block_reserved_for_other_content_is_no_match, "expected content")
        }
        Fault::HitDigestFromTreesOnly => {
            by!(matching::a_block_allocated_anew_is_not_its_old_content, "expected content")
        }
        Fault::HintTrusted => {
            by!(matching::a_hint_whose_digest_only_begins_alike_is_no_match, "expected content")
        }
        Fault::PrefixTakenForDigest => {
            by!(matching::a_digest_that_only_begins_alike_is_no_match, "expected content")
        }
        Fault::BytesNotCompared => {
            by!(matching::a_digest_that_collides_is_no_match_where_bytes_are_compared, "expected content")
        }
        Fault::BadBlockMatched => {
            by!(blocks::damaged_content_is_an_error_marked_and_healed_by_a_duplicate, "expected content")
        }
        Fault::PublishedBeforeWritten => {
            by!(
                matching::a_duplicate_is_not_answered_while_its_block_is_in_flight,
                "while its block was in flight"
            )
        }
        Fault::FailedWriteMatched => {
            by!(matching::a_duplicate_of_a_block_whose_write_failed_is_written_for_itself, "expected content")
        }
        Fault::FailedOverwriteUnmaps => {
            by!(blocks::a_failed_overwrite_leaves_the_old_content, "expected content")
        }
        Fault::FailedRunNotReissued => {
            by!(blocks::one_bad_sector_fails_only_its_own_request, "fails one request")
        }
        Fault::FailedBlockReused => {
            by!(blocks::a_block_that_could_not_be_written_is_not_used_again, "because of one bad block")
        }
        Fault::HealedWithoutReference => {
            by!(blocks::a_healed_block_that_lost_its_last_reference_is_not_mapped, "expected content")
        }
        Fault::ClaimNotReleased => by!(matching::a_failed_write_keeps_nobody_waiting, "no end within"),
        Fault::MarkedUnseen => {
            by!(
                blocks::a_block_written_anew_is_not_marked_for_the_damage_of_the_one_before,
                "whole blocks marked"
            )
        }
        Fault::WavesMerged => {
            by!(
                blocks::two_writes_of_one_block_in_one_batch_are_one_after_the_other,
                "two writes of one block"
            )
        }
        Fault::AbandonedBegun => {
            by!(
                abandoned::nothing_of_a_batch_is_begun_once_nobody_wants_it,
                "begun although nobody wanted it"
            )
        }
        Fault::AskedBeforeLocking => {
            by!(abandoned::what_waits_for_its_blocks_is_asked_for_again, "replaced by one that nobody wanted")
        }
        Fault::RangesNotLocked => by!(blocks::sector_writes_to_one_block_are_both_there, "is lost"),
        Fault::TrimRoundsOut => {
            by!(blocks::a_trim_leaves_partly_covered_blocks_alone_and_zeroing_does_not, "expected content")
        }
        Fault::ZeroEdgesDropped => {
            by!(blocks::a_trim_leaves_partly_covered_blocks_alone_and_zeroing_does_not, "reads as zeros")
        }
        Fault::EdgeErrorIgnored => {
            by!(blocks::a_partial_write_to_a_damaged_block_is_an_error, "a partial write")
        }

        Fault::CountTooLow => {
            by!(space::a_block_stays_as_long_as_anything_is_mapped_to_it, "expected content")
        }
        Fault::CountTooHigh => by!(space::trimmed_space_comes_back, "when everything is trimmed"),
        Fault::FreedReusedBeforeCommit | Fault::RegionIgnoresQuarantine => {
            by!(space::a_freed_block_is_not_reused_before_its_commit, "expected what was flushed")
        }
        Fault::FreedReusedUnderReader | Fault::PinnedLate => {
            by!(space::a_reader_in_flight_keeps_its_blocks, "expected content")
        }
        Fault::ReusedWhileDiscarding => {
            by!(space::a_discard_under_way_zeroes_nothing_new, "expected content")
        }
        Fault::ReclaimSkipped => by!(space::space_that_waits_for_a_commit_is_found, "where all is trimmed"),
        Fault::SpaceNotSetAside => {
            by!(space::a_full_file_system_below_both_devices_stops_nothing, "stopped on a full file system")
        }
        Fault::OthersNotAwaited => {
            by!(space::a_write_waits_for_what_a_write_in_flight_will_free, "about to free a block")
        }
        Fault::AdmissionNotReturned => by!(space::failed_writes_leave_room_for_the_next, "no end within"),
        Fault::FullRingIgnored => {
            by!(space::a_request_larger_than_the_log_ring_succeeds, "larger than the ring")
        }
        Fault::MetadataReserveIgnored => {
            by!(space::a_full_metadata_device_is_no_space_and_no_failure, "expected no space")
        }

        Fault::ReadDigestIgnored => {
            by!(metadata::damage_that_the_checksum_misses_is_found_by_the_digest, "has another digest")
        }
        Fault::HealingNotAwaited => {
            by!(blocks::a_read_waits_for_the_healing_of_its_block, "expected content")
        }
        Fault::UnmappedNotZeroed => by!(blocks::what_holds_nothing_reads_as_zeros, "expected content"),
        Fault::ForgottenContentKept => {
            by!(blocks::content_in_memory_goes_when_its_block_is_taken_anew, "the content before")
        }
        Fault::ChecksumIgnored => {
            by!(
                blocks::damaged_content_is_an_error_marked_and_healed_by_a_duplicate,
                "a read of a damaged block"
            )
        }

        Fault::Meta(MetaFault::LogBlockRewritten) => {
            by!(durable::a_torn_commit_leaves_the_commits_before_it, "expected content")
        }
        Fault::Meta(MetaFault::DurableClaimedEarly) => {
            by!(open::blocks_behind_a_gap_in_the_log_stay_dead, "does not open")
        }
        Fault::Meta(MetaFault::TornLogBlockSkipped) | Fault::Meta(MetaFault::StaleLogBlockReplayed) => {
            by!(open::blocks_behind_a_gap_in_the_log_stay_dead, "expected content")
        }
        Fault::Meta(MetaFault::DamagedMilestoneBelieved) => {
            by!(
                open::a_long_hole_in_front_of_a_durable_claim_is_refused,
                "although acknowledged records are lost"
            )
        }
        Fault::Meta(MetaFault::BlockChecksumIgnored) => {
            by!(metadata::a_flipped_bit_in_a_node_is_noticed_by_whoever_reads_it, "flipped bit was believed")
        }
        Fault::Meta(MetaFault::ChildChecksumIgnored) => {
            by!(
                metadata::an_intact_node_that_its_parent_does_not_name_is_refused,
                "version of a node was believed"
            )
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// Runs a property, under the watchdog; its message if it fails, and its time.
fn outcome(property: fn(&OpenOptions), planted: Option<Fault>) -> (Result<(), String>, Duration) {
    let options = OpenOptions { planted, ..dedup_tests::options() };
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(move || watched(BUDGET, move || property(&options))));
    (result.map_err(|panic| message(&*panic)), start.elapsed())
}

/// Seeds within which the random crash explorer must come upon each of [`FOUND_BY_CHANCE`].
const SEEDS: u64 = 12;

/// Faults that ordinary use with power cuts shows. Others need damage, several clients at one moment, or a full device.
const FOUND_BY_CHANCE: &[Fault] = &[
    Fault::DataFlushSkipped,
    Fault::LogBeforeData,
    Fault::CheckpointDataFlushSkipped,
    Fault::LogFlushSkipped,
    Fault::FuaIgnored,
    Fault::FailStopForgotten,
    Fault::MetadataFlushRetried,
    Fault::CountersNotLogged,
    Fault::DigestNotLogged,
    Fault::UnmapNotLogged,
    Fault::SealedContentNotFlushed,
    Fault::ContentBehindRecords,
    Fault::ContentNotRestored,
    Fault::EarlierContentRestored,
    Fault::SuperblockBeforeTree,
    Fault::SuperblockFlushSkipped,
    Fault::SlotNotAlternated,
    Fault::SpareBeforeSlotFlush,
    Fault::HitNotRechecked,
    Fault::ReservedBlockPinned,
    Fault::HitDigestFromTreesOnly,
    Fault::PublishedBeforeWritten,
    Fault::FailedWriteMatched,
    Fault::FailedOverwriteUnmaps,
    Fault::TrimRoundsOut,
    Fault::ZeroEdgesDropped,
    Fault::CountTooLow,
    Fault::CountTooHigh,
    Fault::FreedReusedBeforeCommit,
    Fault::RegionIgnoresQuarantine,
    Fault::Meta(MetaFault::LogBlockRewritten),
];

/// The properties know what they look for. The explorer does not: that it finds these says what its silence is worth.
#[test]
fn the_random_crash_explorer_finds_by_chance_what_ordinary_use_can_show() {
    let explore = |planted, seed| {
        let mut session = Session::planting(Some(planted));
        !matches!(catch_unwind(AssertUnwindSafe(|| random::explore(seed, &mut session))), Ok(Ok(())))
    };
    let missed: Vec<_> = FOUND_BY_CHANCE
        .iter()
        .filter(|fault| {
            let seed = (0..SEEDS).find(|seed| explore(**fault, *seed));
            println!("{fault:?}: {}", seed.map_or("not found".into(), |seed| format!("seed {seed}")));
            seed.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

#[test]
fn every_planted_fault_is_caught_by_its_test() {
    let mut wrong = Vec::new();
    println!("| fault | caught by | budget | spent |\n|---|---|---|---|");
    for fault in Fault::all() {
        let Catcher { name, property, says } = catcher(fault);
        let (whole, whole_time) = outcome(property, None);
        if let Err(message) = whole {
            wrong.push(format!("{name} fails without {fault:?}: {message}"));
        }
        let (broken, time) = outcome(property, Some(fault));
        println!("| {fault:?} | `{name}` | {BUDGET:?} | {time:.2?} |");
        match broken {
            Ok(()) => wrong.push(format!("{fault:?} is not caught by {name}")),
            Err(message) if !message.contains(says) => {
                wrong.push(format!("{fault:?}: {name} failed, but by other words: {message}"))
            }
            Err(_) => {}
        }
        if whole_time > BUDGET {
            wrong.push(format!("{name}: {whole_time:?} without {fault:?}, {time:?} with it, of {BUDGET:?}"));
        }
    }
    println!("{} faults", Fault::all().count());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
