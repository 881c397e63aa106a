//! Reading and writing one node under the rule that its place in the tree sets for it.
//!
//! Both kinds of tree descend alike: a parent names a child and, by its own level and keys, says what the
//! child may look like. That expectation is a [`Rule`]. Its `check` is the one validity function of a tree:
//! it runs right before each write and right after each read from the device. Its `check_place` is the part
//! of it that costs O(1); it runs on every descent, because a node that is cached was checked in the place
//! from which it was first read, and a damaged pointer may lead to it from another one.
//!
//! **Invariant:** a child's rule has its parent's level less one, so a descent ends whatever the pointers
//! say.

use dedup_meta::{Block, BlockFault, BlockRef, BlockType, MetaBlock, MetaError, NodeSink, NodeSource};
use std::sync::Arc;

/// Most nodes that are asked for in one prefetch: 1 MiB of blocks, so that a batch cannot flush a small
/// cache.
const PREFETCH_MAX: usize = 256;

/// What a node in a certain place of a tree must look like.
pub(crate) trait Rule: Sized {
    /// The block type of the tree.
    fn kind(&self) -> BlockType;
    /// The level expected in this place.
    fn level(&self) -> u8;
    /// The same level's rule without the place: what may be said of several nodes at once.
    fn anywhere(&self) -> Self;
    /// The part of `check` that costs O(1).
    fn check_place(&self, block: &Block) -> Result<(), BlockFault>;
    /// Everything that makes a node valid in this place.
    fn check(&self, block: &Block) -> Result<(), BlockFault>;
    /// The children of a valid node and their rules; none for a leaf.
    fn children(&self, block: &Block) -> Vec<(BlockRef, Self)>;
}

/// The node at `at`, valid in its place.
pub(crate) fn read<R: Rule, S: NodeSource + ?Sized>(
    source: &S,
    at: BlockRef,
    rule: &R,
) -> Result<Arc<Block>, MetaError> {
    let block = source.read(at, rule.kind(), rule.level(), &|block| rule.check(block))?;
    rule.check_place(&block).map_err(|fault| damaged(at.block, rule, fault))?;
    Ok(block)
}

/// Says that all these nodes, on the level of `rule`, will be read.
pub(crate) fn prefetch<R: Rule, S: NodeSource + ?Sized>(source: &S, nodes: &[BlockRef], rule: &R) {
    let anywhere = rule.anywhere();
    for chunk in nodes.chunks(PREFETCH_MAX) {
        source.prefetch(chunk, rule.kind(), rule.level(), &|block| anywhere.check(block));
    }
}

/// Gives `block` a place and writes it there.
pub(crate) fn write<R: Rule, N: NodeSink + ?Sized>(
    sink: &mut N,
    mut block: Box<Block>,
    rule: &R,
) -> Result<BlockRef, MetaError> {
    let place = sink.allocate()?;
    block.header.block = place.0.into();
    block.header.birth = sink.birth().0.into();
    sink.write(block, &|block| rule.check(block))
}

/// A fault in the block at `block`, as an error.
pub(crate) fn damaged<R: Rule>(block: MetaBlock, rule: &R, fault: BlockFault) -> MetaError {
    MetaError::Damaged { block, kind: rule.kind(), level: rule.level(), fault }
}

/// A field that does not have a value it may have.
pub(crate) fn fault(field: &'static str, expected: impl ToString, found: impl ToString) -> BlockFault {
    BlockFault::Field { field, expected: expected.to_string(), found: found.to_string() }
}

/// `Ok` if the bytes that no entry uses are zero.
pub(crate) fn check_unused(bytes: &[u8]) -> Result<(), BlockFault> {
    // Most of a node may be unused, and 64 bytes at a time are compared as fast as one.
    let (chunks, rest) = bytes.as_chunks::<64>();
    if chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let found = bytes.iter().find(|byte| **byte != 0).unwrap_or(&0);
    Err(fault("unused bytes", 0, found))
}
