//! Of each block, what it may hold, given what was asked for, answered and flushed, and whether the process
//! died or the power failed since. For whoever has one request under way on a block: a client of a server
//! that is killed, a volume whose process dies.
//!
//! ```text
//!   versions of a block:   v0 ─── v1 ─── v2 ─── v3         in the order in which they were asked for, one at a time
//!                          ^ known durable      ^ last asked for
//!                                 ^ last answered: what a read must return, and what the next FLUSH makes durable
//! ```
//!
//! After a kill a block holds the last version answered or a later one, after a power cut the last one known
//! durable or any later one, *whole*. Invariant: a block has one request under way at most, so its versions
//! have an order.

use std::fmt::Debug;
use std::ops::Range;

/// One block's versions.
#[derive(Clone, Debug)]
struct History<V> {
    /// From the one known durable on.
    versions: Vec<V>,
    /// Place in `versions` of the last one answered.
    answered: usize,
    /// How many versions were forgotten, because a later one is durable.
    forgotten: usize,
    busy: bool,
}

/// All blocks. A `V` stands for what one holds.
#[derive(Clone, Debug)]
pub struct Ledger<V> {
    blocks: Vec<History<V>>,
}

/// What a FLUSH, sent now, will make durable.
#[derive(Debug)]
pub struct Snapshot(Vec<usize>);

impl<V: Clone + Debug> Ledger<V> {
    /// So many blocks, each of which holds `version` and is durable.
    pub fn new(blocks: usize, version: V) -> Self {
        Self { blocks: vec![History::new(version); blocks] }
    }

    /// Blocks in it.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Whether none of these blocks has a request under way.
    pub fn is_idle(&self, blocks: Range<usize>) -> bool {
        self.blocks[blocks].iter().all(|history| !history.busy)
    }

    /// A read of these blocks is under way.
    pub fn begin_read(&mut self, blocks: Range<usize>) {
        self.blocks[blocks].iter_mut().for_each(|history| history.busy = true);
    }

    /// The read was answered.
    pub fn end_read(&mut self, blocks: Range<usize>) {
        self.blocks[blocks].iter_mut().for_each(|history| history.busy = false);
    }

    /// A change of a block is under way.
    pub fn begin_change(&mut self, block: usize, change: impl FnOnce(&mut V)) {
        let history = &mut self.blocks[block];
        let mut next = history.versions[history.versions.len() - 1].clone();
        change(&mut next);
        history.versions.push(next);
        history.busy = true;
    }

    /// The change was answered; with `durable` nothing that is feared undoes it any more: FUA was asked for,
    /// or only the process can die.
    pub fn end_change(&mut self, block: usize, durable: bool) {
        let history = &mut self.blocks[block];
        history.busy = false;
        history.answered = history.versions.len() - 1;
        if durable {
            history.forget(history.forgotten + history.answered);
        }
    }

    /// The change was refused: the block is as it was, or as it was to be. Nobody touches it until the volume
    /// is read back.
    pub fn end_refused(&mut self, block: usize) {
        self.blocks[block].busy = true;
    }

    /// What a FLUSH covers that is sent now.
    pub fn begin_flush(&self) -> Snapshot {
        Snapshot(self.blocks.iter().map(|history| history.forgotten + history.answered).collect())
    }

    /// The FLUSH was answered.
    pub fn end_flush(&mut self, flushed: &Snapshot) {
        self.blocks.iter_mut().zip(&flushed.0).for_each(|(history, version)| history.forget(*version));
    }

    /// Everything that was answered is durable: the server ended in good order.
    pub fn all_durable(&mut self) {
        let flushed = self.begin_flush();
        self.end_flush(&flushed);
    }

    /// What a read must return now.
    pub fn current(&self, block: usize) -> &V {
        let history = &self.blocks[block];
        &history.versions[history.answered]
    }

    /// Takes over what a block holds after the process has died, if it may: `is_there` says of a version
    /// whether that is it.
    pub fn recover(&mut self, block: usize, is_there: impl Fn(&V) -> bool) -> Result<(), String> {
        let history = &mut self.blocks[block];
        let Some(found) = history.versions.iter().rev().find(|version| is_there(version)).cloned() else {
            return Err(format!(
                "block {block} holds none of the {} versions from the last durable one on: {:?}",
                history.versions.len(),
                history.versions,
            ));
        };
        *history = History::new(found);
        Ok(())
    }
}

impl<V> History<V> {
    fn new(version: V) -> Self {
        Self { versions: vec![version], answered: 0, forgotten: 0, busy: false }
    }

    /// Version `durable`, counted from the first one ever, is known durable.
    fn forget(&mut self, durable: usize) {
        let gone = durable.saturating_sub(self.forgotten);
        self.versions.drain(..gone);
        self.answered -= gone;
        self.forgotten += gone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three versions of one block; the second is durable.
    fn three_versions() -> Ledger<[u32; 2]> {
        let mut ledger = Ledger::new(1, [0; 2]);
        for (content, durable) in [(1, false), (2, true)] {
            ledger.begin_change(0, |block| block.fill(content));
            ledger.end_change(0, durable);
        }
        ledger.begin_change(0, |block| block[..1].fill(3));
        ledger
    }

    #[test]
    fn the_durable_version_and_each_later_one_may_be_there() {
        for found in [[2, 2], [3, 2]] {
            three_versions().recover(0, |version| *version == found).unwrap();
        }
    }

    #[test]
    fn an_older_version_and_a_torn_one_may_not() {
        for found in [[0, 0], [1, 1], [2, 3], [3, 3]] {
            assert!(three_versions().recover(0, |version| *version == found).is_err(), "{found:?}");
        }
    }

    #[test]
    fn a_flush_covers_what_was_answered_when_it_was_sent() {
        let mut ledger = Ledger::new(1, 0);
        ledger.begin_change(0, |block| *block = 1);
        ledger.end_change(0, false);
        let flushed = ledger.begin_flush();
        ledger.begin_change(0, |block| *block = 2);
        ledger.end_change(0, false);
        ledger.end_flush(&flushed);
        for (found, may_be) in [(0, false), (1, true), (2, true)] {
            assert_eq!(ledger.clone().recover(0, |version| *version == found).is_ok(), may_be, "{found}");
        }
    }
}
