//! Getting operations admitted: waits for commits and checkpoints where the budget is short.

use crate::budget::{Purpose, Shortage};
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::fault::Fault;
use crate::ids::Lbn;
use crate::runs::Merging;
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
        self.engine.admissions.given_back();
    }
}

/// Checkpoints that may be needed before metadata blocks are free again: those freed by one are held by the two superblocks after it
/// (I1), so it is the third that finds everything free.
const CHECKPOINTS_MAX: u32 = 3;

impl Engine {
    /// Reserves log, delta and metadata space for `n` operations. To be called without a pin: it may wait for a checkpoint, and what
    /// that frees waits for pins. Fails with [`dedup_meta::MetaError::NoSpace`] when nothing helps.
    pub(crate) fn admit(&self, n: u64, purpose: Purpose) -> Result<Admission<'_>, VolumeError> {
        // Checkpoints in a row that found the metadata device short although nobody else was using it, and gave nothing back.
        let mut in_vain = 0;
        loop {
            let steps = self.checkpoints.steps();
            let (admitted, seq) = self.admissions.pass(&self.state, |state| {
                if let Err(error) = state.writable() {
                    return Some((Err(error), state.seq));
                }
                let State { layers, budget, seq, .. } = state;
                match budget.admit(n, layers.active.operations, layers.tables(), purpose) {
                    Err(Shortage::Others) => None,
                    result => Some((Ok(result), *seq)),
                }
            });
            let Err(shortage) = admitted? else {
                return Ok(Admission { engine: self, left: n });
            };
            match shortage {
                Shortage::Commit => self.commit(seq)?,
                // Waited for above.
                Shortage::Others => {}
                Shortage::Checkpoint => self.step_of_checkpoint(steps)?,
                Shortage::Space { wanted, is_least } => self.back_metadata(wanted, is_least),
                Shortage::Metadata if in_vain < CHECKPOINTS_MAX => {
                    let before = self.merge_progress();
                    self.checkpoint()?;
                    // A merge comes to an end, and only then gives its room back.
                    let is_merging = self.merge_progress() != before;
                    in_vain = if is_merging { 0 } else { in_vain + 1 };
                }
                Shortage::Metadata => {
                    let dropped = self.state.lock().budget.drop_hints();
                    if !dropped {
                        return Err(self.metadata_full());
                    }
                    tracing::warn!("metadata device nearly full: the digest index is no longer written");
                    in_vain = 0;
                }
            }
        }
    }

    /// How far the runs of the LBN map have been merged: how many there are, and where the merge under way goes on.
    fn merge_progress(&self) -> (usize, Option<Merging<Lbn>>) {
        let runs = self.state.lock().layers.tables().mappings.runs.len();
        (runs, self.meta.lock().merging_mappings)
    }
}
