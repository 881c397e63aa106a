//! The log's stories: what is replayed after a crash, what is a tail and what is damage.

use super::*;
use crate::MetaError;
use crate::log::{LogBuilder, LogWriter, PendingBlock};
use crate::test_device::TestDevice;
use proptest::prelude::*;

const POOL: Uuid = Uuid::from_u128(7);
const RING: LogGeometry = LogGeometry { start: MetaBlock(5), blocks: 16 };
const START: LogPosition = LogPosition { next: LogSeq(1), prev_crc: 0 };

fn device() -> TestDevice {
    TestDevice::new(32)
}

pub(crate) fn content(op: u64) -> PendingBlock {
    let payload = op.to_le_bytes().repeat(1 + op as usize % 400);
    PendingBlock { payload, records: 1, op_seq: op, counters: [op; 16] }
}

fn contents(ops: std::ops::Range<u64>) -> Vec<PendingBlock> {
    ops.map(content).collect()
}

fn writer(epoch: u64, position: LogPosition) -> LogWriter {
    LogWriter::new(RING, POOL, Epoch(epoch), position, position.next, 0)
}

/// Appends operations, one a block, and makes them durable.
fn commit(writer: &mut LogWriter, device: &TestDevice, ops: std::ops::Range<u64>) -> LogPosition {
    let end = writer.append(device, contents(ops)).unwrap();
    device.flush().unwrap();
    writer.mark_durable(end);
    end
}

fn scan_from(device: &TestDevice, from: LogPosition, epoch: u64, epoch_start: u64) -> Scan {
    scan(device, POOL, RING, from, Epoch(epoch), LogSeq(epoch_start))
}

fn ops(scan: &Scan) -> Vec<u64> {
    scan.blocks.iter().map(|block| block.op_seq).collect()
}

#[test]
fn what_was_appended_is_read_back_with_one_large_read_a_run() {
    let device = device();
    let mut writer = writer(3, START);
    commit(&mut writer, &device, 1..4);
    let end = commit(&mut writer, &device, 4..9);
    let scan = scan_from(&device, START, 3, 1);
    assert_eq!((scan.end, scan.damage.clone(), scan.highest_epoch), (end, None, Some(Epoch(3))));
    assert_eq!(device.reads(), 2, "from the start's place to the ring's end, then the rest");
    for (block, op) in scan.blocks.iter().zip(1..) {
        let PendingBlock { payload, records, op_seq, counters } = content(op);
        assert_eq!((&block.payload, block.records), (&payload, records));
        assert_eq!((block.op_seq, block.counters, block.seq), (op_seq, counters, LogSeq(op)));
        assert_eq!((block.group, block.group_end), if op < 4 { (0, op == 3) } else { (1, op == 8) });
        assert_eq!(block.durable, LogSeq(if op < 4 { 1 } else { 4 }));
    }
    assert_eq!(ops(&scan), (1..9).collect::<Vec<_>>());
}

#[test]
fn an_empty_ring_is_an_empty_log() {
    let scan = scan_from(&device(), START, 1, 1);
    assert_eq!((scan.blocks.len(), scan.end, scan.highest_epoch, scan.damage), (0, START, None, None));
}

/// A group of five is written and not flushed; the crash loses its first block. Nothing was promised: a tail.
#[test]
fn a_gap_in_an_unflushed_group_is_a_tail() {
    let device = device();
    let mut writer = writer(1, START);
    let end = commit(&mut writer, &device, 1..4);
    writer.append(&device, contents(4..9)).unwrap();
    device.crash(|i| i != 0);
    let scan = scan_from(&device, START, 1, 1);
    assert_eq!((ops(&scan), scan.end, scan.damage), (vec![1, 2, 3], end, None));
}

#[test]
fn a_torn_last_block_is_a_tail() {
    let device = device();
    let mut writer = writer(1, START);
    commit(&mut writer, &device, 1..4);
    writer.append(&device, contents(4..5)).unwrap();
    device.corrupt(RING.place(LogSeq(4)).0, 3000);
    let scan = scan_from(&device, START, 1, 1);
    assert_eq!((ops(&scan), scan.damage), (vec![1, 2, 3], None));
}

/// Block 2 was flushed, and a later block knows it. Then it rots. Ending the log there would silently drop
/// what was acknowledged (R6).
#[test]
fn a_gap_before_a_durable_claim_is_damage() {
    let device = device();
    let mut writer = writer(1, START);
    commit(&mut writer, &device, 1..4);
    commit(&mut writer, &device, 4..6);
    device.corrupt(RING.place(LogSeq(2)).0, 3000);
    let scan = scan_from(&device, START, 1, 1);
    let by = Some(LogSeq(4));
    let expected = LogDamage::Gap { gap_at: LogSeq(2), claimed_durable: LogSeq(4), by };
    assert_eq!((ops(&scan), scan.damage), (vec![1], Some(expected)));
}

/// The superblock says that its epoch began at block 6: all below was accepted, so all below must be there.
#[test]
fn a_log_that_ends_before_the_superblocks_epoch_began_is_damaged() {
    let device = device();
    let mut writer = writer(1, START);
    commit(&mut writer, &device, 1..6);
    device.corrupt(RING.place(LogSeq(5)).0, 3000);
    let scan = scan_from(&device, START, 2, 6);
    let expected = LogDamage::Gap { gap_at: LogSeq(5), claimed_durable: LogSeq(6), by: None };
    assert_eq!(scan.damage, Some(expected));
}

/// Epoch 1 crashes with block 4 lost and 5 to 8 on the medium. Epoch 2 begins at 4 and crashes before its
/// first append, and now block 4 can be read after all (a cache came back). It was given up, and 5 to 8 with
/// it (R4).
#[test]
fn a_stale_tail_is_not_replayed_after_a_crash_gave_it_up() {
    let device = device();
    let mut writer = writer(1, START);
    commit(&mut writer, &device, 1..4);
    writer.append(&device, contents(4..9)).unwrap();
    device.flush().unwrap();
    assert_eq!(scan_from(&device, START, 1, 1).blocks.len(), 8, "epoch 1 itself would accept them");
    let scan = scan_from(&device, START, 2, 4);
    assert_eq!((ops(&scan), scan.damage, scan.highest_epoch), (vec![1, 2, 3], None, Some(Epoch(1))));
}

/// As above, but epoch 2 did append block 4 with the very same content: the chain must not go on into epoch
/// 1's block 5.
#[test]
fn stale_blocks_do_not_chain_behind_a_block_that_was_written_again() {
    let device = device();
    let mut first = writer(1, START);
    let cut = commit(&mut first, &device, 1..4);
    first.append(&device, contents(4..9)).unwrap();
    let mut second = writer(2, cut);
    commit(&mut second, &device, 4..5);
    let scan = scan_from(&device, START, 2, 4);
    assert_eq!((ops(&scan), scan.damage), (vec![1, 2, 3, 4], None));
}

/// Epoch 2 wrote blocks 4 and 5 and was cut at 4; epoch 3 wrote them again, and of its two writes the first
/// was lost. Read from a superblock that knows of neither, epoch 2's block 4 stands before epoch 3's block 5,
/// which names another one.
#[test]
fn a_block_does_not_follow_one_whose_checksum_it_does_not_name() {
    let device = device();
    let cut = commit(&mut writer(1, START), &device, 1..4);
    commit(&mut writer(2, cut), &device, 4..6);
    writer(3, cut).append(&device, contents(14..16)).unwrap();
    device.crash(|i| i != 0);
    assert_eq!(ops(&scan_from(&device, START, 1, 1)), [1, 2, 3, 4]);
    let elsewhere = LogPosition { prev_crc: START.prev_crc ^ 1, ..START };
    assert_eq!(scan_from(&device, elsewhere, 1, 1).blocks, [], "replay begins in another past");
}

/// A lower epoch after a higher one, chained by checksum as no writer would: forged, to see the rule itself.
#[test]
fn an_epoch_never_falls_along_the_log() {
    let device = device();
    let middle = commit(&mut writer(5, START), &device, 1..3);
    commit(&mut writer(4, middle), &device, 3..5);
    let scan = scan_from(&device, START, 1, 1);
    assert_eq!((ops(&scan), scan.highest_epoch), (vec![1, 2], Some(Epoch(5))));
}

/// Epoch 1's blocks 6 to 8 claim that 5 is durable, which epoch 2 has given up with its superblock (as an
/// open after a damage report does). Those claims are about another past.
#[test]
fn claims_of_an_epoch_that_was_cut_do_not_count() {
    let device = device();
    let mut first = writer(1, START);
    commit(&mut first, &device, 1..4);
    commit(&mut first, &device, 4..6);
    commit(&mut first, &device, 6..9);
    device.corrupt(RING.place(LogSeq(4)).0, 99);
    assert!(scan_from(&device, START, 1, 1).damage.is_some());
    assert_eq!(scan_from(&device, START, 2, 4).damage, None, "recorded by the superblock");

    let cut = scan_from(&device, START, 2, 4).end;
    commit(&mut writer(2, cut), &device, 4..5);
    let older_superblock = scan_from(&device, START, 1, 1);
    assert_eq!(
        (ops(&older_superblock), older_superblock.damage),
        (vec![1, 2, 3, 4], None),
        "implied by block 4's epoch"
    );
}

#[test]
fn the_ring_wraps_and_older_laps_are_not_part_of_the_log() {
    let device = device();
    let mut writer = writer(1, START);
    let mut from = START;
    for lap in 0..7 {
        let first = 1 + lap * 10;
        let end = commit(&mut writer, &device, first..first + 10);
        let scan = scan_from(&device, from, 1, 1);
        assert_eq!((ops(&scan), scan.end, scan.damage), ((first..first + 10).collect(), end, None));
        writer.release(end.next);
        from = end;
    }
}

#[test]
fn a_log_that_was_released_too_early_is_reported() {
    let device = device();
    let mut writer = writer(1, START);
    let end = commit(&mut writer, &device, 1..11);
    writer.release(end.next);
    commit(&mut writer, &device, 11..21);
    let damage = scan_from(&device, START, 1, 1).damage.unwrap();
    assert!(matches!(damage, LogDamage::Released { needed: LogSeq(1), .. }), "{damage}");
}

#[test]
fn the_writer_never_overtakes_what_is_still_needed() {
    let device = device();
    let mut writer = writer(1, START);
    commit(&mut writer, &device, 1..11);
    assert_eq!(writer.free_blocks(), 6);
    let writes = device.write_sizes();
    let full = writer.append(&device, contents(11..18));
    assert!(matches!(full, Err(MetaError::LogFull { needed: 7, free: 6, total: 16 })));
    assert_eq!(device.write_sizes(), writes, "nothing was written");
    commit(&mut writer, &device, 11..17);
    writer.release(LogSeq(4));
    assert_eq!(writer.free_blocks(), 3);
}

#[test]
fn after_a_failed_write_the_writer_writes_no_more() {
    let device = device();
    let mut writer = writer(1, START);
    device.fail_writes(true);
    assert!(matches!(writer.append(&device, contents(1..3)), Err(MetaError::Io { .. })));
    device.fail_writes(false);
    assert!(matches!(writer.append(&device, contents(1..3)), Err(MetaError::Dead { .. })));
    assert_eq!(device.volatile(), 0);
}

#[test]
fn an_unreadable_block_is_damage_where_the_log_goes_on_and_only_counted_behind_its_end() {
    let device = device();
    commit(&mut writer(1, START), &device, 1..4);
    device.make_unreadable(RING.place(LogSeq(9)).0);
    let scan_result = scan_from(&device, START, 1, 1);
    assert_eq!((ops(&scan_result), scan_result.unreadable), (vec![1, 2, 3], 1));
    device.make_unreadable(RING.place(LogSeq(2)).0);
    let scan = scan_from(&device, START, 1, 1);
    let at = RING.place(LogSeq(2));
    assert!(matches!(scan.damage, Some(LogDamage::Unreadable { place, .. }) if place == at), "{scan:?}");
    assert_eq!(ops(&scan), [1]);
}

/// Which of several faults is told: a claim says more than a block that cannot be read.
#[test]
fn an_unreadable_block_before_a_durable_claim_is_a_gap() {
    let device = device();
    let mut writer = writer(1, START);
    commit(&mut writer, &device, 1..4);
    commit(&mut writer, &device, 4..5);
    device.make_unreadable(RING.place(LogSeq(2)).0);
    let damage = scan_from(&device, START, 1, 1).damage;
    assert!(matches!(damage, Some(LogDamage::Gap { gap_at: LogSeq(2), .. })), "{damage:?}");
}

#[test]
fn another_pools_log_is_no_log() {
    let device = device();
    commit(&mut writer(1, START), &device, 1..4);
    let scan = scan(&device, Uuid::from_u128(8), RING, START, Epoch(1), LogSeq(1));
    assert_eq!((scan.blocks.len(), scan.highest_epoch), (0, None));
}

#[test]
fn an_operation_is_never_split_and_a_block_knows_its_last() {
    let mut builder = LogBuilder::new();
    let lengths = [3000, 800, 200, 1, 3896, 5];
    for (op, length) in (1..).zip(lengths) {
        builder.push(op, &[op; 16], |bytes| bytes.extend(vec![op as u8; length]));
    }
    assert_eq!((builder.bytes(), builder.blocks()), (lengths.iter().sum::<usize>() as u64, 4));
    let blocks = builder.take();
    let summary: Vec<_> =
        blocks.iter().map(|b| (b.payload.len(), b.records, b.op_seq, b.counters[0])).collect();
    assert_eq!(summary, [(3800, 2, 2, 2), (201, 2, 4, 4), (3896, 1, 5, 5), (5, 1, 6, 6)]);
    assert!(builder.is_empty() && builder.bytes() == 0);
}

proptest! {
    /// Groups are committed, the last ones are not flushed, and a crash keeps any of their blocks: the scan
    /// gives every flushed block, then the longest unbroken run of survivors, and never calls it damage. The
    /// next epoch goes on from there, and after its own crash the same holds.
    #[test]
    fn after_any_crash_the_log_is_a_prefix_that_has_all_that_was_flushed(
        epochs in prop::collection::vec(
            (prop::collection::vec(1u64..5, 0..3), prop::collection::vec(1u64..4, 0..3), any::<u16>()), 1..6),
    ) {
        let device = device();
        let mut end = START;
        let mut next_op = 1;
        let mut epoch_start = START.next.0;
        for (epoch, (flushed, unflushed, survivors)) in (1..).zip(epochs) {
            // A checkpoint at each open: replay then begins at the end that was found.
            let from = end;
            let mut writer = writer(epoch, from);
            let mut expected: Vec<u64> = Vec::new();
            for count in flushed {
                commit(&mut writer, &device, next_op..next_op + count);
                expected.extend(next_op..next_op + count);
                next_op += count;
            }
            let mut volatile = Vec::new();
            for count in unflushed {
                writer.append(&device, contents(next_op..next_op + count)).unwrap();
                volatile.extend(next_op..next_op + count);
                next_op += count;
            }
            device.crash(|i| survivors >> (i % 16) & 1 == 1);
            let kept = volatile.iter().enumerate().take_while(|(i, _)| survivors >> (i % 16) & 1 == 1);
            expected.extend(kept.map(|(_, op)| *op));
            let scan = scan_from(&device, from, epoch, epoch_start);
            prop_assert_eq!(ops(&scan), expected);
            prop_assert_eq!(&scan.damage, &None);
            device.flush().unwrap();
            end = scan.end;
            epoch_start = end.next.0;
        }
    }

    /// Whatever bytes the ring holds, a scan ends in order.
    #[test]
    fn no_ring_makes_the_scan_panic(
        bytes in prop::collection::vec((5u64..21, 0usize..4096), 0..20),
        from in any::<u64>(),
    ) {
        let device = device();
        commit(&mut writer(1, START), &device, 1..16);
        bytes.iter().for_each(|&(block, byte)| device.corrupt(block, byte));
        let position = LogPosition { next: LogSeq(from), prev_crc: 0 };
        scan(&device, POOL, RING, position, Epoch(1), LogSeq(from));
    }
}
