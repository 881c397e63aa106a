//! The blocks of a round that go to the data device: written, consecutive ones together, and then published,
//! each by what became of it.
//!
//! ```text
//!   reserved, claimed ──> written ──(done)──────────> published: allocation and mapping in one step
//!                           ├───────(failed)────────> the request fails, the old content stays (I9); the place is set aside
//!                           └───────(full below)────> tried again elsewhere, see [`crate::io::reclaim`]; the place is set aside for as long
//! ```

use crate::engine::Engine;
use crate::error::{VolumeError, is_full};
use crate::io::block_write::BlockWrite;
use crate::io::present::{Known, Present};
use crate::state::Written;
use dedup_device::WriteOp;
use dedup_schema::{Digest, Mapping, Pbn};
use std::io;

/// Writes refused in one go after which the rest of them is not tried: each costs the file system a search.
const REFUSED_WRITES_MAX: u32 = 8;

/// A block on its way to the data device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    /// Its place in the batch.
    pub(crate) item: usize,
    pub(crate) pbn: Pbn,
    pub(crate) crc: u32,
    pub(crate) digest: Digest,
    /// It is a damaged block that is written again in place.
    pub(crate) heals: bool,
}

/// What became of a round's blocks.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Published.
    pub(crate) published: u64,
    /// Some found no room in the file system below.
    pub(crate) is_refused: bool,
}

/// What became of their places.
#[derive(Debug, Default)]
struct Fates {
    published: u64,
    /// Written, and protected by counts from now on.
    placed: Vec<Pbn>,
    /// Free as before.
    unused: Vec<Pbn>,
    failed: Vec<Pbn>,
    /// The file system below had no room for these.
    refused: Vec<Pbn>,
    /// Lines of the log, for when no lock is held.
    failures: Vec<String>,
}

/// What the device said of a block; `None` if it was not tried.
type Answer = Option<io::Result<()>>;

impl Engine {
    /// Writes the blocks to their places and publishes those whose data was written.
    pub(crate) fn send(&self, blocks: &mut [BlockWrite<'_>], outgoing: &[Outgoing], known: Known) -> Sent {
        let answers = self.write_data(blocks, outgoing);
        self.publish_written(blocks, outgoing, answers, known)
    }

    /// Writes the blocks to their places, consecutive ones together. A failed run is written again block by
    /// block, so that only the blocks that really fail do; where the file system below is full, until it has
    /// said so often enough.
    fn write_data(&self, blocks: &[BlockWrite<'_>], outgoing: &[Outgoing]) -> Vec<Answer> {
        let mut order: Vec<usize> = (0..outgoing.len()).collect();
        order.sort_unstable_by_key(|i| outgoing[*i].pbn);
        // Two contents at one place, or one over the label, would be lost without a word.
        let is_place = |pbn: Pbn| (1..self.pbns).contains(&pbn.0);
        assert!(
            order.iter().all(|i| is_place(outgoing[*i].pbn)),
            "a block is written to no place of content"
        );
        assert!(
            order.windows(2).all(|pair| outgoing[pair[0]].pbn < outgoing[pair[1]].pbn),
            "two blocks are written to one place"
        );
        let joins = |a: &usize, b: &usize| outgoing[*a].pbn.0 + 1 == outgoing[*b].pbn.0;
        let write = |run: &[usize]| {
            let bufs = run.iter().map(|i| blocks[outgoing[*i].item].data).collect();
            WriteOp::new(outgoing[run[0]].pbn.0 * self.block_size, bufs)
        };
        let mut ops: Vec<WriteOp<'_>> = order.chunk_by(joins).map(write).collect();
        ops.iter().for_each(|op| self.preallocate(op.offset..op.offset + op.byte_count()));
        outgoing.iter().for_each(|out| self.data_cache.forget(out.pbn));
        self.data.write_batch(&mut ops);
        let mut answers: Vec<_> = outgoing.iter().map(|_| Some(Ok(()))).collect();
        let mut refused = 0;
        for (op, run) in ops.into_iter().zip(order.chunk_by(joins)) {
            let Err(error) = op.result else { continue };
            if let [only] = run {
                refused += u32::from(is_full(&error));
                answers[*only] = Some(Err(error));
                continue;
            }
            for &i in run {
                let out = &outgoing[i];
                answers[i] = (refused < REFUSED_WRITES_MAX)
                    .then(|| self.data.write(out.pbn.0 * self.block_size, blocks[out.item].data));
                refused += u32::from(matches!(&answers[i], Some(Err(error)) if is_full(error)));
            }
        }
        answers
    }

    /// Publishes the blocks whose data was written.
    fn publish_written(
        &self,
        blocks: &mut [BlockWrite<'_>],
        outgoing: &[Outgoing],
        answers: Vec<Answer>,
        known: Known,
    ) -> Sent {
        let mut fates = Fates { placed: Vec::with_capacity(outgoing.len()), ..Fates::default() };
        let mut present = self.present_after_write(blocks, outgoing, known);
        for (out, answer) in outgoing.iter().zip(answers) {
            self.publish_outgoing(&mut present, &mut blocks[out.item], out, answer, &mut fates);
        }
        drop(present);
        let Fates { published, placed, unused, failed, refused, failures } = fates;
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
        Sent { published, is_refused: !refused.is_empty() }
    }

    /// Publishes a block if its data was written. A write that failed leaves the old content in place (I9),
    /// and its place is set aside. One that was refused for want of room is tried again elsewhere.
    fn publish_outgoing(
        &self,
        present: &mut Present<'_>,
        block: &mut BlockWrite<'_>,
        out: &Outgoing,
        answer: Answer,
        fates: &mut Fates,
    ) {
        let old = block.old.unwrap_or_default();
        let checked = present.writable().and_then(|()| present.check_reference(block.lbn, old.pbn));
        // A block that lost its last reference while it was being healed is free; its content is looked up
        // again.
        let lost = out.heals && present.count(out.pbn) == Some(0);
        let written = if out.heals { Written::Healing } else { Written::Unique(out.digest) };
        let new = Mapping { pbn: out.pbn, crc: out.crc, flags: 0 };
        let reserved = (!out.heals).then_some(out.pbn);
        match (answer, checked) {
            (Some(Ok(())), Ok(())) if lost => block.doubt(),
            (Some(Ok(())), Ok(())) => {
                self.publish(present, block, new, written);
                fates.published += 1;
                fates.placed.push(out.pbn);
            }
            (None, Ok(())) => {
                block.short = Some(0);
                fates.unused.extend(reserved);
            }
            // What is full below takes no harm.
            (Some(Err(source)), Ok(())) if is_full(&source) && !out.heals => {
                block.short = Some(0);
                fates.refused.push(out.pbn);
            }
            (Some(Err(source)), _) => {
                fates.failed.extend(reserved);
                fates.failures.push(format!("data device: write of block {}: {source}", out.pbn));
                block.fail(VolumeError::Data { operation: "write", source });
            }
            (_, Err(error)) => {
                fates.unused.extend(reserved);
                block.fail(error);
            }
        }
    }

    /// The state, locked, with counts of its trees: checkpoints may have installed others while the data was
    /// written.
    fn present_after_write(
        &self,
        blocks: &[BlockWrite<'_>],
        outgoing: &[Outgoing],
        mut known: Known,
    ) -> Present<'_> {
        // Kept until the lock is held again, so that the history reaches back to it.
        let mut _pin = None;
        let olds =
            || outgoing.iter().filter_map(|out| blocks[out.item].old).map(|m| m.pbn).filter(|pbn| pbn.0 != 0);
        let healed = || outgoing.iter().filter(|out| out.heals).map(|out| out.pbn);
        loop {
            if let Ok(present) = self.present(known) {
                return present;
            }
            // The pin held no trees while the data was written, so the history may not reach back: then they
            // are read again.
            let pin = self.pin();
            match pin.tables.counts(&self.store, olds().chain(healed())) {
                Ok(fresh) => known = Known::new(fresh),
                Err(error) => {
                    self.fail_stop(&error.into());
                    return self.present_without_counts();
                }
            }
            _pin = Some(pin);
        }
    }
}
