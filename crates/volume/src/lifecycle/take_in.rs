//! Taking in the journal of a process that died: after the log, as if its operations had been committed.
//!
//! ```text
//!   superblock ──> journal: right id, pool, device? ──> frames of both segments, in order of generation
//!   behind the log's last operation, without a gap ──> applied like the log's records, and given to the log's builder for the first commit
//!   blocks that they allocate or heal: read, held against their checksum, written once more
//! ```
//!
//! Why written once more: their data was written and not flushed. If a flush failed before the process died,
//! the cache may show what the device does not have, and the next flush would say nothing of it (R5). What
//! does not have its checksum is marked bad. Nothing else is overwritten: a block that these operations
//! allocate was free in everything that is durable (I2), and one that they heal has that content.

use crate::error::VolumeError;
use crate::journal::layout::{FILE_HEAD, Frame, Owner, SEGMENT_MAX, SegmentBytes, segment_start};
use crate::journal::{JournalFile, JournalOptions};
use crate::lifecycle::options::OpenOptions;
use crate::lifecycle::replay::{Bounds, apply, check_range, named_blocks};
use crate::state::State;
use crate::trees::tables::Counts;
use dedup_device::{BlockDevice, WriteOp};
use dedup_meta::{JournalRecord, NodeSource, Superblock};
use dedup_schema::{Counters, Pbn, Record, Seq};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Bytes of data that are written once more at a time.
const REWRITE_BYTES: u64 = 4 << 20;

/// A journal that is the volume's, read.
#[derive(Debug)]
pub(crate) struct Existing {
    file: Arc<dyn JournalFile>,
    owner: Owner,
    /// In order of generation.
    segments: Vec<SegmentBytes>,
}

/// What an open has taken in.
#[derive(Debug, Default)]
pub(crate) struct TakenIn {
    pub(crate) operations: u64,
    /// Blocks that they allocated or healed, with the checksum of their content.
    written: BTreeMap<Pbn, u32>,
}

/// The journal that `superblock` expects to be there.
pub(crate) fn find(
    superblock: &Superblock,
    options: Option<&JournalOptions>,
) -> Result<Option<Existing>, VolumeError> {
    let Some(record) = &superblock.journal else { return Ok(None) };
    let Some(options) = options else {
        let found = "an opening that keeps no journal and reads none".to_owned();
        return Err(refused(record, found));
    };
    if options.boot != record.boot && !options.boot.is_nil() {
        tracing::info!(
            "the machine was restarted while the volume was open, or it was open on another one: it is as it was flushed"
        );
        return Ok(None);
    }
    let read = || -> io::Result<_> {
        let file = options.place.open(&record.place)?;
        let head = file.read_at(0, FILE_HEAD as usize)?;
        Ok((file, Owner::decode(&head)))
    };
    let (file, owner) = read().map_err(|error| refused(record, error.to_string()))?;
    let Some(owner) = owner else { return Err(refused(record, "something else".to_owned())) };
    let device = options.place.device();
    if owner.id != record.id || owner.pool != superblock.pool || owner.boot != record.boot {
        return Err(refused(record, format!("journal {} of pool {}", owner.id, owner.pool)));
    }
    if owner.device != device {
        let found = format!(
            "that of {}, while this is {device}: a copy that was made while the volume was open, which lacks what had been acknowledged and not \
             committed then",
            owner.device
        );
        return Err(refused(record, found));
    }
    let mut segments = Vec::new();
    for half in 0..2 {
        let bytes = read_segment(&*file, half).map_err(|error| refused(record, error.to_string()))?;
        segments.extend(SegmentBytes::decode(bytes, owner.seed()));
    }
    segments.sort_by_key(|segment| segment.generation);
    Ok(Some(Existing { file, owner, segments }))
}

fn refused(record: &JournalRecord, found: String) -> VolumeError {
    VolumeError::Journal { id: record.id, place: record.place.clone(), found }
}

/// All that may have been written to a segment. What is behind it, up to the next one, is zeros that nobody
/// has written.
fn read_segment(file: &dyn JournalFile, half: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < SEGMENT_MAX {
        let piece = file.read_at(segment_start(half) + bytes.len() as u64, READ_BYTES)?;
        // No frame has so many zeros in a row.
        if piece.iter().all(|&byte| byte == 0) {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

impl Existing {
    /// The frames with operations behind `log_end`, and how many these are.
    fn behind(&self, log_end: Seq) -> Result<(Vec<Frame<'_>>, u64), VolumeError> {
        let mut last = log_end.0;
        let mut frames = Vec::new();
        for frame in self.segments.iter().flat_map(SegmentBytes::frames) {
            let end = frame.first.saturating_add(frame.operations);
            if end <= last + 1 {
                continue;
            }
            if frame.first > last + 1 {
                let found = format!("operation {}, where {} is expected", frame.first, last + 1);
                return Err(self.refused(found));
            }
            last = end - 1;
            frames.push(frame);
        }
        Ok((frames, last - log_end.0))
    }

    fn refused(&self, found: String) -> VolumeError {
        VolumeError::Journal { id: self.owner.id, place: self.file.name(), found }
    }

    /// For who goes on with it: the file, whose it is, and the next generation.
    pub(super) fn go_on(self) -> (Arc<dyn JournalFile>, Owner, u64) {
        let newest = self.segments.last().map_or(0, |segment| segment.generation);
        (self.file, self.owner, newest + 1)
    }
}

/// Applies what the journal has behind the log to a state that stands at the log's end.
pub(crate) fn take_in(
    existing: &Existing,
    source: &impl NodeSource,
    state: &mut State,
    bounds: Bounds,
) -> Result<TakenIn, VolumeError> {
    let mut taken = TakenIn::default();
    let (frames, expected) = existing.behind(state.seq)?;
    for frame in frames {
        let known = (state.seq.0 + 1).saturating_sub(frame.first);
        for bytes in frame.operations().skip(known as usize) {
            operation(source, state, bytes, bounds, &mut taken)?
                .map_err(|wrong| existing.refused(format!("operation {}: {wrong}", state.seq)))?;
        }
        // Exact again: not all counters follow from the records.
        state.counters = frame.counters;
    }
    if taken.operations != expected {
        return Err(existing.refused(format!("{} operations of {expected}", taken.operations)));
    }
    if taken.operations > 0 {
        state.unflushed.wrote_more();
        tracing::info!(
            "{} operations that were acknowledged are taken in from {}",
            expected,
            existing.file.name()
        );
    }
    Ok(taken)
}

/// Applies one operation; the inner error is a contradiction.
fn operation(
    source: &impl NodeSource,
    state: &mut State,
    bytes: &[u8],
    bounds: Bounds,
    taken: &mut TakenIn,
) -> Result<Result<(), String>, VolumeError> {
    state.seq.0 += 1;
    let (mut records, mut rest) = (Vec::with_capacity(2), bytes);
    while !rest.is_empty() {
        let record = Record::decode(&mut rest).and_then(|record| {
            check_range(&record, bounds)?;
            Ok(record)
        });
        match record {
            Ok(record) => records.push(record),
            Err(wrong) => return Ok(Err(wrong)),
        }
    }
    let base = state.layers.tables().clone().counts(source, named_blocks(&records))?;
    for record in &records {
        let mapped = state.mapped;
        if let Err(wrong) = apply(source, state, record, &base, bounds)? {
            return Ok(Err(wrong));
        }
        count(&mut state.counters, record, &records, mapped - state.mapped.min(mapped));
        if let Record::Map { new, .. } = record
            && records.len() > 1
        {
            taken.written.insert(new.pbn, new.crc);
        }
    }
    let counters = state.counters.to_slots();
    state.log.push(state.seq.0, &counters, |log| log.extend_from_slice(bytes));
    taken.operations += 1;
    Ok(Ok(()))
}

/// What publishing counted, as far as an operation's records tell.
fn count(counters: &mut Counters, record: &Record<'_>, records: &[Record<'_>], unmapped: u64) {
    match record {
        Record::Map { new, old, .. } => {
            counters.writes += 1;
            match old.0 {
                0 => counters.newwrites += 1,
                _ => counters.overwrites += 1,
            }
            match records.first() {
                Some(Record::Allocate { .. }) => counters.uniqwrites += 1,
                Some(Record::Healed { .. }) => {
                    counters.dupwrites += 1;
                    counters.healed_blocks += 1;
                }
                _ if new.is_mapped() => counters.dupwrites += 1,
                _ => counters.zerowrites += 1,
            }
        }
        Record::Unmap { .. } => counters.trimmed += unmapped,
        Record::Bad { .. } => counters.bad_blocks += 1,
        Record::Allocate { .. } | Record::Healed { .. } | Record::Content { .. } => {}
    }
}

impl TakenIn {
    /// Writes the data of what was taken in once more, where it is in use; marks what is not what was
    /// written.
    pub(crate) fn rewrite(
        &self,
        source: &impl NodeSource,
        state: &mut State,
        data: &dyn BlockDevice,
        block_size: u64,
    ) -> Result<(), VolumeError> {
        let base: Counts = state.layers.tables().clone().counts(source, self.written.keys().copied())?;
        let used = self.written.iter().filter(|(pbn, _)| state.count(**pbn, &base) > Some(0));
        let used: Vec<(Pbn, u32)> = used.map(|(pbn, crc)| (*pbn, *crc)).collect();
        for slice in used.chunks((REWRITE_BYTES / block_size).max(1) as usize) {
            let mut whole = Vec::with_capacity(slice.len());
            for (pbn, crc) in slice {
                let mut bytes = dedup_device::AlignedBuf::zeroed(block_size as usize);
                match data.read(pbn.0 * block_size, &mut bytes) {
                    Ok(()) if crc32c::crc32c(&bytes) == *crc => whole.push((*pbn, bytes)),
                    Ok(()) => mark_bad(state, *pbn, "it does not have its checksum"),
                    Err(error) => mark_bad(state, *pbn, &error.to_string()),
                }
            }
            let consecutive = whole.chunk_by(|(a, _), (b, _)| a.0 + 1 == b.0);
            let mut ops: Vec<WriteOp<'_>> = consecutive
                .map(|run| {
                    WriteOp::new(run[0].0.0 * block_size, run.iter().map(|(_, bytes)| &**bytes).collect())
                })
                .collect();
            data.write_batch(&mut ops);
            for op in ops {
                op.result.map_err(|source| VolumeError::Data { operation: "write", source })?;
            }
        }
        Ok(())
    }
}

/// As [`State::publish_bad`], in the commit of what was taken in.
fn mark_bad(state: &mut State, pbn: Pbn, why: &str) {
    tracing::error!(
        "data device: block {pbn}, which was acknowledged and not flushed when the server died: {why}"
    );
    state.seq.0 += 1;
    state.counters.bad_blocks += 1;
    state.apply_mark(pbn, true);
    state.layers.active.operations += 1;
    let counters = state.counters.to_slots();
    state.log.push(state.seq.0, &counters, |log| Record::Bad { pbn }.encode(log));
}

/// Whether an open that cannot take in what was acknowledged is to give it up.
pub(crate) fn gives_up(options: &OpenOptions, error: &VolumeError) -> bool {
    let asked = options.force || options.read_only && options.rescue;
    asked && matches!(error, VolumeError::Journal { .. })
}
