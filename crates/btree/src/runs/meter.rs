//! A sink that counts, for work that goes on until its blocks are used up.

use dedup_meta::{Block, BlockRef, BlockType, MetaBlock, MetaError, NodeSink, NodeSource, ShapeCheck, TxId};
use std::sync::Arc;

/// Counts the blocks that pass through it to another sink.
#[derive(Debug)]
pub struct Metered<'n, N: ?Sized> {
    sink: &'n mut N,
    allocated: u64,
}

impl<'n, N: NodeSink + ?Sized> Metered<'n, N> {
    /// Counts from 0.
    pub fn new(sink: &'n mut N) -> Self {
        Self { sink, allocated: 0 }
    }

    /// Blocks allocated so far, also those given back since.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }
}

impl<N: NodeSink + ?Sized> NodeSource for Metered<'_, N> {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.sink.read(at, kind, level, shape)
    }

    fn prefetch(&self, nodes: &[BlockRef], kind: BlockType, level: u8, shape: ShapeCheck<'_>) {
        self.sink.prefetch(nodes, kind, level, shape);
    }
}

impl<N: NodeSink + ?Sized> NodeSink for Metered<'_, N> {
    fn birth(&self) -> TxId {
        self.sink.birth()
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.allocated += 1;
        self.sink.allocate()
    }

    fn write(&mut self, block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        self.sink.write(block, shape)
    }

    fn free(&mut self, block: MetaBlock) {
        self.sink.free(block);
    }
}
