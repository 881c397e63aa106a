//! A log block on disk.
//!
//! ```text
//!  header (32)           | seq group durable op_seq (8 each) | prev_crc | length | flags | counters | records ...
//!  birth = epoch,        |                              (32) |      (4) |    (2) |   (2) |    (128) |  (3896)
//!  entries = operations  |
//! ```
//!
//! Counters and operation number are absolute, as of the block's last operation: a replay that ends here
//! knows both. In a block without operations (entries = 0) they are 0 and say nothing.

use super::{LogGeometry, LogPosition, PendingBlock};
use crate::superblock::MAX_SEQUENCE;
use crate::{Block, BlockFault, BlockType, Epoch, LogSeq, MetaBlock, PAYLOAD_SIZE, TxId, field};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Counters that a superblock and a log block have room for; the dedup layer says which is which.
pub const COUNTERS: usize = 16;
/// The dedup layer's counters, absolute.
pub type Counters = [u64; COUNTERS];

/// Bytes of records that fit a log block.
pub const LOG_PAYLOAD_SIZE: usize = PAYLOAD_SIZE - size_of::<LogHeader>();

const FLAG_GROUP_END: u16 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LogHeader {
    seq: U64,
    group: U64,
    durable: U64,
    op_seq: U64,
    prev_crc: U32,
    payload_len: U16,
    flags: U16,
    counters: [U64; COUNTERS],
}

const _: () = assert!(size_of::<LogHeader>() == 168);

/// A log block that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBlock {
    /// Its number.
    pub seq: LogSeq,
    /// The writable opening that wrote it.
    pub epoch: Epoch,
    /// Every block below this was durable when it was written.
    pub durable: LogSeq,
    /// Its commit group.
    pub group: u64,
    /// Whether its group ends here.
    pub group_end: bool,
    /// Sequence number of its last operation, 0 without any.
    pub op_seq: u64,
    /// The counters as of that operation, 0 without any.
    pub counters: Counters,
    /// Operations in it.
    pub records: u16,
    /// Their bytes.
    pub payload: Vec<u8>,
    /// The chain link to the block before.
    pub prev_crc: u32,
    /// Its own checksum, the next block's `prev_crc`.
    pub crc: u32,
}

/// What the writer knows of a block beside its content.
pub(super) struct Stamp {
    pub(super) position: LogPosition,
    pub(super) place: MetaBlock,
    pub(super) epoch: Epoch,
    pub(super) durable: LogSeq,
    pub(super) group: u64,
    pub(super) group_end: bool,
}

/// What a block says that need not be whole: worth a look only if there is something in it.
pub(super) struct Claims {
    pub(super) epoch: Epoch,
    pub(super) seq: LogSeq,
    pub(super) durable: LogSeq,
}

impl Claims {
    /// Those of a log block.
    pub(super) fn of(block: &Block) -> Option<Self> {
        let (header, _) = LogHeader::ref_from_prefix(&block.payload).ok()?;
        (block.header.block_type == BlockType::Log as u8).then(|| Self {
            epoch: Epoch(block.header.birth.get()),
            seq: LogSeq(header.seq.get()),
            durable: LogSeq(header.durable.get()),
        })
    }
}

/// The sealed block for a content at a position.
pub(super) fn encode(content: &PendingBlock, stamp: &Stamp, pool: Uuid) -> Box<Block> {
    let mut block = Block::new(BlockType::Log, 0, stamp.place, TxId(stamp.epoch.0));
    block.header.entries = U16::new(content.records);
    let header = LogHeader {
        seq: stamp.position.next.0.into(),
        group: stamp.group.into(),
        durable: stamp.durable.0.into(),
        op_seq: content.op_seq.into(),
        prev_crc: stamp.position.prev_crc.into(),
        payload_len: (content.payload.len() as u16).into(),
        flags: if stamp.group_end { FLAG_GROUP_END } else { 0 }.into(),
        counters: content.counters.map(U64::new),
    };
    let (head, records) = block.payload.split_at_mut(size_of::<LogHeader>());
    head.copy_from_slice(header.as_bytes());
    records[..content.payload.len()].copy_from_slice(&content.payload);
    block.seal(pool);
    block
}

/// Checks a block found at `at` on its own: intact, a log block of this pool and place, every field in range.
pub(super) fn decode(
    block: &Block,
    at: MetaBlock,
    geometry: LogGeometry,
    pool: Uuid,
) -> Result<LogBlock, BlockFault> {
    block.verify(pool, BlockType::Log, 0, at)?;
    let (head, records) = block.payload.split_at(size_of::<LogHeader>());
    let header =
        LogHeader::read_from_bytes(head).map_err(|_| out_of_range("payload", "a log header", head.len()))?;
    let (seq, durable) = (LogSeq(header.seq.get()), LogSeq(header.durable.get()));
    let epoch = Epoch(block.header.birth.get());
    let length = header.payload_len.get() as usize;
    let flags = header.flags.get();
    if seq.0 >= MAX_SEQUENCE {
        return Err(out_of_range("seq", "below 2^62", seq));
    }
    if epoch.0 >= MAX_SEQUENCE {
        return Err(out_of_range("epoch", "below 2^62", epoch));
    }
    let numbers = [("group", header.group.get()), ("op_seq", header.op_seq.get())];
    for (name, number) in numbers.into_iter().chain(header.counters.map(|n| ("counters", n.get()))) {
        if number >= MAX_SEQUENCE {
            return Err(out_of_range(name, "below 2^62", number));
        }
    }
    field("place of seq", geometry.place(seq).0, at.0)?;
    if durable > seq {
        return Err(out_of_range("durable", "at most the block's own seq", durable));
    }
    if length > LOG_PAYLOAD_SIZE {
        return Err(out_of_range("payload length", "at most the block's room", length));
    }
    if flags & !FLAG_GROUP_END != 0 {
        return Err(out_of_range("flags", "bit 0", flags));
    }
    Ok(LogBlock {
        seq,
        epoch,
        durable,
        group: header.group.get(),
        group_end: flags & FLAG_GROUP_END != 0,
        op_seq: header.op_seq.get(),
        counters: header.counters.map(U64::get),
        records: block.header.entries.get(),
        payload: records[..length].to_vec(),
        prev_crc: header.prev_crc.get(),
        crc: block.header.crc.get(),
    })
}

fn out_of_range(name: &'static str, expected: &str, found: impl std::fmt::Display) -> BlockFault {
    BlockFault::Field { field: name, expected: expected.to_string(), found: found.to_string() }
}
