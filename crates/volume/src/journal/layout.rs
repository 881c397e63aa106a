//! The bytes of a journal.
//!
//! ```text
//!   file      head (4096) | segment 0 (up to 256 MiB) | segment 1
//!   head      magic 8 | journal id 16 | pool 16 | boot id 16 | device 64, zeros behind it | crc 4      whose it is
//!   segment   magic 4 | crc 4 | generation 8 | frame | frame | ...                                    up to a cut of a commit
//!   frame     crc 4 | length 4 | first operation 8 | counters 128 | operations 4 | operation | ...    one write
//!   operation length 2 | records                                                                      as in the log
//! ```
//!
//! Invariants: a frame's CRC goes on from that of the one before, the first one's from the segment head's,
//! and that from the file head's: what an earlier generation, or another journal, has left behind is never
//! part of it. A frame is whole or it is not there: it was never answered.

use dedup_schema::{COUNTER_SLOTS, Counters};
use std::io;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const FILE_MAGIC: [u8; 8] = *b"dedupjn1";
const SEGMENT_MAGIC: [u8; 4] = *b"djsg";
/// Bytes before the first segment: a page, so that nothing else is in the page that says whose the file is.
pub(crate) const FILE_HEAD: u64 = 4096;
/// Bytes of a segment at most. All that a ring of 2 GiB can wait for, the default of 1 TiB, has less than 64
/// MiB of records.
pub(crate) const SEGMENT_MAX: u64 = 256 << 20;
/// Bytes of the name of a device.
const DEVICE_MAX: usize = 64;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileHead {
    magic: [u8; 8],
    id: [u8; 16],
    pool: [u8; 16],
    boot: [u8; 16],
    device: [u8; DEVICE_MAX],
    crc: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SegmentHead {
    magic: [u8; 4],
    crc: U32,
    generation: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FrameHead {
    crc: U32,
    length: U32,
    first: U64,
    counters: [U64; COUNTER_SLOTS],
    operations: U32,
}

/// Bytes before a segment's first frame.
pub(crate) const SEGMENT_HEAD: usize = size_of::<SegmentHead>();
/// Bytes of a frame before its operations.
pub(crate) const FRAME_HEAD: usize = size_of::<FrameHead>();

/// Whose a journal is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) id: Uuid,
    pub(crate) pool: Uuid,
    pub(crate) boot: Uuid,
    /// The metadata device.
    pub(crate) device: String,
}

/// Where a segment begins.
pub(crate) fn segment_start(generation: u64) -> u64 {
    FILE_HEAD + generation % 2 * SEGMENT_MAX
}

impl Owner {
    /// The head of a journal's file; an error if the device's name is too long for it.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut head = FileHead {
            magic: FILE_MAGIC,
            id: self.id.into_bytes(),
            pool: self.pool.into_bytes(),
            boot: self.boot.into_bytes(),
            device: [0; DEVICE_MAX],
            crc: U32::ZERO,
        };
        let name = self.device.as_bytes();
        let place = head.device.get_mut(..name.len()).ok_or_else(|| {
            io::Error::other(format!("device name {}: expected up to 64 bytes", self.device))
        })?;
        place.copy_from_slice(name);
        head.crc = crc32c::crc32c(head.as_bytes()).into();
        let mut bytes = head.as_bytes().to_vec();
        bytes.resize(FILE_HEAD as usize, 0);
        Ok(bytes)
    }

    /// Whose journal a file is that begins with `bytes`, if it is one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, _) = FileHead::read_from_prefix(bytes).ok()?;
        let bare = FileHead { crc: U32::ZERO, ..head };
        if head.magic != FILE_MAGIC || head.crc.get() != crc32c::crc32c(bare.as_bytes()) {
            return None;
        }
        let end = head.device.iter().position(|&byte| byte == 0).unwrap_or(DEVICE_MAX);
        Some(Self {
            id: Uuid::from_bytes(head.id),
            pool: Uuid::from_bytes(head.pool),
            boot: Uuid::from_bytes(head.boot),
            device: String::from_utf8_lossy(&head.device[..end]).into_owned(),
        })
    }

    /// What the checksums of its segments go on from.
    pub(crate) fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(self.id.as_bytes()), self.boot.as_bytes())
    }
}

/// Puts a segment's head in front of it; returns what its first frame's checksum goes on from.
pub(crate) fn seal_segment(bytes: &mut [u8], generation: u64, seed: u32) -> u32 {
    let mut head = SegmentHead { magic: SEGMENT_MAGIC, crc: U32::ZERO, generation: generation.into() };
    let crc = crc32c::crc32c_append(seed, head.as_bytes());
    head.crc = crc.into();
    bytes[..SEGMENT_HEAD].copy_from_slice(head.as_bytes());
    crc
}

/// Puts a frame's head in front of its operations, for which `bytes` has left room; returns its checksum.
pub(crate) fn seal_frame(
    bytes: &mut [u8],
    first: u64,
    operations: u32,
    counters: &Counters,
    before: u32,
) -> u32 {
    let mut head = FrameHead {
        crc: U32::ZERO,
        length: ((bytes.len() - FRAME_HEAD) as u32).into(),
        first: first.into(),
        counters: counters.to_slots().map(U64::new),
        operations: operations.into(),
    };
    let crc = crc32c::crc32c_append(before, head.as_bytes());
    let crc = crc32c::crc32c_append(crc, &bytes[FRAME_HEAD..]);
    head.crc = crc.into();
    bytes[..FRAME_HEAD].copy_from_slice(head.as_bytes());
    crc
}

/// A segment as it was read.
#[derive(Debug)]
pub(crate) struct SegmentBytes {
    pub(crate) generation: u64,
    bytes: Vec<u8>,
    crc: u32,
}

/// What one write has brought.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    /// Number of its first operation.
    pub(crate) first: u64,
    pub(crate) operations: u64,
    /// As of its last one.
    pub(crate) counters: Counters,
    bytes: &'a [u8],
}

impl SegmentBytes {
    /// The segment that `bytes` begin with, if one was begun there.
    pub(crate) fn decode(bytes: Vec<u8>, seed: u32) -> Option<Self> {
        let (head, _) = SegmentHead::read_from_prefix(&bytes).ok()?;
        let bare = SegmentHead { crc: U32::ZERO, ..head };
        let crc = crc32c::crc32c_append(seed, bare.as_bytes());
        let whole = head.magic == SEGMENT_MAGIC && head.crc.get() == crc;
        whole.then_some(Self { generation: head.generation.get(), bytes, crc })
    }

    /// Its whole frames, in order.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let (mut rest, mut before) = (&self.bytes[SEGMENT_HEAD..], self.crc);
        std::iter::from_fn(move || {
            let (head, tail) = FrameHead::read_from_prefix(rest).ok()?;
            let bytes = tail.get(..head.length.get() as usize)?;
            let bare = FrameHead { crc: U32::ZERO, ..head };
            let crc = crc32c::crc32c_append(crc32c::crc32c_append(before, bare.as_bytes()), bytes);
            if head.crc.get() != crc {
                return None;
            }
            (rest, before) = (&tail[bytes.len()..], crc);
            Some(Frame {
                first: head.first.get(),
                operations: u64::from(head.operations.get()),
                counters: Counters::from_slots(&head.counters.map(U64::get)),
                bytes,
            })
        })
    }
}

impl<'a> Frame<'a> {
    /// The records of each of its operations. Fewer than it says there are would be a mistake of the one who
    /// wrote it.
    pub(crate) fn operations(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<2>()?;
            let (records, tail) = tail.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            rest = tail;
            Some(records)
        })
    }
}
