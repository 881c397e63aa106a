//! The three layers of truth: what operations change, what a checkpoint is writing, and the trees.
//!
//! ```text
//!    active ──seal──> frozen ──install──> part of the trees
//!                     (at a commit's cut)  (one step: trees in, frozen out)
//! ```
//!
//! A lookup asks the active delta, then the frozen one, then the trees *of that very moment*: with trees from
//! before, what a checkpoint has just moved out of the frozen delta would be in neither; deltas asked later
//! than the trees were taken are the same mistake.
//!
//! Invariant, as long as the lock around the layers is free: every key's newest value is in the topmost layer
//! that has the key. There is no I/O and no lock here: the layers are part of the state and change under its
//! lock, together with the sequence number, so that a sealed delta ends at the cut (rule R2).

use crate::Arc;

/// The layers, topmost first. `D` is a delta, `T` the roots of the trees.
#[derive(Debug)]
pub struct Layers<D, T> {
    /// What operations change.
    pub active: D,
    frozen: Option<Arc<D>>,
    tables: Arc<T>,
}

impl<D: Default, T> Layers<D, T> {
    /// Trees with nothing above them.
    pub fn new(tables: T) -> Self {
        Self { active: D::default(), frozen: None, tables: Arc::new(tables) }
    }

    /// The active delta becomes the frozen one, for a checkpoint to write; `None` if there is one already.
    pub fn seal(&mut self) -> Option<Arc<D>> {
        if self.frozen.is_some() {
            return None;
        }
        let sealed = Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(Arc::clone(&sealed));
        Some(sealed)
    }

    /// Trees that the frozen delta has become part of: they replace it and the trees before. Returns that
    /// delta.
    pub fn install(&mut self, tables: T) -> Option<Arc<D>> {
        self.tables = Arc::new(tables);
        self.frozen.take()
    }

    /// Other trees that say the same as those before.
    pub fn replace_tables(&mut self, tables: T) {
        self.tables = Arc::new(tables);
    }

    /// The deltas, newest first. What none of them has is in [`Self::tables`] as of the same moment.
    pub fn deltas(&self) -> impl Iterator<Item = &D> {
        std::iter::once(&self.active).chain(self.frozen.as_deref())
    }

    /// The active delta, to be changed, and what it stands above.
    pub fn active_over_frozen(&mut self) -> (&mut D, Option<&D>) {
        (&mut self.active, self.frozen.as_deref())
    }

    /// The trees below the deltas.
    pub fn tables(&self) -> &Arc<T> {
        &self.tables
    }

    /// Whether a checkpoint is writing a delta.
    pub fn is_sealed(&self) -> bool {
        self.frozen.is_some()
    }
}
