//! Trimming and zeroing ranges: unmaps whole blocks at the cost of what is mapped, not of what the range
//! spans.
//!
//! The range is walked in slices. For each, the LBNs that are mapped are gathered from the deltas and from
//! the trees (absent subtrees are skipped unread, so an empty terabyte is instant), and unmapped by one
//! record that names the range. A slice is locked while that happens, so what was gathered stays true, and no
//! longer: who writes to another part of a large range does not wait until all of it is unmapped. For each
//! block the trim comes before or after such a write as a whole (I9), and more is not promised of requests
//! that are under way at once.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::io::admission::Admission;
use crate::io::present::Known;
use crate::state::State;
use crate::state::budget::Purpose;
use crate::trees::tables::Tables;
use dedup_meta::{MetaError, NodeSource};
use dedup_request::Wanted;
use dedup_schema::{Lbn, Mapping, Pbn, Seq, scan_mappings};
use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks unmapped by one record: bounds what it is charged and how long the state's lock is held (about 0.2
/// ms).
const SLICE_BLOCKS: usize = 1024;

impl Engine {
    /// Unmaps every mapped LBN of `range`, of which the caller has locked nothing, for as long as that is
    /// `wanted`. Returns the last operation published, if there was one.
    pub(crate) fn unmap(&self, wanted: Wanted<'_>, range: Range<Lbn>) -> Result<Option<Seq>, VolumeError> {
        let mut last = None;
        // No more than the range has: what is charged for nothing takes room in the delta from everybody, and
        // fills a small one.
        let blocks = usize::try_from(range.end.0 - range.start.0).unwrap_or(usize::MAX);
        let mut slice = SLICE_BLOCKS.min(self.slice_max).min(blocks);
        // LBNs locked at a time: as many as a slice unmaps where all are mapped, and ever more where hardly
        // any is.
        let mut reach = slice as u64;
        let mut next = range.start;
        while next < range.end {
            let piece = next..Lbn(next.0.saturating_add(reach).min(range.end.0));
            let _locked = self.ranges.lock(vec![piece.clone()]);
            if !wanted() {
                return Err(VolumeError::Abandoned);
            }
            // On a nearly full metadata device a smaller step may still be affordable, and it frees
            // something.
            let unmapped = self.admit_some(slice.max(1) as u64, Purpose::Shrink).and_then(|admission| {
                slice = admission.left() as usize;
                self.unmap_slice(piece.clone(), admission)
            });
            let (seq, end) = unmapped.inspect_err(|error| self.fail_stop_if_damaged(error))?;
            last = seq.or(last);
            next = end;
            reach = if end == piece.end { reach.saturating_mul(2) } else { slice as u64 };
        }
        Ok(last)
    }

    /// Unmaps LBNs from the start of the range, as many as were admitted; says where to go on.
    fn unmap_slice(
        &self,
        range: Range<Lbn>,
        mut admission: Admission<'_>,
    ) -> Result<(Option<Seq>, Lbn), VolumeError> {
        let max = admission.left() as usize;
        loop {
            let (pin, recent) = {
                let state = self.state.lock();
                state.writable()?;
                let recent = recent_in(&state, range.clone(), max);
                (self.pin_as_of(&state), recent)
            };
            let (mapped, end) = gather(&self.store, &pin.tables, recent, range.clone(), max)?;
            if mapped.is_empty() {
                return Ok((None, end));
            }
            let counts = pin.tables.counts(&self.store, mapped.iter().map(|(_, pbn)| *pbn))?;
            // Only its counts can change: the range is locked.
            let Ok(mut present) = self.present(Known::new(counts)) else { continue };
            present.writable()?;
            for (lbn, pbn) in &mapped {
                present.check_reference(*lbn, *pbn)?;
            }
            debug_assert!(
                mapped.iter().all(|(lbn, _)| self.ranges.is_locked(*lbn)),
                "a trim without its lock"
            );
            present.publish_unmap(range.start, end.0 - range.start.0, &mapped);
            let seq = present.seq;
            drop(present);
            admission.used(mapped.len() as u64);
            return Ok((Some(seq), end));
        }
    }
}

/// What the deltas say of a range: up to `max` entries from its start, and up to where that is all they say.
#[derive(Debug)]
pub(crate) struct Recent {
    pub(crate) entries: BTreeMap<Lbn, Mapping>,
    pub(crate) end: Lbn,
}

/// Copies the deltas' entries of a range, at most `max` of either.
pub(crate) fn recent_in(state: &State, range: Range<Lbn>, max: usize) -> Recent {
    let (mut entries, mut end) = (BTreeMap::new(), range.end);
    for delta in state.layers.deltas() {
        for (taken, (lbn, mapping)) in delta.mappings.range(range.start..end).enumerate() {
            if taken == max {
                end = *lbn;
                break;
            }
            entries.entry(*lbn).or_insert(*mapping);
        }
    }
    entries.retain(|lbn, _| *lbn < end);
    Recent { entries, end }
}

/// The first `max` mapped LBNs of a range, and up to where they are all.
pub(crate) fn gather(
    source: &impl NodeSource,
    tables: &Tables,
    recent: Recent,
    range: Range<Lbn>,
    max: usize,
) -> Result<(Vec<(Lbn, Pbn)>, Lbn), MetaError> {
    let Recent { mut entries, mut end } = recent;
    for (from_trees, entry) in scan_mappings(source, &tables.mappings, range.start..end).enumerate() {
        let (lbn, mapping) = entry?;
        if from_trees == max {
            end = lbn;
            break;
        }
        entries.entry(lbn).or_insert(mapping);
    }
    let mut mapped = entries.range(..end).filter(|(_, m)| m.is_mapped()).map(|(lbn, m)| (*lbn, m.pbn));
    let taken: Vec<(Lbn, Pbn)> = mapped.by_ref().take(max).collect();
    if let Some((lbn, _)) = mapped.next() {
        end = lbn;
    }
    Ok((taken, end))
}
