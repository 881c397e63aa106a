//! Space on disk for a metadata device that is a sparse file: it is taken before it is promised (rule R8).
//!
//! ```text
//!   hole, held in the map ──preallocated, a step at a time──> backed: the budget counts it ──next checkpoint──> free in the map
//! ```
//!
//! A checkpoint must find room for what it writes. The map says which blocks nobody uses; whether the file system below has room for one that
//! was never written, only the file system can tell, and it says so once the block is preallocated. So the holes of the file are found at an
//! open and held back; admission asks for more of them before it admits what may need them, and if there is no room below, nothing more is
//! admitted than the backed blocks can take. Data that shares the file system can fill it up, and the metadata goes on.
//!
//! Invariants: a block in a hole is not allocated; the budget counts a block as free only when it is backed. Holes are taken in rising order, so
//! that after a restart those come first that were preallocated before, which a file system does not tell apart from holes.
//!
//! Not here: devices that have no holes, of which all is backed; file systems that cannot preallocate, or write a copy of what is overwritten
//! (btrfs): nothing can be promised there.

use crate::engine::Engine;
use crate::error::{VolumeError, is_full};
use dedup_device::BlockDevice;
use dedup_meta::{Layout, META_BLOCK_SIZE};
use dedup_spacemap::SpaceMap;
use dedup_sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::ops::Range;

/// Blocks that are preallocated at a time: 16 MiB, next to nothing of a file system's time, and room for some thousand operations.
const STEP_BLOCKS: u64 = 4096;
/// The part of the file system's room that metadata may hold free ahead of its use; the rest is for data. Where it is not enough, checkpoints
/// come earlier.
const ROOM_PART: u64 = 4;
/// A step that does not fit is tried again with so much less, down to a block.
const STEP_PART: u64 = 16;
/// Bytes in a block.
const UNIT: u64 = META_BLOCK_SIZE as u64;

/// What has no space on disk, and what got some.
#[derive(Debug, Default)]
pub(crate) struct Backing {
    parts: Mutex<Parts>,
}

/// See [`Backing`]. Goes before the state's lock.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Blocks that nobody uses and that have no space, ascending; held in the map.
    holes: VecDeque<Range<u64>>,
    /// Backed, and still held in the map.
    backed: Vec<Range<u64>>,
    /// There was no room below at the last attempt.
    is_refused: bool,
}

impl Backing {
    /// Finds the holes of `device` and holds the free blocks in them.
    pub(crate) fn find(device: &dyn BlockDevice, map: &mut SpaceMap) -> Self {
        let (mut holes, mut at, end) = (VecDeque::new(), 0, map.len());
        while at < end {
            let backed = match device.allocated(at * UNIT..end * UNIT) {
                Ok(Some(bytes)) => bytes.start.div_ceil(UNIT)..bytes.end / UNIT,
                Ok(None) => end..end,
                // It cannot tell: then nothing is known to be missing.
                Err(error) => {
                    tracing::debug!("metadata device: its holes cannot be found: {error}");
                    break;
                }
            };
            for block in at..backed.start.min(end) {
                if map.count(block) == 0 && !map.is_held(block) {
                    map.hold(block);
                    push(&mut holes, block);
                }
            }
            // At least a block, also where a piece of one is all that has space.
            at = backed.end.max(at + 1);
        }
        Self { parts: Mutex::new(Parts { holes, ..Parts::default() }) }
    }

    /// Its parts, for whoever tells the budget of them.
    pub(crate) fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock()
    }

    /// Gives the map what got space since the last time.
    pub(crate) fn hand_over(&self, map: &mut SpaceMap) {
        let backed = std::mem::take(&mut self.parts.lock().backed);
        backed.into_iter().flatten().for_each(|block| map.unhold(block));
    }
}

impl Parts {
    /// Blocks that may get space: none while there is no room below.
    pub(crate) fn promising(&self) -> u64 {
        if self.is_refused { 0 } else { self.holes() }
    }

    fn holes(&self) -> u64 {
        self.holes.iter().map(|range| range.end - range.start).sum()
    }

    /// Blocks that have space and that the map does not know of yet.
    pub(crate) fn backed(&self) -> u64 {
        self.backed.iter().map(|range| range.end - range.start).sum()
    }

    /// Gives up to `max` blocks of the first hole space; `None` if there is no hole left.
    fn step(&mut self, device: &dyn BlockDevice, max: u64) -> Option<std::io::Result<u64>> {
        let first = self.holes.front_mut()?;
        let step = first.start..first.end.min(first.start + max);
        let blocks = step.end - step.start;
        match device.preallocate(step.start * UNIT, blocks * UNIT) {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                tracing::warn!(
                    "metadata device: its file system cannot set space aside; if it becomes full, the volume stops"
                );
                let all = self.holes();
                self.backed.extend(self.holes.drain(..));
                return Some(Ok(all));
            }
            Err(error) => return Some(Err(error)),
            Ok(()) => {}
        }
        first.start = step.end;
        if first.is_empty() {
            self.holes.pop_front();
        }
        self.backed.push(step);
        Some(Ok(blocks))
    }
}

impl Engine {
    /// Gives the metadata device space until `wanted` of its blocks can be allocated, ahead in steps; or until there is no room below, or, unless
    /// that `is_least` what is needed, a good part of the room would be taken: then the budget goes by what there is, until the next checkpoint.
    pub(crate) fn back_metadata(&self, wanted: u64, is_least: bool) {
        let device = &**self.store.device();
        let mut parts = self.backing.parts();
        let ahead_max = device.room_below().map_or(u64::MAX, |room| room / ROOM_PART / UNIT);
        let was_refused = parts.is_refused;
        let (mut step_max, mut refusal) = (STEP_BLOCKS, None);
        loop {
            // Somebody else may have done it.
            let free = self.state.lock().budget.backed();
            if free >= wanted {
                break;
            }
            if !is_least && wanted > ahead_max {
                return self.state.lock().budget.grew_enough();
            }
            let step = step_max.min(ahead_max.max(wanted - free));
            match parts.step(device, step) {
                // There is nothing more to be had.
                None => return self.state.lock().budget.grew_enough(),
                Some(Ok(blocks)) => {
                    parts.is_refused = false;
                    let holes = parts.holes();
                    self.state.lock().budget.grew(blocks, holes);
                }
                Some(Err(_)) if step > 1 => step_max = (step / STEP_PART).max(1),
                Some(Err(error)) => {
                    refusal = Some((error, (wanted - free) * UNIT));
                    break;
                }
            }
        }
        let Some((error, bytes)) = refusal else { return };
        parts.is_refused = true;
        self.state.lock().budget.grew_enough();
        drop(parts);
        if is_full(&error) && !was_refused {
            tracing::error!(
                "{}",
                VolumeError::FullBelow { device: "metadata", wanted: bytes, room: device.room_below() }
            );
        } else {
            tracing::debug!("metadata device: no space could be set aside: {error}");
        }
    }

    /// Before a checkpoint: what was promised has space already, but for what is not known to have been preallocated before a restart. Where there
    /// was no room, this is when it is looked for again.
    pub(crate) fn back_what_is_promised(&self, frozen: u64) {
        let is_refused = self.backing.parts().is_refused;
        let (promised, backed) = {
            let state = self.state.lock();
            let active = state.layers.active.operations;
            (state.budget.promised(frozen, active, state.layers.tables()), state.budget.backed())
        };
        self.back_metadata(if is_refused { promised.max(backed + 1) } else { promised }, true);
    }

    /// Where the file system below had no room for metadata: whether it has some now, a block at least.
    pub(crate) fn has_room_below_again(&self) -> bool {
        if !self.backing.parts().is_refused {
            return false;
        }
        let backed = || self.state.lock().budget.backed();
        let before = backed();
        self.back_metadata(before + 1, true);
        backed() > before
    }

    /// Why nothing more is admitted, if it is for want of metadata blocks.
    pub(crate) fn metadata_full(&self) -> VolumeError {
        let is_refused = self.backing.parts().is_refused;
        match is_refused {
            true => VolumeError::FullBelow {
                device: "metadata",
                wanted: STEP_BLOCKS * UNIT,
                room: self.store.device().room_below(),
            },
            false => self.state.lock().budget.full().into(),
        }
    }
}

/// Gives space to the places that an open for writing needs in any case: superblocks and log. They had it when the volume was made, but a copy
/// may have come without.
pub(crate) fn back_fixed_places(device: &dyn BlockDevice, layout: &Layout) {
    for range in fixed_places(layout) {
        match device.preallocate(range.start * UNIT, (range.end - range.start) * UNIT) {
            Err(error) if is_full(&error) => {
                let wanted = (range.end - range.start) * UNIT;
                tracing::warn!(
                    "{}",
                    VolumeError::FullBelow { device: "metadata", wanted, room: device.room_below() }
                );
            }
            _ => {}
        }
    }
}

/// The places of superblocks and log, as ranges of blocks.
pub(crate) fn fixed_places(layout: &Layout) -> VecDeque<Range<u64>> {
    let mut places = VecDeque::new();
    layout.reserved().for_each(|block| push(&mut places, block.0));
    places
}

/// Adds a block behind those that are there.
fn push(ranges: &mut VecDeque<Range<u64>>, block: u64) {
    match ranges.back_mut() {
        Some(last) if last.end == block => last.end += 1,
        _ => ranges.push_back(block..block + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_device::{SimDevice, SimFileSystem};

    fn sparse(free: u64) -> (SimDevice, SimFileSystem) {
        let device = SimDevice::new(64 * UNIT);
        (3..5).chain(10..20).for_each(|block| device.write(block * UNIT, &[1; UNIT as usize]).unwrap());
        let file_system = SimFileSystem::new(free * UNIT);
        device.put_on(&file_system);
        (device, file_system)
    }

    #[test]
    fn free_blocks_in_holes_are_held_until_they_have_space() {
        let (device, _) = sparse(100);
        let mut map = SpaceMap::new(64);
        [0, 3, 12].iter().for_each(|block| map.set_count(*block, 1));
        let backing = Backing::find(&device, &mut map);
        assert_eq!(map.allocatable(), 10, "4, 10, 11, 13 to 19");
        let holes = Vec::from_iter(backing.parts().holes.clone());
        assert_eq!(holes, [1..3, 5..10, 20..64]);
        assert_eq!(backing.parts().step(&device, 4).unwrap().unwrap(), 2);
        assert_eq!(backing.parts().step(&device, 4).unwrap().unwrap(), 4);
        let counted = |parts: MutexGuard<'_, Parts>| (parts.backed(), parts.holes());
        assert_eq!((map.allocatable(), counted(backing.parts())), (10, (6, 45)));
        backing.hand_over(&mut map);
        assert_eq!((map.allocatable(), backing.parts().backed()), (16, 0));
        assert!((1..3).chain(5..9).all(|block| !map.is_held(block)));
    }

    #[test]
    fn a_step_that_does_not_fit_leaves_the_hole_to_be_tried_again() {
        let (device, file_system) = sparse(1);
        let mut map = SpaceMap::new(64);
        let backing = Backing::find(&device, &mut map);
        assert!(is_full(&backing.parts().step(&device, 2).unwrap().unwrap_err()));
        assert_eq!(
            backing.parts().step(&device, 1).unwrap().unwrap(),
            1,
            "what the failed attempt has taken"
        );
        assert!(backing.parts().step(&device, 1).unwrap().is_err());
        file_system.set_free(100 * UNIT);
        while backing.parts().step(&device, 16).is_some_and(|step| step.is_ok()) {}
        let parts = backing.parts();
        assert_eq!((parts.holes(), parts.backed()), (0, 52));
    }
}
