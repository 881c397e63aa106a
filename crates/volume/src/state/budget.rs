//! Admission: before an operation is published, everything that it will need later is reserved (rules R7,
//! R8).
//!
//! Three budgets, all in operations, where a range counts as the LBNs that it unmaps:
//!
//! - the **log ring** ([`ring`]): an operation may end up alone in a log block, so each reserves one block
//!   until its commit shows how many were really used; a block stays in use until a checkpoint covers it in
//!   both superblocks;
//! - the **delta**: bounded memory;
//! - the **metadata device** ([`metadata`]): a checkpoint must find the blocks it writes, so the worst case
//!   of the active and the frozen delta together is kept free. A part is set aside for operations that only
//!   free space.

mod metadata;
mod ring;
#[cfg(test)]
mod tests;

use crate::trees::tables::Tables;
use dedup_meta::MetaError;
use metadata::Metadata;
pub(crate) use metadata::{MetaUsage, TreeBounds};
pub(crate) use ring::Ring;

/// Whether an operation can take space, or only gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Writes.
    Grow,
    /// Trims and bookkeeping: they may use the last of the metadata device.
    Shrink,
}

/// What is short when operations are not admitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Reserved log blocks that a commit gives back.
    Commit,
    /// Log blocks, room in the delta or metadata blocks that other operations hold, until checkpoints give
    /// them back: there is always progress, also within a checkpoint.
    Checkpoint,
    /// What others were admitted for and have not published: they will, or give it back.
    Others,
    /// Metadata blocks, of which nobody's operations hold any, but the superblocks' older trees or readers
    /// may: checkpoints give those back, or get further with a merge.
    Held,
    /// Metadata blocks, which checkpoints have not given back: nothing will before something is freed.
    Metadata,
    /// Space on disk for metadata blocks: so many in all must be backed that can be allocated.
    Space {
        /// Blocks.
        wanted: u64,
        /// Nobody else's operations hold any: less would not do.
        is_least: bool,
    },
}

/// Checkpoints that may be needed before metadata blocks are free again: those freed by one are held by the
/// two superblocks after it (I1), so it is the third that finds everything free.
const CHECKPOINTS_MAX: u32 = 3;
/// The part of the largest delta that an empty delta must have room for, or runs are merged in a hurry to
/// make room: a smaller one makes a checkpoint of hardly anything.
const SHORT_PART: u64 = 8;

/// A metadata device with so many blocks for each has room for an operation more in the smallest delta, up to
/// [`LEAST_MAX`]: at worst, some five blocks each, this takes a fiftieth of it.
const LEAST_PART: u64 = 256;
/// Operations that the smallest delta has room for: a few requests of several blocks.
const LEAST_MAX: u64 = 64;

/// How far a checkpoint is, in parts of this.
pub(crate) const PROGRESS: u64 = 1024;

/// What is reserved and what is left.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    ring: Ring,
    metadata: Metadata,
    /// Admitted operations that are not published.
    admitted: u64,
    /// Published operations that no commit has taken.
    unlogged: u64,
    /// Operations that a delta may hold.
    delta_max: u64,
    /// Operations of the frozen delta.
    frozen: u64,
    /// Checkpoints say how far they are.
    is_paced: bool,
    /// How far the one of the frozen delta is, of [`PROGRESS`].
    progress: Option<u64>,
    /// Checkpoints in a row that had nothing to write and got no further with a merge: what they did not free
    /// is in use.
    idle_checkpoints: u32,
    /// The metadata device was too full for somebody since the last checkpoint.
    is_short: bool,
    /// Blocks are lent for merges until the checkpoint under way ends.
    is_lent: bool,
}

impl Budget {
    /// Nothing is reserved yet.
    pub(crate) fn new(bounds: TreeBounds, ring: Ring, delta_max: u64) -> Self {
        Self {
            ring,
            metadata: Metadata::new(bounds),
            admitted: 0,
            unlogged: 0,
            delta_max,
            frozen: 0,
            is_paced: false,
            progress: None,
            idle_checkpoints: 0,
            is_short: false,
            is_lent: false,
        }
    }

    /// The same, with checkpoints that say how far they are.
    pub(crate) fn paced(self, is_paced: bool) -> Self {
        Self { is_paced, ..self }
    }

    /// Reserves `n` operations on top of the `active` ones of the delta, or says what is short.
    pub(crate) fn admit(
        &mut self,
        n: u64,
        active: u64,
        tables: &Tables,
        purpose: Purpose,
    ) -> Result<(), Shortage> {
        self.fits_ring(n)?;
        let operations = active + self.admitted + n;
        // No checkpoint gives back what is only admitted.
        let held_by_others = active + self.frozen == 0 && self.admitted > 0;
        if operations > self.open_part(self.delta_max).max(n) {
            return Err(if held_by_others { Shortage::Others } else { Shortage::Checkpoint });
        }
        let set_aside = self.metadata.set_aside(purpose, tables);
        let promised = set_aside + self.metadata.worst_case(self.frozen, tables);
        let whole = self.metadata.usage.whole();
        let room = whole.saturating_sub(promised);
        let needed = self.metadata.worst_case(operations.max(self.least(purpose)), tables);
        let alone = active + self.admitted + self.frozen == 0;
        if needed > self.open_part(room) {
            // Not even an empty delta would have room worth a checkpoint: runs hold it.
            // What is lent for that already comes back.
            self.is_short |= !self.is_lent
                && self.metadata.worst_case(n.max(self.delta_max / SHORT_PART), tables) + set_aside > whole;
            let may_come_free = self.may_come_free((promised + needed).saturating_sub(whole), tables);
            return Err(match (held_by_others, alone) {
                (true, _) => Shortage::Others,
                (false, true) if may_come_free => Shortage::Held,
                (false, true) => Shortage::Metadata,
                (false, false) => Shortage::Checkpoint,
            });
        }
        let wanted = promised + needed;
        if wanted > self.metadata.usage.free && self.metadata.usage.holes > 0 {
            return Err(Shortage::Space { wanted, is_least: alone });
        }
        self.admitted += n;
        Ok(())
    }

    /// The same for up to `n` operations: where the metadata device has no room for all of them, and nobody's
    /// operations hold any, for as many as it has room for, more or less. Says how many.
    pub(crate) fn admit_some(
        &mut self,
        n: u64,
        active: u64,
        tables: &Tables,
        purpose: Purpose,
    ) -> Result<u64, Shortage> {
        let (mut some, mut admitted) = (n, self.admit(n, active, tables, purpose));
        while some > 1 && matches!(admitted, Err(Shortage::Held | Shortage::Metadata)) {
            some = some.div_ceil(4);
            admitted = self.admit(some, active, tables, purpose);
        }
        admitted.map(|()| some)
    }

    /// Whether checkpoints that have nothing to write may give back so many metadata blocks: they give back
    /// what is held, and what merges of runs free.
    fn may_come_free(&self, blocks: u64, tables: &Tables) -> bool {
        let has_some = self.metadata.usage.held >= blocks || !tables.mappings.runs.is_empty();
        has_some && self.idle_checkpoints < CHECKPOINTS_MAX
    }

    /// Operations that there must be room for in an empty delta, or what needs space is refused: with room
    /// for one, each block written would cost checkpoints of its own.
    fn least(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Grow => (self.metadata.blocks() / LEAST_PART).min(LEAST_MAX).min(self.delta_max),
            Purpose::Shrink => 0,
        }
    }

    fn fits_ring(&self, n: u64) -> Result<(), Shortage> {
        if self.ring.fits(self.admitted + self.unlogged + n) {
            return Ok(());
        }
        Err(match (self.unlogged > 0, self.admitted > 0 && self.ring.fits(n)) {
            (true, _) => Shortage::Commit,
            (false, true) => Shortage::Others,
            (false, false) => Shortage::Checkpoint,
        })
    }

    /// The part of what the active delta may take in the end that it may take already: all of it, unless a
    /// checkpoint is under way. Then half, and of the other half as much as the checkpoint has done: who
    /// fills it faster is slowed down, and not stopped as a whole when all of it is full.
    fn open_part(&self, whole: u64) -> u64 {
        let Some(progress) = self.progress else { return whole };
        let free = whole / 2;
        free + ((whole - free) as u128 * u128::from(progress) / u128::from(PROGRESS)) as u64
    }

    /// Gives back what was admitted and not published.
    pub(crate) fn give_back(&mut self, n: u64) {
        self.take_admitted(n);
    }

    /// # Panics
    /// If so many are not admitted: what was reserved for others would be used.
    fn take_admitted(&mut self, n: u64) {
        assert!(n <= self.admitted, "{n} operations of {} admitted", self.admitted);
        self.admitted -= n;
    }

    /// `n` admitted operations are published, as one operation of the log.
    pub(crate) fn published(&mut self, n: u64, logged: bool) {
        self.take_admitted(n);
        self.unlogged += u64::from(logged);
    }

    /// A commit takes all published operations and will write `blocks` log blocks, of which some may carry
    /// data.
    pub(crate) fn committed(&mut self, blocks: u64, with_content: bool) {
        self.unlogged = 0;
        self.ring.wrote(blocks, with_content);
    }

    /// The active delta becomes the frozen one.
    pub(crate) fn froze(&mut self, operations: u64) {
        assert_eq!(self.frozen, 0, "a delta is frozen while another one is written");
        self.frozen = operations;
        // A checkpoint of nothing is soon over, and takes nothing from the next delta.
        self.progress = (self.is_paced && operations > 0).then_some(0);
        self.ring.seal();
    }

    /// The checkpoint under way is so far, of [`PROGRESS`].
    pub(crate) fn progressed(&mut self, progress: u64) {
        self.progress = self.progress.map(|before| before.max(progress.min(PROGRESS)));
    }

    /// A checkpoint ended: the log is needed from `ring_needed` on, and this is the metadata device's state.
    /// `is_idle`: it had nothing to write, got no further with a merge, and no reader held back what it could
    /// have freed.
    pub(crate) fn checkpointed(&mut self, ring_needed: u64, meta: MetaUsage, is_idle: bool, tables: &Tables) {
        (self.frozen, self.progress) = (0, None);
        self.idle_checkpoints = if is_idle { self.idle_checkpoints.saturating_add(1) } else { 0 };
        self.ring.release(ring_needed);
        self.meta(meta, tables);
    }

    /// The metadata device's state.
    pub(crate) fn meta(&mut self, meta: MetaUsage, tables: &Tables) {
        self.is_lent = false;
        self.metadata.found(meta, tables);
    }

    /// `blocks` more have space on disk; `holes` may still get some.
    pub(crate) fn grew(&mut self, blocks: u64, holes: u64) {
        self.metadata.usage.free += blocks;
        self.metadata.usage.holes = holes;
    }

    /// No more holes get space before the next checkpoint.
    pub(crate) fn grew_enough(&mut self) {
        self.metadata.usage.holes = 0;
    }

    /// Blocks that can be allocated and have space on disk.
    pub(crate) fn backed(&self) -> u64 {
        self.metadata.usage.free
    }

    /// Blocks that must be there for a checkpoint of `frozen` operations, the index included, and for the
    /// `active` ones behind it.
    pub(crate) fn promised(&self, frozen: u64, active: u64, tables: &Tables) -> u64 {
        let deltas = [active + self.admitted, frozen].map(|n| self.metadata.worst_case(n, tables));
        deltas.iter().sum::<u64>() + self.metadata.reserve(Purpose::Grow)
    }

    /// Blocks that a checkpoint of `operations` may take for the index: any that it wants, if there is room
    /// for the most that it could want; else what the truth of both deltas leaves. `None` if the index is not
    /// written. What was admitted without it, in this life of the volume or before a crash, or before the
    /// index had grown by the delta before it, finds less than it was reserved.
    pub(crate) fn room_for_hints(
        &self,
        operations: u64,
        active: u64,
        tables: &Tables,
        allocatable: u64,
    ) -> Option<u64> {
        let reserve = self.metadata.reserve(Purpose::Shrink);
        if self.metadata.worst_case_with(operations, tables, true) + reserve <= allocatable {
            return self.with_hints().then_some(u64::MAX);
        }
        let truth =
            [operations, active + self.admitted].map(|n| self.metadata.worst_case_with(n, tables, false));
        let taken = truth.iter().sum::<u64>() + reserve;
        self.with_hints().then(|| allocatable.saturating_sub(taken))
    }

    /// Blocks that are reserved of an active delta of so many operations, and of the frozen one.
    fn reserved(&self, active: u64, tables: &Tables) -> u64 {
        let deltas = [active + self.admitted, self.frozen].map(|n| self.metadata.worst_case(n, tables));
        deltas.iter().sum::<u64>() + self.metadata.reserve(Purpose::Shrink)
    }

    /// Blocks that are reserved and not there. Two deltas may take more than both in one: what was admitted
    /// into the delta that was then frozen, and published only behind the cut, was reserved as a part of that
    /// one.
    pub(crate) fn overdrawn(&self, active: u64, tables: &Tables, allocatable: u64) -> u64 {
        self.reserved(active, tables).saturating_sub(allocatable)
    }

    /// If the metadata device is short: takes blocks that nothing is reserved of, until the checkpoint ends,
    /// for merging runs of the LBN map. Else 0.
    pub(crate) fn lend_for_merges(&mut self, active: u64, tables: &Tables) -> u64 {
        if !std::mem::take(&mut self.is_short) || tables.mappings.runs.is_empty() {
            return 0;
        }
        let spare = self.metadata.usage.free.saturating_sub(self.reserved(active, tables));
        self.metadata.usage.free -= spare;
        self.is_lent = true;
        spare
    }

    /// Bad marks were set or lifted: so many stand or have changed.
    pub(crate) fn marked(&mut self, marks: u64) {
        self.metadata.marked(marks);
    }

    /// The log ring.
    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether the next commit may take `blocks` more than its records need, for data.
    pub(crate) fn has_room_for_content(&self, blocks: u64) -> bool {
        self.ring.has_room_for_content(self.admitted + self.unlogged, blocks)
    }

    /// Whether a commit should begin in the background, so that nobody has to wait for log blocks later.
    pub(crate) fn wants_commit(&self) -> bool {
        self.ring.wants_commit(self.unlogged)
    }

    /// Whether a checkpoint should begin in the background: the ring wants one, or the delta is half full, or
    /// its metadata reserve is. On a nearly full device the smallest delta takes all of that.
    pub(crate) fn wants_checkpoint(&self, active: u64, tables: &Tables) -> bool {
        let is_small = active < self.least(Purpose::Grow).max(1);
        self.ring.wants_checkpoint()
            || active > self.delta_max / 2
            || (!is_small && self.frozen == 0 && self.is_reserve_used(active, tables))
    }

    /// Whether a delta of so many operations takes most of the metadata device. Where checkpoints run beside
    /// the writers, half: the other half is for the next one.
    fn is_reserve_used(&self, active: u64, tables: &Tables) -> bool {
        let needed = self.metadata.worst_case(active, tables);
        let whole = self.metadata.usage.whole();
        match self.is_paced {
            true => {
                let set_aside = self.metadata.set_aside(Purpose::Grow, tables);
                needed > whole.saturating_sub(set_aside) / 2
            }
            false => needed + self.metadata.reserve(Purpose::Grow) > whole / 4 * 3,
        }
    }

    /// Stops writing the index, the one thing that can be done without. `false` if that was done already.
    pub(crate) fn drop_hints(&mut self) -> bool {
        std::mem::replace(&mut self.metadata.with_hints, false)
    }

    /// Whether checkpoints write the index.
    pub(crate) fn with_hints(&self) -> bool {
        self.metadata.with_hints
    }

    /// The error when nothing more can be done.
    pub(crate) fn full(&self) -> MetaError {
        self.metadata.full()
    }

    /// Blocks (in use, allocatable) of the metadata device as of the last checkpoint. Those that may get
    /// space on disk count as allocatable.
    pub(crate) fn meta_usage(&self) -> (u64, u64) {
        (self.metadata.usage.used, self.metadata.usage.whole())
    }

    /// Blocks of the metadata device.
    pub(crate) fn meta_blocks(&self) -> u64 {
        self.metadata.blocks()
    }
}
