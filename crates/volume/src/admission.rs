//! Getting operations admitted: waits for commits and checkpoints where the budget is short.

use crate::budget::{Purpose, Shortage};
use crate::engine::Engine;
use crate::error::VolumeError;

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
        if self.left > 0 {
            self.engine.state.lock().budget.give_back(self.left);
        }
        self.engine.admission_changed.notify_all();
    }
}

/// Checkpoints that may be needed before metadata blocks are free again: those freed by one are held by the two superblocks after it
/// (I1), so it is the third that finds everything free.
const CHECKPOINTS_MAX: u32 = 3;

impl Engine {
    /// Reserves log, delta and metadata space for `n` operations. To be called without a pin: it may wait for a checkpoint, and what
    /// that frees waits for pins. Fails with [`dedup_meta::MetaError::NoSpace`] when nothing helps.
    pub(crate) fn admit(&self, n: u64, purpose: Purpose) -> Result<Admission<'_>, VolumeError> {
        // Checkpoints in a row that found the metadata device short although nobody else was using it.
        let mut in_vain = 0;
        loop {
            let (shortage, seq) = {
                let mut state = self.state.lock();
                state.writable()?;
                let active = state.active.operations;
                let tables = state.tables.clone();
                match state.budget.admit(n, active, &tables, purpose) {
                    Ok(()) => return Ok(Admission { engine: self, left: n }),
                    Err(Shortage::Others) => {
                        drop(self.admission_changed.wait(state));
                        continue;
                    }
                    Err(shortage) => (shortage, state.seq),
                }
            };
            match shortage {
                Shortage::Commit => self.commit(seq)?,
                Shortage::Others => {}
                Shortage::Checkpoint => self.checkpoint()?,
                Shortage::Metadata { alone } if !alone || in_vain < CHECKPOINTS_MAX => {
                    self.checkpoint()?;
                    in_vain += u32::from(alone);
                }
                Shortage::Metadata { .. } => {
                    let mut state = self.state.lock();
                    if !state.budget.drop_hints() {
                        return Err(state.budget.full().into());
                    }
                    tracing::warn!("metadata device nearly full: the digest index is no longer written");
                    in_vain = 0;
                }
            }
        }
    }
}
