//! Filters in front of the runs of the LBN map: without reading a run they say of most LBNs that it has not
//! that it has not, so a lookup reads about as much as if there were no runs.
//!
//! A run is immutable, and so is its filter: it stands among the trees beside the run's root, and goes with
//! it. The worker makes it, a slice at a time, after the checkpoint or the open that brought the run; until
//! then lookups read the run. A run that a checkpoint has changed has another root, and gets a filter anew.
//!
//! Memory: 10 bits for each entry of a run; 25 MiB a TiB when the runs are as large as they get. No more than
//! `--filter-size` for each.
//!
//! **Invariant:** a filter passes every LBN that its run has. Were that broken, a read would find what the
//! LBN was mapped to before.

use crate::trees::bloom::{Bloom, hash};
use dedup_meta::{BlockRef, Root};
use dedup_schema::Lbn;
use dedup_sync::Arc;

/// The filters of those runs that have one, by the run's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilters {
    filters: Vec<(BlockRef, Arc<Bloom>)>,
}

impl RunFilters {
    /// Whether a run may have an LBN.
    pub(crate) fn may_hold(&self, run: &Root, lbn: Lbn) -> bool {
        self.of(run).is_none_or(|bloom| bloom.may_hold(hash(lbn.0)))
    }

    /// These filters, but for those whose run is none of `runs`.
    pub(crate) fn retained(&self, runs: &[Root]) -> Self {
        let kept = self.filters.iter().filter(|(root, _)| runs.iter().any(|run| run.node == Some(*root)));
        Self { filters: kept.cloned().collect() }
    }

    pub(crate) fn of(&self, run: &Root) -> Option<&Bloom> {
        self.filters.iter().find(|(root, _)| run.node == Some(*root)).map(|(_, bloom)| &**bloom)
    }

    pub(crate) fn with(&self, root: BlockRef, bloom: Bloom) -> Self {
        Self { filters: [&self.filters[..], &[(root, Arc::new(bloom))]].concat() }
    }
}

/// A filter in the making.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) run: BlockRef,
    pub(crate) bloom: Bloom,
    /// All before this LBN is in it.
    pub(crate) next: Lbn,
}
