//! Writing blocks: the four cases {digest known, unknown} x {LBN mapped, unmapped}, for a batch at a time.
//!
//! ```text
//!  admit ─> look up ─> reserve PBNs ─> settle ───────> write data ─> publish ──> again, for what had to wait
//!           no lock,   for misses      one lock:       no lock,      one lock:
//!           pinned                     validate hits   coalesced     alloc + map
//!                                      and publish
//!                                      them, claim
//!                                      misses
//! ```
//!
//! What was looked up without the lock is brought up to date under it (see [`crate::io::present`]) and
//! validated: the block must have a reference and must not have been allocated anew. Otherwise the block goes
//! through the loop once more.
//!
//! A new digest is *claimed* while its first block is being written. Whoever has the same content meanwhile
//! waits for the claim, and then finds the block, or becomes the first writer if that write failed (invariant
//! I8). A thread waits for claims of others, or for free blocks ([`crate::io::reclaim`]), only when it holds
//! no claim itself, no block and no pin; a claim's holder waits for nothing but device I/O. So nobody waits
//! in a circle (rule R1).

use crate::engine::Engine;
use crate::engine::fingerprint::Fingerprint;
use crate::engine::overwrites::Growth;
use crate::engine::space::Places;
use crate::error::VolumeError;
use crate::io::admission::Admission;
use crate::io::block_write::BlockWrite;
use crate::io::lookup::{Lookup, Pinned, Plan};
use crate::io::outgoing::Outgoing;
use crate::io::present::Present;
use crate::io::reclaim::{Shortfall, Tried};
use crate::state::Written;
use crate::state::budget::Purpose;
use crate::state::pins::DataPin;
use dedup_schema::{Digest, Mapping, Pbn};
use dedup_sync::{Arc, Held, Place, View};
use std::collections::VecDeque;

/// Blocks that go through the loop together: their data fills one large write, and even a small log ring
/// admits them.
const SLICE_BLOCKS: usize = 1024;

/// Blocks that go through the loop together, and what they hold while they do.
struct Slice<'s, 'a, 'e> {
    blocks: &'s mut [BlockWrite<'a>],
    /// Their room in log, delta and metadata device.
    admission: Admission<'e>,
    /// Their place in the line for free blocks.
    line: Place<'e>,
    /// Keeps what was compared true from one round to the next, if that left something to it.
    held: Option<DataPin<'e>>,
}

/// Once through the loop.
#[derive(Debug)]
struct Round<'a> {
    spare: VecDeque<Pbn>,
    /// What this round writes, claimed until it is published or has failed.
    claims: Held<'a, Digest>,
    healing: Held<'a, Pbn>,
    outgoing: Vec<Outgoing>,
    published: u64,
    left: Left,
}

/// What a round could not do, and why.
#[derive(Debug, Default)]
struct Left {
    /// Some blocks found no place.
    is_short: bool,
    /// Some found one.
    found_space: bool,
    /// It is the file system below that has no room.
    is_refused: bool,
    /// One of the claims that blocks wait for.
    waits_for: Option<Digest>,
    /// Some have to be looked up again, knowing what their bytes were compared with.
    is_alike: bool,
}

/// What is needed to settle the blocks of a round, under the state's lock.
struct Settling<'x, 'e, 'c> {
    present: &'x mut Present<'e>,
    claimed: View<'c, Digest>,
}

impl Slice<'_, '_, '_> {
    fn pending(&self) -> usize {
        self.blocks.iter().filter(|block| block.is_pending()).count()
    }

    /// How many free blocks have to be left to others by the one that is short and has to leave the fewest.
    fn kept(&self) -> u64 {
        let short = self.blocks.iter().filter(|block| block.is_pending()).filter_map(|block| block.short);
        short.min().unwrap_or(0)
    }
}

impl Engine {
    /// Writes blocks whose LBNs the caller has locked. Each ends up published or failed by itself (invariant
    /// I9).
    pub(crate) fn write_blocks(&self, blocks: &mut [BlockWrite<'_>]) {
        let (mut most, mut rest) = (SLICE_BLOCKS.min(self.slice_max), blocks);
        while !rest.is_empty() {
            let admitted = self.admit_some(most.min(rest.len()) as u64, Purpose::Grow);
            // If not even one is: the others need no less.
            let n = admitted.as_ref().map_or(rest.len(), |admission| admission.left() as usize);
            if n < rest.len() {
                // So much there is room for. More there will hardly be.
                most = most.min(n);
            }
            let (slice, behind) = rest.split_at_mut(n);
            let written = admitted.and_then(|admission| self.write_slice(slice, admission));
            // Nothing may be built upon a contradiction, whichever block has met it.
            slice.iter().filter_map(BlockWrite::failure).for_each(|e| self.fail_stop_if_damaged(e));
            if let Err(error) = written {
                self.fail_stop_if_damaged(&error);
                let error = Arc::new(error);
                let pending = slice.iter_mut().filter(|block| block.is_pending());
                pending.for_each(|block| block.fail(Arc::clone(&error)));
            }
            rest = behind;
        }
    }

    fn write_slice(
        &self,
        blocks: &mut [BlockWrite<'_>],
        admission: Admission<'_>,
    ) -> Result<(), VolumeError> {
        let mut slice = Slice { blocks, admission, line: self.pins.blocks.place(), held: None };
        let (mut tried, mut places) = (Tried::default(), Places::Backed);
        let mut left = slice.pending();
        while left > 0 {
            let round = self.write_round(&mut slice, places)?;
            places = Places::Backed;
            let before = std::mem::replace(&mut left, slice.pending());
            if left < before || round.found_space && !round.is_refused {
                // What was published has freed what it replaced.
                tried = Tried::default();
            }
            if round.is_short {
                let shortfall = Shortfall { is_refused: round.is_refused, kept: slice.kept() };
                match self.find_room(&mut tried, shortfall, &mut slice.line)? {
                    Some(found) => places = found,
                    None => {
                        slice.line.leave();
                        self.fail_short(slice.blocks);
                        left = slice.pending();
                    }
                }
            }
            if let Some(digest) = round.waits_for {
                self.claims.wait(&digest);
            }
        }
        Ok(())
    }

    /// Once through the picture above for all pending blocks. A round that is void, since it took longer than
    /// the history of the trees lasts, comes again, without comparing again what it compared.
    fn write_round<'e>(&'e self, slice: &mut Slice<'_, '_, 'e>, places: Places) -> Result<Left, VolumeError> {
        let todo = self.look_up(slice.blocks)?;
        let misses = todo.plans.iter().filter(|(_, plan)| *plan == Plan::Miss).count();
        let spare: VecDeque<Pbn> = self.allocate(misses, places, &slice.line)?.into();
        if spare.len() == misses {
            // It has what it needs: the next one's turn.
            slice.line.leave();
        }
        let mut round = Round {
            spare,
            claims: self.claims.hold(),
            healing: self.healing.hold(),
            outgoing: Vec::with_capacity(misses),
            published: 0,
            left: Left::default(),
        };
        let Lookup { plans, known, stale, pin } = todo;
        let known = match self.present(known) {
            Ok(mut present) => {
                if let Err(error) = present.writable() {
                    drop(present);
                    self.space.give_back(round.spare);
                    return Err(error);
                }
                let claimed = self.claims.view();
                let mut settling = Settling { present: &mut present, claimed };
                for (item, plan) in plans {
                    self.settle(&mut settling, slice.blocks, item, plan, &mut round);
                }
                drop(settling.claimed);
                self.drop_stale(&mut present, stale);
                present.release()
            }
            Err(_) => {
                self.space.give_back(std::mem::take(&mut round.spare));
                self.pins.blocks.changed();
                slice.held.get_or_insert(pin.blocks());
                return Ok(round.left);
            }
        };
        slice.admission.used(round.published);
        if !round.spare.is_empty() {
            self.space.give_back(std::mem::take(&mut round.spare));
            self.pins.blocks.changed();
        }
        // Its end tells who waits for blocks that these are published.
        let pin = if round.outgoing.is_empty() { pin } else { Pinned::Blocks(pin.blocks()) };
        if !round.outgoing.is_empty() {
            let sent = self.send(slice.blocks, &round.outgoing, known);
            slice.admission.used(sent.published);
            round.left.is_refused = sent.is_refused;
            round.left.is_short |= sent.is_refused;
        }
        if round.left.is_alike {
            slice.held.get_or_insert(pin.blocks());
            // Nothing is waited for with a pin.
            return Ok(Left { found_space: round.left.found_space, ..Left::default() });
        }
        slice.held = None;
        slice.blocks.iter_mut().for_each(|block| block.compared.clear());
        drop(pin);
        // Its claims end with it: what waited for them finds the blocks published, or claims them itself.
        Ok(round.left)
    }

    /// Under the lock: publishes what needs no data write, claims what does, leaves the rest for the next
    /// round.
    fn settle(
        &self,
        settling: &mut Settling<'_, '_, '_>,
        blocks: &mut [BlockWrite<'_>],
        item: usize,
        plan: Plan,
        round: &mut Round<'_>,
    ) {
        let Settling { present, claimed } = settling;
        let block = &mut blocks[item];
        block.short = None;
        let old = block.old.unwrap_or_default();
        if let Err(error) = present.check_reference(block.lbn, old.pbn) {
            block.fail(error);
            return;
        }
        match (plan, block.print) {
            (Plan::Busy(digest), _) => round.left.waits_for = Some(digest),
            (Plan::Alike, _) => round.left.is_alike = true,
            (Plan::Zero, _) | (_, Fingerprint::Zero) => {
                self.publish(present, block, Mapping::UNMAPPED, Written::Zero);
                round.published += 1;
            }
            (Plan::Hit(pbn), Fingerprint::Content { crc, digest }) => {
                if !present.is_valid_hit(pbn, &digest) {
                    block.doubt();
                } else if !present.bad.contains(&pbn) {
                    self.publish(present, block, Mapping { pbn, crc, flags: 0 }, Written::Duplicate);
                    round.published += 1;
                } else if self.options.verify_match {
                    // Marked since it was compared: the next round passes it over.
                    block.doubt();
                } else if round.claims.claim_in(claimed, digest) {
                    round.healing.claim(pbn);
                    round.outgoing.push(Outgoing { item, pbn, crc, digest, heals: true });
                } else {
                    round.left.waits_for = Some(digest);
                }
            }
            (Plan::Miss, Fingerprint::Content { crc, digest }) => {
                // Published or claimed by somebody else since the lookup: the next round finds out.
                let is_other =
                    |pbn| self.compares_bytes() && (present.bad.contains(&pbn) || block.differs(pbn));
                let is_known =
                    present.find_recent(&digest, |pbn| !is_other(pbn)).is_some() || present.has_met(&digest);
                if claimed.contains(&digest) {
                    round.left.waits_for = Some(digest);
                } else if !is_known && let Some(pbn) = self.place(settling, block, round) {
                    round.claims.claim_in(&mut settling.claimed, digest);
                    round.outgoing.push(Outgoing { item, pbn, crc, digest, heals: false });
                }
            }
        }
    }

    /// A free block for new content, if there is one that the block may have.
    fn place(
        &self,
        settling: &Settling<'_, '_, '_>,
        block: &mut BlockWrite<'_>,
        round: &mut Round<'_>,
    ) -> Option<Pbn> {
        let present = &*settling.present;
        let old = block.old.unwrap_or_default();
        let free = (self.pbns - 1).saturating_sub(present.data_used + round.outgoing.len() as u64);
        let kept = || {
            let frees_one = old.is_mapped() && present.count(old.pbn) == Some(1);
            self.overwrites.kept_from(&Growth { frees_one, is_large: block.is_large })
        };
        let may_take = self.overwrites.leaves(free) || matches!(kept(), kept if kept == 0 || free > kept);
        let spare = if may_take { round.spare.pop_front() } else { None };
        let short = spare.is_none().then(kept);
        block.short = short;
        round.left.found_space |= spare.is_some();
        round.left.is_short |= spare.is_none();
        spare
    }

    /// Publishes a write of a block, whose reference was checked.
    pub(crate) fn publish(
        &self,
        present: &mut Present<'_>,
        block: &mut BlockWrite<'_>,
        new: Mapping,
        written: Written,
    ) {
        debug_assert!(self.ranges.is_locked(block.lbn), "LBN {} is written without its lock", block.lbn);
        present.publish_write(block.lbn, new, block.old.unwrap_or_default(), (written, block.data));
        let commit = self.options.flushrq > 0 && present.writes_since_commit >= self.options.flushrq;
        block.publish(present.seq, commit);
    }
}
