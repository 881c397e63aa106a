//! Reading less than the whole ring finds what reading all of it finds.

use super::*;
use crate::log::scan::{scan_within, tests::content};
use crate::log::{LogWriter, Reach, Scan};
use crate::test_device::TestDevice;
use proptest::prelude::*;
use zerocopy::IntoBytes;

const POOL: Uuid = Uuid::from_u128(7);
/// Not a multiple of a section: the last one is shorter.
const RING: LogGeometry = LogGeometry { start: MetaBlock(5), blocks: 3003 };

fn scan(device: &TestDevice, geometry: LogGeometry, from: LogPosition, reach: Reach) -> Scan {
    scan_within(device, POOL, geometry, from, Epoch(1), LogSeq(0), reach)
}

/// Appends groups of these lengths and makes each durable; the last one only if `flushed`.
fn write(device: &TestDevice, writer: &mut LogWriter, groups: &[u64], flushed: bool) -> LogPosition {
    for (i, blocks) in groups.iter().enumerate() {
        let first = writer.position().next.0 + 1;
        let end = writer.append(device, (first..first + blocks).map(content).collect()).unwrap();
        if flushed || i + 1 < groups.len() {
            device.flush().unwrap();
            writer.mark_durable(end);
        }
    }
    writer.position()
}

/// A ring over which the log has gone until block `from`, and its writer there.
fn ring(from: u64, marked: bool) -> (TestDevice, LogWriter) {
    let device = TestDevice::new(3010);
    if marked {
        write_milestones(&device, RING, POOL).unwrap();
        device.flush().unwrap();
    }
    let mut writer = LogWriter::new(RING, POOL, Epoch(1), LogPosition::default(), LogSeq(0), 0);
    while writer.position().next.0 < from {
        let blocks = (from - writer.position().next.0).min(1000);
        let end = write(&device, &mut writer, &[blocks], true);
        writer.release(end.next);
    }
    (device, writer)
}

#[test]
fn of_a_large_ring_only_the_log_and_the_milestones_are_read() {
    let large = LogGeometry { start: MetaBlock(1), blocks: 1 << 14 };
    let device = TestDevice::new((1 << 14) + 1);
    write_milestones(&device, large, POOL).unwrap();
    let mut writer = LogWriter::new(large, POOL, Epoch(1), LogPosition::default(), LogSeq(0), 0);
    let end = write(&device, &mut writer, &[10, 100], true);
    let before = device.bytes_read();
    let found = scan(&device, large, LogPosition::default(), Reach::Log);
    assert_eq!((found.end, found.blocks.len(), found.damage), (end, 110, None));
    let blocks_read = (device.bytes_read() - before) / META_BLOCK_SIZE;
    assert!(
        blocks_read < 110 + LOST_MAX as usize + 4 * large.section() as usize + 256,
        "{blocks_read} blocks were read"
    );
}

/// A crash kept one block of a large group that was not flushed, far behind the log's end. It claims nothing,
/// and is read only if the ring is searched for its epoch.
#[test]
fn an_epoch_far_behind_the_log_is_found_by_reading_the_whole_ring() {
    let (device, mut writer) = ring(20, true);
    let end = writer.position();
    let mut second = LogWriter::new(RING, POOL, Epoch(2), end, end.next, 0);
    write(&device, &mut second, &[1100], false);
    device.crash(|i| i == 1099);
    assert_eq!(write(&device, &mut writer, &[], true), end);
    assert_eq!(scan(&device, RING, end, Reach::Ring).highest_epoch, Some(Epoch(2)));
    let log = scan(&device, RING, end, Reach::Log);
    assert_eq!((log.highest_epoch, log.damage), (None, None));
}

#[test]
fn marks_are_no_log_and_no_claims() {
    let (device, _) = ring(0, true);
    for from in [0, 16, 48, 3003, 3019].map(|next| LogPosition { next: LogSeq(next), prev_crc: 0 }) {
        let found = scan(&device, RING, from, Reach::Ring);
        assert_eq!((found.blocks.len(), found.end, found.damage), (0, from, None));
    }
}

/// How blocks are lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Rot,
    Zeros,
    Unreadable,
}

fn block_at(device: &TestDevice, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; META_BLOCK_SIZE];
    device.read(offset(block), &mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// A log anywhere in a ring, on its first lap or a later one, with a crash that keeps any blocks of its
    /// last group, and then with holes of any length: both ways end at the same block, and find the same
    /// damage.
    #[test]
    fn a_scan_of_the_log_finds_what_a_scan_of_the_whole_ring_finds(
        from in 0u64..7000,
        marked in any::<bool>(),
        groups in prop::collection::vec(1u64..33, 1..10),
        flushed in any::<bool>(),
        kept in any::<u32>(),
        holes in prop::collection::vec((0u64..320, 1u64..320, 0usize..3), 0..4),
    ) {
        let (device, mut writer) = ring(from, marked);
        let start = writer.position();
        let end = write(&device, &mut writer, &groups, flushed);
        device.crash(|i| kept >> (i % 32) & 1 == 1);
        for (first, blocks, loss) in holes {
            for i in first..(first + blocks).min(end.next.0 - start.next.0) {
                let at = RING.place(LogSeq(start.next.0 + i)).0;
                match [Loss::Rot, Loss::Zeros, Loss::Unreadable][loss] {
                    Loss::Rot => device.corrupt(at, 1000),
                    Loss::Zeros => device.write(offset(at), Block::zeroed().as_bytes()).unwrap(),
                    // What is needed to find the end is an error in either way.
                    Loss::Unreadable if i > 0 && first > 0 => device.make_unreadable(at),
                    Loss::Unreadable => {}
                }
            }
        }
        let find = |reach| {
            let found = scan_within(&device, POOL, RING, start, Epoch(1), LogSeq(0), reach);
            (found.end, found.damage)
        };
        prop_assert_eq!(find(Reach::Log), find(Reach::Ring));
    }

    /// One write of the log, as large as the layers below the writer can make one of what it hands down at
    /// once, is lost or goes elsewhere in the ring. What stood there before stays, marks and blocks of an
    /// earlier lap that say that the log never came, and still the claim behind it is found.
    #[test]
    fn one_lost_or_misdirected_write_of_the_log_hides_no_claim(
        from in 0u64..7000,
        marked in any::<bool>(),
        groups in prop::collection::vec(1u64..700, 2..4),
        (first, blocks) in (0u64..700, 1..=LOST_MAX),
        elsewhere in prop::option::of(0u64..3003),
    ) {
        let (device, mut writer) = ring(from, marked);
        let start = writer.position();
        let before: Vec<Vec<u8>> = (0..RING.blocks).map(|i| block_at(&device, RING.start.0 + i)).collect();
        let end = write(&device, &mut writer, &groups, true);
        let durable: u64 = groups[..groups.len() - 1].iter().sum();
        let lost = first % durable..(first % durable + blocks).min(durable);
        for i in lost.clone() {
            let at = RING.place(LogSeq(start.next.0 + i)).0;
            if let Some(first) = elsewhere {
                let to = RING.start.0 + (first + i) % RING.blocks;
                device.write(offset(to), &block_at(&device, at)).unwrap();
            }
            device.write(offset(at), &before[(at - RING.start.0) as usize]).unwrap();
        }
        let found = scan(&device, RING, start, Reach::Log);
        prop_assert!(found.end.next < end.next);
        // Where it went, it may have taken the place of all that speaks of it.
        prop_assert!(found.damage.is_some() || elsewhere.is_some(), "{:?} lost of {groups:?}", lost);
        prop_assert_eq!(found.damage, scan(&device, RING, start, Reach::Ring).damage);
    }
}
