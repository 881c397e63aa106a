//! How many blocks a batch of changes to an array tree can need, at most.
//!
//! On level l, `indices` indices have N(l) = ceil(indices / span(l)) nodes. Each of n changes rewrites at
//! most one of them, so min(n, N(l)); no node ever splits. A tree that grows also stores, on each level above
//! the old root, the first node, whether or not a change lies below it: one more, still among the N(l).

use super::node::{level_for, span};
use super::{ArrayTree, LeafCodec};

impl<L: LeafCodec> ArrayTree<L> {
    /// An upper bound of the blocks that [`apply`](Self::apply) allocates for `changes` changes, if the tree
    /// holds nothing beyond the first `indices` indices before and after.
    pub fn worst_case_blocks(changes: u64, indices: u64) -> u64 {
        if changes == 0 {
            return 0;
        }
        let nodes = |level| indices.div_ceil(span::<L>(level));
        let above = (1..=level_for::<L>(indices)).map(|level| nodes(level).min(changes.saturating_add(1)));
        above.fold(nodes(0).min(changes), u64::saturating_add)
    }
}
