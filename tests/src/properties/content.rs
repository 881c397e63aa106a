//! Data that a commit carries in the log is as durable as data that was flushed, and never written over other
//! content.

use super::*;
use dedup_device::IoKind;
use dedup_meta::Features;
use std::sync::{Arc, Mutex};

/// With data in the log.
fn with_log_data(bytes: u64, options: &OpenOptions) -> OpenOptions {
    OpenOptions { log_data: bytes, ..options.clone() }
}

/// A FLUSH of few blocks leaves the data device alone, and the blocks are there after a power cut that takes
/// all of what it had not flushed: for a read-only open, for the checker, and for an open for writing.
pub fn data_in_the_log_outlives_the_data_device_cache(options: &OpenOptions) {
    for block_size in [512, 2048, 4096] {
        let options = with_log_data(1 << 20, options);
        let disks = formatted(16, block_size);
        let volume = disks.open(&options).unwrap();
        let flushes = disks.data.operations(IoKind::Flush);
        (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
        flush(&volume);
        write(&volume, 3, 40);
        write(&volume, 9, 40);
        flush(&volume);
        let begun = disks.data.operations(IoKind::Flush);
        assert_eq!(begun, flushes, "flushes of the data device by small commits");
        assert_eq!(superblock(&disks).features.incompat, Features::LOG_DATA, "what older programs are told");
        let after = disks.lose_everything_unflushed();
        after.assert_clean("after a power cut, before an open");
        let content = |lbn| {
            if lbn == 3 || lbn == 9 {
                40
            } else if lbn < 8 {
                lbn + 1
            } else {
                0
            }
        };
        for read_only in [true, false] {
            let volume = reopened(&after, &OpenOptions { read_only, ..options.clone() });
            (0..12).for_each(|lbn| assert_content(&volume, lbn, content(lbn)));
        }
        after.assert_clean("after an open");
    }
}

/// A commit is torn at each sector of its log blocks: it counts as a whole or not at all.
pub fn a_commit_with_data_that_is_torn_anywhere_leaves_old_or_new(options: &OpenOptions) {
    let options = with_log_data(1 << 20, options);
    let base = formatted(16, 4096);
    let volume = base.open(&options).unwrap();
    (0..3).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    let base = base.lose_everything_unflushed();
    for sectors in 0u64.. {
        let disks = base.crash(|_, _, _| true);
        let volume = disks.open(&options).unwrap();
        (0..3).for_each(|lbn| write(&volume, lbn, lbn + 101));
        disks.metadata.fail_nth(IoKind::Flush, 0);
        run(&volume, Op::Flush).unwrap_err();
        let mut left = sectors;
        let after = disks.crash(|device, _, _| {
            let keep = device == 1 && left > 0;
            left -= u64::from(keep);
            keep
        });
        after.assert_clean("after a torn commit");
        let after = reopened(&after, &options);
        for lbn in 0..3 {
            let found = read(&after, lbn).unwrap_or_else(|error| panic!("LBN {lbn}: {error}"));
            assert!(
                [lbn + 1, lbn + 101].iter().any(|content| found == block(*content, 4096)),
                "LBN {lbn} holds neither its old nor its new content"
            );
        }
        if left > 0 {
            break;
        }
    }
}

/// A checkpoint lets go of the log, and so of the data in it: that has been flushed by then.
pub fn a_checkpoint_flushes_the_data_that_the_log_carries(options: &OpenOptions) {
    checkpoint::a_checkpoint_is_durable_when_it_returns(&with_log_data(1 << 20, options));
}

/// A checkpoint's commit flushes everything written before its cut, also what was written while the flush
/// ahead of it was under way, which others do not wait for.
pub fn what_is_written_during_the_flush_ahead_of_a_checkpoint_is_durable_with_it(options: &OpenOptions) {
    let options = with_log_data(4096, options);
    let disks = formatted(16, 4096);
    let volume = Arc::new(disks.open(&options).unwrap());
    write(&volume, 0, 1);
    flush(&volume);
    let client = Arc::clone(&volume);
    let once = Mutex::new(Some(move || write(&client, 1, 2)));
    disks.data.on_operation(move || {
        let due = once.lock().unwrap().take();
        due.into_iter().for_each(|write| write());
    });
    volume.checkpoint().unwrap();
    let after = reopened(&disks.lose_everything_unflushed(), &options);
    assert_content(&after, 0, 1);
    assert_content(&after, 1, 2);
}

/// A healing write is in no log: a commit that carries other data there flushes the data device for it.
pub fn a_healed_block_is_durable_beside_data_in_the_log(options: &OpenOptions) {
    durable::a_healed_block_is_durable_when_flushed(&with_log_data(1 << 20, options));
    let options = with_log_data(1 << 20, options);
    let disks = formatted(64, 4096);
    let volume = disks.open(&options).unwrap();
    write(&volume, 0, 1);
    volume.checkpoint().unwrap();
    damage_content(&disks, 1);
    disks.data.flush().unwrap();
    assert_eq!(read(&volume, 0), Err(RequestError::Io), "a read of a damaged block");
    run_all(&volume, &[(5, 1), (6, 2)]);
    write(&volume, 7, 3);
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), &options);
    [(0, 1), (5, 1), (6, 2), (7, 3)].iter().for_each(|(lbn, content)| assert_content(&after, *lbn, *content));
}

/// A block that the log carries data of is freed and taken for other content, which is flushed: that is what
/// it holds after a power cut.
pub fn a_block_taken_anew_holds_its_new_content_after_a_replay(options: &OpenOptions) {
    let options = with_log_data(4096, options);
    let disks = full(8, &options);
    let volume = disks.open(&options).unwrap();
    trim(&volume, 0, 2);
    flush(&volume);
    write(&volume, 0, 100);
    flush(&volume);
    trim(&volume, 0, 1);
    flush(&volume);
    // Two blocks are more than the log takes, and there is no other free block.
    run_all(&volume, &[(20, 201), (21, 202)]);
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), &options);
    assert_content(&after, 20, 201);
    assert_content(&after, 21, 202);
}

/// Writes of one batch.
fn run_all(volume: &Volume, writes: &[(u64, u64)]) {
    let contents: Vec<Vec<u8>> = writes.iter().map(|(_, content)| block(*content, 4096)).collect();
    let batch = writes.iter().zip(&contents).enumerate().map(|(tag, ((lbn, _), data))| Request {
        tag: tag as u64,
        op: Op::Write { offset: lbn * 4096, data, fua: false },
    });
    volume.execute(batch.collect(), &mut |_, result| result.unwrap());
}
