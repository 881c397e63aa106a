//! Freed data blocks that must not be reused yet (invariant I2).
//!
//! ```text
//!   count drops to 0 ──> waiting ──(commit durable, no reader from before, checkpoint if freed in replay)──> released
//!                                                             └─(if discards are on)─> the queue of discards, before they are free
//! ```

use dedup_schema::{Pbn, Seq};
use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeBounds;

/// Blocks with count 0 that the allocator must pass over.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    /// In the order in which they were freed.
    waiting: VecDeque<(Seq, Pbn)>,
    /// Freed by the replay of the log: held until a checkpoint covers it, since an older superblock may be
    /// what the next open starts from.
    replayed: BTreeSet<Pbn>,
    /// All of the above.
    members: BTreeSet<Pbn>,
}

/// How many blocks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Census {
    /// In all, those being discarded among them.
    pub(crate) all: u64,
    /// Until a checkpoint.
    pub(crate) replayed: u64,
    /// The last operation that freed something still waiting for a commit or a reader.
    pub(crate) newest: Option<Seq>,
}

impl Quarantine {
    /// The operation `seq` took the last reference of `pbn`.
    pub(crate) fn freed(&mut self, seq: Seq, pbn: Pbn) {
        let fresh = self.members.insert(pbn);
        assert!(fresh, "block {pbn} freed twice");
        let before = self.waiting.back().map(|(seq, _)| *seq);
        assert!(before <= Some(seq), "block {pbn} freed by operation {seq} behind {before:?}");
        self.waiting.push_back((seq, pbn));
    }

    /// The replay of the log took the last reference of `pbn`.
    pub(crate) fn freed_in_replay(&mut self, pbn: Pbn) {
        self.members.insert(pbn);
        self.replayed.insert(pbn);
    }

    /// Whether `pbn` was freed and is not reused yet.
    pub(crate) fn holds(&self, pbn: Pbn) -> bool {
        self.members.contains(&pbn)
    }

    /// The replay of the log found `pbn` in use again.
    pub(crate) fn reused_in_replay(&mut self, pbn: Pbn) {
        self.members.remove(&pbn);
        self.replayed.remove(&pbn);
    }

    /// Operations up to `durable` are durable, and the oldest reader began at `oldest_reader`: what may be
    /// reused from now on.
    pub(crate) fn release(&mut self, durable: Seq, oldest_reader: Option<Seq>) -> Vec<Pbn> {
        let limit = oldest_reader.map_or(durable, |reader| reader.min(durable));
        let count = self.waiting.partition_point(|(seq, _)| *seq <= limit);
        let released: Vec<Pbn> = self.waiting.drain(..count).map(|(_, pbn)| pbn).collect();
        self.let_go(&released);
        released
    }

    /// A checkpoint covers the replayed log. Returns what may be reused from now on, as [`Self::release`]
    /// does.
    pub(crate) fn checkpointed(&mut self) -> Vec<Pbn> {
        let released: Vec<Pbn> = std::mem::take(&mut self.replayed).into_iter().collect();
        self.let_go(&released);
        released
    }

    fn let_go(&mut self, pbns: &[Pbn]) {
        for pbn in pbns {
            self.members.remove(pbn);
        }
    }

    /// What is held, and why.
    pub(crate) fn census(&self) -> Census {
        Census {
            all: self.members.len() as u64,
            replayed: self.replayed.len() as u64,
            newest: self.waiting.back().map(|(seq, _)| *seq),
        }
    }

    /// Members within a range, ascending.
    pub(crate) fn range(&self, range: impl RangeBounds<Pbn>) -> impl Iterator<Item = Pbn> + '_ {
        self.members.range(range).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_waits_for_its_commit_and_for_readers_from_before() {
        let mut quarantine = Quarantine::default();
        quarantine.freed(Seq(5), Pbn(1));
        quarantine.freed(Seq(9), Pbn(2));
        assert!(quarantine.release(Seq(4), None).is_empty(), "not durable");
        assert!(quarantine.release(Seq(9), Some(Seq(4))).is_empty(), "a reader began before it was freed");
        assert_eq!(quarantine.release(Seq(9), Some(Seq(5))), [Pbn(1)]);
        assert_eq!(quarantine.range(..).collect::<Vec<_>>(), [Pbn(2)]);
    }
}
