//! Which parts of the ring a scan reads, and reading them.
//!
//! ```text
//!   place      0      s      2s     3s     4s     5s     6s            s: the distance of milestones
//!              |######|##x   |      |      |   ?  |      | ...         #: the log, x: where it ends
//!   read        all of it, and on to here ^      |<----->|             ?: a milestone that is damaged
//! ```
//!
//! Every `s`-th place of the ring is a *milestone*. The log is contiguous: whatever it reached beyond a
//! milestone, it went over the milestone first. So a section whose milestone still holds a whole block of an
//! earlier lap (or the mark that format wrote there, of epoch 0) has nothing of the log's in it, and is
//! passed over. A milestone that is damaged, unreadable or empty says nothing, and its section is read. So a
//! hole of any length is read to its end, and to a claim behind it.
//!
//! A write that the device lost, or put elsewhere, leaves what stood there before: on milestones, the word
//! that the log never came. So as many blocks as the log's writer hands down at once, which the layers below
//! may join to one write, and a section more are read behind the log's end, and behind each milestone that
//! does not say that the log never came there. One lost write hides nothing.
//!
//! Not here: what the blocks say ([`super::scan`]).

use super::block::{Stamp, decode, encode};
use super::{COUNTERS, LogGeometry, LogPosition, PendingBlock};
use crate::io::{RUN_BLOCKS, offset, write_blocks};
use crate::{Block, Epoch, LogSeq, META_BLOCK_SIZE, MetaBlock, MetaError};
use dedup_device::{AlignedBuf, BlockDevice, ReadOp};
use std::io;
use std::ops::Range;
use uuid::Uuid;
use zerocopy::FromBytes;

/// Sections of a ring. Reading this many milestones and reading a section of the largest ring (8 MiB) take
/// about as long, some ten milliseconds.
const SECTIONS: u64 = 256;
/// Shortest section, in blocks.
const SECTION_MIN: u64 = 16;
/// Longest, in blocks: 8 MiB.
const SECTION_MAX: u64 = 2048;
/// Blocks that one lost write leaves as they were, at most.
const LOST_MAX: u64 = super::writer::BATCH_BLOCKS as u64;
/// Blocks of the first read; the next are twice as long each.
pub(super) const FIRST_READ: u64 = SECTION_MIN;
/// Blocks read at a time at most, in operations of [`RUN_BLOCKS`]: 8 MiB, so that eight are under way.
pub(super) const BATCH_BLOCKS: u64 = 8 * RUN_BLOCKS as u64;

impl LogGeometry {
    /// Blocks from a milestone to the next.
    fn section(&self) -> u64 {
        (self.blocks / SECTIONS).clamp(SECTION_MIN, SECTION_MAX)
    }

    /// Sections read behind the last place that the log may have reached: what one lost write covers, which
    /// need not begin at a milestone.
    fn sections_behind(&self) -> usize {
        LOST_MAX.div_ceil(self.section()) as usize + 1
    }

    /// The ring's blocks that are milestones.
    pub fn milestones(&self) -> impl Iterator<Item = MetaBlock> + use<> {
        let Self { start, blocks } = *self;
        (0..blocks).step_by(self.section() as usize).map(move |place| MetaBlock(start.0 + place))
    }
}

/// Marks the milestones of a ring that holds no log: so far it has not come.
pub fn write_milestones(
    device: &dyn BlockDevice,
    geometry: LogGeometry,
    pool: Uuid,
) -> Result<(), MetaError> {
    let nothing = PendingBlock { payload: Vec::new(), records: 0, op_seq: 0, counters: [0; COUNTERS] };
    let mark = |place: MetaBlock| {
        // No log block has this epoch, and the first one names no block of this checksum: the mark follows
        // nothing.
        let position = LogPosition { next: LogSeq(place.0 - geometry.start.0), prev_crc: u32::MAX };
        let (epoch, durable) = (Epoch(0), LogSeq(0));
        encode(&nothing, &Stamp { position, place, epoch, durable, group: 0, group_end: false }, pool)
    };
    let marks: Vec<Box<Block>> = geometry.milestones().map(mark).collect();
    write_blocks(device, marks.iter().map(|block| &**block))
}

/// A ring as it is read, in the order in which the log would fill it. Blocks are counted from the place of
/// `from` on.
pub(super) struct Ring<'d> {
    device: &'d dyn BlockDevice,
    geometry: LogGeometry,
    pool: Uuid,
    from: LogSeq,
    /// As large as the largest read so far.
    buffer: AlignedBuf,
}

/// What a place of the ring holds, which may be a log block, or why the device cannot read it.
pub(super) type Seen<'b> = io::Result<&'b Block>;

impl<'d> Ring<'d> {
    /// The ring of `pool`, beginning where the block `from` has its place.
    pub(super) fn new(device: &'d dyn BlockDevice, pool: Uuid, geometry: LogGeometry, from: LogSeq) -> Self {
        // So much is read behind the log's end in any case.
        let blocks = geometry.blocks.min(LOST_MAX) as usize;
        Self { device, geometry, pool, from, buffer: AlignedBuf::zeroed(blocks * META_BLOCK_SIZE) }
    }

    /// Where a read of `blocks` or a little more ends that begins with the `i`-th block: at a milestone.
    pub(super) fn ahead(&self, i: u64, blocks: u64) -> u64 {
        self.next_milestone(i + blocks - 1)
    }

    /// How far the ring is read, if the log ends in front of the `i`-th block, without a look at milestones.
    pub(super) fn behind(&self, i: u64) -> u64 {
        (0..=self.geometry.sections_behind()).fold(i, |at, _| self.next_milestone(at))
    }

    /// The first milestone behind the `i`-th block, or the end.
    fn next_milestone(&self, i: u64) -> u64 {
        let LogGeometry { blocks, .. } = self.geometry;
        let (place, section) = ((self.from.0 % blocks + i) % blocks, self.geometry.section());
        // Where the ring begins anew, there is one too.
        let next = ((place / section + 1) * section).min(blocks);
        (i + next - place).min(blocks)
    }

    /// Reads `range` and shows every block of it, in order.
    pub(super) fn read(&mut self, range: Range<u64>, see: &mut impl FnMut(MetaBlock, Seen<'_>)) {
        let batches = range.clone().step_by(BATCH_BLOCKS as usize);
        for start in batches {
            let runs = self.runs(start..range.end.min(start + BATCH_BLOCKS));
            self.read_runs(&runs, see);
        }
    }

    /// A range in runs of consecutive places, each for one operation.
    fn runs(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let around = self.geometry.blocks - self.from.0 % self.geometry.blocks;
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let last = if at < around { around } else { range.end };
            let end = range.end.min(last).min(at + RUN_BLOCKS as u64);
            runs.push(at..end);
            at = end;
        }
        runs
    }

    /// The sections from `first` on in which the log may have left something, going by their milestones,
    /// which are shown.
    pub(super) fn sections_of_interest(
        &mut self,
        first: u64,
        see: &mut impl FnMut(MetaBlock, Seen<'_>),
    ) -> Vec<Range<u64>> {
        let blocks = self.geometry.blocks;
        let (geometry, pool, from) = (self.geometry, self.pool, self.from);
        let is_milestone =
            |i: &u64| (place(geometry, from, *i).0 - geometry.start.0).is_multiple_of(geometry.section());
        // Those of the sections read last count too.
        let behind = geometry.sections_behind();
        let from_here = first.saturating_sub(behind as u64 * geometry.section());
        let milestones: Vec<u64> = (from_here..blocks).filter(is_milestone).collect();
        let mut silent = Vec::with_capacity(milestones.len());
        let runs: Vec<Range<u64>> = milestones.iter().map(|i| *i..i + 1).collect();
        self.read_runs(&runs, &mut |place, seen| {
            let block = seen.as_ref().ok().and_then(|block| decode(block, place, geometry, pool).ok());
            let passed_over = block.as_ref().is_some_and(|block| block.seq < from || block.epoch == Epoch(0));
            let seen_before = milestones[silent.len()] < first;
            silent.push(passed_over);
            // What it says counts; a section that it belongs to is read, and shown, with it.
            if passed_over && !seen_before && block.is_some() {
                see(place, seen);
            }
        });
        let ends = milestones.iter().skip(1).copied().chain([blocks]);
        let sections = milestones.iter().copied().zip(ends).enumerate();
        sections
            .filter(|(_, (start, _))| *start >= first)
            .filter(|(i, _)| !silent[i.saturating_sub(behind)..=*i].iter().all(|silent| *silent))
            .map(|(_, (start, end))| start..end)
            .collect()
    }

    /// Reads runs that do not go around the ring's end, all at once, and shows their blocks. A run that
    /// cannot be read as a whole is read block by block.
    fn read_runs(&mut self, runs: &[Range<u64>], see: &mut impl FnMut(MetaBlock, Seen<'_>)) {
        let bytes = |run: &Range<u64>| (run.end - run.start) as usize * META_BLOCK_SIZE;
        let needed = runs.iter().map(bytes).sum();
        if self.buffer.len() < needed {
            self.buffer = AlignedBuf::zeroed(needed);
        }
        let Self { device, geometry, from, buffer, .. } = self;
        let place = |i: u64| place(*geometry, *from, i);
        let mut rest = &mut buffer[..];
        let mut ops: Vec<ReadOp<'_>> = Vec::with_capacity(runs.len());
        for run in runs {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(bytes(run));
            ops.push(ReadOp::new(offset(place(run.start).0), vec![own]));
            rest = others;
        }
        device.read_batch(&mut ops);
        for (op, run) in ops.iter_mut().zip(runs) {
            let whole = op.result.is_ok();
            let blocks = op.bufs.iter_mut().flat_map(|buf| buf.chunks_exact_mut(META_BLOCK_SIZE));
            for (bytes, i) in blocks.zip(run.clone()) {
                let place = place(i);
                let read = if whole { Ok(()) } else { device.read(offset(place.0), bytes) };
                let block = || Block::ref_from_bytes(bytes).map_err(|_| io::ErrorKind::InvalidData.into());
                see(place, read.and_then(|()| block()));
            }
        }
    }
}

/// The place of the `i`-th block from `from` on.
fn place(geometry: LogGeometry, from: LogSeq, i: u64) -> MetaBlock {
    geometry.place(LogSeq(from.0 % geometry.blocks + i))
}

#[cfg(test)]
mod tests;
