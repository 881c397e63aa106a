//! Reading the log back after an open.
//!
//! One pass over the whole ring, beginning where replay begins: first come the blocks that follow one another, then, behind
//! the log's end, whatever is left of earlier laps and lost epochs. That rest is not replayed; it is asked for two things,
//! the highest epoch (so that the next is higher than any) and claims of durability beyond the end.
//!
//! ```text
//!   place(from) ->  [15][16][17][18] | x | [20: epoch 4, durable 19] | [6][7] ...
//!                    accepted          ^ end: torn                     older lap
//!                                      | 20 claims that 18 was durable, not 19: the end is a tail
//! ```
//!
//! Memory: the payloads of the accepted blocks, and one read of 1 MiB.

use super::block::decode;
use super::{LogBlock, LogGeometry, LogPosition};
use crate::fault::{Fault, Planted};
use crate::io::{RUN_BLOCKS, failed, offset};
use crate::{Block, Epoch, LogSeq, MetaBlock, MetaError};
use dedup_device::BlockDevice;
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Why a log must not be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogDamage {
    /// A block that was known durable is missing (R6).
    #[error(
        "log block {gap_at} is damaged or missing, although all below {claimed_durable} were durable, says {}",
        claimant(.by)
    )]
    Gap {
        /// The first block that is missing.
        gap_at: LogSeq,
        /// The first block not claimed durable.
        claimed_durable: LogSeq,
        /// The log block that claims it; `None`: the superblock, by where its epoch began.
        by: Option<LogSeq>,
    },
    /// The ring has gone over blocks that this superblock needs (R3).
    #[error(
        "log released too early: block {needed} is needed, and the ring already holds block {found} of a later lap"
    )]
    Released {
        /// The first block that replay needs.
        needed: LogSeq,
        /// A block of a later lap.
        found: LogSeq,
    },
}

/// What a log holds. See [`scan`].
#[derive(Clone, Debug)]
pub struct Scan {
    /// The blocks to replay, in order.
    pub blocks: Vec<LogBlock>,
    /// Where the accepted log ends.
    pub end: LogPosition,
    /// The highest epoch of any valid block in the ring, accepted or not.
    pub highest_epoch: Option<Epoch>,
    /// The worst thing found that makes `end` more than a tail.
    pub damage: Option<LogDamage>,
    /// Ring blocks behind the end that the device could not read; claims in them are unknown.
    pub unreadable: u64,
}

/// Reads the whole ring of `pool` once, in large sequential reads, and finds the log that follows `from`. `epoch` and
/// `epoch_start` are the superblock's: from `epoch_start` on, blocks of older epochs are leftovers of a crash (R4).
///
/// Fails with [`MetaError::Io`] if a block that is needed to know where the log ends cannot be read.
pub fn scan(
    device: &dyn BlockDevice,
    pool: Uuid,
    geometry: LogGeometry,
    from: LogPosition,
    epoch: Epoch,
    epoch_start: LogSeq,
) -> Result<Scan, MetaError> {
    scan_planted(device, pool, geometry, from, epoch, epoch_start, Planted::default())
}

/// The same with a fault in it, for tests.
pub fn scan_planted(
    device: &dyn BlockDevice,
    pool: Uuid,
    geometry: LogGeometry,
    from: LogPosition,
    epoch: Epoch,
    epoch_start: LogSeq,
    planted: Planted,
) -> Result<Scan, MetaError> {
    let mut walk = Walk {
        planted,
        from: from.next,
        laps_at: from.next.0.saturating_add(geometry.blocks),
        epoch,
        epoch_start,
        ended: false,
        first_of_epoch: from.next,
        scan: Scan { blocks: Vec::new(), end: from, highest_epoch: None, damage: None, unreadable: 0 },
    };
    let mut buffer = vec![*Block::zeroed(); RUN_BLOCKS.min(geometry.blocks as usize)];
    for (first, count) in runs(geometry, from.next) {
        let run = &mut buffer[..count];
        let whole = device.read(offset(first.0), run.as_mut_bytes());
        for (i, block) in run.iter_mut().enumerate() {
            let at = MetaBlock(first.0 + i as u64);
            let read = match whole {
                Ok(()) => Ok(()),
                Err(_) => device.read(offset(at.0), block.as_mut_bytes()),
            };
            match read {
                Ok(()) => walk.see(decode(block, at, geometry, pool).ok()),
                Err(error) if !walk.ended => return Err(failed("read", offset(at.0), error)),
                Err(_) => walk.scan.unreadable += 1,
            }
        }
    }
    Ok(walk.finish())
}

/// The ring in reading order: first block and number of blocks of each read, beginning at the place of `from`.
fn runs(geometry: LogGeometry, from: LogSeq) -> impl Iterator<Item = (MetaBlock, usize)> {
    let (start, end) = (geometry.start.0, geometry.start.0 + geometry.blocks);
    let middle = geometry.place(from).0;
    let part = |a: u64, b: u64| {
        (a..b).step_by(RUN_BLOCKS).map(move |at| (MetaBlock(at), (b - at).min(RUN_BLOCKS as u64) as usize))
    };
    part(middle, end).chain(part(start, middle))
}

/// The state of the pass.
struct Walk {
    planted: Planted,
    from: LogSeq,
    /// Block numbers from here on belong to a later lap than the one that replay needs.
    laps_at: u64,
    epoch: Epoch,
    epoch_start: LogSeq,
    /// Whether the end has been found.
    ended: bool,
    /// First accepted block of the last accepted block's epoch.
    first_of_epoch: LogSeq,
    scan: Scan,
}

impl Walk {
    /// Takes the next block of the ring, `None` if it is not a valid log block.
    fn see(&mut self, block: Option<LogBlock>) {
        let Some(block) = block else {
            self.ended |= !self.planted.is(Fault::TornLogBlockSkipped);
            return;
        };
        self.scan.highest_epoch = self.scan.highest_epoch.max(Some(block.epoch));
        if !self.ended && self.follows(&block) {
            return self.accept(block);
        }
        self.ended = true;
        self.judge(&block);
    }

    /// Whether the block continues the log.
    fn follows(&self, block: &LogBlock) -> bool {
        let LogPosition { next, prev_crc } = self.scan.end;
        if self.planted.is(Fault::StaleLogBlockReplayed) && block.seq == next
            || self.planted.is(Fault::TornLogBlockSkipped) && block.seq > next
        {
            return true;
        }
        let last_epoch = self.scan.blocks.last().map_or(Epoch(0), |last| last.epoch);
        block.seq == next
            && block.prev_crc == prev_crc
            && block.epoch >= last_epoch
            && (block.seq < self.epoch_start || block.epoch >= self.epoch)
    }

    fn accept(&mut self, block: LogBlock) {
        if self.scan.blocks.last().is_none_or(|last| last.epoch < block.epoch) {
            self.first_of_epoch = block.seq;
        }
        self.scan.end = LogPosition { next: block.seq.next(), prev_crc: block.crc };
        self.scan.blocks.push(block);
    }

    /// Asks a block that is not part of the log what it knows against the log's end.
    fn judge(&mut self, block: &LogBlock) {
        if block.seq.0 >= self.laps_at {
            self.scan.damage = Some(LogDamage::Released { needed: self.from, found: block.seq });
            return;
        }
        if block.durable > self.scan.end.next && !self.is_leftover(block) {
            self.claim(block.durable, Some(block.seq));
        }
    }

    /// Whether the block belongs to an epoch that ended before it: a claim about blocks that were given up.
    fn is_leftover(&self, block: &LogBlock) -> bool {
        let recorded = block.epoch < self.epoch && block.seq >= self.epoch_start;
        let implied = self
            .scan
            .blocks
            .last()
            .is_some_and(|last| block.epoch < last.epoch && block.seq >= self.first_of_epoch);
        recorded || implied
    }

    /// Keeps the furthest claim; a ring that was released too early is worse than any.
    fn claim(&mut self, durable: LogSeq, by: Option<LogSeq>) {
        let further = match &self.scan.damage {
            None => true,
            Some(LogDamage::Gap { claimed_durable, .. }) => durable > *claimed_durable,
            Some(LogDamage::Released { .. }) => false,
        };
        if further {
            self.scan.damage =
                Some(LogDamage::Gap { gap_at: self.scan.end.next, claimed_durable: durable, by });
        }
    }

    fn finish(mut self) -> Scan {
        // The log below the epoch's start was accepted and flushed before the superblock that records it was written.
        if self.scan.end.next < self.epoch_start {
            self.claim(self.epoch_start, None);
        }
        self.scan
    }
}

fn claimant(by: &Option<LogSeq>) -> String {
    by.map_or("the superblock".to_string(), |seq| format!("log block {seq}"))
}

#[cfg(test)]
mod tests;
