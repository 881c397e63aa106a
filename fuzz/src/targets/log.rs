//! Any bytes as the blocks of a log ring, with right checksums and, where the input says so, chained to the
//! block before: the scan ends, what it accepts is a chain, and the accepted records decode or fail.
//!
//! ```text
//!  input:  next 8 | prev_crc 4 | epoch 8 | epoch_start 8 | for each ring block: control 1 | length 2 | bytes
//! ```

use crate::{Input, seal};
use dedup_device::MemDevice;
use dedup_meta::{BlockType, Epoch, LogGeometry, LogPosition, LogSeq, META_BLOCK_SIZE, MetaBlock, scan};
use dedup_schema::Record;

const RING: LogGeometry = LogGeometry { start: MetaBlock(3), blocks: 16 };
/// The sequence number and the chain link, in bytes from the payload's start.
const SEQ_AT: usize = 0;
const PREV_CRC_AT: usize = 32;

/// What a control byte asks for.
const ABSENT: u8 = 1;
const UNCHAINED: u8 = 2;
const UNSEALED: u8 = 4;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let device = MemDevice::new((RING.start.0 + RING.blocks) * META_BLOCK_SIZE as u64);
    let mut input = Input::new(bytes);
    let from = LogPosition { next: LogSeq(input.u64()), prev_crc: input.u32() };
    let (epoch, epoch_start) = (Epoch(input.u64()), LogSeq(input.u64()));
    let mut prev_crc = from.prev_crc;
    for number in 0..RING.blocks {
        let control = input.u8();
        let len = usize::from(input.u16());
        let bytes = input.bytes(len);
        if control & ABSENT != 0 {
            continue;
        }
        let seq = LogSeq(from.next.0.wrapping_add(number));
        let mut block = seal::block(BlockType::Log, RING.place(seq), bytes);
        if control & UNCHAINED == 0 {
            block.payload[SEQ_AT..][..8].copy_from_slice(&seq.0.to_le_bytes());
            block.payload[PREV_CRC_AT..][..4].copy_from_slice(&prev_crc.to_le_bytes());
        }
        if control & UNSEALED == 0 {
            prev_crc = block.seal(seal::POOL);
        }
        seal::put(&device, &block);
    }
    // A superblock with a larger number is refused before its log is looked at.
    if from.next.0 >= 1 << 62 || epoch.0 >= 1 << 62 || epoch_start.0 >= 1 << 62 {
        return;
    }
    let scan = scan(&device, seal::POOL, RING, from, epoch, epoch_start);
    let mut position = from;
    let mut last_epoch = Epoch(0);
    for block in &scan.blocks {
        assert_eq!((block.seq, block.prev_crc), (position.next, position.prev_crc));
        assert!(block.epoch >= last_epoch && scan.highest_epoch >= Some(block.epoch));
        last_epoch = block.epoch;
        position = LogPosition { next: block.seq.next(), prev_crc: block.crc };
        let mut records = block.payload.as_slice();
        while !records.is_empty() && Record::decode(&mut records).is_ok() {}
    }
    assert_eq!(scan.end, position);
}
