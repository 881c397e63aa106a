//! Admission: before an operation is published, everything that it will need later is reserved (rules R7,
//! R8).
//!
//! Three budgets, all in operations, where a range counts as the LBNs that it unmaps:
//!
//! - the **log ring**: an operation may end up alone in a log block, so each reserves one block until its
//!   commit shows how many were really used; a block stays in use until a checkpoint covers it in both
//!   superblocks;
//! - the **delta**: bounded memory;
//! - the **metadata device**: a checkpoint must find the blocks it writes, so the worst case of the active
//!   and the frozen delta together is kept free. A part is set aside for operations that only free space.

use crate::backing::Parts;
use crate::fault::{Fault, Planted};
use crate::ids::Pbn;
use crate::index::Index;
use crate::lbn_map::LbnMap;
use crate::mapping::{Count, CountLeaf, DigestLeaf};
use crate::runs::RunPolicy;
use crate::tables::Tables;
use dedup_btree::{ArrayTree, BTree};
use dedup_meta::MetaError;
use dedup_spacemap::SpaceMap;

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
    /// Log blocks, room in the delta or metadata blocks that other operations hold, until checkpoints give them back: there is always
    /// progress, also within a checkpoint.
    Checkpoint,
    /// What others were admitted for and have not published: they will, or give it back.
    Others,
    /// Metadata blocks, of which nobody's operations hold any, but the superblocks' older trees or readers may: checkpoints give those
    /// back, or get further with a merge.
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

/// Checkpoints that may be needed before metadata blocks are free again: those freed by one are held by the two superblocks after it
/// (I1), so it is the third that finds everything free.
const CHECKPOINTS_MAX: u32 = 3;
/// Metadata blocks that only trims and checkpoints may use: enough to checkpoint a slice of a trim in trees
/// of any height.
const SHRINK_RESERVE_BLOCKS: u64 = 512;
/// Superblocks apart, what a checkpoint writes besides trees is its own map: pages and their index, twice for
/// the fixpoint.
const MAP_SLACK_BLOCKS: u64 = 16;
/// Log blocks in use beyond which no commit puts data into the log: 256 MiB, which an open after a crash has to keep in memory and to
/// write to its place.
const CONTENT_BLOCKS_MAX: u64 = 64 << 10;
/// The part of the largest delta that an empty delta must have room for, or runs are merged in a hurry to make room: a smaller one makes a
/// checkpoint of hardly anything.
const SHORT_PART: u64 = 8;
/// Log blocks kept free so that the last commit before a checkpoint always fits.
const RING_MARGIN_BLOCKS: u64 = 2;

/// How far a checkpoint is, in parts of this.
pub(crate) const PROGRESS: u64 = 1024;

/// Blocks of the metadata device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MetaUsage {
    /// That can be allocated.
    pub(crate) free: u64,
    /// That could be if they had space on disk, which they may get.
    pub(crate) holes: u64,
    /// In use.
    pub(crate) used: u64,
}

impl MetaUsage {
    /// As the map has it, and what it does not know of yet.
    pub(crate) fn of(map: &SpaceMap, backing: &Parts) -> Self {
        let free = map.allocatable() + backing.backed();
        Self { free, holes: backing.promising(), used: map.in_use() }
    }
}

/// Sizes that bound the trees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TreeBounds {
    /// Logical blocks.
    pub(crate) lbns: u64,
    /// Data blocks.
    pub(crate) pbns: u64,
    /// Metadata blocks.
    pub(crate) meta_blocks: u64,
    /// When changes become runs, which take less.
    pub(crate) runs: RunPolicy,
}

impl TreeBounds {
    /// The map of LBNs.
    fn lbn_map(&self) -> LbnMap {
        LbnMap { lbns: self.lbns, policy: self.runs }
    }
}

/// What is reserved and what is left.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    bounds: TreeBounds,
    /// Blocks of the log ring, its next block, and the first that may be needed by a replay.
    ring_blocks: u64,
    ring_next: u64,
    ring_needed: u64,
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
    /// Upper bound of the changes to bad marks in a delta.
    marks: u64,
    /// The ring's next block when the last delta was sealed.
    ring_sealed: u64,
    /// The log has data in it since then.
    content_since_sealed: bool,
    /// Metadata blocks that could be allocated when the last checkpoint ended, or have been backed since.
    meta_free: u64,
    /// Those that could be allocated if they had space on disk, which they may get.
    meta_holes: u64,
    meta_used: u64,
    /// Checkpoints in a row that had nothing to write and got no further with a merge: what they did not free is in use.
    idle_checkpoints: u32,
    /// It was too full for somebody since the last checkpoint.
    meta_short: bool,
    /// Blocks are lent for merges until the checkpoint under way ends.
    is_lent: bool,
    /// Whether the index is written at checkpoints. Not when the metadata device is short: it can be rebuilt.
    with_hints: bool,
    planted: Planted,
}

impl Budget {
    /// An empty budget over a ring of `ring_blocks`, of which the blocks from `ring_needed` up to before
    /// `ring_next` are in use, and those before `ring_sealed` are part of the trees.
    pub(crate) fn new(
        bounds: TreeBounds,
        ring_blocks: u64,
        ring_needed: u64,
        ring_sealed: u64,
        ring_next: u64,
        delta_max: u64,
        planted: Planted,
    ) -> Self {
        Self {
            bounds,
            ring_blocks,
            ring_next,
            ring_needed,
            admitted: 0,
            unlogged: 0,
            delta_max,
            frozen: 0,
            is_paced: false,
            progress: None,
            marks: 0,
            ring_sealed,
            content_since_sealed: false,
            meta_free: 0,
            meta_holes: 0,
            meta_used: 0,
            idle_checkpoints: 0,
            meta_short: false,
            is_lent: false,
            with_hints: true,
            planted,
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
        let ring_reserved = self.admitted + self.unlogged + n + RING_MARGIN_BLOCKS;
        if self.ring_used() + ring_reserved > self.ring_blocks && !self.planted.is(Fault::FullRingIgnored) {
            let without_others = self.ring_used() + n + RING_MARGIN_BLOCKS <= self.ring_blocks;
            return Err(match (self.unlogged > 0, self.admitted > 0 && without_others) {
                (true, _) => Shortage::Commit,
                (false, true) => Shortage::Others,
                (false, false) => Shortage::Checkpoint,
            });
        }
        let operations = active + self.admitted + n;
        // No checkpoint gives back what is only admitted.
        let held_by_others = active + self.frozen == 0 && self.admitted > 0;
        if operations > self.open_part(self.delta_max).max(n) {
            return Err(if held_by_others { Shortage::Others } else { Shortage::Checkpoint });
        }
        // Only what grows has to leave room for merges: they are what gives space back to the rest.
        let debt = match purpose {
            Purpose::Grow => self.bounds.lbn_map().debt(&tables.mappings),
            Purpose::Shrink => 0,
        };
        let set_aside = debt + self.reserve(purpose);
        let promised = set_aside + self.worst_case(self.frozen, tables);
        let whole = self.meta_free + self.meta_holes;
        let room = whole.saturating_sub(promised);
        let needed = self.worst_case(operations, tables);
        if needed > self.open_part(room) && !self.planted.is(Fault::MetadataReserveIgnored) {
            // Not even an empty delta would have room worth a checkpoint: runs hold it.
            // What is lent for that already comes back.
            self.meta_short |= !self.is_lent
                && self.worst_case(n.max(self.delta_max / SHORT_PART), tables) + set_aside > whole;
            let alone = active + self.admitted + self.frozen == 0;
            return Err(match (held_by_others, alone) {
                (true, _) => Shortage::Others,
                (false, true) if self.idle_checkpoints >= CHECKPOINTS_MAX => Shortage::Metadata,
                (false, true) => Shortage::Held,
                (false, false) => Shortage::Checkpoint,
            });
        }
        let wanted = promised + needed;
        if wanted > self.meta_free && self.meta_holes > 0 {
            let is_least = active + self.admitted + self.frozen == 0;
            return Err(Shortage::Space { wanted, is_least });
        }
        self.admitted += n;
        Ok(())
    }

    /// The part of what the active delta may take in the end that it may take already: all of it, unless a checkpoint is under way. Then
    /// half, and of the other half as much as the checkpoint has done: who fills it faster is slowed down, and not stopped as a whole
    /// when all of it is full.
    fn open_part(&self, whole: u64) -> u64 {
        let Some(progress) = self.progress else { return whole };
        let free = whole / 2;
        free + ((whole - free) as u128 * u128::from(progress) / u128::from(PROGRESS)) as u64
    }

    /// Gives back what was admitted and not published.
    pub(crate) fn give_back(&mut self, n: u64) {
        self.admitted -= n;
    }

    /// `n` admitted operations are published, as one operation of the log.
    pub(crate) fn published(&mut self, n: u64, logged: bool) {
        self.admitted -= n;
        self.unlogged += u64::from(logged);
    }

    /// A commit takes all published operations and will write `blocks` log blocks, of which some may carry data.
    pub(crate) fn committed(&mut self, blocks: u64, with_content: bool) {
        self.unlogged = 0;
        self.ring_next += blocks;
        self.content_since_sealed |= with_content;
    }

    /// The active delta becomes the frozen one.
    pub(crate) fn froze(&mut self, operations: u64) {
        self.frozen = operations;
        // A checkpoint of nothing is soon over, and takes nothing from the next delta.
        self.progress = (self.is_paced && operations > 0).then_some(0);
        self.ring_sealed = self.ring_next;
        self.content_since_sealed = false;
    }

    /// The checkpoint under way is so far, of [`PROGRESS`].
    pub(crate) fn progressed(&mut self, progress: u64) {
        self.progress = self.progress.map(|before| before.max(progress.min(PROGRESS)));
    }

    /// A checkpoint ended: the log is needed from `ring_needed` on, and this is the metadata device's state. `is_idle`: it had nothing to
    /// write, got no further with a merge, and no reader held back what it could have freed.
    pub(crate) fn checkpointed(&mut self, ring_needed: u64, meta: MetaUsage, is_idle: bool, tables: &Tables) {
        (self.frozen, self.progress) = (0, None);
        self.idle_checkpoints = if is_idle { self.idle_checkpoints.saturating_add(1) } else { 0 };
        self.ring_needed = ring_needed;
        self.meta(meta, tables);
    }

    /// The metadata device's state. The index is taken up again when there is
    /// room for more than one slice of its rebuilding, so that it is not given up again at once.
    pub(crate) fn meta(&mut self, meta: MetaUsage, tables: &Tables) {
        (self.meta_free, self.meta_holes, self.meta_used) = (meta.free, meta.holes, meta.used);
        self.is_lent = false;
        if !self.with_hints {
            let slice = (self.bounds.meta_blocks / 64).min(4096);
            let debt = self.bounds.lbn_map().debt(&tables.mappings);
            let needed = 2 * self.worst_case_with(slice, tables, true) + debt + self.reserve(Purpose::Grow);
            self.with_hints = needed <= meta.free + meta.holes;
        }
    }

    /// `blocks` more have space on disk; `holes` may still get some.
    pub(crate) fn grew(&mut self, blocks: u64, holes: u64) {
        self.meta_free += blocks;
        self.meta_holes = holes;
    }

    /// No more holes get space before the next checkpoint.
    pub(crate) fn grew_enough(&mut self) {
        self.meta_holes = 0;
    }

    /// What checkpoints did not free they may free the next time.
    pub(crate) fn look_again(&mut self) {
        self.idle_checkpoints = 0;
    }

    /// Blocks that can be allocated and have space on disk.
    pub(crate) fn backed(&self) -> u64 {
        self.meta_free
    }

    /// Blocks that must be there for a checkpoint of `frozen` operations, the index included, and for the `active` ones behind it.
    pub(crate) fn promised(&self, frozen: u64, active: u64, tables: &Tables) -> u64 {
        let next = self.worst_case(active + self.admitted, tables);
        next + self.worst_case(frozen, tables) + self.reserve(Purpose::Grow)
    }

    /// Blocks that a checkpoint of `operations` may take for the index: any that it wants, if there is room for the most that it could
    /// want; else what the truth of both deltas leaves. `None` if the index is not written. What was admitted without it, in this life
    /// of the volume or before a crash, or before the index had grown by the delta before it, finds less than it was reserved.
    pub(crate) fn room_for_hints(
        &self,
        operations: u64,
        active: u64,
        tables: &Tables,
        allocatable: u64,
    ) -> Option<u64> {
        let needed = self.worst_case_with(operations, tables, true) + self.reserve(Purpose::Shrink);
        if needed <= allocatable {
            return self.with_hints.then_some(u64::MAX);
        }
        let truth = [operations, active + self.admitted].map(|n| self.worst_case_with(n, tables, false));
        let taken = truth.iter().sum::<u64>() + self.reserve(Purpose::Shrink);
        self.with_hints.then(|| allocatable.saturating_sub(taken))
    }

    /// Blocks that are reserved and not there. Two deltas may take more than both in one: what was admitted into the delta that was then
    /// frozen, and published only behind the cut, was reserved as a part of that one.
    pub(crate) fn overdrawn(&self, active: u64, tables: &Tables, allocatable: u64) -> u64 {
        let reserved = self.worst_case(active + self.admitted, tables) + self.worst_case(self.frozen, tables);
        (reserved + self.reserve(Purpose::Shrink)).saturating_sub(allocatable)
    }

    /// If the metadata device is short: takes blocks that nothing is reserved of, until the checkpoint ends, for merging runs of the
    /// LBN map. Else 0.
    pub(crate) fn lend_for_merges(&mut self, active: u64, tables: &Tables) -> u64 {
        if !std::mem::take(&mut self.meta_short) || tables.mappings.runs.is_empty() {
            return 0;
        }
        let worst_case =
            self.worst_case(active + self.admitted, tables) + self.worst_case(self.frozen, tables);
        let spare = self.meta_free.saturating_sub(worst_case + self.reserve(Purpose::Shrink));
        self.meta_free -= spare;
        self.is_lent = true;
        spare
    }

    /// Bad marks were set or lifted: so many stand or have changed.
    pub(crate) fn marked(&mut self, marks: u64) {
        self.marks = self.marks.max(marks);
    }

    /// Log blocks that a replay may need.
    pub(crate) fn ring_used(&self) -> u64 {
        self.ring_next - self.ring_needed
    }

    /// Blocks of the ring.
    pub(crate) fn ring_blocks(&self) -> u64 {
        self.ring_blocks
    }

    /// Whether the next commit may take `blocks` more than its records need, for data: a quarter of the ring stays free, and what an open
    /// reads into memory stays small.
    pub(crate) fn has_room(&self, blocks: u64) -> bool {
        let records = self.admitted + self.unlogged + RING_MARGIN_BLOCKS;
        let max = (self.ring_blocks / 4 * 3).min(CONTENT_BLOCKS_MAX);
        blocks == 0 || self.ring_used() + records + blocks <= max
    }

    /// Whether a commit should begin in the background, so that nobody has to wait for log blocks later.
    pub(crate) fn wants_commit(&self) -> bool {
        self.unlogged > self.ring_blocks.saturating_sub(self.ring_used()) / 2
    }

    /// Whether a checkpoint should begin in the background: the log since the last one is a quarter of the
    /// ring, or free ring space is below a quarter (R7), or the delta is half full, or its metadata reserve is.
    pub(crate) fn wants_checkpoint(&self, active: u64, tables: &Tables) -> bool {
        let quarter = self.ring_blocks / 4;
        let due = if self.content_since_sealed { quarter.min(CONTENT_BLOCKS_MAX / 4) } else { quarter };
        self.ring_next - self.ring_sealed >= due
            || self.ring_used() > self.ring_blocks / 4 * 3
            || active > self.delta_max / 2
            || (active > 0 && self.frozen == 0 && self.is_reserve_used(active, tables))
    }

    /// Whether a delta of so many operations takes most of the metadata device. Where checkpoints run beside the writers, half: the other
    /// half is for the next one.
    fn is_reserve_used(&self, active: u64, tables: &Tables) -> bool {
        let needed = self.worst_case(active, tables);
        let reserve = self.reserve(Purpose::Grow);
        let whole = self.meta_free + self.meta_holes;
        match self.is_paced {
            true => {
                let debt = self.bounds.lbn_map().debt(&tables.mappings);
                needed > whole.saturating_sub(reserve + debt) / 2
            }
            false => needed + reserve > whole / 4 * 3,
        }
    }

    /// Stops writing the index, the one thing that can be done without. `false` if that was done already.
    pub(crate) fn drop_hints(&mut self) -> bool {
        std::mem::replace(&mut self.with_hints, false)
    }

    /// Whether checkpoints write the index.
    pub(crate) fn with_hints(&self) -> bool {
        self.with_hints
    }

    /// The error when nothing more can be done.
    pub(crate) fn full(&self) -> MetaError {
        MetaError::NoSpace { in_use: self.meta_used, total: self.bounds.meta_blocks }
    }

    /// Blocks (in use, allocatable) of the metadata device as of the last checkpoint. Those that may get space on disk count as allocatable.
    pub(crate) fn meta_usage(&self) -> (u64, u64) {
        (self.meta_used, self.meta_free + self.meta_holes)
    }

    /// Blocks of the metadata device.
    pub(crate) fn meta_blocks(&self) -> u64 {
        self.bounds.meta_blocks
    }

    fn reserve(&self, purpose: Purpose) -> u64 {
        let map_pages = self.bounds.meta_blocks / dedup_spacemap::page::COUNTS_PER_PAGE as u64 + 1;
        let map = 2 * map_pages + MAP_SLACK_BLOCKS;
        match purpose {
            Purpose::Grow => map + SHRINK_RESERVE_BLOCKS.min(self.bounds.meta_blocks / 16),
            Purpose::Shrink => map,
        }
    }

    /// An upper bound of the blocks that a checkpoint of `operations` writes. Each changes at most one
    /// mapping, one digest, one hint and the hint before it, and two counts (the new block's and the old
    /// one's).
    fn worst_case(&self, operations: u64, tables: &Tables) -> u64 {
        self.worst_case_with(operations, tables, self.with_hints)
    }

    fn worst_case_with(&self, operations: u64, tables: &Tables, with_hints: bool) -> u64 {
        if operations == 0 {
            return 0;
        }
        let TreeBounds { pbns, runs, .. } = self.bounds;
        let counts = operations.saturating_mul(2);
        let hints = match with_hints {
            true => Index { policy: runs }.worst_case(operations, &tables.hints),
            false => 0,
        };
        self.bounds.lbn_map().worst_case(operations, &tables.mappings)
            + ArrayTree::<DigestLeaf>::worst_case_blocks(operations, pbns)
            + ArrayTree::<CountLeaf>::worst_case_blocks(counts, pbns)
            + BTree::<Pbn, Count>::worst_case_blocks(counts.min(pbns), &tables.overflow)
            + BTree::<Pbn, ()>::worst_case_blocks(operations.min(self.marks), &tables.bad)
            + hints
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_filters::RunFilters;
    use dedup_meta::{Root, RunSet, TxId};

    fn tables() -> Tables {
        Tables {
            txid: TxId(1),
            mappings: RunSet::EMPTY,
            run_filters: RunFilters::default(),
            digests: Root::EMPTY,
            counts: Root::EMPTY,
            overflow: Root::EMPTY,
            hints: RunSet::EMPTY,
            bad: Root::EMPTY,
        }
    }

    fn budget(lbns: u64, pbns: u64) -> Budget {
        let bounds = TreeBounds { lbns, pbns, meta_blocks: 1 << 20, runs: RunPolicy::ByCost };
        Budget::new(bounds, 1 << 20, 0, 0, 0, 32 << 10, Planted::default()).paced(true)
    }

    /// A checkpoint of nothing (for space, or asked for) halves what may be taken, and nobody holds anything: "short for good".
    #[test]
    fn beside_an_empty_checkpoint_what_fits_is_admitted() {
        let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
        let needed = budget.worst_case(1024, &tables) + budget.reserve(Purpose::Grow);
        budget.meta(MetaUsage { free: needed + needed / 2, holes: 0, used: 0 }, &tables);
        budget.froze(0);
        assert_eq!(budget.admit(1024, 0, &tables, Purpose::Grow), Ok(()));
    }

    /// What is in the log beside its records must leave room for those: the ring's last quarter, and what is admitted already.
    #[test]
    fn data_goes_to_the_log_only_while_a_quarter_of_the_ring_stays_free() {
        let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
        (budget.ring_blocks, budget.meta_free) = (256, u64::MAX / 4);
        let room = 192 - RING_MARGIN_BLOCKS;
        assert!(budget.has_room(room) && !budget.has_room(room + 1));
        budget.admit(10, 0, &tables, Purpose::Grow).unwrap();
        assert!(budget.has_room(room - 10) && !budget.has_room(room - 9), "records that are admitted");
        budget.published(10, true);
        assert!(
            budget.has_room(room - 1) && !budget.has_room(room),
            "one operation that waits for its commit"
        );
        budget.committed(100, true);
        assert!(budget.has_room(room - 100) && !budget.has_room(room - 99), "what is in the log");
        budget.committed(120, true);
        assert!(budget.has_room(0) && !budget.has_room(1), "no data needs no room");
        // However large the ring is: an open has to keep the data in memory.
        budget.ring_blocks = 1 << 30;
        budget.ring_next = CONTENT_BLOCKS_MAX - RING_MARGIN_BLOCKS - 1;
        assert!(budget.has_room(1) && !budget.has_room(2));
    }

    /// What is admitted and not yet published stays behind when the delta freezes: then it is a delta of its own.
    #[test]
    fn what_a_cut_makes_of_the_reserve_is_known_to_the_checkpoint() {
        let (mut budget, tables) = (budget(1 << 24, 1 << 24), tables());
        budget.with_hints = false;
        let free = budget.worst_case(4096, &tables) + budget.reserve(Purpose::Shrink);
        budget.meta_free = free;
        for published in [0, 1024, 2048] {
            budget.admit(1024, published, &tables, Purpose::Shrink).unwrap();
            budget.published(1024, true);
        }
        budget.admit(1024, 3072, &tables, Purpose::Shrink).unwrap();
        assert_eq!(budget.overdrawn(3072, &tables, free), 0);
        budget.froze(3072);
        let needed = [3072, 1024].map(|n| budget.worst_case(n, &tables)).iter().sum::<u64>();
        let missing = needed + budget.reserve(Purpose::Shrink) - free;
        assert!(missing > 1000, "{missing}");
        assert_eq!(budget.overdrawn(0, &tables, free), missing);
    }

    /// Who waits for a merge in a hurry finds no room because of it: that is no reason for another one.
    #[test]
    fn a_merge_in_a_hurry_is_not_followed_by_another_for_the_blocks_that_it_was_lent() {
        for frozen in [100, 2000, 8000, 16000] {
            let mut budget = budget(1 << 24, 1 << 24);
            let mut tables = tables();
            tables.mappings.runs = vec![Root { entries: frozen, ..Root::EMPTY }];
            // Room for ten deltas.
            let free = 10 * budget.worst_case(32 << 10, &tables);
            budget.meta(MetaUsage { free, holes: 0, used: 0 }, &tables);
            // Left from before.
            budget.meta_short = true;
            budget.froze(frozen);
            let spare = budget.lend_for_merges(0, &tables);
            let refused = budget.admit(1, 0, &tables, Purpose::Grow);
            assert!(spare > 0 && refused.is_err() && !budget.meta_short, "frozen {frozen}");
        }
    }
}
