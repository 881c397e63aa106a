//! Commits: what FLUSH, FUA and `flushrq` wait for.
//!
//! Group commit: the first who needs one leads it, everybody who comes meanwhile waits for the next (see
//! [`dedup_sync::Turns`]). The leader
//!
//! 1. *cuts*: takes all published records (and, for a checkpoint, seals the active delta at this very point:
//!    rule R2),
//! 2. flushes the data device: every block that the records name was written before its record was published;
//!    or, if these are few, hands their content to the log, before the records (see
//!    [`crate::state::unflushed`]),
//! 3. appends the records to the log, 4. flushes the metadata device, 5. wakes everyone the cut covers.
//!
//! Nothing is written to the log before step 2 has succeeded (invariant I3), nobody is woken before step 4
//! has (I4). A failed flush or log write ends all commits (I6): what the devices hold is unknown, and asking
//! again could get a yes that means nothing. A commit waits for no operation after its cut, so a stream of
//! writers cannot starve it (R1).

use crate::engine::Engine;
use crate::engine::meta_side::MetaSide;
use crate::error::VolumeError;
use crate::state::delta::Delta;
use crate::state::{Mode, State};
use crate::trees::tables::Tables;
use dedup_meta::{LogPosition, PendingBlock};
use dedup_schema::{Counters, Pbn, Seq};
use dedup_sync::{Arc, Barrier, Ended, FlushError, Turn};

/// A delta sealed at a commit's cut, with everything else that a superblock says of that moment.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) delta: Arc<Delta>,
    /// The trees below it.
    pub(crate) tables: Tables,
    /// The last operation in it.
    pub(crate) seq: Seq,
    /// Where the log goes on after it.
    pub(crate) log: LogPosition,
    pub(crate) counters: Counters,
    pub(crate) data_used: u64,
    pub(crate) mapped: u64,
    pub(crate) hint_rebuild_next: Option<Pbn>,
    /// Whether the index is to be started anew.
    pub(crate) drop_hints: bool,
    pub(crate) recount_needed: bool,
}

struct Cut {
    seq: Seq,
    /// What the journal has of it, for when it is durable.
    generation: u64,
    blocks: Vec<PendingBlock>,
    /// The data device is to be flushed first.
    flush_data: bool,
    sealed: Option<Sealed>,
}

impl Engine {
    /// Returns once every operation up to `seq` is durable, with the data that it names.
    pub(crate) fn commit(&self, seq: Seq) -> Result<(), VolumeError> {
        match self.commits.turns.reach(seq.0) {
            Ok(None) => Ok(()),
            Ok(Some(turn)) => self.lead(turn, false).map(|_| ()),
            Err(Ended) => Err(self.stopped()),
        }
    }

    /// Commits everything published so far and seals the active delta at the cut, for the one running
    /// checkpoint.
    pub(crate) fn commit_and_seal(&self) -> Result<Sealed, VolumeError> {
        let turn = self.commits.turns.take().map_err(|Ended| self.stopped())?;
        let sealed = self.lead(turn, true)?;
        sealed.ok_or_else(|| VolumeError::Contradiction {
            what: "a checkpoint found another one's frozen delta".into(),
        })
    }

    fn lead(&self, turn: Turn<'_>, seal: bool) -> Result<Option<Sealed>, VolumeError> {
        let result = self.cut(seal).and_then(|cut| self.make_durable(cut));
        if let Err(error) = &result {
            self.fail_stop(error);
        }
        let (durable, sealed) = result?;
        // Something else may have failed while this commit ran: nobody is told that it succeeded (I6), and
        // nothing is given back.
        if let Err(Ended) = turn.done(durable.0) {
            return Err(self.stopped());
        }
        self.release_freed(durable);
        Ok(sealed)
    }

    fn cut(&self, seal: bool) -> Result<Cut, VolumeError> {
        let mut state = self.state.lock();
        state.writable()?;
        // A checkpoint has its data barrier (R2): it lets go of the log that has the content.
        let in_log = !seal
            && state.logged
            && state.unflushed.log_blocks().is_some_and(|n| state.budget.has_room_for_content(n));
        let content = if in_log { state.unflushed.take_content() } else { Vec::new() };
        let with_content = !content.is_empty();
        let flush_data = !in_log && state.unflushed.take_dirty();
        let blocks = state.log.take_behind(content);
        state.budget.committed(blocks.len() as u64, with_content);
        state.writes_since_commit = 0;
        let sealed = if seal { Self::seal(&mut state) } else { None };
        let State { journal, counters, .. } = &mut *state;
        let generation = journal.cut(counters);
        Ok(Cut { seq: state.seq, generation, blocks, flush_data, sealed })
    }

    /// Makes the active delta the frozen one, unless there is one. Where the log goes on after it, the commit
    /// finds out.
    pub(crate) fn seal(state: &mut State) -> Option<Sealed> {
        let delta = state.layers.seal()?;
        state.budget.froze(delta.operations);
        Some(Sealed {
            delta,
            tables: Tables::clone(state.layers.tables()),
            seq: state.seq,
            log: LogPosition::default(),
            counters: state.counters,
            data_used: state.data_used,
            mapped: state.mapped,
            hint_rebuild_next: state.hint_rebuild_next,
            drop_hints: std::mem::take(&mut state.hints_dropped),
            recount_needed: state.recount_needed,
        })
    }

    fn make_durable(&self, cut: Cut) -> Result<(Seq, Option<Sealed>), VolumeError> {
        let Cut { seq, generation, blocks, flush_data, mut sealed } = cut;
        assert!(
            self.commits.durable() <= seq,
            "a commit up to {seq} behind one up to {}",
            self.commits.durable()
        );
        if flush_data {
            self.flush_data()?;
        }
        let mut writer = self.commits.writer.lock();
        if !blocks.is_empty() {
            let end = writer.append(&**self.store.device(), blocks)?;
            self.flush_metadata()?;
            writer.mark_durable(end);
        }
        if let Some(sealed) = &mut sealed {
            sealed.log = writer.position();
        }
        drop(writer);
        self.let_go_of(seq, generation);
        Ok((seq, sealed))
    }

    /// Makes every completed write to the data device durable. Once: a second answer would mean nothing.
    fn flush_data(&self) -> Result<(), VolumeError> {
        let flush = || self.data.flush().map_err(|source| VolumeError::Data { operation: "flush", source });
        self.run_flush(&self.data_barrier, flush)
    }

    /// Flushes what small commits have left for a checkpoint, so that nobody who waits for the checkpoint's
    /// commit waits for that too.
    pub(crate) fn flush_data_ahead(&self) -> Result<(), VolumeError> {
        let is_in_log = self.state.lock().unflushed.is_in_log();
        if !is_in_log {
            return Ok(());
        }
        self.flush_data()?;
        Ok(())
    }

    /// Makes every completed write to the metadata device durable.
    pub(crate) fn flush_metadata(&self) -> Result<(), VolumeError> {
        self.run_flush(&self.barrier, || self.store.flush())
    }

    /// A flush that fails ends all commits and checkpoints there and then: none that is just ending is
    /// acknowledged (I6).
    fn run_flush<E>(
        &self,
        barrier: &Barrier,
        flush: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), VolumeError>
    where
        VolumeError: From<E>,
        E: std::fmt::Display,
    {
        barrier.run(flush, || self.end_turns()).map_err(|error| match error {
            FlushError::Failed(error) => error.into(),
            FlushError::NotTried(reason) => VolumeError::Stopped { reason },
        })
    }

    /// Nothing more is acknowledged as durable.
    fn end_turns(&self) {
        self.commits.turns.end();
        self.checkpoints.end();
    }

    /// The log before the *older* superblock's position may be overwritten (rule R3), and the state changes
    /// with that. The budget is told after the log: whoever is admitted by it must find the room.
    pub(crate) fn release_log<T>(
        &self,
        meta: &MetaSide,
        is_idle: bool,
        change: impl FnOnce(&mut State) -> T,
    ) -> T {
        self.commits.writer.lock().release(meta.older_log);
        let backing = self.backing.parts();
        let mut state = self.state.lock();
        let state = &mut *state;
        let changed = change(state);
        let usage = meta.usage(&backing);
        state.budget.checkpointed(meta.older_log.0, usage, is_idle, state.layers.tables());
        changed
    }

    /// A device failed in a way that leaves the durable state unknown: from now on nothing is written or
    /// acknowledged (invariant I6).
    pub(crate) fn fail_stop(&self, error: &VolumeError) {
        let mut state = self.state.lock();
        let writable = state.mode == Mode::ReadWrite;
        if writable {
            state.mode = Mode::Failed(match error {
                // What is told already is not told around itself.
                VolumeError::Stopped { reason } => reason.clone(),
                other => other.to_string(),
            });
        }
        drop(state);
        self.end_turns();
        // Not before: who is to be told may be slow, and everything else waits for the lock.
        if writable {
            tracing::error!("the volume stops taking writes: {error}");
        }
        self.admissions.changed();
        self.pins.blocks.changed();
        // What is open read-only is not written to (R11), and after a device's failure nothing is (I6).
        if writable && error.is_damage() {
            self.record_need_for_check();
        }
    }

    /// The error of everything that comes after [`Self::fail_stop`], or after what ended the turns and has
    /// not come to say so: a flush that failed a moment ago, or a commit or checkpoint that panicked.
    pub(crate) fn stopped(&self) -> VolumeError {
        let state = self.state.lock();
        if let Err(error) = state.writable() {
            return error;
        }
        drop(state);
        let flush = self.data_barrier.failure().or_else(|| self.barrier.failure());
        let reason = flush.unwrap_or_else(|| "a commit or checkpoint ended in a panic".into());
        let error = VolumeError::Stopped { reason };
        self.fail_stop(&error);
        error
    }
}
