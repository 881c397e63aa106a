//! How many blocks a batch can need, at most: what a transaction reserves before it begins.
//!
//! Let n changes meet a tree with t(l) nodes on level l that they may touch, of capacity C(l).
//!
//! - A touched leaf that gets i changes holds at most C + i entries, so it becomes at most 1 + ceil(i/C)
//!   nodes. If it becomes small instead, it and the neighbours it joins hold at most 1.25 C: two nodes, which
//!   is no more, as i > 0. Summed over the leaves, with ceil(i/C) <= 1 + (i-1)/C: **w(0) <= 2 t(0) +
//!   n/C(0)**.
//! - A node on level l+1 gains at most what was written below it: **w(l+1) <= 2 t(l+1) + w(l)/C(l+1)**.
//! - t(l) <= n; t(0) <= entries; t(l+1) <= t(l); and counted from the root r, t(r) = 1, t(r-k) <= C^k.
//! - What the root has become, if more than one node, gets new levels: w/C rounded up, until one is left.

use super::{BTree, Key, Value};
use dedup_meta::Root;

impl<K: Key, V: Value> BTree<K, V> {
    /// An upper bound of the blocks that [`apply`](Self::apply) allocates for `changes` changes to the tree
    /// at `root`.
    pub fn worst_case_blocks(changes: u64, root: &Root) -> u64 {
        if changes == 0 {
            return 0;
        }
        let fanout = Self::FANOUT as u64;
        let mut touched = changes.min(root.entries.max(1));
        let mut written = changes / Self::LEAF_CAPACITY as u64;
        let mut total: u64 = 0;
        for level in 0..=root.level {
            touched = touched.min(fanout.saturating_pow(u32::from(root.level - level)));
            written = written.saturating_add(touched.saturating_mul(2));
            total = total.saturating_add(written);
            if level < root.level {
                written /= fanout;
            }
        }
        while written > 1 {
            written = written.div_ceil(fanout);
            total = total.saturating_add(written);
        }
        total
    }
}
