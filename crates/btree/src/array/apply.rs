//! Changing single values of an array tree.

use super::edit::{Edit, LeafEdit, out_of_range};
use super::{ArrayTree, LeafCodec};
use crate::bytes::LIMIT_48;
use dedup_meta::{MetaError, NodeSink, PAYLOAD_SIZE, Root};
use std::marker::PhantomData;

impl<L: LeafCodec> ArrayTree<L> {
    /// The tree with the values of `changes`, whose indices must rise strictly, else [`MetaError::Unsorted`].
    ///
    /// Calls `replaced(index, old, new)` for each change of a value that was not the default, in rising order
    /// but for the indices below the root's child 0, which come last. A leaf in which nothing changes is not
    /// written. Blocks allocated: at most [`worst_case_blocks`](Self::worst_case_blocks). An index from 2^48
    /// on can only be set to the default. After an error the transaction must be given up.
    pub fn apply<N: NodeSink + ?Sized>(
        &self,
        sink: &mut N,
        root: &Root,
        changes: &[(u64, L::Value)],
        replaced: &mut dyn FnMut(u64, L::Value, L::Value),
    ) -> Result<Root, MetaError> {
        let reach =
            changes.iter().rev().find(|(_, value)| *value != L::Value::default()).map_or(0, |(i, _)| i + 1);
        if reach > LIMIT_48 {
            return Err(out_of_range::<L>(self.kind, reach - 1));
        }
        self.edit(sink, root, reach, changes, &mut Values::<L> { replaced, codec: PhantomData })
    }
}

impl<V> Edit for (u64, V) {
    fn index(&self) -> u64 {
        self.0
    }
}

/// Sets single values.
struct Values<'r, L: LeafCodec> {
    replaced: &'r mut dyn FnMut(u64, L::Value, L::Value),
    codec: PhantomData<L>,
}

impl<L: LeafCodec> LeafEdit<(u64, L::Value)> for Values<'_, L> {
    const READS_OLD: bool = true;

    fn edit(
        &mut self,
        payload: &mut [u8; PAYLOAD_SIZE],
        first: u64,
        edits: &[(u64, L::Value)],
    ) -> (bool, u32) {
        let mut changed = false;
        for (index, new) in edits {
            let slot = (index - first) as usize;
            let old = L::get(payload, slot);
            if old != L::Value::default() {
                (self.replaced)(*index, old, *new);
            }
            if old != *new {
                changed = true;
                L::set(payload, slot, *new);
            }
        }
        (changed, L::used(payload))
    }
}
