//! What changes when an operation is published: one struct behind one lock.
//!
//! Everything slow (digests, device I/O, tree lookups) happens outside. What was looked up outside is
//! *validated* here: the trees must still be those it was read from, and no delta may say
//! otherwise. Then the change is applied to counts, mappings and the log in one step, so that the order in
//! the log is the order of application (rule R1).
//!
//! Invariants, as long as the lock is free:
//! - I7: the sum of counts is the number of mapped LBNs; a block has a count above 0 if and only if something
//!   maps to it.
//! - A block with count 0 is free, reserved by a write in flight, or in quarantine.
//! - The log holds exactly the operations up to `seq` that are not yet handed to a commit.

pub(crate) mod budget;
pub(crate) mod delta;
pub(crate) mod history;
pub(crate) mod pins;
pub(crate) mod quarantine;
pub(crate) mod unflushed;

use crate::error::VolumeError;
use crate::journal::pending::Pending;
use crate::state::budget::Budget;
use crate::state::delta::{BlockChange, Delta};
use crate::state::history::History;
use crate::state::quarantine::Quarantine;
use crate::state::unflushed::Unflushed;
use crate::trees::tables::Counts;
use crate::trees::tables::Tables;
use dedup_meta::{Epoch, LogBuilder, RunSet, Superblock, TxId};
use dedup_schema::{Counters, Digest, Lbn, Mapping, Pbn, Record, Seq};
use dedup_sync::Layers;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

/// Whether the volume takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It does.
    ReadWrite,
    /// It was opened so.
    ReadOnly,
    /// It is being closed.
    Closed,
    /// A device failed or metadata is damaged: nothing more is acknowledged as durable until a reopen
    /// (invariant I6).
    Failed(String),
}

/// What the newest superblock says that is asked for while a checkpoint has the metadata side to itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded {
    pub(crate) txid: TxId,
    pub(crate) epoch: Epoch,
    pub(crate) needs_check: bool,
    /// Metadata blocks written by checkpoints since the open.
    pub(crate) blocks_written: u64,
}

impl Recorded {
    /// What `superblock` says.
    pub(crate) fn of(superblock: &Superblock, blocks_written: u64) -> Self {
        let Superblock { txid, epoch, needs_check, .. } = *superblock;
        Self { txid, epoch, needs_check, blocks_written }
    }
}

/// The state. Fields are public within the crate: the modules that change it each own some of them.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mode: Mode,
    /// What operations change, what a checkpoint is writing, and the trees.
    pub(crate) layers: Layers<Delta, Tables>,
    /// What has become part of the trees lately.
    pub(crate) history: History,
    /// Records not yet handed to a commit.
    pub(crate) log: LogBuilder,
    /// The same records, not yet in the journal.
    pub(crate) journal: Pending,
    /// Whether records go to the log at all (not with `inram`).
    pub(crate) logged: bool,
    /// The last published operation.
    pub(crate) seq: Seq,
    pub(crate) counters: Counters,
    /// Data blocks with a count above 0.
    pub(crate) data_used: u64,
    /// LBNs that are mapped.
    pub(crate) mapped: u64,
    /// Blocks of the data device, the label included.
    pub(crate) data_blocks: u64,
    /// Blocks marked damaged.
    pub(crate) bad: BTreeSet<Pbn>,
    pub(crate) quarantine: Quarantine,
    /// What was written to the data device and not flushed.
    pub(crate) unflushed: Unflushed,
    /// Block writes since the last commit, for `flushrq`.
    pub(crate) writes_since_commit: u32,
    pub(crate) budget: Budget,
    /// The index is to be rebuilt from the digests, from this block on.
    pub(crate) hint_rebuild_next: Option<Pbn>,
    /// How often that began, since the open.
    pub(crate) rebuilds_begun: u64,
    /// The index was found damaged: the next checkpoint starts a new one.
    pub(crate) hints_dropped: bool,
    /// A tree was dropped without walking it: its blocks must be found by walking the others.
    pub(crate) recount_needed: bool,
    pub(crate) recorded: Recorded,
}

/// What became of a block's content, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Its content was new; this is its digest.
    Unique(Digest),
    /// Its content was there.
    Duplicate,
    /// It was there, damaged, and was written again in place.
    Healing,
    /// It is all zeros.
    Zero,
}

impl State {
    /// The current mapping of an LBN, if a delta has it.
    pub(crate) fn mapping(&self, lbn: Lbn) -> Option<Mapping> {
        self.layers.deltas().find_map(|delta| delta.mappings.get(&lbn)).copied()
    }

    /// A block's current count: from the deltas, else as the trees have it. `None` if neither says.
    pub(crate) fn count(&self, pbn: Pbn, base: &Counts) -> Option<u64> {
        self.layers
            .deltas()
            .find_map(|delta| delta.blocks.get(&pbn))
            .map(|b| b.count)
            .or_else(|| base.get(pbn))
    }

    /// The digest of a block's content, if it was allocated since the last checkpoint.
    pub(crate) fn recent_digest(&self, pbn: Pbn) -> Option<Digest> {
        self.layers.deltas().find_map(|delta| delta.blocks.get(&pbn)?.digest)
    }

    /// Nothing may be changed from counts of other trees than the present ones: what a checkpoint has made
    /// part of the trees since would be lost. Counts are brought up to them where the lock is taken
    /// (`io::present`).
    ///
    /// # Panics
    /// If they are of others.
    #[inline]
    fn expect_present(&self, base: &Counts) {
        let present = self.layers.tables().txid;
        assert_eq!(base.of(), present, "counts of other trees than the present ones");
    }

    /// [`Self::count`] and [`Self::recent_digest`] in one.
    pub(crate) fn count_and_digest(&self, pbn: Pbn, base: &Counts) -> (Option<u64>, Option<Digest>) {
        let mut count = None;
        for change in self.layers.deltas().filter_map(|delta| delta.blocks.get(&pbn)) {
            count.get_or_insert(change.count);
            if change.digest.is_some() {
                return (count, change.digest);
            }
        }
        (count.or_else(|| base.get(pbn)), None)
    }

    /// The first block that `is_wanted` of those allocated since the last checkpoint for content with this
    /// digest, and still in use. Newest first.
    pub(crate) fn find_recent(&self, digest: &Digest, mut is_wanted: impl FnMut(Pbn) -> bool) -> Option<Pbn> {
        self.layers.deltas().enumerate().find_map(|(depth, delta)| {
            delta.find(digest, |pbn, change| {
                // A newer delta may have another count, or have allocated the block anew.
                let newer = self.layers.deltas().take(depth).find_map(|newer| newer.blocks.get(&pbn));
                let newest = newer.unwrap_or(change);
                newest.count > 0 && newest.digest.is_none_or(|newest| newest == *digest) && is_wanted(pbn)
            })
        })
    }

    /// Whether the block that an LBN is mapped to has a reference. If not, the metadata contradicts itself:
    /// nothing may be changed.
    #[inline]
    pub(crate) fn check_reference(&self, lbn: Lbn, pbn: Pbn, base: &Counts) -> Result<(), VolumeError> {
        if pbn.0 == 0 {
            return Ok(());
        }
        self.check_mapped(lbn, pbn, base)
    }

    fn check_mapped(&self, lbn: Lbn, pbn: Pbn, base: &Counts) -> Result<(), VolumeError> {
        let contradiction = |what: &str| {
            let what = format!("LBN {lbn} is mapped to block {pbn}, {what}");
            Err(VolumeError::Contradiction { what })
        };
        if pbn.0 >= self.data_blocks {
            return contradiction("which the data device does not have");
        }
        match self.count(pbn, base) {
            Some(1..) if self.mapped == 0 || self.data_used == 0 => {
                contradiction("and by the totals nothing is")
            }
            Some(1..) => Ok(()),
            _ => contradiction("whose count is 0"),
        }
    }

    /// Publishes a block write: `lbn` is mapped to `new`, with `content`, from now on, and was to `old`,
    /// which [`Self::check_reference`] allowed. `base` has the counts of both blocks unless a delta has them.
    pub(crate) fn publish_write(
        &mut self,
        lbn: Lbn,
        new: Mapping,
        old: Mapping,
        (written, content): (Written, &[u8]),
        base: &Counts,
    ) {
        self.expect_present(base);
        self.seq.0 += 1;
        match written {
            Written::Unique(digest) => {
                let count = self.apply_allocation(new.pbn, digest);
                assert_eq!(count, 0, "block {} is in use, and was written over", new.pbn);
                self.counters.uniqwrites += 1;
                self.unflushed.wrote(new.pbn, content);
            }
            Written::Healing => {
                self.apply_mark(new.pbn, false);
                self.counters.dupwrites += 1;
                self.counters.healed_blocks += 1;
                self.unflushed.wrote_more();
            }
            Written::Duplicate => self.counters.dupwrites += 1,
            Written::Zero => self.counters.zerowrites += 1,
        }
        self.counters.writes += 1;
        match old.is_mapped() {
            true => self.counters.overwrites += 1,
            false => self.counters.newwrites += 1,
        }
        if let Some(freed) = self.apply_mapping(lbn, new, old.pbn, base) {
            self.quarantine.freed(self.seq, freed);
        }
        self.writes_since_commit += 1;
        self.log_operation(1, |records| {
            match written {
                Written::Unique(digest) => {
                    Record::Allocate { pbn: new.pbn, digest }.encode(records);
                }
                Written::Healing => {
                    Record::Healed { pbn: new.pbn }.encode(records);
                }
                _ => {}
            }
            Record::Map { lbn, new, old: old.pbn }.encode(records);
        });
    }

    /// Publishes the unmapping of all of a range's mapped LBNs, which are `mapped`.
    pub(crate) fn publish_unmap(&mut self, first: Lbn, blocks: u64, mapped: &[(Lbn, Pbn)], base: &Counts) {
        self.expect_present(base);
        self.seq.0 += 1;
        for (lbn, pbn) in mapped {
            if let Some(freed) = self.apply_mapping(*lbn, Mapping::UNMAPPED, *pbn, base) {
                self.quarantine.freed(self.seq, freed);
            }
        }
        self.counters.trimmed += mapped.len() as u64;
        self.log_operation(mapped.len() as u64, |records| {
            Record::Unmap { lbn: first, blocks }.encode(records);
        });
    }

    /// Publishes that a block's content is damaged.
    pub(crate) fn publish_bad(&mut self, pbn: Pbn) {
        self.seq.0 += 1;
        self.apply_mark(pbn, true);
        self.log_operation(1, |records| Record::Bad { pbn }.encode(records));
    }

    /// A block is taken into use. Its old content's mark goes with its old content. Returns the count that
    /// the active delta had of it.
    pub(crate) fn apply_allocation(&mut self, pbn: Pbn, digest: Digest) -> u64 {
        let count = self.layers.active.allocate(pbn, digest);
        self.apply_mark(pbn, false);
        count
    }

    /// Marks a block damaged, or no longer so.
    pub(crate) fn apply_mark(&mut self, pbn: Pbn, bad: bool) {
        let changed = if bad { self.bad.insert(pbn) } else { self.bad.remove(&pbn) };
        if changed {
            self.layers.active.bad.insert(pbn, bad);
            self.budget.marked((self.bad.len() + self.layers.active.bad.len()) as u64);
        }
    }

    /// Maps an LBN, moves the reference, and returns the block that lost its last one.
    pub(crate) fn apply_mapping(&mut self, lbn: Lbn, new: Mapping, old: Pbn, base: &Counts) -> Option<Pbn> {
        let was_mapped = old.0 != 0;
        if was_mapped || new.is_mapped() {
            // Not `insert`: the compiler makes less of that.
            match self.layers.active.mappings.entry(lbn) {
                Entry::Occupied(mut known) => *known.get_mut() = new,
                Entry::Vacant(unknown) => _ = unknown.insert(new),
            }
        }
        self.mapped = (self.mapped + u64::from(new.is_mapped())).saturating_sub(was_mapped.into());
        if new.pbn == old {
            return None;
        }
        if new.is_mapped() {
            let count = self.change_count(new.pbn, base, |count| count.saturating_add(1));
            self.data_used += u64::from(count == 0);
        }
        if !was_mapped {
            return None;
        }
        let count = self.change_count(old, base, |count| count.saturating_sub(1));
        debug_assert!(count > 0, "LBN {lbn} was mapped to block {old}, whose reference count is 0");
        self.data_used = self.data_used.saturating_sub((count == 1).into());
        (count == 1).then_some(old)
    }

    /// Changes a block's count, keeping what else is known of the block, and returns the count before.
    fn change_count(&mut self, pbn: Pbn, base: &Counts, change: impl FnOnce(u64) -> u64) -> u64 {
        let (active, frozen) = self.layers.active_over_frozen();
        match active.blocks.entry(pbn) {
            Entry::Occupied(mut known) => {
                let count = known.get().count;
                known.get_mut().count = change(count);
                count
            }
            Entry::Vacant(unknown) => {
                let below = frozen.and_then(|delta| delta.blocks.get(&pbn)).map(|known| known.count);
                let count = below.or_else(|| base.get(pbn)).unwrap_or(0);
                unknown.insert(BlockChange { count: change(count), digest: None });
                count
            }
        }
    }

    /// Appends an operation's records, which `encode` writes, to the log. `entries` is what it was admitted
    /// as.
    fn log_operation(&mut self, entries: u64, encode: impl FnOnce(&mut Vec<u8>)) {
        self.layers.active.operations += entries;
        self.budget.published(entries, self.logged);
        if self.logged {
            let counters = self.counters;
            let slots = counters.to_slots();
            if self.journal.is_kept() {
                let records = self.journal.push(self.seq, encode);
                self.log.push(self.seq.0, &slots, |log| log.extend_from_slice(records));
            } else {
                self.log.push(self.seq.0, &slots, encode);
            }
        }
    }

    /// Why writes are refused, if they are.
    pub(crate) fn writable(&self) -> Result<(), VolumeError> {
        match &self.mode {
            Mode::ReadWrite => Ok(()),
            Mode::ReadOnly => Err(VolumeError::ReadOnly),
            Mode::Closed => Err(VolumeError::Closed),
            Mode::Failed(reason) => Err(VolumeError::Stopped { reason: reason.clone() }),
        }
    }

    /// There is no index from now on; it will be built anew.
    pub(crate) fn drop_hints(&mut self) {
        self.hints_dropped = true;
        let tables = Tables { hints: RunSet::EMPTY, ..Tables::clone(self.layers.tables()) };
        self.layers.replace_tables(tables);
    }
}
