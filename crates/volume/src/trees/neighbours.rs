//! Digests of the blocks around those that were found lately.
//!
//! Digests are random, so each lookup in the index goes to another of its leaves, and an index larger than
//! the cache costs a read for each duplicate. Data repeats in streams, though: what was stored one after the
//! other comes again one after the other. So when hits follow one another on the data device, the whole leaf
//! of the digest tree around them is taken in, and the next one ahead of need: a stream of duplicates then
//! costs a read of the digest tree for each 127 blocks, and none of the index. (The idea is the
//! locality-preserved cache of Zhu, Li and Patterson, "Avoiding the Disk Bottleneck in the Data Domain
//! Deduplication File System", FAST 2008.)
//!
//! What is found here is a hint like one of the index, believed only once its digest has been compared with
//! the truth. Invariant: `blocks` has entries of the leaves in `leaves` only, which bounds the memory.

use dedup_btree::LeafCodec;
use dedup_schema::{Digest, DigestLeaf, Pbn};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Leaves that are kept: half a megabyte for 32,000 blocks, far more than the few streams that clients write
/// at a time need.
const LEAVES_MAX: usize = 256;

/// The digests of some leaves of the digest tree, by prefix.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    /// Oldest first, each with the prefixes in it.
    leaves: VecDeque<(u64, Vec<u64>)>,
    blocks: FxHashMap<u64, Pbn>,
    /// Leaves with a hit not long ago, each in a place of its own, whoever looked: clients that write side by
    /// side hide nothing from one another.
    hit_before: HitBefore,
}

/// Leaves that are remembered as hit: more than there are streams at a time, and few enough that scattered
/// hits hardly ever meet one.
const HIT_BEFORE: usize = 256;

/// See [`Neighbours`]. Two leaves of one place displace each other.
#[derive(Debug)]
struct HitBefore([Option<u64>; HIT_BEFORE]);

impl Default for HitBefore {
    fn default() -> Self {
        Self([None; HIT_BEFORE])
    }
}

impl HitBefore {
    /// Notes a hit in a leaf, and says whether there was one before.
    fn note(&mut self, leaf: u64) -> bool {
        self.0[leaf as usize % HIT_BEFORE].replace(leaf) == Some(leaf)
    }
}

impl Neighbours {
    /// A block that had such a digest when its leaf was taken in.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Pbn> {
        self.blocks.get(&digest.prefix()).copied()
    }

    /// Takes note of a lookup's hits and says which leaves to take in: those with hits that follow one
    /// another, in this lookup or since one not long ago, and the next leaf once the second half of one is
    /// reached.
    pub(crate) fn wanted(&mut self, hits: impl IntoIterator<Item = Pbn>) -> Vec<u64> {
        let mut hits: Vec<u64> = hits.into_iter().map(|pbn| pbn.0).collect();
        hits.sort_unstable();
        let mut wanted = Vec::new();
        for hits in hits.chunk_by(|a, b| a / DigestLeaf::PER_LEAF == b / DigestLeaf::PER_LEAF) {
            let leaf = hits[0] / DigestLeaf::PER_LEAF;
            let was_hit = self.hit_before.note(leaf);
            let neighbours = hits.windows(2).any(|pair| pair[0] + 1 == pair[1]);
            if neighbours || was_hit {
                wanted.push(leaf);
                let is_in_second_half = |pbn: &u64| pbn % DigestLeaf::PER_LEAF >= DigestLeaf::PER_LEAF / 2;
                wanted.extend(hits.last().filter(|pbn| is_in_second_half(pbn)).map(|_| leaf + 1));
            }
        }
        wanted.dedup();
        wanted.retain(|leaf| self.leaves.iter().all(|(known, _)| known != leaf));
        wanted
    }

    /// Takes a leaf in, for the oldest one if there are too many.
    pub(crate) fn take_in(&mut self, leaf: u64, entries: impl Iterator<Item = (Pbn, Digest)>) {
        if self.leaves.len() >= LEAVES_MAX
            && let Some((old, prefixes)) = self.leaves.pop_front()
        {
            for prefix in prefixes {
                // A later leaf may have the prefix as well.
                if self.blocks.get(&prefix).is_some_and(|pbn| pbn.0 / DigestLeaf::PER_LEAF == old) {
                    self.blocks.remove(&prefix);
                }
            }
        }
        let mut prefixes = Vec::with_capacity(DigestLeaf::PER_LEAF as usize);
        for (pbn, digest) in entries {
            self.blocks.insert(digest.prefix(), pbn);
            prefixes.push(digest.prefix());
        }
        self.leaves.push_back((leaf, prefixes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        let mut digest = Digest::default();
        digest.0[..8].copy_from_slice(&n.to_be_bytes());
        digest
    }

    fn entries(leaf: u64) -> impl Iterator<Item = (Pbn, Digest)> {
        (0..DigestLeaf::PER_LEAF)
            .map(move |slot| leaf * DigestLeaf::PER_LEAF + slot)
            .map(|n| (Pbn(n), digest(n)))
    }

    #[test]
    fn scattered_hits_take_nothing_in_and_a_stream_takes_in_each_leaf_once_and_ahead() {
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.wanted([5, 1000, 50_000].map(Pbn)), []);
        assert_eq!(neighbours.wanted([70_000, 90_000].map(Pbn)), []);
        let mut taken = Vec::new();
        for start in (0..1260).step_by(7) {
            for leaf in neighbours.wanted((start..start + 7).map(Pbn)) {
                assert!(
                    start + 7 >= leaf.saturating_sub(1) * DigestLeaf::PER_LEAF,
                    "leaf {leaf} at {start}: too early"
                );
                neighbours.take_in(leaf, entries(leaf));
                taken.push(leaf);
            }
        }
        assert_eq!(taken, (0..=1260 / DigestLeaf::PER_LEAF + 1).collect::<Vec<_>>());
        assert_eq!(neighbours.find(&digest(1000)), Some(Pbn(1000)));
    }

    #[test]
    fn single_writes_one_after_the_other_are_a_stream_too() {
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.wanted([Pbn(3)]), []);
        assert_eq!(neighbours.wanted([Pbn(4)]), [0]);
    }

    /// There was one list of the last lookup's hits for all clients: two that wrote single blocks by turns,
    /// or one beside others' scattered hits, were never taken for streams.
    #[test]
    fn streams_that_are_written_by_turns_and_among_scattered_hits_are_streams_each() {
        let mut neighbours = Neighbours::default();
        let mut taken = Vec::new();
        let other = 393 * DigestLeaf::PER_LEAF;
        for n in 0..3 {
            for pbn in [3 + n, other + n, 1_000_000 + 77_777 * n] {
                taken.extend(neighbours.wanted([Pbn(pbn)]));
            }
        }
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken, [0, 393]);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_leaves_go_first() {
        let mut neighbours = Neighbours::default();
        for leaf in 0..3 * LEAVES_MAX as u64 {
            neighbours.take_in(leaf, entries(leaf));
        }
        assert_eq!(neighbours.leaves.len(), LEAVES_MAX);
        assert_eq!(neighbours.blocks.len() as u64, LEAVES_MAX as u64 * DigestLeaf::PER_LEAF);
        assert_eq!(neighbours.find(&digest(0)), None);
    }
}
