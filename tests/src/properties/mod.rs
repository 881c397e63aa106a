//! Properties that are tests of their own (`tests/properties.rs`) and must also catch a planted fault
//! (`tests/planted.rs`): each is run with the options that it is given. Each sets up the one moment at which
//! the fault would show, and names in its message what went wrong.

pub mod abandoned;
pub mod blocks;
pub mod checkpoint;
pub mod content;
pub mod durable;
pub mod journal;
pub mod matching;
pub mod metadata;
pub mod open;
pub mod space;

use super::*;
use dedup_meta::LOG_PAYLOAD_SIZE;
use dedup_meta::{
    Block, BlockRef, BlockType, META_BLOCK_SIZE, MetaBlock, MetaError, NodeSink, NodeSource, RunSet,
    ShapeCheck, Store, Superblock, TxId, load_superblocks,
};
use dedup_schema::{HINTS, HintKey};
use dedup_volume::{DigestAlgorithm, Pbn};
use std::ops::Range;

/// Hands all properties to the macro `$take`: those that go by how a commit without data in the log is made,
/// and the others.
#[macro_export]
macro_rules! all_properties {
    ($take:ident) => {
        $take! {
            {
                durable:
                    a_failed_flush_is_final;
                journal:
                    what_is_taken_in_after_a_failed_flush_is_on_the_device;
                open:
                    a_hole_in_front_of_a_durable_claim_is_refused,
                    a_long_hole_in_front_of_a_durable_claim_is_refused,
                    an_epoch_of_a_lost_superblock_is_not_used_again;
            }
            {
                abandoned:
                    a_long_trim_ends_when_nobody_wants_it,
                    nothing_of_a_batch_is_begun_once_nobody_wants_it,
                    what_waits_for_its_blocks_is_asked_for_again;
                content:
                    a_block_taken_anew_holds_its_new_content_after_a_replay,
                    a_checkpoint_flushes_the_data_that_the_log_carries,
                    a_commit_with_data_that_is_torn_anywhere_leaves_old_or_new,
                    a_healed_block_is_durable_beside_data_in_the_log,
                    what_is_written_during_the_flush_ahead_of_a_checkpoint_is_durable_with_it,
                    data_in_the_log_outlives_the_data_device_cache;
                blocks:
                    a_block_that_could_not_be_written_is_not_used_again,
                    a_block_written_anew_is_not_marked_for_the_damage_of_the_one_before,
                    a_failed_overwrite_leaves_the_old_content,
                    a_healed_block_that_lost_its_last_reference_is_not_mapped,
                    a_partial_write_to_a_damaged_block_is_an_error,
                    a_read_waits_for_the_healing_of_its_block,
                    a_trim_leaves_partly_covered_blocks_alone_and_zeroing_does_not,
                    content_in_memory_goes_when_its_block_is_taken_anew,
                    damaged_content_is_an_error_marked_and_healed_by_a_duplicate,
                    one_bad_sector_fails_only_its_own_request,
                    sector_writes_to_one_block_are_both_there,
                    two_writes_of_one_block_in_one_batch_are_one_after_the_other,
                    what_holds_nothing_reads_as_zeros;
                checkpoint:
                    a_checkpoint_is_durable_when_it_returns,
                    a_lookup_in_flight_keeps_its_nodes,
                    a_power_cut_anywhere_in_a_checkpoint_loses_nothing,
                    a_torn_superblock_leaves_the_other_slot,
                    a_write_during_a_checkpoints_commit_is_no_part_of_it,
                    checkpoints_give_back_what_they_take,
                    both_copies_of_a_superblock_are_never_at_risk_together,
                    damage_that_was_found_is_remembered,
                    either_superblock_is_enough,
                    reads_during_a_checkpoint_see_the_latest;
                durable:
                    a_checkpoint_ends_when_a_commits_flush_fails_beside_it,
                    a_commit_that_anothers_failure_has_ended_is_not_acknowledged,
                    a_healed_block_is_durable_when_flushed,
                    a_power_cut_anywhere_in_a_commit_leaves_old_or_new,
                    a_torn_commit_leaves_the_commits_before_it,
                    a_trim_that_was_flushed_stays,
                    counters_are_those_of_the_recovered_operations,
                    fua_covers_what_was_trimmed_before,
                    fua_is_durable_when_answered,
                    the_write_that_flushrq_counts_to_is_durable,
                    what_is_replayed_finds_its_duplicates,
                    what_was_flushed_is_there_after_a_power_cut,
                    who_waits_for_a_commit_is_woken_after_its_flushes;
                journal:
                    what_an_open_takes_in_is_durable_when_it_returns,
                    what_was_answered_is_there_after_a_kill,
                    without_the_newest_superblock_the_journal_is_found_all_the_same;
                matching:
                    a_block_allocated_anew_is_not_its_old_content,
                    a_block_reserved_for_other_content_is_no_match,
                    a_digest_that_collides_is_no_match_where_bytes_are_compared,
                    a_digest_that_only_begins_alike_is_no_match,
                    a_duplicate_is_not_answered_while_its_block_is_in_flight,
                    a_duplicate_of_a_block_whose_write_failed_is_written_for_itself,
                    a_failed_write_keeps_nobody_waiting,
                    a_hint_whose_digest_only_begins_alike_is_no_match,
                    a_hit_whose_block_was_freed_meanwhile_is_a_miss,
                    the_index_stays_as_large_as_what_is_stored;
                metadata:
                    a_damaged_index_is_built_anew_and_costs_no_other_tree_a_block,
                    a_flipped_bit_in_a_node_is_noticed_by_whoever_reads_it,
                    a_mapping_in_a_run_is_found_through_its_filter,
                    a_merge_in_slices_loses_no_mapping_and_brings_none_back,
                    a_recount_keeps_the_blocks_of_runs,
                    an_intact_node_that_its_parent_does_not_name_is_refused,
                    damage_that_the_checksum_misses_is_found_by_the_digest,
                    the_older_superblocks_trees_stay_whole_on_a_nearly_full_device;
                open:
                    a_power_cut_in_the_open_after_a_kill_leaves_a_volume_that_opens,
                    a_read_only_open_writes_nothing,
                    after_an_open_every_superblock_has_its_spare,
                    an_accepted_log_that_is_gone_is_refused,
                    blocks_behind_a_gap_in_the_log_stay_dead,
                    data_and_metadata_of_two_volumes_do_not_open,
                    what_only_the_cache_has_is_written_again;
                space:
                    a_block_stays_as_long_as_anything_is_mapped_to_it,
                    a_block_that_the_log_reused_is_not_given_out,
                    a_discard_under_way_zeroes_nothing_new,
                    a_freed_block_is_not_reused_before_its_commit,
                    a_full_file_system_below_both_devices_stops_nothing,
                    a_full_metadata_device_is_no_space_and_no_failure,
                    a_large_trim_holds_up_no_write_to_another_part,
                    a_reader_in_flight_keeps_its_blocks,
                    a_write_waits_for_what_a_write_in_flight_will_free,
                    a_reference_taken_during_a_trim_counts,
                    a_reference_taken_during_an_overwrite_counts,
                    a_request_larger_than_the_log_ring_succeeds,
                    failed_writes_leave_room_for_the_next,
                    space_that_waits_for_a_commit_is_found,
                    trimmed_space_comes_back;
            }
        }
    };
}

/// A property: it panics with the options with which it does not hold.
pub type Property = fn(&OpenOptions);

macro_rules! table {
    ($({ $($module:ident: $($property:ident),+;)* })*) => {
        &[$($($((concat!(stringify!($module), "::", stringify!($property)), $module::$property)),+),*),*]
    };
}

/// All of them by name.
pub const ALL: &[(&str, Property)] = all_properties!(table);

/// Opens what a test has left, which must open.
fn reopened(disks: &Disks, options: &OpenOptions) -> Volume {
    disks.open(options).unwrap_or_else(|error| panic!("the volume does not open: {error}"))
}

/// The newest superblock.
fn superblock(disks: &Disks) -> Superblock {
    load_superblocks(&*disks.metadata).newest(None).unwrap().clone()
}

/// Puts other bytes in the place of a metadata block.
fn destroy(device: &SimDevice, block: u64) {
    device.write(block * META_BLOCK_SIZE as u64, &[0xff; META_BLOCK_SIZE]).unwrap();
    device.flush().unwrap();
}

/// A volume whose `blocks` data blocks are all in use: LBN n holds content n + 1, flushed, for n below
/// `blocks`. It has four times as many LBNs.
fn full(blocks: u64, options: &OpenOptions) -> Disks {
    let disks = Disks::new((blocks + 1) * 4096, 8 << 20);
    disks.format(&format_options(4 * blocks * 4096));
    let volume = disks.open(options).unwrap();
    (0..blocks).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    disks
}

/// On a [`full`] volume, gives one block back and takes it again: from now on the allocator has a region
/// open, and a block that is given back to it is the next to be taken.
fn make_one_go_round(volume: &Volume) {
    trim(volume, 15, 1);
    flush(volume);
    write(volume, 16, 50);
    flush(volume);
}

/// Takes what blocks are free: writes new content, from `content` on, as far as it gets.
fn fill(volume: &Volume, lbns: Range<u64>, content: u64) {
    for (n, lbn) in lbns.enumerate() {
        if try_write(volume, lbn, content + n as u64, false).is_err() {
            break;
        }
    }
}

/// Flips a bit of the block that holds `content`, on the data device.
fn damage_content(disks: &Disks, content: u64) {
    let content = block(content, 4096);
    let mut found = vec![0; 4096];
    let place = (1..disks.data.size() / 4096)
        .map(|pbn| pbn * 4096)
        .find(|offset| {
            disks.data.read(*offset, &mut found).unwrap();
            found == content
        })
        .unwrap();
    found[17] ^= 1;
    disks.data.write(place, &found).unwrap();
}
