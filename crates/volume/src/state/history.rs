//! What checkpoints have made part of the trees lately: whoever looked something up in trees from before
//! brings it up to date with that, and need not look it up again.
//!
//! ```text
//!   trees 7 ──delta a──> trees 8 ──delta b──> trees 9, the present ones
//!      └ a count read here, unless a or b has another, is the count in trees 9
//! ```
//!
//! Without it every checkpoint would make void what is in flight, and an operation whose lookup takes longer
//! than the time between two checkpoints would never end.
//!
//! Deltas are kept as long as somebody has older trees pinned, and no more than as many operations as one
//! delta holds; the last one is kept in any case. What is older than these has to be looked up again, which
//! then takes no longer than filling a delta does.
//!
//! Invariant: `kept` has every delta installed since the trees `floor`, oldest first, but for those that
//! changed no block. It changes under the state's lock, in the step that installs new trees.

use crate::state::delta::Delta;
use dedup_meta::TxId;
use dedup_sync::Arc;

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    /// The trees that each became part of, and the delta.
    kept: Vec<(TxId, Arc<Delta>)>,
    /// The oldest trees from which on they are all.
    floor: TxId,
    operations_max: u64,
}

impl History {
    /// Nothing, as of the trees `txid`; of at most so many operations.
    pub(crate) fn new(txid: TxId, operations_max: u64) -> Self {
        Self { kept: Vec::new(), floor: txid, operations_max }
    }

    /// `delta` has become part of the trees `txid`; the oldest trees that anybody has pinned are `oldest`.
    /// Returns what is kept no longer, to be dropped without the lock.
    pub(crate) fn installed(
        &mut self,
        txid: TxId,
        delta: Arc<Delta>,
        oldest: Option<TxId>,
    ) -> Vec<(TxId, Arc<Delta>)> {
        let last = self.kept.last().map_or(self.floor, |(last, _)| *last);
        assert!(last < txid, "what made trees {txid} comes behind what made {last}");
        if !delta.blocks.is_empty() {
            self.kept.push((txid, delta));
        }
        self.trim(oldest.unwrap_or(txid))
    }

    /// Nobody has trees older than `oldest` pinned: what these would need is kept no longer.
    pub(crate) fn trim(&mut self, oldest: TxId) -> Vec<(TxId, Arc<Delta>)> {
        let mut gone = self.kept.partition_point(|(txid, _)| *txid <= oldest);
        let mut operations: u64 = self.kept[gone..].iter().map(|(_, delta)| delta.operations).sum();
        while operations > self.operations_max && self.kept.len() - gone > 1 {
            operations -= self.kept[gone].1.operations;
            gone += 1;
        }
        let gone: Vec<_> = self.kept.drain(..gone).collect();
        self.floor = self.floor.max(oldest).max(gone.last().map_or(self.floor, |(txid, _)| *txid));
        gone
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The deltas that made the present trees of the trees `txid`, oldest first; `None` if some of them are
    /// gone.
    pub(crate) fn since(&self, txid: TxId) -> Option<impl Iterator<Item = &Arc<Delta>> + Clone> {
        let from = self.kept.partition_point(|(made, _)| *made <= txid);
        (txid >= self.floor).then(|| self.kept[from..].iter().map(|(_, delta)| delta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_schema::{Digest, Pbn};

    fn delta(pbn: u64, operations: u64) -> Arc<Delta> {
        let mut delta = Delta::default();
        delta.operations = operations;
        delta.allocate(Pbn(pbn), Digest::default());
        Arc::new(delta)
    }

    fn since(history: &History, txid: u64) -> Option<Vec<u64>> {
        let pbns = |delta: &Arc<Delta>| delta.blocks.keys().map(|pbn| pbn.0).collect::<Vec<_>>();
        history.since(TxId(txid)).map(|deltas| deltas.flat_map(pbns).collect())
    }

    #[test]
    fn it_has_what_was_installed_since_the_oldest_pinned_trees() {
        let mut history = History::new(TxId(5), 100);
        assert_eq!(since(&history, 5), Some(vec![]));
        history.installed(TxId(6), delta(1, 10), Some(TxId(5)));
        history.installed(TxId(7), Arc::new(Delta::default()), Some(TxId(5)));
        history.installed(TxId(8), delta(2, 10), Some(TxId(5)));
        assert_eq!(since(&history, 5), Some(vec![1, 2]));
        assert_eq!([6, 7].map(|txid| since(&history, txid)), [Some(vec![2]), Some(vec![2])]);
        assert_eq!(since(&history, 8), Some(vec![]));
        assert_eq!(history.trim(TxId(7)).len(), 1);
        assert_eq!((since(&history, 6), since(&history, 7)), (None, Some(vec![2])));
        history.installed(TxId(9), delta(3, 10), None);
        assert!(history.is_empty() && since(&history, 8).is_none());
        assert_eq!(since(&history, 9), Some(vec![]));
    }

    #[test]
    fn it_has_no_more_operations_than_it_may_but_the_last_delta_in_any_case() {
        let mut history = History::new(TxId(1), 100);
        for txid in 2..10 {
            history.installed(TxId(txid), delta(txid, 40), Some(TxId(1)));
        }
        assert_eq!((since(&history, 6), since(&history, 7)), (None, Some(vec![8, 9])));
        history.installed(TxId(10), delta(10, 1000), Some(TxId(1)));
        assert_eq!((since(&history, 8), since(&history, 9)), (None, Some(vec![10])));
    }
}
