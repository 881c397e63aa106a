//! Filling the filters in front of the digest index and of the runs of the LBN map, a slice at a time.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::trees::bloom::{Bloom, hash};
use crate::trees::run_filters::Filling;
use crate::trees::tables::Tables;
use dedup_meta::{MetaError, NodeSource, RunSet};
use dedup_schema::{HINTS, HintKey, Lbn, MAPPING_RUNS};
use std::ops::Bound;

/// Entries of a run, or of each tree of the index, read in one slice: some 70 leaves.
const SLICE_ENTRIES: usize = 16 << 10;
/// Keys put in under one hold of the lock: some ten microseconds.
const LOCKED_KEYS: usize = 1024;

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

    /// Reads a slice of the index into the filter. `false` if it is whole, or there is none.
    pub(crate) fn fill_filter(&self) -> Result<bool, VolumeError> {
        let from = {
            let filter = self.filter.lock();
            match filter.next {
                Some(next) if !filter.bloom.is_absent() => next,
                _ => return Ok(false),
            }
        };
        let pin = self.pin();
        let (prefixes, next) = match read_slice(&self.store, &pin.tables.hints, from) {
            Ok(slice) => slice,
            // What is left has no entries, and the next slice finds out.
            Err(error) => return Ok(self.drop_damaged_hints(&pin.tables.hints, error).map(|()| true)?),
        };
        for part in prefixes.chunks(LOCKED_KEYS) {
            let mut filter = self.filter.lock();
            part.iter().for_each(|prefix| filter.add(*prefix));
        }
        let mut filter = self.filter.lock();
        // Otherwise another thread has come further, or it was emptied meanwhile: what was read here says
        // nothing of the rest.
        if filter.next == Some(from) {
            filter.next = next;
        }
        Ok(true)
    }
}

/// Prefixes of the index's entries from `from` on, as many as make a slice, and the key up to which these are
/// all; `None`: up to its end. What runs remove counts as there: to leave it out costs far more than it
/// saves.
fn read_slice(
    source: &impl NodeSource,
    index: &RunSet,
    from: HintKey,
) -> Result<(Vec<u64>, Option<HintKey>), MetaError> {
    let mut prefixes = Vec::with_capacity(SLICE_ENTRIES);
    let mut to = None;
    // Of a run, what it adds comes before what it removes.
    for tree in std::iter::once(&index.base).chain(index.runs.iter().step_by(2)) {
        let end = to.map_or(Bound::Unbounded, Bound::Included);
        let mut left = SLICE_ENTRIES;
        for entry in HINTS.range(source, tree, (Bound::Included(from), end)) {
            let (key, ()) = entry?;
            prefixes.push(key.prefix);
            left -= 1;
            // The slice ends here, and the next begins with this key once more.
            if left == 0 {
                to = Some(key);
                break;
            }
        }
    }
    Ok((prefixes, to))
}
