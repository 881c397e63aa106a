//! Replacing whole leaves of an array tree, at a price that is known beforehand.
//!
//! For a space map that stores itself: it must know which blocks writing it will take and give back, before
//! it encodes the leaves that say so. The price is found by the very same recursion over a sink that only
//! counts; old leaves are not read, neither then nor in earnest.

use super::edit::{Edit, LeafEdit, out_of_range};
use super::{ArrayTree, LeafCodec};
use crate::bytes::LIMIT_48;
use dedup_meta::{
    Block, BlockRef, BlockType, MetaBlock, MetaError, NodeSink, NodeSource, PAYLOAD_SIZE, Root, ShapeCheck,
    TxId,
};
use std::marker::PhantomData;
use std::sync::Arc;

impl<L: LeafCodec> ArrayTree<L> {
    /// The tree with the leaves of these numbers, which must rise strictly, replaced by these payloads. All
    /// of them are written, except all-default ones, which are dropped. After an error the transaction must
    /// be given up.
    pub fn put_leaves<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        root: &Root,
        leaves: &[(u64, &[u8; PAYLOAD_SIZE])],
    ) -> Result<Root, MetaError> {
        let leaves = leaves.iter().map(|(number, payload)| (*number, Some(*payload), L::used(&payload[..])));
        self.replace(sink, root, leaves)
    }

    /// What [`put_leaves`](Self::put_leaves) will allocate and free, exactly: how many blocks, and which.
    /// Each leaf is given by its number and whether its new payload holds anything but default values.
    pub fn put_leaves_cost<S: NodeSource + ?Sized>(
        &self,
        source: &S,
        root: &Root,
        leaves: &[(u64, bool)],
    ) -> Result<(u64, Vec<MetaBlock>), MetaError> {
        let mut count = Count { source, allocated: 0, freed: Vec::new() };
        self.replace(
            &mut count,
            root,
            leaves.iter().map(|(number, holds)| (*number, None, u32::from(*holds))),
        )?;
        Ok((count.allocated, count.freed))
    }

    fn replace<'p, N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        root: &Root,
        leaves: impl Iterator<Item = (u64, Option<&'p [u8; PAYLOAD_SIZE]>, u32)>,
    ) -> Result<Root, MetaError> {
        let leaves: Vec<_> = leaves
            .map(|(number, payload, used)| Leaf { first: number.saturating_mul(L::PER_LEAF), payload, used })
            .collect();
        let last = leaves.iter().rev().find(|leaf| leaf.used > 0);
        if let Some(leaf) = last.filter(|leaf| leaf.first >= LIMIT_48) {
            return Err(out_of_range::<L>(self.kind, leaf.first));
        }
        let reach = last.map_or(0, |leaf| leaf.first + 1);
        self.edit(sink, root, reach, &leaves, &mut Replace(PhantomData::<L>))
    }
}

/// A leaf's new content.
struct Leaf<'p> {
    first: u64,
    /// `None` if only the cost matters.
    payload: Option<&'p [u8; PAYLOAD_SIZE]>,
    used: u32,
}

impl Edit for Leaf<'_> {
    fn index(&self) -> u64 {
        self.first
    }
}

struct Replace<L>(PhantomData<L>);

impl<L: LeafCodec> LeafEdit<Leaf<'_>> for Replace<L> {
    const READS_OLD: bool = false;

    fn edit(&mut self, payload: &mut [u8; PAYLOAD_SIZE], _first: u64, edits: &[Leaf<'_>]) -> (bool, u32) {
        // Strictly rising multiples of PER_LEAF: one edit a leaf.
        let used = edits.iter().map(|leaf| leaf.used).sum();
        edits.iter().filter_map(|leaf| leaf.payload).for_each(|new| payload.copy_from_slice(new));
        (true, used)
    }
}

/// A sink that writes nothing. Reads see the tree as it was, which suffices: an edit never reads what it
/// wrote.
struct Count<'s, S: ?Sized> {
    source: &'s S,
    allocated: u64,
    freed: Vec<MetaBlock>,
}

impl<S: NodeSource + ?Sized> NodeSource for Count<'_, S> {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.source.read(at, kind, level, shape)
    }

    fn prefetch(&self, nodes: &[BlockRef], kind: BlockType, level: u8, shape: ShapeCheck<'_>) {
        self.source.prefetch(nodes, kind, level, shape);
    }
}

impl<S: NodeSource + ?Sized> NodeSink for Count<'_, S> {
    fn birth(&self) -> TxId {
        TxId(0)
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.allocated += 1;
        Ok(MetaBlock(LIMIT_48 - 1))
    }

    fn write(&mut self, block: Box<Block>, _shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        Ok(BlockRef { block: MetaBlock(block.header.block.get()), crc: 0 })
    }

    fn free(&mut self, block: MetaBlock) {
        self.freed.push(block);
    }
}
