//! Filters in front of the runs of the LBN map: without reading a run they say of most LBNs that it has not that it has not, so a lookup
//! reads about as much as if there were no runs.
//!
//! A run is immutable, and so is its filter: it stands among the trees beside the run's root, and goes with it. The worker makes it, a
//! slice at a time, after the checkpoint or the open that brought the run; until then lookups read the run. A run that a checkpoint has
//! changed has another root, and gets a filter anew.
//!
//! Memory: 10 bits for each entry of a run; 25 MiB a TiB when the runs are as large as they get. No more than
//! `--filter-size` for each.
//!
//! **Invariant:** a filter passes every LBN that its run has. Were that broken, a read would find what the LBN was mapped to before.

use crate::bloom::{Bloom, hash};
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::tables::Tables;
use dedup_meta::{BlockRef, Root};
use dedup_schema::{Lbn, MAPPING_RUNS};
use dedup_sync::Arc;

/// Entries of a run read in one slice: some 70 leaves.
const SLICE_ENTRIES: usize = 16 << 10;

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

    fn of(&self, run: &Root) -> Option<&Bloom> {
        self.filters.iter().find(|(root, _)| run.node == Some(*root)).map(|(_, bloom)| &**bloom)
    }

    fn with(&self, root: BlockRef, bloom: Bloom) -> Self {
        Self { filters: [&self.filters[..], &[(root, Arc::new(bloom))]].concat() }
    }
}

/// A filter in the making.
#[derive(Debug)]
pub(crate) struct Filling {
    run: BlockRef,
    bloom: Bloom,
    /// All before this LBN is in it.
    next: Lbn,
}

impl Engine {
    /// Reads a slice of a run that has no filter. `false` if all have one.
    pub(crate) fn fill_run_filter(&self) -> Result<bool, VolumeError> {
        if self.options.filter_bytes_max == 0 {
            return Ok(false);
        }
        let pin = self.pin();
        let Tables { mappings, run_filters, .. } = &*pin.tables;
        let mut filling = self.filling.lock();
        let is_wanted = |root| mappings.runs.iter().any(|run| run.node == Some(root));
        let begun = filling.take().filter(|filling| is_wanted(filling.run));
        let lacking = mappings.runs.iter().find(|run| run_filters.of(run).is_none() && run.node.is_some());
        let new = || {
            let (run, root) = lacking.and_then(|run| Some((run, run.node?)))?;
            Some(Filling {
                run: root,
                bloom: Bloom::new(run.entries, self.options.filter_bytes_max),
                next: Lbn(0),
            })
        };
        let Some(Filling { run: root, mut bloom, next }) = begun.or_else(new) else { return Ok(false) };
        let Some(run) = mappings.runs.iter().find(|run| run.node == Some(root)) else { return Ok(false) };
        let tree = MAPPING_RUNS.tree();
        let mut last = None;
        let mut count = 0;
        for entry in tree.range(&self.store, run, next..).take(SLICE_ENTRIES) {
            let (lbn, _) = entry?;
            bloom.add(hash(lbn.0));
            (last, count) = (Some(lbn), count + 1);
        }
        match last.filter(|_| count == SLICE_ENTRIES) {
            Some(Lbn(last)) => *filling = Some(Filling { run: root, bloom, next: Lbn(last + 1) }),
            None => {
                let mut state = self.state.lock();
                let tables = Tables::clone(state.layers.tables());
                if tables.mappings.runs.iter().any(|run| run.node == Some(root)) {
                    let run_filters = tables.run_filters.with(root, bloom);
                    state.layers.replace_tables(Tables { run_filters, ..tables });
                }
            }
        }
        Ok(true)
    }
}
