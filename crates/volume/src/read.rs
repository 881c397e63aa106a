//! Reading blocks: one lookup for the whole batch, few large reads, every block verified.
//!
//! The lookup pins (see [`crate::pins`]), so the blocks it finds keep their content until the data is in the
//! caller's memory. A block that does not have the checksum beside its mapping is read once more, after any
//! healing write of it has ended; if it still differs it is marked bad and the request fails. Other bytes
//! than those written are never returned.

use crate::budget::Purpose;
use crate::engine::{CheckOnRead, Engine};
use crate::error::VolumeError;
use crate::fault::Fault;
use crate::ids::{Lbn, Pbn};
use crate::mapping::Mapping;
use crate::pins::Pin;
use dedup_device::{AlignedBuf, ReadOp};

/// A part of one block to be read.
#[derive(Debug)]
pub(crate) struct BlockRead<'a> {
    pub(crate) lbn: Lbn,
    /// First byte within the block.
    pub(crate) start: usize,
    /// Where the bytes go; as many as are wanted.
    pub(crate) buf: &'a mut [u8],
    /// Which request it belongs to; for the caller.
    pub(crate) request: usize,
}

impl Engine {
    /// Reads all of `reads`; what failed is returned, by place.
    pub(crate) fn read_blocks(&self, reads: &mut [BlockRead<'_>]) -> Vec<(usize, VolumeError)> {
        let (pin, mappings) = match self.mappings_of(reads) {
            Ok(found) => found,
            Err(error) if reads.len() <= 1 => {
                self.fail_stop_if_damaged(&error);
                return reads.iter().map(|_| 0).zip([error]).collect();
            }
            // Only the reads that need what is damaged are to fail.
            Err(_) => return self.read_one_by_one(reads),
        };
        let mut failed = self.read_data(reads, &mappings);
        for place in self.verify(reads, &mappings) {
            if failed.iter().all(|(f, _)| *f != place)
                && let Err(error) = self.read_again(&mut reads[place], mappings[place])
            {
                failed.push((place, error));
            }
        }
        drop(pin);
        for (place, error) in &failed {
            if matches!(error, VolumeError::DamagedBlock { .. }) {
                self.mark_bad(mappings[*place].pbn, reads[*place].lbn);
            }
        }
        failed
    }

    /// The mappings of all reads' LBNs, as of one moment, pinned.
    fn mappings_of(&self, reads: &[BlockRead<'_>]) -> Result<(Pin<'_>, Vec<Mapping>), VolumeError> {
        let mut mappings = vec![Mapping::UNMAPPED; reads.len()];
        let mut unknown = Vec::new();
        let pin = {
            let state = self.state.lock();
            for (place, read) in reads.iter().enumerate() {
                match state.mapping(read.lbn) {
                    Some(mapping) => mappings[place] = mapping,
                    None => unknown.push(place),
                }
            }
            self.pins.pin(state.seq, state.tables.clone())
        };
        unknown.sort_unstable_by_key(|place| reads[*place].lbn);
        let mut lbns: Vec<Lbn> = unknown.iter().map(|place| reads[*place].lbn).collect();
        lbns.dedup();
        let found = pin.tables.mappings(&self.store, &lbns)?;
        let mut at = 0;
        for place in unknown {
            while lbns[at] != reads[place].lbn {
                at += 1;
            }
            mappings[place] = found[at];
        }
        Ok((pin, mappings))
    }

    /// Gets the bytes: zeros where nothing is mapped; whole blocks that lie side by side in one read; parts
    /// of blocks by way of a buffer, since it takes a whole block to verify one.
    fn read_data(&self, reads: &mut [BlockRead<'_>], mappings: &[Mapping]) -> Vec<(usize, VolumeError)> {
        let mut order: Vec<(Pbn, usize)> = Vec::with_capacity(reads.len());
        for (place, (read, mapping)) in reads.iter_mut().zip(mappings).enumerate() {
            match mapping.is_mapped() {
                true => order.push((mapping.pbn, place)),
                false => read.buf.fill(0),
            }
        }
        order.sort_unstable();
        let mut bufs: Vec<Option<&mut [u8]>> = reads.iter_mut().map(|r| Some(&mut *r.buf)).collect();
        let (mut ops, mut members): (Vec<ReadOp<'_>>, Vec<Vec<usize>>) = (Vec::new(), Vec::new());
        let mut parts = Vec::new();
        for (pbn, place) in order {
            let Some(buf) = bufs[place].take() else { continue };
            if buf.len() as u64 != self.block_size {
                parts.push(place);
                continue;
            }
            let joins =
                members.last().and_then(|m| m.last()).is_some_and(|last| mappings[*last].pbn.0 + 1 == pbn.0);
            match (ops.last_mut(), members.last_mut()) {
                (Some(op), Some(run)) if joins => {
                    op.bufs.push(buf);
                    run.push(place);
                }
                _ => {
                    ops.push(ReadOp { offset: pbn.0 * self.block_size, bufs: vec![buf], result: Ok(()) });
                    members.push(vec![place]);
                }
            }
        }
        self.data.read_batch(&mut ops);
        let mut failed = Vec::new();
        let mut again = Vec::new();
        for (op, run) in ops.into_iter().zip(members) {
            match (op.result, run.as_slice()) {
                (Ok(()), _) => {}
                (Err(source), [only]) => {
                    failed.push((*only, VolumeError::Data { operation: "read", source }))
                }
                (Err(_), run) => again.extend_from_slice(run),
            }
        }
        // With verification on, parts are read where they are verified.
        if self.options.check_on_read == CheckOnRead::Off {
            again.append(&mut parts);
        }
        for place in again {
            if let Err(error) = self.read_one(&mut reads[place], mappings[place].pbn) {
                failed.push((place, error));
            }
        }
        failed
    }

    /// Reads one block by way of a buffer, verifying it if only a part is wanted.
    fn read_one(&self, read: &mut BlockRead<'_>, pbn: Pbn) -> Result<AlignedBuf, VolumeError> {
        let mut block = AlignedBuf::zeroed(self.block_size as usize);
        let source = self.data.read(pbn.0 * self.block_size, &mut block);
        source.map_err(|source| VolumeError::Data { operation: "read", source })?;
        read.buf.copy_from_slice(&block[read.start..][..read.buf.len()]);
        Ok(block)
    }

    /// Which reads do not hold what was written. Parts of blocks are always among them: their check is in
    /// [`Self::read_again`].
    fn verify(&self, reads: &[BlockRead<'_>], mappings: &[Mapping]) -> Vec<usize> {
        if self.options.check_on_read == CheckOnRead::Off {
            return Vec::new();
        }
        let mapped = || (0..reads.len()).filter(|place| mappings[*place].is_mapped());
        let digests = self.expected_digests(mapped().map(|place| mappings[place].pbn));
        mapped()
            .filter(|place| {
                let (buf, mapping) = (&*reads[*place].buf, mappings[*place]);
                if buf.len() as u64 != self.block_size {
                    return true;
                }
                if self.planted(Fault::ChecksumIgnored) {
                    return false;
                }
                crc32c::crc32c(buf) != mapping.crc
                    || digests
                        .as_ref()
                        .is_some_and(|d| d.get(&mapping.pbn) != Some(&self.algorithm.digest(buf)))
            })
            .collect()
    }

    /// The digests that blocks should have, if reads are to compare them. Unreadable ones are missing, and
    /// nothing equals those.
    fn expected_digests(
        &self,
        pbns: impl Iterator<Item = Pbn>,
    ) -> Option<rustc_hash::FxHashMap<Pbn, crate::Digest>> {
        if self.options.check_on_read != CheckOnRead::Digest {
            return None;
        }
        let pbns: Vec<Pbn> = pbns.collect();
        // Deltas and trees of one moment; the read's own pin keeps the blocks, and with them their digests,
        // what they were.
        let (pin, recent) = {
            let state = self.state.lock();
            let recent: Vec<_> =
                pbns.iter().filter_map(|pbn| Some((*pbn, state.recent_digest(*pbn)?))).collect();
            (self.pins.pin(state.seq, state.tables.clone()), recent)
        };
        let mut digests = pin.tables.digests(&self.store, pbns).unwrap_or_default();
        digests.extend(recent);
        Some(digests)
    }

    /// Reads a suspect block by itself, once no healing write is under way, and verifies it.
    fn read_again(&self, read: &mut BlockRead<'_>, mapping: Mapping) -> Result<(), VolumeError> {
        {
            let mut state = self.state.lock();
            while state.healing.contains(&mapping.pbn) {
                state = self.claims_changed.wait(state);
            }
        }
        let block = self.read_one(read, mapping.pbn)?;
        let found = crc32c::crc32c(&block);
        let digests = self.expected_digests(std::iter::once(mapping.pbn));
        let digest_fits = digests.is_none_or(|d| d.get(&mapping.pbn) == Some(&self.algorithm.digest(&block)));
        if (found == mapping.crc && digest_fits) || self.planted(Fault::ChecksumIgnored) {
            return Ok(());
        }
        let error =
            VolumeError::DamagedBlock { lbn: read.lbn, pbn: mapping.pbn, expected: mapping.crc, found };
        tracing::error!("{error}");
        Err(error)
    }

    /// Records that a block's content is damaged, so that no duplicate is mapped to it until a write with its
    /// content has healed it.
    fn mark_bad(&self, pbn: Pbn, lbn: Lbn) {
        // Nobody waits for the mark; it becomes durable with the next commit. On a volume that takes no
        // writes there is nothing to mark.
        let Ok(mut admission) = self.admit(1, Purpose::Shrink) else { return };
        let pin = self.pin();
        let Ok(counts) = pin.tables.counts(&self.store, [pbn]) else { return };
        let mut state = self.state.lock();
        let unchanged = state.tables.txid == pin.tables.txid && state.count(pbn, &counts) > Some(0);
        let still_there = state.mapping(lbn).is_none_or(|mapping| mapping.pbn == pbn);
        if unchanged && still_there && !state.bad.contains(&pbn) && state.writable().is_ok() {
            state.counters.bad_blocks += 1;
            state.publish_bad(pbn);
            admission.used(1);
        }
    }

    fn read_one_by_one(&self, reads: &mut [BlockRead<'_>]) -> Vec<(usize, VolumeError)> {
        let singles = reads.chunks_mut(1).enumerate();
        singles
            .flat_map(|(place, one)| self.read_blocks(one).into_iter().map(move |(_, error)| (place, error)))
            .collect()
    }

    /// Damage in the mapping means that nothing more may be built upon it.
    pub(crate) fn fail_stop_if_damaged(&self, error: &VolumeError) {
        if error.is_damage() {
            self.fail_stop(error);
        }
    }

    /// Pins what is reachable now.
    pub(crate) fn pin(&self) -> Pin<'_> {
        let state = self.state.lock();
        self.pins.pin(state.seq, state.tables.clone())
    }
}
