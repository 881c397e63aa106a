//! Replay: the records behind the last checkpoint, applied to the active delta as if they were published
//! anew.
//!
//! What a record says must fit what is known: block numbers in range, a block named only after it was
//! allocated, an old mapping that is the current one. A log that passes its checksums and says otherwise is
//! refused, not believed.

use crate::error::VolumeError;
use crate::io::unmap::{gather, recent_in};
use crate::lifecycle::progress::OpenProgress;
use crate::state::State;
use crate::trees::tables::Counts;
use dedup_meta::{LogBlock, NodeSource};
use dedup_schema::{Contents, Counters, Lbn, Mapping, Pbn, Record, Seq};
use std::collections::BTreeMap;

/// Sizes that bound what records may say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Logical blocks.
    pub(crate) lbns: u64,
    /// Data blocks.
    pub(crate) pbns: u64,
    /// Bytes in a block.
    pub(crate) block_size: u64,
    /// Read-only, and better in part than not at all.
    pub(crate) rescue: bool,
}

/// Applies the accepted log to a state that stands at its superblock, and returns the content that it carries
/// of blocks in use. For a rescue, up to where that is possible.
pub(crate) fn replay(
    source: &impl NodeSource,
    state: &mut State,
    log: Vec<LogBlock>,
    bounds: Bounds,
    progress: &OpenProgress,
) -> Result<BTreeMap<u64, Vec<u8>>, VolumeError> {
    let mut contents = Contents::default();
    progress.begin(log.len() as u64);
    for block in log {
        match replay_block(source, state, &block, &mut contents, bounds) {
            Ok(()) => progress.advance(),
            Err(error) if bounds.rescue => {
                tracing::warn!("opened as of log block {}: {error}", block.seq);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let blocks = contents.allocated();
    let base = base_counts(source, state, blocks.keys().copied().map(Pbn), bounds)?;
    Ok(blocks.into_iter().filter(|(pbn, _)| state.count(Pbn(*pbn), &base) > Some(0)).collect())
}

fn replay_block(
    source: &impl NodeSource,
    state: &mut State,
    block: &LogBlock,
    contents: &mut Contents,
    bounds: Bounds,
) -> Result<(), VolumeError> {
    contents.begin_block(block.epoch, block.group);
    let wrong = |what: String| VolumeError::LogDamaged { what: format!("log block {}: {what}", block.seq) };
    let mut records = Vec::with_capacity(usize::from(block.records));
    let mut bytes = block.payload.as_slice();
    while !bytes.is_empty() {
        let record = Record::decode(&mut bytes).map_err(wrong)?;
        check_range(&record, bounds).map_err(wrong)?;
        match record {
            Record::Content { pbn, offset, bytes } => contents.piece(pbn, offset, bytes, bounds.block_size),
            Record::Allocate { pbn, .. } => contents.allocate(pbn, bounds.block_size),
            Record::Map { .. } | Record::Unmap { .. } | Record::Bad { .. } | Record::Healed { .. } => Ok(()),
        }
        .map_err(wrong)?;
        records.push(record);
    }
    let base = base_counts(source, state, named_blocks(&records), bounds)?;
    for record in &records {
        apply(source, state, record, &base, bounds)?.map_err(wrong)?;
    }
    finish(state, block).map_err(wrong)
}

/// What a rescue takes for a count that it cannot read: what is read of a volume does not depend on counts,
/// and no log takes so many away.
const UNKNOWN_COUNT: u64 = 1 << 32;

/// What the trees say of the counts of these blocks.
fn base_counts(
    source: &impl NodeSource,
    state: &State,
    pbns: impl IntoIterator<Item = Pbn>,
    bounds: Bounds,
) -> Result<Counts, VolumeError> {
    let tables = state.layers.tables();
    if !bounds.rescue {
        return Ok(tables.counts(source, pbns)?);
    }
    let count = |pbn: Pbn| {
        let counts = tables.counts(source, [pbn]);
        (pbn, counts.map_or(UNKNOWN_COUNT, |counts| counts.get(pbn).unwrap_or(0)))
    };
    Ok(Counts::new(tables.txid, pbns.into_iter().map(count).collect()))
}

pub(crate) fn check_range(record: &Record<'_>, Bounds { lbns, pbns, .. }: Bounds) -> Result<(), String> {
    let pbn_fits = |pbn: Pbn| (1..pbns).contains(&pbn.0);
    let fits = match record {
        Record::Allocate { pbn, .. }
        | Record::Bad { pbn }
        | Record::Healed { pbn }
        | Record::Content { pbn, .. } => pbn_fits(*pbn),
        Record::Map { lbn, new, old } => {
            lbn.0 < lbns && (new.pbn.0 == 0 || pbn_fits(new.pbn)) && (old.0 == 0 || pbn_fits(*old))
        }
        Record::Unmap { lbn, blocks } => lbn.0.checked_add(*blocks).is_some_and(|end| end <= lbns),
    };
    if fits {
        return Ok(());
    }
    // Not the content itself, which is kilobytes.
    let what = match record {
        Record::Content { pbn, .. } => format!("content of block {pbn}"),
        other => format!("{other:?}"),
    };
    Err(format!("{what}: expected LBNs below {lbns} and blocks below {pbns}"))
}

/// The data blocks whose counts the records change.
pub(crate) fn named_blocks(records: &[Record<'_>]) -> impl Iterator<Item = Pbn> {
    let named = records.iter().flat_map(|record| match record {
        Record::Map { new, old, .. } => [new.pbn, *old],
        Record::Allocate { pbn, .. } => [*pbn, Pbn(0)],
        Record::Unmap { .. } | Record::Bad { .. } | Record::Healed { .. } | Record::Content { .. } => {
            [Pbn(0), Pbn(0)]
        }
    });
    named.filter(|pbn| pbn.0 != 0)
}

/// Applies one record; the inner error is a contradiction.
pub(crate) fn apply(
    source: &impl NodeSource,
    state: &mut State,
    record: &Record<'_>,
    base: &Counts,
    bounds: Bounds,
) -> Result<Result<(), String>, VolumeError> {
    let wrong = |what: &str| Ok(Err(format!("{record:?}: {what}")));
    match *record {
        Record::Allocate { pbn, digest } => {
            if state.count(pbn, base) > Some(0) && !bounds.rescue {
                return wrong("the block is in use already");
            }
            state.quarantine.reused_in_replay(pbn);
            state.apply_allocation(pbn, digest);
        }
        Record::Map { lbn, new, old } => {
            if state.mapping(lbn).is_some_and(|current| current.pbn != old) {
                return wrong("the LBN is mapped to another block");
            }
            if old.0 != 0 && state.count(old, base).unwrap_or(0) == 0 && !bounds.rescue {
                return wrong("the old block has no reference");
            }
            // Freed since, it is somebody else's: what a log maps to such a block would be written over.
            let allocated = !state.quarantine.holds(new.pbn)
                && state.layers.active.blocks.get(&new.pbn).is_some_and(|change| change.digest.is_some());
            let is_counted = || bounds.rescue || state.count(new.pbn, base).unwrap_or(0) > 0;
            if new.is_mapped() && !allocated && !is_counted() {
                return wrong("the new block was never allocated");
            }
            if let Some(freed) = state.apply_mapping(lbn, new, old, base) {
                state.quarantine.freed_in_replay(freed);
            }
            state.layers.active.operations += 1;
        }
        Record::Unmap { lbn, blocks } => return unmap(source, state, lbn, blocks, bounds).map(Ok),
        Record::Bad { pbn } => {
            state.apply_mark(pbn, true);
            state.layers.active.operations += 1;
        }
        Record::Healed { pbn } => state.apply_mark(pbn, false),
        Record::Content { .. } => {}
    }
    Ok(Ok(()))
}

/// Unmaps what is mapped in the range, as the operation did.
fn unmap(
    source: &impl NodeSource,
    state: &mut State,
    first: Lbn,
    blocks: u64,
    bounds: Bounds,
) -> Result<(), VolumeError> {
    let range = first..Lbn(first.0 + blocks);
    let tables = state.layers.tables().clone();
    let recent = recent_in(state, range.clone(), usize::MAX);
    let (mapped, _) = gather(source, &tables, recent, range, usize::MAX)?;
    let base = base_counts(source, state, mapped.iter().map(|(_, pbn)| *pbn), bounds)?;
    for (lbn, pbn) in &mapped {
        if !bounds.rescue {
            state.check_reference(*lbn, *pbn, &base)?;
        }
        if let Some(freed) = state.apply_mapping(*lbn, Mapping::UNMAPPED, *pbn, &base) {
            state.quarantine.freed_in_replay(freed);
        }
    }
    state.layers.active.operations += mapped.len() as u64;
    Ok(())
}

/// The block's own account of where it leaves the volume.
fn finish(state: &mut State, block: &LogBlock) -> Result<(), String> {
    if block.records == 0 {
        return Ok(());
    }
    if Seq(block.op_seq) <= state.seq {
        return Err(format!("operation: expected one after {}, found {}", state.seq, block.op_seq));
    }
    state.seq = Seq(block.op_seq);
    state.counters = Counters::from_slots(&block.counters);
    Ok(())
}
