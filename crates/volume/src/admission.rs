//! Getting operations admitted: waits for commits and checkpoints where the budget is short.
//!
//! Who is short stands in line ([`dedup_sync::Line`]): what a checkpoint gives back is for who waited longest, however much that needs. The
//! first in line has done what gives something back; who stands behind it waits for it.

use crate::budget::{Purpose, Shortage};
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::fault::Fault;
use crate::state::State;

/// Admitted operations; what is not published by the end is given back.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    engine: &'a Engine,
    left: u64,
}

impl Admission<'_> {
    /// `n` of the operations were published.
    pub(crate) fn used(&mut self, n: u64) {
        self.left -= n;
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.left > 0 && !self.engine.planted(Fault::AdmissionNotReturned) {
            self.engine.state.lock().budget.give_back(self.left);
        }
        self.engine.admissions.changed();
    }
}

impl Engine {
    /// Reserves log, delta and metadata space for `n` operations. To be called without a pin: it may wait for a checkpoint, and what
    /// that frees waits for pins. Fails with [`dedup_meta::MetaError::NoSpace`] when nothing helps.
    pub(crate) fn admit(&self, n: u64, purpose: Purpose) -> Result<Admission<'_>, VolumeError> {
        let mut place = self.admissions.place();
        loop {
            place.advance();
            let steps = self.checkpoints.steps();
            let (admitted, seq, txid) = {
                let mut state = self.state.lock();
                state.writable()?;
                let State { layers, budget, seq, .. } = &mut *state;
                let tables = layers.tables();
                (budget.admit(n, layers.active.operations, tables, purpose), *seq, tables.txid)
            };
            let Err(shortage) = admitted else {
                return Ok(Admission { engine: self, left: n });
            };
            if place.join() {
                // Whoever came meanwhile goes first.
                continue;
            }
            match shortage {
                Shortage::Commit => self.commit(seq)?,
                Shortage::Others => place.wait(),
                Shortage::Checkpoint => self.step_of_checkpoint(steps)?,
                Shortage::Space { wanted, is_least } => self.back_metadata(wanted, is_least),
                Shortage::Held => {
                    // What readers still reach does not come free with any checkpoint.
                    self.pins.wait_for_tables(txid);
                    self.checkpoint()?;
                }
                Shortage::Metadata => {
                    let dropped = self.state.lock().budget.drop_hints();
                    if !dropped {
                        let error = self.metadata_full();
                        if n == 1 && matches!(error, VolumeError::FullBelow { .. }) {
                            // There may be room below by the next time, and no operation of the volume tells.
                            self.state.lock().budget.look_again();
                        }
                        return Err(error);
                    }
                    tracing::warn!("metadata device nearly full: the digest index is no longer written");
                }
            }
        }
    }
}
