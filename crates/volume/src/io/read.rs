//! Reading blocks: one lookup for the whole batch, few large reads, every block verified.
//!
//! The lookup pins (see [`crate::state::pins`]), so the blocks it finds keep their content until the data is
//! in the caller's memory. While data is read the pin holds no trees: a data device that does not answer
//! keeps no metadata from being used again. A block that does not have the checksum beside its mapping is
//! read once more, after any healing write of it has ended; if it still differs it is marked bad and the
//! request fails. Other bytes than those written are never returned.

use crate::engine::{CheckOnRead, Engine};
use crate::error::VolumeError;
use crate::io::present::Known;
use crate::state::budget::Purpose;
use crate::state::pins::Pin;
use dedup_device::{AlignedBuf, ReadOp};
use dedup_schema::{Lbn, Mapping, Pbn, Seq};
use rustc_hash::FxHashMap;

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

/// Where the blocks of a batch are, as of one moment. The pin that comes with it keeps them there.
struct Located {
    mappings: Vec<Mapping>,
    /// Digests that the deltas had at that moment.
    recent: FxHashMap<Pbn, crate::Digest>,
    /// The digests that blocks should have, if reads are to compare them. Unreadable ones are missing, and
    /// nothing equals those.
    digests: Option<FxHashMap<Pbn, crate::Digest>>,
    /// How many blocks had been healed.
    healed: u64,
}

impl Engine {
    /// Reads all of `reads`, as of an operation or operations up to it; what failed is returned, by place.
    pub(crate) fn read_blocks(&self, reads: &mut [BlockRead<'_>]) -> (Seq, Vec<(usize, VolumeError)>) {
        let (mut located, pin) = match self.locate(reads) {
            Ok(found) => found,
            Err(error) if reads.len() <= 1 => {
                self.fail_stop_if_damaged(&error);
                reads.iter().for_each(|read| tracing::error!("read of LBN {}: {error}", read.lbn));
                return (Seq(0), reads.iter().map(|_| 0).zip([error]).collect());
            }
            // Only the reads that need what is damaged are to fail.
            Err(_) => return self.read_one_by_one(reads),
        };
        let seq = pin.seq();
        let cached = self.copy_cached(reads, &located.mappings);
        let is_read = |place: &usize| located.mappings[*place].is_mapped() && !is_cached(&cached, *place);
        let from_device: Vec<usize> = (0..reads.len()).filter(is_read).collect();
        if from_device.is_empty() {
            return (seq, self.read_data(reads, &located.mappings, &cached));
        }
        self.expect_digests(from_device.iter().copied(), &mut located, &pin);
        let pin = pin.without_trees();
        let mut failed = self.read_data(reads, &located.mappings, &cached);
        for place in self.verify(reads, &located, &from_device) {
            if failed.iter().all(|(f, _)| *f != place)
                && let Err(error) = self.read_again(&mut reads[place], place, &located)
            {
                failed.push((place, error));
            }
        }
        self.keep_read(reads, &located.mappings, &cached, &failed);
        drop(pin);
        for (place, error) in &failed {
            let pbn = located.mappings[*place].pbn;
            match error {
                VolumeError::DamagedBlock { .. } => tracing::error!("{error}"),
                _ => tracing::error!("read of LBN {}, block {pbn}: {error}", reads[*place].lbn),
            }
            if matches!(error, VolumeError::DamagedBlock { .. }) {
                self.mark_bad(reads[*place].lbn);
            }
        }
        (seq, failed)
    }

    /// The mappings of all reads' LBNs, as of one moment, pinned.
    fn locate(&self, reads: &[BlockRead<'_>]) -> Result<(Located, Pin<'_>), VolumeError> {
        let mut mappings = vec![Mapping::UNMAPPED; reads.len()];
        let (mut unknown, mut recent) = (Vec::new(), FxHashMap::default());
        let (pin, healed) = {
            let state = self.state.lock();
            for (place, read) in reads.iter().enumerate() {
                match state.mapping(read.lbn) {
                    Some(mapping) => {
                        mappings[place] = mapping;
                        recent.extend(state.recent_digest(mapping.pbn).map(|digest| (mapping.pbn, digest)));
                    }
                    None => unknown.push(place),
                }
            }
            (self.pin_as_of(&state), state.counters.healed_blocks)
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
        Ok((Located { mappings, recent, digests: None, healed }, pin))
    }

    /// Serves what is in memory, and says which reads that were; none of them, in no list, if nothing is ever
    /// kept.
    fn copy_cached(&self, reads: &mut [BlockRead<'_>], mappings: &[Mapping]) -> Vec<bool> {
        if !self.data_cache.is_on() {
            return Vec::new();
        }
        let copy = |(read, mapping): (&mut BlockRead<'_>, &Mapping)| {
            mapping.is_mapped() && self.data_cache.copy(mapping.pbn, mapping.crc, read.start, read.buf)
        };
        reads.iter_mut().zip(mappings).map(copy).collect()
    }

    /// Keeps the whole blocks that came from the device and are what they should be. Their pin still holds.
    fn keep_read(
        &self,
        reads: &[BlockRead<'_>],
        mappings: &[Mapping],
        cached: &[bool],
        failed: &[(usize, VolumeError)],
    ) {
        for place in (0..cached.len()).filter(|place| !cached[*place] && mappings[*place].is_mapped()) {
            let buf = &*reads[place].buf;
            if buf.len() as u64 == self.block_size && failed.iter().all(|(f, _)| *f != place) {
                self.data_cache.keep(mappings[place].pbn, buf);
            }
        }
    }

    /// Gets the bytes that are not in memory: zeros where nothing is mapped; whole blocks that lie side by
    /// side in one read; parts of blocks by way of a buffer, since it takes a whole block to verify one.
    fn read_data(
        &self,
        reads: &mut [BlockRead<'_>],
        mappings: &[Mapping],
        cached: &[bool],
    ) -> Vec<(usize, VolumeError)> {
        let mut order: Vec<(Pbn, usize)> = Vec::with_capacity(reads.len());
        for (place, (read, mapping)) in reads.iter_mut().zip(mappings).enumerate() {
            match mapping.is_mapped() {
                true if is_cached(cached, place) => {}
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

    /// Reads one block by way of a buffer and hands it back whole, for the caller to verify.
    fn read_one(&self, read: &mut BlockRead<'_>, pbn: Pbn) -> Result<AlignedBuf, VolumeError> {
        let mut block = AlignedBuf::zeroed(self.block_size as usize);
        let source = self.data.read(pbn.0 * self.block_size, &mut block);
        source.map_err(|source| VolumeError::Data { operation: "read", source })?;
        read.buf.copy_from_slice(&block[read.start..][..read.buf.len()]);
        Ok(block)
    }

    /// Which reads do not hold what was written. Parts of blocks are always among them: their check is in
    /// [`Self::read_again`].
    fn verify(&self, reads: &[BlockRead<'_>], located: &Located, from_device: &[usize]) -> Vec<usize> {
        if self.options.check_on_read == CheckOnRead::Off {
            return Vec::new();
        }
        let is_wrong = |mapping: &Mapping, buf: &[u8]| {
            let digests = located.digests.as_ref();
            crc32c::crc32c(buf) != mapping.crc
                || digests.is_some_and(|d| d.get(&mapping.pbn) != Some(&self.algorithm.digest(buf)))
        };
        from_device
            .iter()
            .copied()
            .filter(|place| {
                let (buf, mapping) = (&*reads[*place].buf, located.mappings[*place]);
                if buf.len() as u64 != self.block_size {
                    return true;
                }
                is_wrong(&mapping, buf)
            })
            .collect()
    }

    /// Looks up the digests of these reads' blocks, if reads are to compare them, as of the read's own
    /// moment.
    fn expect_digests(&self, places: impl Iterator<Item = usize>, located: &mut Located, pin: &Pin<'_>) {
        if self.options.check_on_read != CheckOnRead::Digest {
            return;
        }
        let pbns = places.map(|place| located.mappings[place].pbn);
        let mut digests = pin.tables.digests(&self.store, pbns).unwrap_or_default();
        digests.extend(located.recent.iter().map(|(pbn, digest)| (*pbn, *digest)));
        located.digests = Some(digests);
    }

    /// Reads a suspect block by itself, once no healing write is under way, and verifies it.
    fn read_again(
        &self,
        read: &mut BlockRead<'_>,
        place: usize,
        located: &Located,
    ) -> Result<(), VolumeError> {
        let mapping = located.mappings[place];
        self.healing.wait(&mapping.pbn);
        let block = self.read_one(read, mapping.pbn)?;
        let found = crc32c::crc32c(&block);
        let digests = located.digests.as_ref();
        let digest_fits = digests.is_none_or(|d| d.get(&mapping.pbn) == Some(&self.algorithm.digest(&block)));
        if found == mapping.crc && digest_fits {
            if read.buf.len() as u64 != self.block_size {
                self.data_cache.keep(mapping.pbn, &block);
            }
            return Ok(());
        }
        Err(VolumeError::DamagedBlock { lbn: read.lbn, pbn: mapping.pbn, expected: mapping.crc, found })
    }

    /// Records that the block behind an LBN is damaged, so that no duplicate is mapped to it until a write
    /// with its content has healed it. Looks once more first: meanwhile it may have been healed, or the LBN
    /// mapped to another block, and a duplicate write would then overwrite what is whole.
    fn mark_bad(&self, lbn: Lbn) {
        // Nobody waits for the mark; it becomes durable with the next commit. On a volume that takes no
        // writes there is nothing to mark.
        let Ok(mut admission) = self.admit(1, Purpose::Shrink) else { return };
        let mut buf = vec![0; self.block_size as usize];
        let mut read = BlockRead { lbn, start: 0, buf: &mut buf, request: 0 };
        let Ok((mut located, pin)) = self.locate(std::slice::from_ref(&read)) else { return };
        let pbn = located.mappings[0].pbn;
        if !located.mappings[0].is_mapped() {
            return;
        }
        let Ok(counts) = pin.tables.counts(&self.store, [pbn]) else { return };
        self.expect_digests(std::iter::once(0), &mut located, &pin);
        let _pin = pin.without_trees();
        let damaged =
            matches!(self.read_again(&mut read, 0, &located), Err(VolumeError::DamagedBlock { .. }));
        if !damaged {
            return;
        }
        let Ok(mut present) = self.present(Known::new(counts)) else { return };
        let unchanged =
            present.counters.healed_blocks == located.healed && present.check_reference(lbn, pbn).is_ok();
        if unchanged
            && !present.bad.contains(&pbn)
            && !self.healing.contains(&pbn)
            && present.writable().is_ok()
        {
            present.counters.bad_blocks += 1;
            present.publish_bad(pbn);
            admission.used(1);
        }
    }

    fn read_one_by_one(&self, reads: &mut [BlockRead<'_>]) -> (Seq, Vec<(usize, VolumeError)>) {
        let (mut last, mut failed) = (Seq(0), Vec::new());
        for (place, one) in reads.chunks_mut(1).enumerate() {
            let (seq, errors) = self.read_blocks(one);
            last = last.max(seq);
            failed.extend(errors.into_iter().map(|(_, error)| (place, error)));
        }
        (last, failed)
    }

    /// Damage in the mapping means that nothing more may be built upon it.
    pub(crate) fn fail_stop_if_damaged(&self, error: &VolumeError) {
        if error.is_damage() {
            self.fail_stop(error);
        }
    }
}

/// Whether a read was served from memory.
fn is_cached(cached: &[bool], place: usize) -> bool {
    cached.get(place) == Some(&true)
}
