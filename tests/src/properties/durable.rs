//! What is acknowledged as durable is durable, and nothing is acknowledged after a failure.

use super::*;
use crate::hooked::{Rig, while_held};
use dedup_device::IoKind;

/// What a FLUSH covered is there after a power cut that takes everything else.
pub fn what_was_flushed_is_there_after_a_power_cut(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    (8..12).for_each(|lbn| write(&volume, lbn, lbn - 7));
    flush(&volume);
    write(&volume, 20, 99);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    (0..8).for_each(|lbn| assert_content(&after, lbn, lbn + 1));
    (8..12).for_each(|lbn| assert_content(&after, lbn, lbn - 7));
    assert_content(&after, 20, 0);
}

/// A trim that a FLUSH covered is not undone by a power cut.
pub fn a_trim_that_was_flushed_stays(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    trim(&volume, 2, 3);
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    for lbn in 0..8 {
        assert_content(&after, lbn, if (2..5).contains(&lbn) { 0 } else { lbn + 1 });
    }
}

/// The power is cut at each event of a commit, on either device: each block is old or new, never an error.
pub fn a_power_cut_anywhere_in_a_commit_leaves_old_or_new(options: &OpenOptions) {
    for device in 0..2 {
        for cut in 0.. {
            let disks = formatted(64, 4096);
            let volume = disks.open(options).unwrap();
            (0..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
            flush(&volume);
            (0..4).for_each(|lbn| write(&volume, lbn, lbn + 101));
            [&disks.data, &disks.metadata][device].set_cut_after(cut);
            let survived = run(&volume, Op::Flush).is_ok();
            for kept in [None, Some(0), Some(1)] {
                let after = reopened(&disks.crash(|device, _, _| kept == Some(device)), options);
                let new = read(&after, 0).is_ok_and(|found| found == block(101, 4096));
                assert!(new || !survived, "a flush was answered and its content is not there");
                (0..4).for_each(|lbn| assert_content(&after, lbn, if new { lbn + 101 } else { lbn + 1 }));
            }
            if survived {
                break;
            }
        }
    }
}

/// A block that was healed is whole for good once that is flushed.
pub fn a_healed_block_is_durable_when_flushed(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    flush(&volume);
    damage_content(&disks, 1);
    disks.data.flush().unwrap();
    assert_eq!(read(&volume, 0), Err(RequestError::Io), "a read of a damaged block");
    flush(&volume);
    write(&volume, 5, 1);
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 1);
    assert_content(&after, 5, 1);
    assert_eq!(after.status().bad_blocks_now, 0, "blocks marked damaged after the healing was flushed");
}

/// The counters after a crash are those of the operations that are left.
pub fn counters_are_those_of_the_recovered_operations(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..10).for_each(|lbn| write(&volume, lbn, lbn % 5 + 1));
    flush(&volume);
    let counters = volume.status().counters;
    write(&volume, 11, 99);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    assert_eq!(after.status().counters, counters, "counters after a power cut");
}

/// A write, trim or zeroing with FUA is durable when it is answered.
pub fn fua_is_durable_when_answered(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    try_write(&volume, 1, 1, true).unwrap();
    try_write(&volume, 2, 2, true).unwrap();
    run(&volume, Op::Trim { offset: 2 * 4096, len: 4096, fua: true }).unwrap();
    let after = reopened(&disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 1);
    assert_content(&after, 1, 1);
    assert_content(&after, 2, 0);
}

/// A trim with FUA promises zeros, also where another trim that is not durable has left nothing to do.
pub fn fua_covers_what_was_trimmed_before(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    trim(&volume, 0, 1);
    run(&volume, Op::Trim { offset: 0, len: 4096, fua: true }).unwrap();
    let after = reopened(&disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 0);
}

/// With `flushrq=3`, the third write is durable when it is answered, with those before it.
pub fn the_write_that_flushrq_counts_to_is_durable(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(&OpenOptions { flushrq: Some(3), ..options.clone() }).unwrap();
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
    let after = reopened(&disks.lose_everything_unflushed(), options);
    (0..3).for_each(|lbn| assert_content(&after, lbn, lbn + 1));
    assert_content(&after, 3, 0);
}

/// A FLUSH that another one's commit covers is answered when that commit has flushed, not when it has begun.
pub fn who_waits_for_a_commit_is_woken_after_its_flushes(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    let volume = &*rig.volume;
    write(volume, 0, 1);
    let early = while_held(&rig.metadata, IoKind::Flush, || flush(volume), || flush(volume));
    assert!(!early, "a flush was answered before the metadata device's");
    let after = reopened(&rig.disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 1);
}

/// After a failed flush of either device, no flush succeeds, and none has.
pub fn a_failed_flush_is_final(options: &OpenOptions) {
    for faulty in 0..2 {
        let disks = formatted(64, 4096);
        let volume = disks.open(options).unwrap();
        write(&volume, 0, 1);
        flush(&volume);
        write(&volume, 0, 2);
        [&disks.data, &disks.metadata][faulty].fail_nth(IoKind::Flush, 0);
        let story = ["data", "metadata"][faulty];
        assert!(run(&volume, Op::Flush).is_err(), "a flush succeeded whose {story} flush failed");
        for _ in 0..3 {
            assert!(run(&volume, Op::Flush).is_err(), "a flush succeeded after a failed {story} flush");
            assert!(try_write(&volume, 1, 3, true).is_err(), "FUA succeeded after a failed {story} flush");
        }
        let after = reopened(&disks.lose_everything_unflushed(), options);
        assert_content(&after, 0, 1);
    }
}

/// A device tells of lost writes once. A commit's flush fails while a checkpoint is writing its trees, which
/// are lost with it: the checkpoint's own flush would succeed, and its superblock name trees that are not
/// there.
pub fn a_checkpoint_ends_when_a_commits_flush_fails_beside_it(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), &OpenOptions { cache_bytes: 0, ..options.clone() }).unwrap();
    let volume = &*rig.volume;
    (0..8).for_each(|lbn| write(volume, lbn, lbn + 1));
    // Nothing is left for the checkpoint's own commit to log: its first write is one of its trees.
    flush(volume);
    let (client, device) = (Arc::clone(&rig.volume), Arc::clone(&rig.disks.metadata));
    rig.metadata.before(IoKind::Write, 1, move || {
        write(&client, 20, 100);
        device.fail_nth(IoKind::Flush, 0);
        run(&client, Op::Flush).unwrap_err();
    });
    let ended = volume.checkpoint();
    for keep in [false, true] {
        let disks = rig.disks.crash(|_, _, _| keep);
        let after = reopened(&disks, options);
        (0..8).for_each(|lbn| assert_content(&after, lbn, lbn + 1));
    }
    assert!(ended.is_err(), "a checkpoint went on after a commit's flush had failed");
}

/// A small commit is flushing its log when the flush of the data device ahead of a checkpoint fails: what it
/// covers may be lost with that, and it is not acknowledged although its own flush succeeds.
pub fn a_commit_that_anothers_failure_has_ended_is_not_acknowledged(options: &OpenOptions) {
    let options = OpenOptions { log_data: 4096, ..options.clone() };
    let rig = Rig::open(formatted(64, 4096), &options).unwrap();
    write(&rig.volume, 0, 1);
    let (other, data) = (Arc::clone(&rig.volume), Arc::clone(&rig.disks.data));
    rig.metadata.before(IoKind::Flush, 0, move || {
        data.fail_nth(IoKind::Flush, 0);
        other.checkpoint().unwrap_err();
    });
    let answer = run(&rig.volume, Op::Flush);
    assert!(answer.is_err(), "a flush was answered after another one had failed");
    assert!(run(&rig.volume, Op::Flush).is_err(), "a flush was answered on a volume that has stopped");
}

/// A log block that was flushed is not written again: a torn commit leaves those before it whole.
pub fn a_torn_commit_leaves_the_commits_before_it(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    try_write(&volume, 1, 2, true).unwrap();
    disks.metadata.fail_nth(IoKind::Flush, 0);
    try_write(&volume, 2, 3, true).unwrap_err();
    for kept in 0..8 {
        let after = reopened(&disks.crash(|device, _, sector| device == 0 || sector == kept), options);
        assert_content(&after, 0, 1);
        assert_content(&after, 1, 2);
    }
}

/// What is replayed is known with its digest: a duplicate of it costs no block.
pub fn what_is_replayed_finds_its_duplicates(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    trim(&volume, 0, 4);
    volume.checkpoint().unwrap();
    // Blocks taken into use anew.
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 11));
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    (0..4).for_each(|lbn| write(&after, lbn + 8, lbn + 11));
    assert_eq!(after.status().data_used_blocks, 4, "blocks in use after duplicates of what was replayed");
}
