//! How far a checkpoint is, told to the writers that fill the next delta meanwhile (see
//! [`crate::state::budget`]).
//!
//! A checkpoint is measured in nodes that it reads to change them, and writes; how many there will be is
//! estimated before each tree. An estimate that is too low lets writers fill the delta before the checkpoint
//! ends, and then they wait for its end; one that is too high slows them down more than need be. Neither is
//! an error.
//!
//! There is no clock: one seed gives one run.

use crate::state::budget::PROGRESS;
use dedup_meta::{
    Block, BlockRef, BlockType, MetaBlock, MetaError, NodeSink, NodeSource, ShapeCheck, Transaction, TxId,
};
use dedup_sync::Arc;
use std::cell::Cell;

/// Nodes after which it is told how far the checkpoint is: below a millisecond.
const STEP_NODES: u64 = 64;
/// What comes after the last tree, as a part of what came before: the metadata map and two flushes.
const END_PART: u64 = 8;

/// A transaction whose nodes are counted.
pub(crate) struct Paced<'a, 'm> {
    transaction: Transaction<'m>,
    /// Is told how far it is, if anybody wants to know.
    progress: Option<&'a dyn Fn(u64)>,
    /// Nodes read and written.
    done: Cell<u64>,
    /// As last told.
    told: Cell<u64>,
    /// What is expected by the end.
    total: u64,
}

impl<'a, 'm> Paced<'a, 'm> {
    /// Counts from 0.
    pub(crate) fn new(transaction: Transaction<'m>, progress: Option<&'a dyn Fn(u64)>) -> Self {
        Self { transaction, progress, done: Cell::new(0), told: Cell::new(0), total: 0 }
    }

    /// So many nodes are still to come.
    pub(crate) fn expect(&mut self, nodes: u64) {
        self.total = self.done.get() + nodes;
    }

    /// The transaction, to be finished.
    pub(crate) fn end(self) -> Transaction<'m> {
        self.transaction
    }

    fn count(&self) {
        let done = self.done.get() + 1;
        self.done.set(done);
        let Some(progress) = self.progress.filter(|_| done - self.told.get() >= STEP_NODES) else { return };
        self.told.set(done);
        let end = self.total.max(done) / END_PART + STEP_NODES;
        progress(done * PROGRESS / (self.total.max(done) + end));
    }
}

impl NodeSource for Paced<'_, '_> {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.count();
        self.transaction.read(at, kind, level, shape)
    }

    fn prefetch(&self, nodes: &[BlockRef], kind: BlockType, level: u8, shape: ShapeCheck<'_>) {
        self.transaction.prefetch(nodes, kind, level, shape);
    }
}

impl NodeSink for Paced<'_, '_> {
    fn birth(&self) -> TxId {
        self.transaction.birth()
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.transaction.allocate()
    }

    fn write(&mut self, block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        self.count();
        self.transaction.write(block, shape)
    }

    fn free(&mut self, block: MetaBlock) {
        self.transaction.free(block);
    }
}
