//! What a tree sees of the metadata device: nodes to read and, inside a transaction, nodes to write.
//!
//! A tree never overwrites a node. It allocates a fresh block, writes the changed copy there, and frees the
//! old block, whose space comes back once no superblock and no reader can reach it (invariant I1).

use crate::{Block, BlockFault, BlockType, MetaBlock, MetaError, TxId};
use std::sync::Arc;

/// A parent's reference to a child: where it is and which version of it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// The child's place.
    pub block: MetaBlock,
    /// The child's CRC32C, as in its header.
    pub crc: u32,
}

/// The root of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// The topmost node, `None` for an empty tree.
    pub node: Option<BlockRef>,
    /// The topmost node's level, 0 if it is a leaf or the tree is empty.
    pub level: u8,
    /// Entries in the whole tree (for array trees: entries that are not zero).
    pub entries: u64,
}

impl Root {
    /// A tree without nodes.
    pub const EMPTY: Self = Self { node: None, level: 0, entries: 0 };
}

/// Checks a node's payload; called once when the node comes from the device and right before it is written.
pub type ShapeCheck<'a> = &'a dyn Fn(&Block) -> Result<(), BlockFault>;

/// Where nodes are read from.
pub trait NodeSource {
    /// The node that `at` names: verified (checksum, type, level, place, the version that the parent names),
    /// then checked by `shape` if it was not cached.
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError>;

    /// Says that these nodes will be read soon. Errors surface at the read.
    fn prefetch(&self, _nodes: &[BlockRef], _kind: BlockType, _level: u8, _shape: ShapeCheck<'_>) {}
}

/// Where a transaction writes nodes to.
pub trait NodeSink: NodeSource {
    /// The transaction's number, for the header's `birth`.
    fn birth(&self) -> TxId;
    /// A block that nothing reachable uses. Fails with [`MetaError::NoSpace`].
    fn allocate(&mut self) -> Result<MetaBlock, MetaError>;
    /// Seals `block` and writes it to the place named in its header, which `allocate` gave out; `shape` is
    /// checked first. The write may be delayed until the transaction's flush, reads see it at once.
    fn write(&mut self, block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError>;
    /// Gives a block back: at once if this transaction allocated it, else when the last superblock and reader
    /// that can reach it are gone.
    fn free(&mut self, block: MetaBlock);
}
