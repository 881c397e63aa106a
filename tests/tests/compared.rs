//! Blocks whose bytes are compared: what came out of it is believed as long as the pin is held under which
//! they were read, and no longer.
//!
//! The story is one that was feared, and not one that was met: of two contents with one digest, one was
//! compared with block X; X was freed and given to the other one, which has the digest that X had. A mapping
//! to X is now one to other bytes.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::hooked::{Rig, WATCHDOG, watched};
use dedup_tests::*;
use dedup_volume::{DigestAlgorithm, FormatOptions, Op, OpenOptions, Request, Volume};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

const BLOCK: u64 = 4096;

/// An empty volume of 16 blocks with so many blocks of store, whose digest is MD5.
fn md5_volume(blocks: u64) -> Rig {
    let disks = Disks::new((1 + blocks) * BLOCK, 8 << 20);
    disks.format(&FormatOptions { algorithm: DigestAlgorithm::Md5, ..format_options(16 * BLOCK) });
    Rig::open(disks, &options()).unwrap()
}

/// Writes blocks, in one batch.
fn write_blocks(volume: &Volume, blocks: &[(u64, &[u8])]) {
    let requests = blocks
        .iter()
        .map(|&(tag, data)| Request { tag, op: Op::Write { offset: tag * BLOCK, data, fua: false } });
    volume.execute(requests.collect(), &mut |request, result| {
        assert_eq!(result, Ok(()), "a write of LBN {}", request.tag);
    });
}

#[track_caller]
fn assert_holds(volume: &Volume, lbn: u64, expected: &[u8]) {
    assert!(
        read(volume, lbn).unwrap() == expected,
        "LBN {lbn}: expected the bytes that were written, found others"
    );
}

/// The block is freed while it is compared. Another block of the batch waits for a writer of its content; by
/// the time that one has ended, the block has been taken for the other content.
#[test]
fn what_was_compared_is_not_believed_after_a_wait_for_another_writer() {
    watched(WATCHDOG, || {
        let [first, second] = md5_pair();
        let (other, filler) = (block(1, 4096), block(2, 4096));
        let rig = md5_volume(3);
        write_blocks(&rig.volume, &[(0, &first)]);
        write_blocks(&rig.volume, &[(1, &filler)]);
        let (at_device, is_at_device) = channel();
        let (end, may_end) = channel::<()>();
        rig.data.before(IoKind::Write, 0, move || {
            at_device.send(()).unwrap();
            let _ = may_end.recv();
        });
        let (freed, is_freed) = channel();
        let (go_on, may_go_on) = channel::<()>();
        let volume = Arc::clone(&rig.volume);
        rig.data.before(IoKind::Read, 0, move || {
            trim(&volume, 0, 1);
            flush(&volume);
            freed.send(()).unwrap();
            let _ = may_go_on.recv();
        });
        thread::scope(|scope| {
            let batch = scope.spawn(|| write_blocks(&rig.volume, &[(2, &first), (3, &other)]));
            is_freed.recv().unwrap();
            // It has begun after the block was freed, so what it has pinned does not hold that back.
            scope.spawn(|| write_blocks(&rig.volume, &[(5, &other)]));
            is_at_device.recv().unwrap();
            drop(go_on);
            // There is no other block: it waits until the batch has let go of this one.
            write_blocks(&rig.volume, &[(4, &second)]);
            trim(&rig.volume, 1, 1);
            drop(end);
            batch.join().unwrap();
        });
        assert_holds(&rig.volume, 2, &first);
        assert_holds(&rig.volume, 3, &other);
        assert_holds(&rig.volume, 4, &second);
        assert_eq!(rig.volume.status().data_used_blocks, 3);
    });
}

/// A round that leaves something to be compared, and one that is void, are followed by another, which
/// believes what they compared: until then nobody is given the block.
#[test]
fn a_block_that_was_compared_is_given_to_nobody_before_the_next_round() {
    for is_void in [false, true] {
        watched(WATCHDOG, move || {
            let [first, second] = md5_pair();
            let rig = md5_volume(8);
            write_blocks(&rig.volume, &[(0, &second)]);
            if !is_void {
                // So that the deltas tell of `first` only, and `second` is left for a second round.
                rig.volume.checkpoint().unwrap();
            }
            write_blocks(&rig.volume, &[(1, &first)]);
            let (volume, data, again) = (Arc::clone(&rig.volume), Arc::clone(&rig.data), second.clone());
            rig.data.before(IoKind::Read, 0, move || {
                trim(&volume, 1, 1);
                match is_void {
                    false => flush(&volume),
                    true => volume.checkpoint().unwrap(),
                }
                let other = Arc::clone(&volume);
                data.before(IoKind::Read, 0, move || {
                    trim(&other, 0, 1);
                    flush(&other);
                    write_blocks(&other, &[(4, &again)]);
                });
            });
            // With both in the batch, the first round would read both blocks where the deltas know them.
            let batch: [(u64, &[u8]); 2] = [(2, &first), (3, &second)];
            write_blocks(&rig.volume, if is_void { &batch[..1] } else { &batch });
            assert_holds(&rig.volume, 2, &first);
            assert_holds(&rig.volume, 4, &second);
            if !is_void {
                assert_holds(&rig.volume, 3, &second);
            }
            assert_eq!(rig.volume.status().data_used_blocks, 2);
            rig.volume.checkpoint().unwrap();
            rig.disks.assert_clean("blocks compared and taken anew");
        });
    }
}

/// Blocks that lie side by side are read in one go. One that cannot be read is no match, for what it holds is
/// not known, and no collision; those beside it are matches all the same.
#[test]
fn a_block_that_cannot_be_read_to_be_compared_is_no_match_and_its_neighbours_are() {
    let disks = formatted(16, BLOCK as u32);
    let volume = disks.open(&OpenOptions { verify_match: Some(true), ..options() }).unwrap();
    let contents: Vec<Vec<u8>> = (1..5).map(|content| block(content, BLOCK as usize)).collect();
    let batch = |first: u64| (first..).zip(contents.iter().map(Vec::as_slice)).collect::<Vec<_>>();
    write_blocks(&volume, &batch(0));
    disks.data.fail_region(IoKind::Read, 2 * BLOCK..3 * BLOCK);
    write_blocks(&volume, &batch(8));
    let status = volume.status();
    assert_eq!((status.data_used_blocks, status.counters.dupwrites), (5, 3), "one of four is stored again");
    assert_eq!(status.counters.collisions, 0, "nobody has seen other bytes");
    disks.data.clear_faults();
    (0..4).for_each(|n| [n, 8 + n].iter().for_each(|lbn| assert_content(&volume, *lbn, 1 + n)));
    volume.close().unwrap();
    disks.assert_clean("after a comparison that failed");
}

/// The batch that is left something to compare has the block pinned that it frees by itself a moment later,
/// and there is no other: it would wait for itself.
#[test]
fn a_batch_that_goes_on_comparing_waits_for_a_free_block_without_a_pin() {
    watched(WATCHDOG, || {
        let [first, second] = md5_pair();
        let rig = md5_volume(2);
        write_blocks(&rig.volume, &[(0, &second)]);
        rig.volume.checkpoint().unwrap();
        write_blocks(&rig.volume, &[(1, &first)]);
        let volume = Arc::clone(&rig.volume);
        rig.data.before(IoKind::Read, 0, move || {
            trim(&volume, 1, 1);
            flush(&volume);
        });
        let new = block(1, 4096);
        write_blocks(&rig.volume, &[(2, &second), (3, &new)]);
        assert_holds(&rig.volume, 2, &second);
        assert_holds(&rig.volume, 3, &new);
        assert_eq!(rig.volume.status().data_used_blocks, 2);
    });
}

/// A block that was marked as damaged may read right again. It stays what it is until it is healed, and a
/// write of its content neither goes round and round between the bytes and the mark, nor is mapped to it.
#[test]
fn a_block_marked_as_damaged_is_no_match_also_if_it_reads_right_again() {
    for is_in_trees in [false, true] {
        watched(WATCHDOG, move || {
            let disks = formatted(16, BLOCK as u32);
            let volume = disks.open(&OpenOptions { verify_match: Some(true), ..options() }).unwrap();
            write(&volume, 0, 1);
            if is_in_trees {
                volume.checkpoint().unwrap();
            }
            disks.data.rot(BLOCK, &[0xff]).unwrap();
            read(&volume, 0).unwrap_err();
            disks.data.rot(BLOCK, &[0xff]).unwrap();
            assert_eq!(volume.status().bad_blocks_now, 1);
            write(&volume, 1, 1);
            assert_eq!(volume.status().data_used_blocks, 2, "in trees {is_in_trees}");
            [0, 1].iter().for_each(|lbn| assert_content(&volume, *lbn, 1));
            volume.close().unwrap();
        });
    }
}
