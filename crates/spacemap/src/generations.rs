//! How long a freed metadata block stays held: invariant I1 as a queue.
//!
//! A tree never overwrites a node: transaction T writes the changed copy to a fresh block and frees the old
//! one. The old one is part of the tree as the superblock of T-1 has it, and the two superblock slots decide
//! how long that matters:
//!
//! ```text
//!                  slot 0      slot 1     the block freed in T is reachable from
//!  T running        T-2         T-1        T-2, T-1       must not be written: a crash falls back to T-1
//!  T durable        T           T-1        T-1            must not be written: if T's superblock is found damaged,
//!                                                         an open falls back to T-1
//!  T+1 running      T           T-1        T-1            the same
//!  T+1 durable      T           T+1        nothing        may be written, by T+2 at the earliest
//! ```
//!
//! A reader works on the roots of the transaction that was the newest when it began, and keeps them until it
//! ends. A reader of the roots of R reaches the block if R < T; readers of T and later cannot. So the block
//! is allocatable once
//!
//! - the superblock of T+1 (or of a later transaction) is durable, **and**
//! - no reader of a transaction before T is alive.
//!
//! Blocks that one transaction both allocates and frees are in no superblock's tree; they never come here.
//!
//! Each superblock written must replace the older of the two slots; that is the superblock's own rule.

use std::collections::VecDeque;

/// Freed blocks whose hold has not ended, by the transaction that freed them.
#[derive(Clone, Debug, Default)]
pub struct Generations {
    /// Transactions ascending, none without blocks.
    queue: VecDeque<(u64, Vec<u64>)>,
    held: u64,
}

impl Generations {
    /// Nothing held.
    pub fn new() -> Self {
        Self::default()
    }

    /// Transaction `txid` freed these blocks, each now held in the [`SpaceMap`](crate::SpaceMap). May be
    /// called several times for one transaction. After an open, the blocks that only the older superblock's
    /// map counts as used were freed by the newer one's transaction.
    ///
    /// # Panics
    /// If a later transaction's blocks are already here.
    pub fn freed(&mut self, txid: u64, blocks: Vec<u64>) {
        if blocks.is_empty() {
            return;
        }
        self.held += blocks.len() as u64;
        match self.queue.back_mut() {
            Some((last, list)) if *last == txid => list.extend(blocks),
            last => {
                let last = last.map(|(last, _)| *last);
                assert!(
                    last < Some(txid),
                    "blocks freed by transaction {txid} after those of transaction {last:?}"
                );
                self.queue.push_back((txid, blocks));
            }
        }
    }

    /// The superblock of `txid` is durable, and `oldest_reader` is the oldest transaction whose roots a
    /// reader still uses: hands back the blocks to [`unhold`](crate::SpaceMap::unhold). May be called again
    /// with the same `txid` when a reader has ended.
    pub fn durable(&mut self, txid: u64, oldest_reader: Option<u64>) -> Vec<u64> {
        let ended = |freed_in: u64| freed_in < txid && oldest_reader.is_none_or(|reader| reader >= freed_in);
        let count = self.queue.iter().take_while(|(freed_in, _)| ended(*freed_in)).count();
        let blocks: Vec<u64> = self.queue.drain(..count).flat_map(|(_, blocks)| blocks).collect();
        self.held -= blocks.len() as u64;
        blocks
    }

    /// How many blocks are still held.
    pub fn held(&self) -> u64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_freed_in_t_is_handed_back_by_t_plus_1_and_not_before() {
        let mut generations = Generations::new();
        generations.freed(7, vec![100, 101]);
        assert_eq!(generations.durable(6, None), [0; 0]);
        assert_eq!(generations.durable(7, None), [0; 0]);
        assert_eq!(generations.held(), 2);
        assert_eq!(generations.durable(8, None), [100, 101]);
        assert_eq!(generations.held(), 0);
    }

    #[test]
    fn a_reader_of_t_minus_1_keeps_the_blocks_freed_in_t_and_a_reader_of_t_does_not() {
        let mut generations = Generations::new();
        generations.freed(7, vec![100]);
        assert_eq!(generations.durable(9, Some(6)), [0; 0]);
        assert_eq!(generations.durable(9, Some(7)), [100]);
    }

    #[test]
    #[should_panic(expected = "transaction 3 after those of transaction Some(4)")]
    fn frees_of_an_earlier_transaction_are_refused() {
        let mut generations = Generations::new();
        generations.freed(4, vec![1]);
        generations.freed(3, vec![2]);
    }

    proptest! {
        /// The naive model: every block with its transaction, in a plain list filtered by the rule.
        #[test]
        fn each_block_is_handed_back_exactly_once_and_only_when_nothing_reaches_it(
            steps in prop::collection::vec((0usize..5, 0u64..4, prop::option::of(0u64..6)), 1..60),
        ) {
            let mut generations = Generations::new();
            let mut model: Vec<(u64, u64)> = Vec::new();
            let mut block = 0;
            for (txid, (frees, lag, reader_lag)) in (10u64..).zip(steps) {
                let blocks: Vec<u64> = (block..block + frees as u64).collect();
                block += frees as u64;
                model.extend(blocks.iter().map(|b| (txid, *b)));
                generations.freed(txid, blocks);
                let durable = txid - lag;
                let reader = reader_lag.map(|lag| txid - lag);
                let ended = |t: u64| t < durable && reader.is_none_or(|r| r >= t);
                let expected: Vec<u64> = model.iter().filter(|(t, _)| ended(*t)).map(|(_, b)| *b).collect();
                model.retain(|(t, _)| !ended(*t));
                prop_assert_eq!(generations.durable(durable, reader), expected);
                prop_assert_eq!(generations.held(), model.len() as u64);
            }
        }
    }
}
