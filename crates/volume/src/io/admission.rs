//! Getting operations admitted: waits for commits and checkpoints where the budget is short.
//!
//! Who is short stands in line ([`dedup_sync::Line`]): what a checkpoint gives back is for who waited
//! longest, however much that needs. The first in line has done what gives something back; who stands behind
//! it waits for it.
//!
//! A refusal is quick. Who finds the metadata device full takes what there is room for, if it can do with
//! less, and goes on with the rest later. Where not even that fits, checkpoints are run only as long as they
//! may give back enough (see [`crate::state::budget`]): a device that was found full stays full until
//! something is freed, and to find that out again costs nothing. Where it is the file system below that is
//! full, each refusal asks it once whether it has room again.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::state::State;
use crate::state::budget::{Budget, Purpose, Shortage};
use crate::trees::tables::Tables;
use dedup_meta::TxId;
use dedup_schema::Seq;
use dedup_sync::{Place, thread};

/// Admitted operations; what is not published by the end is given back.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    engine: &'a Engine,
    left: u64,
}

/// When an operation was found to be short.
#[derive(Clone, Copy, Debug)]
struct Tried {
    /// Steps of checkpoints before.
    steps: u64,
    /// The last published operation.
    seq: Seq,
    /// The trees.
    txid: TxId,
}

impl Admission<'_> {
    /// How many operations may be published.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// `n` of the operations were published.
    pub(crate) fn used(&mut self, n: u64) {
        assert!(n <= self.left, "{n} operations of {} admitted", self.left);
        self.left -= n;
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        // After a panic under the state's lock that lock is poisoned: a second panic, of asking for it, would
        // end the process before the first is told.
        if self.left > 0 && !thread::panicking() {
            self.engine.state.lock().budget.give_back(self.left);
        }
        self.engine.admissions.changed();
    }
}

impl Engine {
    /// Reserves log, delta and metadata space for `n` operations. To be called without a pin: it may wait for
    /// a checkpoint, and what that frees waits for pins. Fails with [`dedup_meta::MetaError::NoSpace`] when
    /// nothing helps.
    pub(crate) fn admit(&self, n: u64, purpose: Purpose) -> Result<Admission<'_>, VolumeError> {
        self.admit_by(|budget, active, tables| budget.admit(n, active, tables, purpose).map(|()| n))
    }

    /// The same for up to `n` operations, and one at least: on a nearly full metadata device fewer at a time
    /// may still be affordable.
    pub(crate) fn admit_some(&self, n: u64, purpose: Purpose) -> Result<Admission<'_>, VolumeError> {
        self.admit_by(|budget, active, tables| budget.admit_some(n, active, tables, purpose))
    }

    fn admit_by(
        &self,
        admit: impl Fn(&mut Budget, u64, &Tables) -> Result<u64, Shortage>,
    ) -> Result<Admission<'_>, VolumeError> {
        let mut place = self.admissions.place();
        loop {
            place.advance();
            let steps = self.checkpoints.steps();
            let (admitted, tried) = {
                let mut state = self.state.lock();
                state.writable()?;
                let State { layers, budget, seq, .. } = &mut *state;
                let tables = layers.tables();
                let tried = Tried { steps, seq: *seq, txid: tables.txid };
                (admit(budget, layers.active.operations, tables), tried)
            };
            let shortage = match admitted {
                Ok(left) => return Ok(Admission { engine: self, left }),
                Err(shortage) => shortage,
            };
            if place.join() {
                // Whoever came meanwhile goes first.
                continue;
            }
            self.relieve(shortage, tried, &mut place)?;
        }
    }

    /// Does what may end a shortage. An error if nothing will.
    fn relieve(&self, shortage: Shortage, tried: Tried, place: &mut Place<'_>) -> Result<(), VolumeError> {
        match shortage {
            Shortage::Commit => self.commit(tried.seq),
            Shortage::Others => {
                place.wait();
                Ok(())
            }
            Shortage::Checkpoint => self.step_of_checkpoint(tried.steps),
            Shortage::Space { wanted, is_least } => {
                self.back_metadata(wanted, is_least);
                Ok(())
            }
            Shortage::Held => {
                // What readers still reach does not come free with any checkpoint.
                self.pins.wait_for_tables(tried.txid);
                self.checkpoint()
            }
            Shortage::Metadata if self.has_room_below_again() => Ok(()),
            Shortage::Metadata => {
                if !self.state.lock().budget.drop_hints() {
                    return Err(self.metadata_full());
                }
                tracing::warn!("metadata device nearly full: the digest index is no longer written");
                Ok(())
            }
        }
    }
}
