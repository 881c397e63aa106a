//! How far a sweep over the index is. What it does is in [`crate::background::gc`].

use dedup_schema::HintKey;

/// A sweep over the index.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// Where it goes on; `None` when none is running.
    pub(crate) next: Option<HintKey>,
    /// Entries removed by the last or running sweep.
    pub(crate) removed: u64,
    pub(crate) examined: u64,
}
