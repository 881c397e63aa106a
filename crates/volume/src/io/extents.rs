//! What a range holds, told without reading its data: which blocks are mapped, and how shared what they are
//! mapped to is.
//!
//! The range is walked in slices, each under a pin of its own and as of one moment: the deltas' entries are
//! copied under the lock, the trees are scanned without it. Subtrees that are absent are skipped unread, so
//! an empty terabyte is one extent at no cost; what is mapped costs its share of the mapping's leaves. A call
//! ends after so many mapped blocks that no pin, and no caller, waits long: what it returns then is shorter
//! than the range, and never empty.
//!
//! Blocks whose content is zeros are not mapped (see [`Mapping`]): unmapped is exactly "reads as
//! zeros".
//!
//! A walk locks nothing. Of a block that is written meanwhile it may tell the state before or after.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::io::present::Known;
use crate::io::unmap::{Recent, recent_in};
use dedup_request::RequestError;
use dedup_schema::{Lbn, Mapping, Pbn, scan_mappings};
use std::ops::Range;

/// Mapped blocks that the first slice of a walk looks at: most callers that want one extent have it then.
const SLICE_BLOCKS_MIN: usize = 256;
/// Mapped blocks that any slice looks at: what the deltas say of them is copied under the state's lock, about
/// a millisecond for two full deltas (as long as four slices of a trim).
const SLICE_BLOCKS_MAX: usize = 1 << 12;
/// Mapped blocks that one call looks at: 16 GiB in blocks of 4 KiB, about 50 MiB of mapping.
const WALK_BLOCKS_MAX: usize = 1 << 22;
/// As [`WALK_BLOCKS_MAX`], if each costs a lookup of its reference count.
const WALK_COUNTS_MAX: usize = 1 << 18;

/// What is asked of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Which blocks are mapped.
    Allocation,
    /// How many logical blocks share what each is mapped to.
    Sharing,
}

/// A stretch of the logical device of which all blocks are alike, and the next one differs unless the walk
/// ended there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least 1.
    pub len: u64,
    /// 0: not mapped, reads as zeros. Else, for [`Detail::Allocation`], 1; for [`Detail::Sharing`], the
    /// number of binary digits of the reference count: 1 for a block used once, 2 for 2 or 3 uses, 3 for 4 to
    /// 7, and so on.
    pub level: u32,
}

/// Blocks alike, from where the run before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    end: Lbn,
    level: u32,
}

/// Runs side by side, from `start` on.
#[derive(Debug)]
struct Runs {
    start: Lbn,
    runs: Vec<Run>,
    max: usize,
}

impl Runs {
    fn end(&self) -> Lbn {
        self.runs.last().map_or(self.start, |run| run.end)
    }

    /// Adds what lies between the end and `end`; `false` if it would be one run too many.
    fn extend(&mut self, end: Lbn, level: u32) -> bool {
        let (len, covered) = (self.runs.len(), end <= self.end());
        match self.runs.last_mut() {
            _ if covered => true,
            Some(last) if last.level == level => {
                last.end = end;
                true
            }
            _ if len == self.max => false,
            _ => {
                self.runs.push(Run { end, level });
                true
            }
        }
    }

    /// Adds the mapped blocks of a slice (rising) and the gaps between them, up to `end`; `false` as for
    /// [`Self::extend`].
    fn extend_slice(&mut self, mapped: &[(Lbn, u32)], end: Lbn) -> bool {
        mapped.iter().all(|(lbn, level)| self.extend(*lbn, 0) && self.extend(Lbn(lbn.0 + 1), *level))
            && self.extend(end, 0)
    }
}

impl Engine {
    /// Describes `len` bytes from `offset` on: at most `extents_max` extents, in order and without gaps from
    /// `offset` on. They may end before the range does.
    ///
    /// # Errors
    /// If the range is empty or not within the device, or the mapping cannot be read.
    pub(crate) fn extents(
        &self,
        offset: u64,
        len: u64,
        detail: Detail,
        extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        let end = offset.checked_add(len).filter(|end| *end <= self.lbns * self.block_size && len > 0);
        let end = end.ok_or(RequestError::OutOfRange)?;
        let size = self.block_size;
        let lbns = Lbn(offset / size)..Lbn(end.div_ceil(size));
        let runs = self.runs(lbns, detail, extents_max.max(1)).map_err(|error| {
            self.fail_stop_if_damaged(&error);
            tracing::error!("block status: {error}");
            error.for_client()
        })?;
        let mut at = offset;
        let to_extent = |run: Run| {
            let run_end = end.min(run.end.0 * size);
            let extent = Extent { len: run_end - at, level: run.level };
            at = run_end;
            extent
        };
        Ok(runs.into_iter().map(to_extent).collect())
    }

    /// The runs of a range that is not empty: at least one, at most `max`.
    fn runs(&self, range: Range<Lbn>, detail: Detail, max: usize) -> Result<Vec<Run>, VolumeError> {
        let mut left = match detail {
            Detail::Allocation => WALK_BLOCKS_MAX,
            Detail::Sharing => WALK_COUNTS_MAX,
        };
        let mut runs = Runs { start: range.start, runs: Vec::new(), max };
        let (mut next, mut slice) = (range.start, SLICE_BLOCKS_MIN);
        while next < range.end && left > 0 {
            let (mapped, end) = self.mapped_levels(next..range.end, detail, slice)?;
            if !runs.extend_slice(&mapped, end) {
                break;
            }
            // A slice that ends before the range has looked at as many entries as it may, mapped or not.
            left = left.saturating_sub(if end < range.end { slice } else { mapped.len() });
            slice = SLICE_BLOCKS_MAX.min(slice * 2);
            next = end;
        }
        Ok(runs.runs)
    }

    /// The mapped blocks at the start of a range, about `max` of them, with their levels; and up to where
    /// they are all.
    fn mapped_levels(
        &self,
        range: Range<Lbn>,
        detail: Detail,
        max: usize,
    ) -> Result<(Vec<(Lbn, u32)>, Lbn), VolumeError> {
        loop {
            let (pin, recent) = {
                let state = self.state.lock();
                let recent = recent_in(&state, range.clone(), max);
                (self.pin_as_of(&state), recent)
            };
            let scan = scan_mappings(&self.store, &pin.tables.mappings, range.start..recent.end);
            let (mapped, end) = merge(recent, scan, max)?;
            if detail == Detail::Allocation {
                return Ok((mapped.into_iter().map(|(lbn, _)| (lbn, 1)).collect(), end));
            }
            let counts = pin.tables.counts(&self.store, mapped.iter().map(|(_, pbn)| *pbn))?;
            // Checkpoints have moved counts from deltas to trees that are not the pinned ones.
            let Ok(present) = self.present(Known::new(counts)) else { continue };
            // A block that lost its last reference since the scan was mapped then.
            let level = |pbn| u64::BITS - present.count(pbn).unwrap_or(0).max(1).leading_zeros();
            return Ok((mapped.into_iter().map(|(lbn, pbn)| (lbn, level(pbn))).collect(), end));
        }
    }
}

/// What the deltas say laid over the first `max` entries of the trees: the mapped blocks, and up to where
/// they are all.
fn merge<E>(
    recent: Recent,
    scan: impl Iterator<Item = Result<(Lbn, Mapping), E>>,
    max: usize,
) -> Result<(Vec<(Lbn, Pbn)>, Lbn), E> {
    let Recent { entries, mut end } = recent;
    let mut entries = entries.into_iter().peekable();
    let mut mapped = Vec::new();
    let mut push = |lbn: Lbn, mapping: Mapping| {
        if mapping.is_mapped() {
            mapped.push((lbn, mapping.pbn));
        }
    };
    for (from_trees, entry) in scan.enumerate() {
        let (lbn, mapping) = entry?;
        if from_trees == max {
            end = lbn;
            break;
        }
        while let Some((lbn, mapping)) = entries.next_if(|(recent, _)| *recent < lbn) {
            push(lbn, mapping);
        }
        push(lbn, entries.next_if(|(recent, _)| *recent == lbn).map_or(mapping, |(_, newer)| newer));
    }
    entries.take_while(|(lbn, _)| *lbn < end).for_each(|(lbn, mapping)| push(lbn, mapping));
    Ok((mapped, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn mapping(pbn: u64) -> Mapping {
        Mapping { pbn: Pbn(pbn), ..Mapping::UNMAPPED }
    }

    proptest! {
        #[test]
        fn deltas_hide_the_trees_up_to_where_both_are_known(
            below: BTreeMap<u8, u8>, above: BTreeMap<u8, u8>, max in 1usize..20
        ) {
            let lbns = |map: &BTreeMap<u8, u8>| -> BTreeMap<Lbn, Mapping> {
                map.iter().map(|(lbn, pbn)| (Lbn(u64::from(*lbn)), mapping(u64::from(*pbn)))).collect()
            };
            let tree: Vec<_> = lbns(&below).into_iter().filter(|(_, m)| m.is_mapped()).collect();
            let recent = Recent { entries: lbns(&above), end: Lbn(256) };
            let (found, end) = merge(recent, tree.iter().copied().map(Ok::<_, ()>), max).unwrap();
            let mut expected: BTreeMap<Lbn, Mapping> = tree.iter().copied().collect();
            expected.extend(lbns(&above));
            let expected: Vec<_> = expected.into_iter().filter(|(lbn, m)| m.is_mapped() && *lbn < end)
                .map(|(lbn, m)| (lbn, m.pbn)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(end, tree.get(max).map_or(Lbn(256), |(lbn, _)| *lbn));
        }

        #[test]
        fn runs_are_those_of_the_blocks_and_as_many_as_may_be(
            levels in proptest::collection::vec(0u32..3, 1..40), max in 1usize..50, cut in 0usize..40
        ) {
            let slice = |range: Range<usize>| -> Vec<(Lbn, u32)> {
                range.filter(|i| levels[*i] > 0).map(|i| (Lbn(i as u64), levels[i])).collect()
            };
            let (cut, all) = (cut.min(levels.len()), levels.len());
            let mut runs = Runs { start: Lbn(0), runs: Vec::new(), max };
            let complete = runs.extend_slice(&slice(0..cut), Lbn(cut as u64))
                && runs.extend_slice(&slice(cut..all), Lbn(all as u64));
            let chunks: Vec<&[u32]> = levels.chunk_by(|a, b| a == b).collect();
            prop_assert_eq!(complete, chunks.len() <= max);
            let found: Vec<u32> = runs.runs.iter().map(|run| run.level).collect();
            let expected: Vec<u32> = chunks.iter().take(max).map(|chunk| chunk[0]).collect();
            prop_assert_eq!(found, expected);
            let covered: usize = chunks.iter().take(max).map(|chunk| chunk.len()).sum();
            prop_assert_eq!(runs.end(), Lbn(covered as u64));
        }
    }
}
