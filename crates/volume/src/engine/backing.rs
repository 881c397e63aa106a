//! Space on disk for a metadata device that is a sparse file: it is taken before it is promised (rule R8).
//!
//! ```text
//!   hole, held in the map ──preallocated, a step at a time──> backed: the budget counts it ──next checkpoint──> free in the map
//! ```
//!
//! A checkpoint must find room for what it writes. The map says which blocks nobody uses; whether the file
//! system below has room for one that was never written, only the file system can tell, and it says so once
//! the block is preallocated. So the holes of the file are found at an open and held back; admission asks for
//! more of them before it admits what may need them, and if there is no room below, nothing more is admitted
//! than the backed blocks can take. Data that shares the file system can fill it up, and the metadata goes
//! on.
//!
//! Invariants: a block in a hole is not allocated; the budget counts a block as free only when it is backed.
//! Holes are taken in rising order, so that after a restart those come first that were preallocated before,
//! which a file system does not tell apart from holes.
//!
//! Not here: devices that have no holes, of which all is backed; file systems that cannot preallocate, or
//! write a copy of what is overwritten (btrfs): nothing can be promised there.

use dedup_device::BlockDevice;
use dedup_meta::{Layout, META_BLOCK_SIZE};
use dedup_spacemap::SpaceMap;
use dedup_sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes in a block.
pub(crate) const UNIT: u64 = META_BLOCK_SIZE as u64;

/// What has no space on disk, and what got some.
#[derive(Debug, Default)]
pub(crate) struct Backing {
    parts: Mutex<Parts>,
}

/// See [`Backing`]. Goes before the state's lock.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Blocks that nobody uses and that have no space, ascending; held in the map.
    pub(crate) holes: VecDeque<Range<u64>>,
    /// Backed, and still held in the map.
    pub(crate) backed: Vec<Range<u64>>,
    /// There was no room below at the last attempt.
    pub(crate) is_refused: bool,
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

    pub(crate) fn holes(&self) -> u64 {
        self.holes.iter().map(|range| range.end - range.start).sum()
    }

    /// Blocks that have space and that the map does not know of yet.
    pub(crate) fn backed(&self) -> u64 {
        self.backed.iter().map(|range| range.end - range.start).sum()
    }

    /// Gives up to `max` blocks of the first hole space; `None` if there is no hole left.
    pub(crate) fn step(&mut self, device: &dyn BlockDevice, max: u64) -> Option<std::io::Result<u64>> {
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
    use crate::error::is_full;
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
