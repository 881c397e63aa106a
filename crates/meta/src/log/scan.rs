//! Reading the log back after an open.
//!
//! One pass over the ring, beginning where replay begins: first come the blocks that follow one another,
//! then, behind the log's end, whatever is left of earlier laps and lost epochs. That rest is not replayed;
//! it is asked for two things, the highest epoch (so that the next is higher than any) and claims of
//! durability beyond the end. Where neither can be, it need not be read: see [`super::ring`].
//!
//! ```text
//!   place(from) ->  [15][16][17][18] | x | [20: epoch 4, durable 19] | [6][7] ...
//!                    accepted          ^ end: torn                     older lap
//!                                      | 20 claims that 18 was durable, not 19: the end is a tail
//! ```
//!
//! Memory: the payloads of the accepted blocks, and one read of 8 MiB.

use super::block::{Claims, decode};
use super::ring::{BATCH_BLOCKS, FIRST_READ, Ring, Seen};
use super::{LogBlock, LogGeometry, LogPosition};
use crate::{Block, Epoch, LogSeq, MetaBlock, Superblock};
use dedup_device::BlockDevice;
use uuid::Uuid;

/// Why a log must not be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogDamage {
    /// A block that was known durable is missing (R6).
    #[error(
        "log block {gap_at} is damaged or missing, although all below {claimed_durable} were durable, says {}: acknowledged writes are lost",
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
    /// A block without which nobody knows where the log ends cannot be read.
    #[error(
        "log block {seq} (block {place} of the metadata device) cannot be read: {error}; writes that were acknowledged may stand there"
    )]
    Unreadable {
        /// The log block that would come next.
        seq: LogSeq,
        /// Where it would stand.
        place: MetaBlock,
        /// What the device said.
        error: String,
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
    /// The highest epoch of the accepted blocks, and of those valid ones behind them that have a higher one
    /// than the superblock.
    pub highest_epoch: Option<Epoch>,
    /// The worst thing found that makes `end` more than a tail.
    pub damage: Option<LogDamage>,
    /// Blocks read behind the end that the device could not read; claims in them are unknown.
    pub unreadable: u64,
}

/// How much of the ring a scan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All of it: nobody knows how far the log has come, nor in which epoch.
    Ring,
    /// The log, and wherever else it may have come since `from`. That is enough if both of the last two
    /// superblocks are whole: then no log block has a higher epoch than they (R4), and no claim of durability
    /// is left out.
    Log,
}

/// Reads the whole ring of `pool` once, in large sequential reads, and finds the log that follows `from`.
/// `epoch` and `epoch_start` are the superblock's: from `epoch_start` on, blocks of older epochs are
/// leftovers of a crash (R4).
///
/// A block that cannot be read where the log goes on is damage.
pub fn scan(
    device: &dyn BlockDevice,
    pool: Uuid,
    geometry: LogGeometry,
    from: LogPosition,
    epoch: Epoch,
    epoch_start: LogSeq,
) -> Scan {
    scan_within(device, pool, geometry, from, epoch, epoch_start, Reach::Ring)
}

/// The same, by reading so much of the ring.
pub(super) fn scan_within(
    device: &dyn BlockDevice,
    pool: Uuid,
    geometry: LogGeometry,
    from: LogPosition,
    epoch: Epoch,
    epoch_start: LogSeq,
    reach: Reach,
) -> Scan {
    let walk = Walk::new((geometry, pool), from, epoch, epoch_start);
    scan_ring(Ring::new(device, pool, geometry, from.next), walk, geometry, reach)
}

/// The log behind `superblock`, by reading so much of the ring.
pub fn scan_log(device: &dyn BlockDevice, superblock: &Superblock, reach: Reach) -> Scan {
    let Superblock { pool, log, epoch, epoch_start, layout, .. } = superblock;
    let walk = Walk::new((layout.log, *pool), *log, *epoch, *epoch_start);
    scan_ring(Ring::new(device, *pool, layout.log, log.next), walk, layout.log, reach)
}

fn scan_ring(mut ring: Ring<'_>, mut walk: Walk, geometry: LogGeometry, reach: Reach) -> Scan {
    let (mut read, mut ahead) = (0, FIRST_READ);
    loop {
        let goal = match (reach, walk.ended_at()) {
            (Reach::Log, Some(end)) => ring.behind(end),
            _ => ring.ahead(read, ahead),
        };
        if read >= goal {
            break;
        }
        ring.read(read..goal, &mut |place, seen| walk.look(place, seen));
        read = goal;
        ahead = (2 * ahead).min(BATCH_BLOCKS);
    }
    if read < geometry.blocks {
        for section in ring.sections_of_interest(read, &mut |place, seen| walk.look(place, seen)) {
            ring.read(section, &mut |place, seen| walk.look(place, seen));
        }
    }
    walk.finish()
}

/// The state of the pass.
struct Walk {
    geometry: LogGeometry,
    pool: Uuid,
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
    fn new(
        (geometry, pool): (LogGeometry, Uuid),
        from: LogPosition,
        epoch: Epoch,
        epoch_start: LogSeq,
    ) -> Self {
        Self {
            geometry,
            pool,
            from: from.next,
            laps_at: from.next.0.saturating_add(geometry.blocks),
            epoch,
            epoch_start,
            ended: false,
            first_of_epoch: from.next,
            scan: Scan { blocks: Vec::new(), end: from, highest_epoch: None, damage: None, unreadable: 0 },
        }
    }

    /// Where the end has been found, in blocks from the beginning.
    fn ended_at(&self) -> Option<u64> {
        self.ended.then(|| self.scan.end.next.0 - self.from.0)
    }

    /// Takes what the next place of the ring holds. A block that cannot be read ends the log as one does that
    /// is not whole, but not as a tail.
    fn look(&mut self, place: MetaBlock, seen: Seen<'_>) {
        match seen {
            // Most of what lies behind a log is of an earlier lap, or was never written: whether it is whole
            // is no matter.
            Ok(block) if self.ended && !self.may_matter(block) => {}
            Ok(block) => self.see(decode(block, place, self.geometry, self.pool).ok()),
            Err(error) if !self.ended => {
                self.ended = true;
                let (seq, error) = (self.scan.end.next, error.to_string());
                self.scan.damage = Some(LogDamage::Unreadable { seq, place, error });
            }
            Err(_) => self.scan.unreadable += 1,
        }
    }

    /// Whether there is something in what a block behind the end says, if it is whole: what [`Self::judge`]
    /// asks for, or a higher epoch.
    fn may_matter(&self, block: &Block) -> bool {
        let Some(Claims { epoch, seq, durable }) = Claims::of(block) else { return false };
        epoch > self.epoch || seq.0 >= self.laps_at || durable > self.scan.end.next
    }

    /// Takes the next block of the ring, `None` if it is not a valid log block.
    fn see(&mut self, block: Option<LogBlock>) {
        let Some(block) = block else {
            self.ended = true;
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
            None | Some(LogDamage::Unreadable { .. }) => true,
            Some(LogDamage::Gap { claimed_durable, .. }) => durable > *claimed_durable,
            Some(LogDamage::Released { .. }) => false,
        };
        if further {
            self.scan.damage =
                Some(LogDamage::Gap { gap_at: self.scan.end.next, claimed_durable: durable, by });
        }
    }

    fn finish(mut self) -> Scan {
        // The log below the epoch's start was accepted and flushed before the superblock that records it was
        // written.
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
pub(super) mod tests;
