//! The intent log: a ring of chained blocks that makes operations durable between two superblocks.
//!
//! ```text
//!   ring place = seq % blocks          durable claim: every seq < 17 was flushed when 19 was written
//!                                                          |
//!   ... | 15 | 16 | 17 | 18 | 19 |  (older laps)  ...      v
//!         ^    \-- prev_crc = CRC of 16                  [19]
//!         | replay begins here: LogPosition { next: 15, prev_crc: CRC of 14 }
//! ```
//!
//! A block follows another if its sequence number is the next, it names the other's CRC, and its epoch is not
//! lower. The log ends at the first block that does not follow. That end is a *tail* (a torn or unwritten
//! block, which nobody was told is durable), unless some block in the ring claims that the missing one was
//! durable: that is *damage*.
//!
//! Invariants: a written log block is never rewritten before the ring has gone round (R7), and the ring never
//! overtakes what the older superblock still needs (R3): an append that would is an error. After a failed
//! write the writer stops (I6).
//!
//! Not here: what records mean, flushes, and the order of data and log.

mod block;
mod ring;
mod scan;
mod writer;

pub use block::{COUNTERS, Counters, LOG_PAYLOAD_SIZE, LogBlock};
pub use ring::write_milestones;
pub use scan::{LogDamage, Reach, Scan, scan, scan_log};
pub use writer::{LogBuilder, LogWriter, PendingBlock};

use crate::{LogSeq, MetaBlock};

/// Where the ring is. `blocks` is not 0; [`crate::Layout`] sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogGeometry {
    /// Its first metadata block.
    pub start: MetaBlock,
    /// Its length.
    pub blocks: u64,
}

impl LogGeometry {
    /// The place of a log block.
    pub fn place(&self, seq: LogSeq) -> MetaBlock {
        MetaBlock(self.start.0 + seq.0 % self.blocks)
    }
}

/// A point between two log blocks: the next one's number and the checksum of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The block that comes next.
    pub next: LogSeq,
    /// CRC of the block before it, 0 if there never was one.
    pub prev_crc: u32,
}
