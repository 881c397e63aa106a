//! Checkpoints: the frozen delta becomes part of the trees, and the log before it is no longer needed.
//!
//! ```text
//!  commit, sealing the delta at its cut S     data and log durable up to S
//!  apply the delta to each tree               new nodes into free blocks; the old trees stay whole (I1)
//!  write the metadata map                     into blocks reserved for it
//!  flush                                      the trees are durable
//!  write the superblock (new roots, S)        into the slot that does not hold the newest one
//!  flush                                      from here on an open starts from S
//!  install the roots, drop the frozen delta   one step under the state's lock
//!  write the spare superblock                 durable with the next flush
//! ```
//!
//! A crash at any line leaves the older superblock and the log from its S on: the log is released only up to
//! the S of the *older* of the two superblocks (rule R3). There is one checkpoint at a time, by whichever
//! thread comes first. An error ends all writing (I6), except that a damaged index is dropped and built anew.

use crate::durability::pace::Paced;
use crate::engine::Engine;
use crate::engine::meta_side::MetaSide;
use crate::error::VolumeError;
use crate::state::delta::Delta;
use crate::state::{Mode, Recorded};
use crate::trees::filter;
use crate::trees::index::{Change, Index};
use crate::trees::lbn_map::{self, LbnMap};
use crate::trees::metamap;
use crate::trees::run_filters::RunFilters;
use crate::trees::runs::{self, Merging, Plan};
use crate::trees::tables::Tables;
use dedup_btree::LeafCodec;
use dedup_meta::{
    BlockType, Features, MetaBlock, MetaError, NodeSink, Root, Roots, RunSet, Superblock, Transaction, TxId,
};
use dedup_schema::{
    BAD, COUNT_OVERFLOW, COUNTS, Count, CountLeaf, DIGESTS, DigestLeaf, HintKey, OVERFLOW, Pbn,
};
use dedup_sync::{Ended, Turn};
use std::collections::BTreeMap;

/// What became of the index in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hints {
    Written,
    /// There is no room for it: entries are missing.
    LeftOut,
    /// It was damaged: there is none.
    Damaged,
}

impl Engine {
    /// Runs a checkpoint that covers everything published before the call, or waits for one that does.
    pub(crate) fn checkpoint(&self) -> Result<(), VolumeError> {
        let turn = match self.checkpoints.next() {
            Ok(None) => return Ok(()),
            Ok(Some(turn)) => turn,
            Err(Ended) => return Err(self.stopped()),
        };
        self.run_turn(turn)
    }

    /// Returns once a checkpoint got a step further than the `seen` ones; runs one if none is under way.
    pub(crate) fn step_of_checkpoint(&self, seen: u64) -> Result<(), VolumeError> {
        match self.checkpoints.step(seen) {
            Ok(None) => Ok(()),
            Ok(Some(turn)) => self.run_turn(turn),
            Err(Ended) => Err(self.stopped()),
        }
    }

    fn run_turn(&self, turn: Turn<'_>) -> Result<(), VolumeError> {
        self.run_checkpoint(&turn).inspect_err(|error| self.fail_stop(error))?;
        let number = turn.number();
        turn.done(number).map_err(|Ended| self.stopped())
    }

    fn run_checkpoint(&self, turn: &Turn<'_>) -> Result<(), VolumeError> {
        self.flush_data_ahead()?;
        let sealed = self.commit_and_seal()?;
        let mut meta = self.meta.lock();
        let meta = &mut *meta;
        let mut old = sealed.tables;
        if sealed.drop_hints {
            old.hints = RunSet::EMPTY;
        }
        self.back_what_is_promised(sealed.delta.operations);
        self.release_held(meta);
        let merging = (old.mappings.runs.len(), meta.merging_mappings);
        let is_read = self.pins.oldest_tables().is_some_and(|oldest| oldest < meta.superblock.txid);
        let txid = meta.superblock.txid.next();
        let (room, short, spare) = {
            let mut state = self.state.lock();
            let active = state.layers.active.operations;
            let allocatable = meta.map.allocatable();
            let room = state.budget.room_for_hints(sealed.delta.operations, active, &old, allocatable);
            let short = state.budget.overdrawn(active, &old, allocatable);
            (room, short, state.budget.lend_for_merges(active, &old))
        };
        let (tables, map_root, hints) =
            self.write_trees(meta, txid, &old, &sealed.delta, (room, short, spare), turn)?;
        let rebuild = match sealed.drop_hints || hints != Hints::Written {
            true => Some(Pbn(1)),
            false => sealed.hint_rebuild_next,
        };
        if hints == Hints::LeftOut && sealed.hint_rebuild_next.is_none() {
            tracing::warn!(
                "metadata device nearly full: a checkpoint has left out the digest index, which will be rebuilt; until then copies of what \
                 is stored now are stored again"
            );
        }
        let recount = sealed.drop_hints || hints == Hints::Damaged;
        let superblock = Superblock {
            txid,
            clean: false,
            recount_needed: sealed.recount_needed || recount,
            log: sealed.log,
            op_seq: sealed.seq.0,
            counters: sealed.counters.to_slots(),
            data_used: sealed.data_used,
            mapped: sealed.mapped,
            cursor: self.space.cursor(),
            hint_rebuild_next: rebuild.map(|pbn| pbn.0),
            ..tables.record(meta.superblock.clone(), map_root)
        };
        self.write_superblock(meta, superblock)?;
        let restart = rebuild.filter(|_| rebuild != sealed.hint_rebuild_next);
        let has_merged = merging != (tables.mappings.runs.len(), meta.merging_mappings);
        let is_idle = sealed.delta.operations == 0 && !has_merged && !is_read;
        self.install(meta, tables, restart, recount, is_idle);
        Ok(())
    }

    /// Applies the delta to all trees, writes the metadata map and flushes. Also tells whether hints were
    /// left out.
    fn write_trees(
        &self,
        meta: &mut MetaSide,
        txid: TxId,
        old: &Tables,
        delta: &Delta,
        (room, short, spare): (Option<u64>, u64, u64),
        turn: &Turn<'_>,
    ) -> Result<(Tables, Root, Hints), VolumeError> {
        let transaction = Transaction::new(&self.store, &mut meta.map, txid);
        let progress = |progress| {
            // Before the step: whoever is woken by it must find it.
            self.state.lock().budget.progressed(progress);
            turn.step();
        };
        let mut sink = Paced::new(transaction, self.options.background.then_some(&progress));
        let map = LbnMap { lbns: self.lbns, policy: self.options.runs };
        let mappings: Vec<lbn_map::Change> = delta.mappings.iter().map(|(lbn, new)| (*lbn, *new)).collect();
        let mut plan = map.plan(&old.mappings, &mappings, delta.operations, spare);
        plan.blocks = plan.blocks.saturating_sub(short);
        let merging = &mut meta.merging_mappings;
        let for_mappings =
            runs::expected_nodes(&map, &old.mappings, mappings.len() as u64, merging.as_ref(), &plan);
        let hints = room.and_then(|room| {
            self.index_plan(&old.hints, delta.blocks.len() as u64, delta, meta.merging_hints.as_ref(), room)
        });
        let for_hints = hints.map_or(0, |(_, nodes)| nodes);
        sink.expect(expected_nodes(delta) + for_mappings + for_hints);
        let (mut tables, changes) = apply(&mut sink, txid, old, delta)?;
        sink.expect(for_mappings + for_hints);
        tables.mappings = runs::apply(&map, &self.store, &mut sink, &old.mappings, &mappings, merging, plan)?;
        let hints = match room.or(changes.is_empty().then_some(0)) {
            Some(room) => {
                self.apply_hints(&mut sink, &mut tables, &changes, delta, &mut meta.merging_hints, room)?
            }
            None => Hints::LeftOut,
        };
        let outcome = sink.end().finish()?;
        let mut freed: Vec<u64> = outcome.freed.iter().map(|b| b.0).collect();
        freed.extend(std::mem::take(&mut meta.leaked).iter().map(|b| b.0));
        freed.iter().try_for_each(|block| metamap::free_held(&mut meta.map, *block))?;
        let (map_root, map_freed, map_written) =
            metamap::save(&self.store, &mut meta.map, txid, &meta.map_root)?;
        meta.map_root = map_root;
        freed.extend(map_freed);
        meta.generations.freed(txid.0, freed);
        meta.blocks_written += outcome.written + map_written;
        self.flush_metadata()?;
        Ok((tables, map_root, hints))
    }

    /// What is to become of so many changes of the index, and the nodes that it takes, more or less; `None`
    /// if they have no room.
    fn index_plan(
        &self,
        old: &RunSet,
        changes: u64,
        delta: &Delta,
        merging: Option<&Merging<HintKey>>,
        room: u64,
    ) -> Option<(Plan, u64)> {
        let index = Index { policy: self.options.runs };
        let plan = index.plan(old, changes, delta.operations, room)?;
        Some((plan, runs::expected_nodes(&index, old, changes, merging, &plan)))
    }

    /// The index is only a hint: damaged, it is dropped, to be rebuilt from the digests later.
    fn apply_hints(
        &self,
        sink: &mut Paced<'_, '_>,
        tables: &mut Tables,
        changes: &[Change],
        delta: &Delta,
        merging: &mut Option<Merging<HintKey>>,
        room: u64,
    ) -> Result<Hints, MetaError> {
        if changes.is_empty() {
            return Ok(Hints::Written);
        }
        let index = Index { policy: self.options.runs };
        let count = changes.len() as u64;
        let Some((plan, nodes)) = self.index_plan(&tables.hints, count, delta, merging.as_ref(), room) else {
            return Ok(Hints::LeftOut);
        };
        sink.expect(nodes);
        match runs::apply(&index, &self.store, sink, &tables.hints, changes, merging, plan) {
            Ok(hints) => {
                filter::take_changes(&self.filter, changes);
                tables.hints = hints;
                Ok(Hints::Written)
            }
            Err(error @ MetaError::Damaged { kind: BlockType::Hint, .. }) => {
                tracing::warn!("digest index dropped, to be rebuilt: {error}");
                (tables.hints, *merging) = (RunSet::EMPTY, None);
                Ok(Hints::Damaged)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `superblock` the newest one: slot, flush, and only then the spare.
    pub(crate) fn write_superblock(
        &self,
        meta: &mut MetaSide,
        superblock: Superblock,
    ) -> Result<(), VolumeError> {
        // What is written over is the superblock before the last: only by its number is it told which that
        // is.
        assert_eq!(superblock.txid, meta.superblock.txid.next(), "superblocks are numbered without a gap");
        assert!(
            meta.superblock.log.next <= superblock.log.next,
            "a superblock replays from before the last one's"
        );
        assert!(
            meta.superblock.op_seq <= superblock.op_seq,
            "a superblock of earlier operations than the last one"
        );
        dedup_meta::write_superblock(&self.store, &superblock)?;
        self.flush_metadata()?;
        meta.older_log = meta.superblock.log.next;
        dedup_meta::write_spare(&self.store, &superblock)?;
        meta.superblock = superblock;
        meta.blocks_written += 2;
        self.state.lock().recorded = Recorded::of(&meta.superblock, meta.blocks_written);
        self.release_held(meta);
        Ok(())
    }

    /// Lets go of metadata blocks that neither a superblock nor a reader can reach any more (invariant I1).
    fn release_held(&self, meta: &mut MetaSide) {
        let oldest_reader = self.pins.oldest_tables();
        let durable = meta.superblock.txid;
        for block in meta.generations.durable(durable.0, oldest_reader.map(|txid| txid.0)) {
            // Whatever was copied on write would otherwise crowd out what is in use.
            self.store.forget(MetaBlock(block));
            meta.map.unhold(block);
        }
        self.backing.hand_over(&mut meta.map);
    }

    /// Metadata is damaged although its device works: says so in the superblock, which otherwise stays as it
    /// is. To be called without the lock on the metadata side.
    pub(crate) fn record_need_for_check(&self) {
        let mut meta = self.meta.lock();
        if meta.superblock.needs_check {
            return;
        }
        let txid = meta.superblock.txid.next();
        let superblock = Superblock { txid, needs_check: true, ..meta.superblock.clone() };
        let written = self.write_superblock(&mut meta, superblock);
        drop(meta);
        if let Err(error) = written {
            tracing::error!("the need for a check could not be recorded: {error}");
        }
    }

    /// The new trees replace the old ones and the frozen delta in one step.
    fn install(
        &self,
        meta: &mut MetaSide,
        tables: Tables,
        rebuild: Option<Pbn>,
        recount: bool,
        is_idle: bool,
    ) {
        let _dropped_without_the_lock = self.release_log(meta, is_idle, |state| {
            // An index dropped while this checkpoint ran stays dropped.
            let hints = if state.hints_dropped { RunSet::EMPTY } else { tables.hints.clone() };
            let run_filters = state.layers.tables().run_filters.retained(&tables.mappings.runs);
            let txid = tables.txid;
            assert!(state.layers.tables().txid < txid, "trees {txid} replace {}", state.layers.tables().txid);
            let installed = state.layers.install(Tables { hints, run_filters, ..tables });
            state.hint_rebuild_next = rebuild.or(state.hint_rebuild_next);
            state.rebuilds_begun += u64::from(rebuild.is_some());
            state.recount_needed |= recount;
            // Pins are made under the state's lock: none of older trees comes after this.
            installed.map(|delta| state.history.installed(txid, delta, self.pins.oldest_tables()))
        });
        self.release_checkpointed();
    }

    /// Makes `superblock` the newest one, and if it names another journal than the one before, or none, the
    /// one before it too: whichever of the two an open finds, it looks for the journal that is kept (I16),
    /// and for none that is not.
    pub(crate) fn write_superblock_with_journal(
        &self,
        meta: &mut MetaSide,
        superblock: Superblock,
    ) -> Result<(), VolumeError> {
        let is_named = superblock.journal == meta.superblock.journal;
        self.write_superblock(meta, superblock)?;
        if is_named {
            return Ok(());
        }
        let superblock = Superblock { txid: meta.superblock.txid.next(), ..meta.superblock.clone() };
        self.write_superblock(meta, superblock)
    }

    /// Writes a superblock that says that nothing is missing from the trees, and refuses changes from now on.
    pub(crate) fn mark_clean(&self) -> Result<(), VolumeError> {
        self.state.lock().mode = Mode::Closed;
        let mut meta = self.meta.lock();
        let superblock = Superblock {
            txid: meta.superblock.txid.next(),
            clean: true,
            journal: None,
            ..meta.superblock.clone()
        };
        self.write_superblock_with_journal(&mut meta, superblock)?;
        self.flush_metadata()
    }
}

impl Tables {
    /// The trees that a superblock names.
    pub fn of(superblock: &Superblock) -> Self {
        Self {
            txid: superblock.txid,
            mappings: superblock.volumes[0].mapping.clone(),
            run_filters: RunFilters::default(),
            digests: superblock.roots.digest,
            counts: superblock.roots.refcount,
            overflow: superblock.roots.overflow,
            hints: superblock.hint.clone(),
            bad: superblock.roots.bad,
        }
    }

    /// `superblock` with these trees instead.
    fn record(&self, mut superblock: Superblock, metamap: Root) -> Superblock {
        superblock.volumes[0].mapping = self.mappings.clone();
        superblock.hint = self.hints.clone();
        superblock.features.incompat &= !Features::RUNS;
        superblock.features.incompat |= superblock.run_features();
        superblock.roots = Roots {
            digest: self.digests,
            refcount: self.counts,
            overflow: self.overflow,
            bad: self.bad,
            metamap,
        };
        superblock
    }
}

/// Nodes that [`apply`] reads to change them, and writes, more or less: leaves of digests and of counts.
fn expected_nodes(delta: &Delta) -> u64 {
    let (mut digest_leaf, mut count_leaf, mut leaves) = (None, None, 0);
    for (pbn, change) in &delta.blocks {
        let leaf = pbn.0 / CountLeaf::PER_LEAF;
        leaves += u64::from(count_leaf.replace(leaf) != Some(leaf));
        if change.count > 0 && change.digest.is_some() {
            let leaf = pbn.0 / DigestLeaf::PER_LEAF;
            leaves += u64::from(digest_leaf.replace(leaf) != Some(leaf));
        }
    }
    2 * leaves
}

/// Applies a delta to every tree but the LBN map and the index, in an order in which each finds what it needs
/// from the one before; and what is to be changed in the index.
fn apply(
    sink: &mut impl NodeSink,
    txid: TxId,
    old: &Tables,
    delta: &Delta,
) -> Result<(Tables, Vec<Change>), MetaError> {
    // Of several changes to one key the last one counts.
    let mut hint_changes: Vec<Change> =
        delta.hint_changes.iter().map(|(key, insert)| (*key, insert.then_some(()))).collect();
    // A block allocated and freed within the delta leaves no trace: its digest in the table, if any, is still
    // that of its hint.
    let allocated: Vec<(u64, crate::Digest)> = delta
        .blocks
        .iter()
        .filter(|(_, change)| change.count > 0)
        .filter_map(|(pbn, change)| Some((pbn.0, change.digest?)))
        .collect();
    let digests = DIGESTS.apply(
        sink,
        &old.digests,
        &allocated,
        &mut |pbn, old: crate::Digest, new: crate::Digest| {
            if old != new {
                hint_changes.push((HintKey { prefix: old.prefix(), pbn: Pbn(pbn) }, None));
            }
        },
    )?;
    let new = |(pbn, digest): &(u64, crate::Digest)| HintKey { prefix: digest.prefix(), pbn: Pbn(*pbn) };
    hint_changes.extend(allocated.iter().map(|block| (new(block), Some(()))));
    drop(allocated);
    hint_changes.sort_by_key(|(key, _)| *key);
    hint_changes.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        if is_same {
            earlier.1 = later.1;
        }
        is_same
    });
    let (counts, overflow) = apply_counts(sink, old, delta)?;
    let bad: Vec<(Pbn, Option<()>)> = delta.bad.iter().map(|(pbn, bad)| (*pbn, bad.then_some(()))).collect();
    let bad = BAD.apply(sink, &old.bad, &bad)?;
    let (mappings, run_filters, hints) = (old.mappings.clone(), RunFilters::default(), old.hints.clone());
    Ok((Tables { txid, mappings, run_filters, digests, counts, overflow, hints, bad }, hint_changes))
}

/// Counts up to 2 stand in two bits; larger ones there as 3, and in full in the overflow tree.
fn apply_counts(sink: &mut impl NodeSink, old: &Tables, delta: &Delta) -> Result<(Root, Root), MetaError> {
    let saturated = |count: u64| count.min(u64::from(COUNT_OVERFLOW)) as u8;
    let changes: Vec<(u64, u8)> =
        delta.blocks.iter().map(|(pbn, change)| (pbn.0, saturated(change.count))).collect();
    let mut overflow: BTreeMap<Pbn, Option<Count>> = delta
        .blocks
        .iter()
        .filter(|(_, change)| change.count >= u64::from(COUNT_OVERFLOW))
        .map(|(pbn, change)| (*pbn, Some(Count(change.count))))
        .collect();
    let counts = COUNTS.apply(sink, &old.counts, &changes, &mut |pbn, old, _| {
        if old == COUNT_OVERFLOW {
            overflow.entry(Pbn(pbn)).or_insert(None);
        }
    })?;
    let overflow: Vec<(Pbn, Option<Count>)> = overflow.into_iter().collect();
    Ok((counts, OVERFLOW.apply(sink, &old.overflow, &overflow)?))
}
