//! What a write waits for when there is no free data block (rule R9, invariant I17).
//!
//! Every block of the data device is in one of these states, and only *in use* does not lead back to *free* by itself:
//!
//! ```text
//!   free ──> reserved by a write in flight ──> in use ──> freed, waits for ──> free, its discard perhaps under way
//!    ▲               │ not needed              (counted)   - a commit
//!    └───────────────┘                                     - readers from before
//!                                                          - a checkpoint, if freed by a replay
//! ```
//!
//! A write that is published frees what it replaces, unless something else maps to that. So whoever finds nothing free waits as long as
//! any block is reserved by others or freed, and is refused as soon as all are in use: nothing would change that but a
//! trim or an overwrite by a duplicate, and for these nobody waits. A store with one block more than there are logical ones is never all in
//! use, whatever the number of clients.
//!
//! Who is short stands in line ([`dedup_sync::Line`]), and only the first takes blocks, as many as there are: a batch that is larger than
//! what is free goes on piece by piece. The first in line does what has to be done (a commit, a checkpoint); all others wait.
//!
//! Nobody waits in a circle: who stands in line has no reserved block, no claim and no pin, and the holders of these wait for devices
//! only. A wait is as long as a device takes to answer a write, a read or a discard that is under way.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::fault::Fault;
use crate::ids::Seq;
use dedup_sync::Place;

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

/// Times in a row that free blocks were not found before a write is refused. There is no such case while the file system below has room,
/// unless the metadata contradicts itself: then its sums are wrong or its trees.
const FREE_NOT_FOUND_MAX: u32 = 2;

impl Engine {
    /// Returns `true` once the caller is the first in line and there are more than `kept` free blocks, `false` if there will be none. To be called with
    /// nothing reserved and without claims and pins. `in_vain`: how often in a row it said yes and no block was found.
    pub(crate) fn wait_for_blocks(
        &self,
        place: &mut Place<'_>,
        kept: u64,
        in_vain: u32,
    ) -> Result<bool, VolumeError> {
        if self.planted(Fault::ReclaimSkipped) || in_vain > FREE_NOT_FOUND_MAX {
            return Ok(false);
        }
        if in_vain > 0 && !self.space.is_full_below() {
            self.checkpoint()?;
        }
        place.join();
        loop {
            place.advance();
            self.release_freed(self.commits.durable());
            match self.outlook(kept, in_vain)? {
                Outlook::Free => return Ok(true),
                Outlook::Commit(seq) => self.commit(seq)?,
                Outlook::Checkpoint => self.checkpoint()?,
                Outlook::Others if self.planted(Fault::OthersNotAwaited) => return Ok(false),
                Outlook::Others => place.wait(),
                Outlook::Full => return Ok(false),
            }
        }
    }

    fn outlook(&self, kept: u64, in_vain: u32) -> Result<Outlook, VolumeError> {
        self.space.look(|taken| {
            let state = self.state.lock();
            state.writable()?;
            let (free, freed) = (self.free_blocks(&state, &taken) > kept, state.quarantine.census());
            Ok(match freed.newest {
                _ if free && !taken.full_below => Outlook::Free,
                Some(newest) if newest > self.commits.durable() => Outlook::Commit(newest),
                _ if freed.replayed > 0 => Outlook::Checkpoint,
                _ if taken.reserved > 0 || freed.all > 0 => Outlook::Others,
                // There may be some that have space below: whoever looks will see.
                _ if free && in_vain == 0 => Outlook::Free,
                _ => Outlook::Full,
            })
        })
    }
}
