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
//! What was looked up without the lock is brought up to date under it (see [`crate::history`]) and validated: the block
//! must have a reference and must not have been allocated anew. Otherwise the block goes through the loop
//! once more.
//!
//! A new digest is *claimed* while its first block is being written. Whoever has the same content meanwhile
//! waits for the claim, and then finds the block, or becomes the first writer if that write failed (invariant
//! I8). A thread waits for claims of others, or for free blocks ([`crate::reclaim`]), only when it holds no claim itself, no block
//! and no pin; a claim's holder waits for nothing but device I/O. So nobody waits in a circle (rule R1).

use crate::admission::Admission;
use crate::budget::Purpose;
use crate::digest::{Digest, Fingerprint};
use crate::engine::Engine;
use crate::error::{VolumeError, is_full};
use crate::fault::Fault;
use crate::history::Known;
use crate::ids::{Lbn, Pbn, Seq};
use crate::lookup::{Lookup, Plan};
use crate::mapping::Mapping;
use crate::overwrites::{self, Growth};
use crate::pins::Pin;
use crate::request::RequestError;
use crate::space::Places;
use crate::state::{BaseCounts, State, Written};
use dedup_device::WriteOp;
use dedup_sync::{Arc, Held, MutexGuard, Place, View};
use std::collections::VecDeque;

/// One block to be written, whole.
#[derive(Debug)]
pub(crate) struct BlockWrite<'a> {
    pub(crate) lbn: Lbn,
    pub(crate) data: &'a [u8],
    /// Which request it belongs to; for the caller.
    pub(crate) request: usize,
    pub(crate) print: Fingerprint,
    progress: Step,
    /// The LBN's mapping before; it cannot change while the range is locked.
    pub(crate) old: Option<Mapping>,
    /// What was found for it was gone when it was to be published: next time that is asked before.
    is_doubtful: bool,
    /// Stored blocks that its bytes were compared with, and whether they are the same. True as long as the pin is held under which they
    /// were compared.
    pub(crate) compared: Vec<(Pbn, bool)>,
    /// Its content is new and there was no free block for it in the last round, which has to leave so many to others.
    short: Option<u64>,
    /// It is part of a large request.
    is_large: bool,
}

/// How far a block is.
#[derive(Debug)]
enum Step {
    Pending,
    /// Published as this operation; `true` if `flushrq` asks for a commit now.
    Done(Seq, bool),
    Failed(Arc<VolumeError>),
}

/// A block on its way to the data device.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    item: usize,
    pbn: Pbn,
    crc: u32,
    digest: Digest,
    heals: bool,
}

impl<'a> BlockWrite<'a> {
    /// A block to be written, as one of so many that its request writes.
    pub(crate) fn new(lbn: Lbn, data: &'a [u8], (request, blocks): (usize, u64), print: Fingerprint) -> Self {
        Self {
            lbn,
            data,
            request,
            print,
            progress: Step::Pending,
            old: None,
            is_doubtful: false,
            compared: Vec::new(),
            short: None,
            is_large: overwrites::is_large(blocks),
        }
    }

    /// The operation that it was published as and whether that is to be committed at once, or why it was not.
    pub(crate) fn outcome(&self) -> Result<(Seq, bool), &VolumeError> {
        match &self.progress {
            Step::Done(seq, commit) => Ok((*seq, *commit)),
            Step::Failed(error) => Err(error),
            Step::Pending => unreachable!("write_blocks returns when no block is pending"),
        }
    }

    /// Whether it is neither published nor failed.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.progress, Step::Pending)
    }

    /// Whether what is found for it is to be judged before it is believed.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Whether a stored block is known to have other bytes.
    fn differs(&self, pbn: Pbn) -> bool {
        self.compared.contains(&(pbn, false))
    }
}

/// Blocks that go through the loop together: their data fills one large write, and even a small log ring
/// admits them.
const SLICE_BLOCKS: usize = 1024;
/// Rounds without progress in which the file system below may refuse places that the device takes for backed: where it tells no holes, each
/// round sets some aside.
const REFUSALS_MAX: u32 = 4;
/// Writes refused in one go after which the rest of them is not tried: each costs the file system a search.
const REFUSED_WRITES_MAX: u32 = 8;

/// What has been tried since the last progress to find room.
#[derive(Debug, Default)]
struct Tried {
    /// How often there were free blocks and none was found.
    in_vain: u32,
    refusals: u32,
    probed: bool,
}

impl Engine {
    /// Writes blocks whose LBNs the caller has locked. Each ends up published or failed by itself (invariant
    /// I9).
    pub(crate) fn write_blocks(&self, blocks: &mut [BlockWrite<'_>]) {
        let mut slice = SLICE_BLOCKS.min(self.slice_max);
        let mut rest = blocks;
        while !rest.is_empty() {
            let mut n = slice.min(rest.len());
            let result = self.write_slice(&mut rest[..n]);
            // Nothing may be built upon a contradiction, whichever block has met it.
            for block in &rest[..n] {
                if let Step::Failed(error) = &block.progress {
                    self.fail_stop_if_damaged(error);
                }
            }
            if let Err(error) = result {
                let no_space = error.for_client() == RequestError::NoSpace;
                if no_space && n > 1 {
                    // On a nearly full metadata device fewer at a time may still be affordable.
                    slice = n.div_ceil(4);
                    continue;
                }
                if no_space {
                    // Not even one: the others need no less.
                    n = rest.len();
                }
                self.fail_stop_if_damaged(&error);
                let error = Arc::new(error);
                for block in rest[..n].iter_mut().filter(|b| b.is_pending()) {
                    block.progress = Step::Failed(Arc::clone(&error));
                }
            }
            rest = &mut rest[n..];
        }
    }

    fn write_slice(&self, slice: &mut [BlockWrite<'_>]) -> Result<(), VolumeError> {
        let mut admission = self.admit(slice.len() as u64, Purpose::Grow)?;
        let mut line = self.pins.blocks.place();
        let (mut tried, mut places) = (Tried::default(), Places::Backed);
        let pending = |slice: &[BlockWrite<'_>]| slice.iter().filter(|block| block.is_pending()).count();
        let mut left = pending(slice);
        let mut held = None;
        while left > 0 {
            let round = self.write_round(slice, (&mut admission, &mut line), &mut held, places)?;
            places = Places::Backed;
            let before = std::mem::replace(&mut left, pending(slice));
            if left < before || round.found_space && !round.refused {
                // What was published has freed what it replaced.
                tried = Tried::default();
            }
            if round.short_of_space {
                let shortages = slice.iter().filter(|b| b.is_pending()).filter_map(|b| b.short);
                let kept = shortages.min().unwrap_or(0);
                match self.find_room(&mut tried, (round.refused, kept), &mut line)? {
                    Some(found) => places = found,
                    None => {
                        line.leave();
                        self.fail_short(slice);
                        left = pending(slice);
                    }
                }
            }
            if let Some(digest) = round.waits_for {
                self.claims.wait(&digest);
            }
        }
        Ok(())
    }

    /// What comes next for blocks that found no place, while as many as are `kept` stay free for others, or whose place was `refused` by
    /// the file system below: the next cheapest thing that has not been `tried`. `None` when nothing is left.
    fn find_room(
        &self,
        tried: &mut Tried,
        (refused, kept): (bool, u64),
        line: &mut Place<'_>,
    ) -> Result<Option<Places>, VolumeError> {
        if refused && tried.refusals < REFUSALS_MAX {
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
        let found = self.wait_for_blocks(line, kept, tried.in_vain)?;
        tried.in_vain += 1;
        Ok(found.then_some(Places::Backed))
    }

    /// Nothing more can be freed: what needs a new block fails, duplicates go on.
    fn fail_short(&self, slice: &mut [BlockWrite<'_>]) {
        let used = self.state.lock().data_used;
        let full_below = self.space.is_full_below();
        for block in slice.iter_mut().filter(|b| b.is_pending() && b.short.is_some()) {
            block.progress = Step::Failed(Arc::new(match full_below {
                true => VolumeError::FullBelow {
                    device: "data",
                    wanted: self.block_size,
                    room: self.data.room_below(),
                },
                false => VolumeError::DataFull { used, total: self.pbns - 1 },
            }));
        }
    }

    /// Once through the picture above for all pending blocks. A round that is void, since it took longer than the history of the trees
    /// lasts, comes again, without comparing again what it compared: `held` is the pin that keeps that true.
    fn write_round<'e>(
        &'e self,
        slice: &mut [BlockWrite<'_>],
        (admission, line): (&mut Admission<'_>, &mut Place<'_>),
        held: &mut Option<Pin<'e>>,
        places: Places,
    ) -> Result<Left, VolumeError> {
        let mut todo = self.look_up(slice)?;
        let misses = todo.plans.iter().filter(|(_, plan)| *plan == Plan::Miss).count();
        let spare: VecDeque<Pbn> = self.allocate(misses, places, line)?.into();
        if spare.len() == misses {
            // It has what it needs: the next one's turn.
            line.leave();
        }
        let mut round = Round {
            found_space: false,
            spare,
            claims: self.claims.hold(),
            healing: self.healing.hold(),
            outgoing: Vec::with_capacity(misses),
            published: 0,
            short_of_space: false,
            refused: false,
            waits_for: None,
        };
        {
            let mut state = self.state.lock();
            if let Err(error) = state.writable() {
                drop(state);
                self.space.give_back(round.spare);
                return Err(error);
            }
            if self.planted(Fault::LookupNotValidated) || todo.known.catch_up(&state) {
                let mut claimed = self.claims.view();
                for (item, plan) in std::mem::take(&mut todo.plans) {
                    self.settle((&mut state, &mut claimed), slice, item, plan, &todo.known, &mut round);
                }
                drop(claimed);
                self.drop_stale(&mut state, std::mem::take(&mut todo.stale), &todo.known);
            } else {
                drop(state);
                self.space.give_back(std::mem::take(&mut round.spare));
                self.pins.blocks.changed();
                held.get_or_insert(todo.pin);
                return Ok(round.end());
            }
        }
        *held = None;
        slice.iter_mut().for_each(|block| block.compared.clear());
        admission.used(round.published);
        if !round.spare.is_empty() {
            self.space.give_back(std::mem::take(&mut round.spare));
            self.pins.blocks.changed();
        }
        if !round.outgoing.is_empty() {
            let Lookup { known, pin, .. } = todo;
            // Its end tells who waits for blocks that these are published.
            let _pin = pin.without_trees();
            let results = self.write_data(slice, &round.outgoing);
            let (published, refused) = self.publish_written(slice, &round.outgoing, results, known);
            admission.used(published);
            round.refused = refused;
            round.short_of_space |= refused;
        }
        if self.planted(Fault::ClaimNotReleased)
            && slice.iter().any(|b| matches!(b.progress, Step::Failed(_)))
        {
            std::mem::forget(std::mem::replace(&mut round.claims, self.claims.hold()));
        }
        Ok(round.end())
    }

    /// Under the lock: publishes what needs no data write, claims what does, leaves the rest for the next
    /// round.
    fn settle(
        &self,
        (state, claimed): (&mut State, &mut View<'_, Digest>),
        slice: &mut [BlockWrite<'_>],
        item: usize,
        plan: Plan,
        known: &Known,
        round: &mut Round<'_>,
    ) {
        let counts = &known.counts;
        let block = &mut slice[item];
        block.short = None;
        let old = block.old.unwrap_or_default();
        if let Err(error) = state.check_reference(block.lbn, old.pbn, counts) {
            block.progress = Step::Failed(Arc::new(error));
            return;
        }
        match (plan, block.print) {
            (Plan::Busy(digest), _) => round.waits_for = Some(digest),
            (Plan::Zero, _) | (_, Fingerprint::Zero) => {
                self.publish(state, block, Mapping::UNMAPPED, Written::Zero, counts);
                round.published += 1;
            }
            (Plan::Hit(pbn), Fingerprint::Content { crc, digest }) => {
                if !self.is_valid_hit(state, pbn, &digest, known) {
                    block.is_doubtful = true;
                } else if !state.bad.contains(&pbn) || self.planted(Fault::BadBlockMatched) {
                    self.publish(state, block, Mapping { pbn, crc, flags: 0 }, Written::Duplicate, counts);
                    round.published += 1;
                } else if self.options.verify_match {
                    // Marked since it was compared: the next round passes it over.
                    block.is_doubtful = true;
                } else if round.claims.claim_in(claimed, digest) {
                    round.healing.claim(pbn);
                    round.outgoing.push(Outgoing { item, pbn, crc, digest, heals: true });
                } else {
                    round.waits_for = Some(digest);
                }
            }
            (Plan::Miss, Fingerprint::Content { crc, digest }) => {
                // Published or claimed by somebody else since the lookup: the next round finds out.
                let is_other =
                    |pbn| self.compares_bytes() && (state.bad.contains(&pbn) || block.differs(pbn));
                let is_known =
                    state.find_recent(&digest, |pbn| !is_other(pbn)).is_some() || known.has_met(&digest);
                if claimed.contains(&digest) {
                    round.waits_for = Some(digest);
                } else if !is_known {
                    let free = (self.pbns - 1).saturating_sub(state.data_used + round.outgoing.len() as u64);
                    let kept = || {
                        let frees_one = old.is_mapped() && state.count(old.pbn, counts) == Some(1);
                        self.overwrites.kept_from(&Growth { frees_one, is_large: block.is_large })
                    };
                    let may_take =
                        self.overwrites.leaves(free) || matches!(kept(), kept if kept == 0 || free > kept);
                    let spare = if may_take { round.spare.pop_front() } else { None };
                    let short = spare.is_none().then(kept);
                    block.short = short;
                    round.found_space |= spare.is_some();
                    match spare {
                        None => round.short_of_space = true,
                        Some(pbn) => {
                            if self.planted(Fault::PublishedBeforeWritten) {
                                let new = Mapping { pbn, crc, flags: 0 };
                                self.publish(state, block, new, Written::Unique(digest), counts);
                                round.published += 1;
                            } else {
                                round.claims.claim_in(claimed, digest);
                            }
                            round.outgoing.push(Outgoing { item, pbn, crc, digest, heals: false });
                        }
                    }
                }
            }
        }
    }

    /// Whether `pbn` still holds content with this digest and is in use. The pin keeps it from being reused
    /// from here on.
    pub(crate) fn is_valid_hit(&self, state: &State, pbn: Pbn, digest: &Digest, known: &Known) -> bool {
        let was_in_use = || known.counts.get(&pbn) > Some(&0);
        let (count, recent) = state.count_and_digest(pbn, &known.counts);
        let recent = recent.or_else(|| known.digest(pbn));
        let in_use = count > Some(0)
            || self.planted(Fault::HitNotRechecked) && was_in_use()
            || self.planted(Fault::ReservedBlockPinned) && !was_in_use();
        let trees_only = self.planted(Fault::HitDigestFromTreesOnly);
        in_use && (trees_only || recent.is_none_or(|recent| recent == *digest))
    }

    fn publish(
        &self,
        state: &mut State,
        block: &mut BlockWrite<'_>,
        new: Mapping,
        written: Written,
        counts: &BaseCounts,
    ) {
        state.publish_write(block.lbn, new, block.old.unwrap_or_default(), (written, block.data), counts);
        let asks = self.options.flushrq > 0 && !self.planted(Fault::FlushrqIgnored);
        let commit = asks && state.writes_since_commit >= self.options.flushrq;
        block.progress = Step::Done(state.seq, commit);
    }

    /// Writes the blocks to their places, consecutive ones together. A failed run is written again block by
    /// block, so that only the blocks that really fail do; where the file system below is full, until it has
    /// said so often enough: `None` for the others.
    fn write_data(
        &self,
        slice: &[BlockWrite<'_>],
        outgoing: &[Outgoing],
    ) -> Vec<Option<std::io::Result<()>>> {
        let mut order: Vec<usize> = (0..outgoing.len()).collect();
        order.sort_unstable_by_key(|i| outgoing[*i].pbn);
        let joins = |a: &usize, b: &usize| outgoing[*a].pbn.0 + 1 == outgoing[*b].pbn.0;
        let write = |run: &[usize]| {
            let bufs = run.iter().map(|i| slice[outgoing[*i].item].data).collect();
            WriteOp::new(outgoing[run[0]].pbn.0 * self.block_size, bufs)
        };
        let mut ops: Vec<WriteOp<'_>> = order.chunk_by(joins).map(write).collect();
        ops.iter().for_each(|op| self.preallocate(op.offset..op.offset + op.byte_count()));
        if !self.planted(Fault::ForgottenContentKept) {
            outgoing.iter().for_each(|out| self.data_cache.forget(out.pbn));
        }
        self.data.write_batch(&mut ops);
        let mut results: Vec<_> = outgoing.iter().map(|_| Some(Ok(()))).collect();
        let mut refused = 0;
        for (op, run) in ops.into_iter().zip(order.chunk_by(joins)) {
            let Err(error) = op.result else { continue };
            if self.planted(Fault::FailedRunNotReissued) {
                run.iter().for_each(|i| results[*i] = Some(Err(error.kind().into())));
                continue;
            }
            if let [only] = run {
                refused += u32::from(is_full(&error));
                results[*only] = Some(Err(error));
                continue;
            }
            for &i in run {
                let out = &outgoing[i];
                results[i] = (refused < REFUSED_WRITES_MAX)
                    .then(|| self.data.write(out.pbn.0 * self.block_size, slice[out.item].data));
                refused += u32::from(matches!(&results[i], Some(Err(error)) if is_full(error)));
            }
        }
        results
    }

    /// Publishes the blocks whose data was written, and returns how many, and whether the file system below had no room for some.
    /// A block whose write failed leaves the old content in place (I9); its PBN is set aside. One that was refused for want of room is tried
    /// again elsewhere.
    fn publish_written(
        &self,
        slice: &mut [BlockWrite<'_>],
        outgoing: &[Outgoing],
        results: Vec<Option<std::io::Result<()>>>,
        known: Known,
    ) -> (u64, bool) {
        let (mut published, mut placed) = (0, Vec::with_capacity(outgoing.len()));
        let (mut unused, mut failed, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut failures = Vec::new();
        let (mut state, counts) = self.lock_with_counts(slice, outgoing, known);
        for (out, result) in outgoing.iter().zip(results) {
            let block = &mut slice[out.item];
            let old = block.old.unwrap_or_default();
            let checked = state.writable().and_then(|()| state.check_reference(block.lbn, old.pbn, &counts));
            // A block that lost its last reference while it was being healed is free; its content is looked up again.
            let lost = out.heals
                && state.count(out.pbn, &counts) == Some(0)
                && !self.planted(Fault::HealedWithoutReference);
            let written = if out.heals { Written::Healing } else { Written::Unique(out.digest) };
            let new = Mapping { pbn: out.pbn, crc: out.crc, flags: 0 };
            match (result, checked) {
                (Some(Ok(())), _) if self.planted(Fault::PublishedBeforeWritten) => placed.push(out.pbn),
                (Some(Ok(())), Ok(())) if lost => block.is_doubtful = true,
                (Some(Ok(())), Ok(())) => {
                    self.publish(&mut state, block, new, written, &counts);
                    published += 1;
                    placed.push(out.pbn);
                }
                (None, Ok(())) => {
                    block.short = Some(0);
                    unused.extend((!out.heals).then_some(out.pbn));
                }
                // What is full below takes no harm.
                (Some(Err(source)), Ok(())) if is_full(&source) && !out.heals => {
                    block.short = Some(0);
                    match self.planted(Fault::FailedBlockReused) {
                        false => refused.push(out.pbn),
                        true => unused.push(out.pbn),
                    }
                }
                (Some(Err(source)), _) => {
                    if !out.heals {
                        match self.planted(Fault::FailedBlockReused) {
                            false => failed.push(out.pbn),
                            true => unused.push(out.pbn),
                        }
                    }
                    if let Some((mapping, written)) = self.publish_failed(new, written) {
                        self.publish(&mut state, block, mapping, written, &counts);
                        published += 1;
                    }
                    failures.push(format!("data device: write of block {}: {source}", out.pbn));
                    block.progress = Step::Failed(Arc::new(VolumeError::Data { operation: "write", source }));
                }
                (_, Err(error)) => {
                    unused.extend((!out.heals).then_some(out.pbn));
                    block.progress = Step::Failed(Arc::new(error));
                }
            }
        }
        drop(state);
        failures.iter().for_each(|failure| tracing::error!("{failure}"));
        self.space.published(placed);
        self.space.give_back(unused);
        failed.into_iter().for_each(|pbn| self.space.failed(pbn));
        let is_news = self.space.refused(&refused);
        if is_news {
            let wanted = refused.len() as u64 * self.block_size;
            tracing::error!(
                "{}",
                VolumeError::FullBelow { device: "data", wanted, room: self.data.room_below() }
            );
        }
        (published, !refused.is_empty())
    }

    /// The state's lock, together with counts that belong to its trees: checkpoints may have installed new
    /// ones meanwhile.
    fn lock_with_counts(
        &self,
        slice: &[BlockWrite<'_>],
        outgoing: &[Outgoing],
        mut known: Known,
    ) -> (MutexGuard<'_, State>, BaseCounts) {
        // Kept until the lock is held again, so that the history reaches back to it.
        let mut _pin = None;
        let mut state = self.state.lock();
        let olds =
            || outgoing.iter().filter_map(|out| slice[out.item].old).map(|m| m.pbn).filter(|pbn| pbn.0 != 0);
        let healed = || outgoing.iter().filter(|out| out.heals).map(|out| out.pbn);
        // The pin held no trees while the data was written, so the history may not reach back: then they are read again.
        while !self.planted(Fault::CountsNotReadAgain) && !known.catch_up(&state) {
            let pin = self.pin_as_of(&state);
            drop(state);
            match pin.tables.counts(&self.store, olds().chain(healed())) {
                Ok(fresh) => known = Known::new(fresh, pin.tables.txid),
                Err(error) => {
                    self.fail_stop(&error.into());
                    return (self.state.lock(), BaseCounts::default());
                }
            }
            state = self.state.lock();
            _pin = Some(pin);
        }
        (state, known.counts)
    }
}

/// Once through the loop.
#[derive(Debug)]
struct Round<'a> {
    /// Whether a free block was taken, though perhaps not as many as it needs.
    found_space: bool,
    spare: VecDeque<Pbn>,
    /// What this round writes, claimed until it is published or has failed.
    claims: Held<'a, Digest>,
    healing: Held<'a, Pbn>,
    outgoing: Vec<Outgoing>,
    published: u64,
    short_of_space: bool,
    refused: bool,
    waits_for: Option<Digest>,
}

/// What a round could not do.
#[derive(Debug)]
struct Left {
    short_of_space: bool,
    found_space: bool,
    /// It is the file system below that has no room.
    refused: bool,
    /// One of the claims that blocks wait for.
    waits_for: Option<Digest>,
}

impl Round<'_> {
    /// Releases the claims: what waited for them finds the blocks published, or claims them itself.
    fn end(self) -> Left {
        let Self { short_of_space, found_space, refused, waits_for, .. } = self;
        Left { short_of_space, found_space, refused, waits_for }
    }
}
