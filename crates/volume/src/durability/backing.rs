//! Having the file system below back what a checkpoint may write, before it is promised: see
//! [`crate::engine::backing`].

use crate::engine::Engine;
use crate::engine::backing::UNIT;
use crate::engine::backing::fixed_places;
use crate::error::{VolumeError, is_full};
use dedup_device::BlockDevice;
use dedup_meta::Layout;

/// The part of the file system's room that metadata may hold free ahead of its use; the rest is for data.
/// Where it is not enough, checkpoints come earlier.
const ROOM_PART: u64 = 4;
/// Blocks that are preallocated at a time: 16 MiB, next to nothing of a file system's time, and room for some
/// thousand operations.
const STEP_BLOCKS: u64 = 4096;
/// A step that does not fit is tried again with so much less, down to a block.
const STEP_PART: u64 = 16;

impl Engine {
    /// Gives the metadata device space until `wanted` of its blocks can be allocated, ahead in steps; or
    /// until there is no room below, or, unless that `is_least` what is needed, a good part of the room would
    /// be taken: then the budget goes by what there is, until the next checkpoint.
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

    /// Before a checkpoint: what was promised has space already, but for what is not known to have been
    /// preallocated before a restart. Where there was no room, this is when it is looked for again.
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

/// Gives space to the places that an open for writing needs in any case: superblocks and log. They had it
/// when the volume was made, but a copy may have come without.
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
