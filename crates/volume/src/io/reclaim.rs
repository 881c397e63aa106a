//! What a write waits for when there is no free data block (rule R9, invariant I17).
//!
//! Every block of the data device is in one of these states, and only *in use* does not lead back to *free*
//! by itself:
//!
//! ```text
//!   free ──> reserved by a write in flight ──> in use ──> freed, waits for ──> free, its discard perhaps under way
//!    ▲               │ not needed              (counted)   - a commit
//!    └───────────────┘                                     - readers from before
//!                                                          - a checkpoint, if freed by a replay
//! ```
//!
//! A write that is published frees what it replaces, unless something else maps to that. So whoever finds
//! nothing free waits as long as any block is reserved by others or freed, and is refused as soon as all are
//! in use: nothing would change that but a trim or an overwrite by a duplicate, and for these nobody waits. A
//! store with one block more than there are logical ones is never all in use, whatever the number of clients.
//!
//! Who is short stands in line ([`dedup_sync::Line`]), and only the first takes blocks, as many as there are:
//! a batch that is larger than what is free goes on piece by piece. The first in line does what has to be
//! done (a commit, a checkpoint); all others wait.
//!
//! Nobody waits in a circle: who stands in line has no reserved block, no claim and no pin, and the holders
//! of these wait for devices only. A wait is as long as a device takes to answer a write, a read or a discard
//! that is under way.

use crate::engine::Engine;
use crate::engine::space::Places;
use crate::error::VolumeError;
use crate::io::block_write::BlockWrite;
use dedup_schema::Seq;
use dedup_sync::Place;

/// What blocks of a round lack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shortfall {
    /// The file system below has refused the place of one.
    pub(crate) is_refused: bool,
    /// As many free blocks as have to be left to others.
    pub(crate) kept: u64,
}

/// What has been tried since the last progress to find room.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// How often there were free blocks and none was found.
    in_vain: u32,
    refusals: u32,
    probed: bool,
}

/// What there is for a write that found no free block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlook {
    /// There are free blocks that the write may have.
    Free,
    /// Blocks were freed by operations up to this one, which are to be committed.
    Commit(Seq),
    /// Blocks that the log's replay freed come free with a checkpoint.
    Checkpoint,
    /// Blocks are with others: reserved by writes, or read.
    Others,
    /// All blocks are in use, or kept from the write.
    Full,
}

/// Times in a row that free blocks were not found before a write is refused. There is no such case while the
/// file system below has room, unless the metadata contradicts itself: then its sums are wrong or its trees.
const FREE_NOT_FOUND_MAX: u32 = 2;
/// Rounds without progress in which the file system below may refuse places that the device takes for backed:
/// where it tells no holes, each round sets some aside.
const REFUSALS_MAX: u32 = 4;

impl Engine {
    /// What comes next for blocks that found no place: the next cheapest thing that has not been `tried`.
    /// `None` when nothing is left.
    pub(crate) fn find_room(
        &self,
        tried: &mut Tried,
        shortfall: Shortfall,
        line: &mut Place<'_>,
    ) -> Result<Option<Places>, VolumeError> {
        if shortfall.is_refused && tried.refusals < REFUSALS_MAX {
            // From now on only places with space of their own are given out.
            tried.refusals += 1;
            return Ok(Some(Places::Backed));
        }
        if self.space.is_full_below() && !std::mem::replace(&mut tried.probed, true) {
            // Others may be at it: then theirs come first.
            line.join();
            line.advance();
            return Ok(Some(Places::Probes));
        }
        let found = self.wait_for_blocks(line, shortfall.kept, tried.in_vain)?;
        tried.in_vain += 1;
        // What has come free may have made room below.
        tried.probed &= !found;
        Ok(found.then_some(Places::Backed))
    }

    /// Nothing more can be freed: what needs a new block fails, duplicates go on.
    pub(crate) fn fail_short(&self, blocks: &mut [BlockWrite<'_>]) {
        let used = self.state.lock().data_used;
        let full_below = self.space.is_full_below();
        for block in blocks.iter_mut().filter(|b| b.is_pending() && b.short.is_some()) {
            block.fail(match full_below {
                true => VolumeError::FullBelow {
                    device: "data",
                    wanted: self.block_size,
                    room: self.data.room_below(),
                },
                false => VolumeError::DataFull { used, total: self.pbns - 1 },
            });
        }
    }

    /// Returns `true` once the caller is the first in line and there are more than `kept` free blocks,
    /// `false` if there will be none. To be called with nothing reserved and without claims and pins.
    /// `in_vain`: how often in a row it said yes and no block was found.
    fn wait_for_blocks(&self, place: &mut Place<'_>, kept: u64, in_vain: u32) -> Result<bool, VolumeError> {
        if in_vain > FREE_NOT_FOUND_MAX {
            return Ok(false);
        }
        if in_vain > 0 && !self.space.is_full_below() {
            self.checkpoint()?;
        }
        place.join();
        loop {
            place.advance();
            let durable = self.commits.durable();
            self.release_freed(durable);
            match self.outlook(kept, durable)? {
                Outlook::Free => return Ok(true),
                Outlook::Commit(seq) => self.commit(seq)?,
                Outlook::Checkpoint => self.checkpoint()?,
                Outlook::Others => place.wait(),
                Outlook::Full => return Ok(false),
            }
        }
    }

    /// What there is, once everything freed by operations up to `durable` is given back that no reader holds.
    fn outlook(&self, kept: u64, durable: Seq) -> Result<Outlook, VolumeError> {
        self.space.look(|taken| {
            let state = self.state.lock();
            state.writable()?;
            let (free, freed) = (self.free_blocks(&state, &taken), state.quarantine.census());
            Ok(match freed.newest {
                _ if free > kept && !taken.is_exhausted => Outlook::Free,
                Some(newest) if newest > durable => Outlook::Commit(newest),
                _ if freed.replayed > 0 => Outlook::Checkpoint,
                _ if taken.reserved > 0 || freed.all > 0 => Outlook::Others,
                _ => Outlook::Full,
            })
        })
    }
}
