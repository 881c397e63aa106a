//! Many nodes in a few large reads, past the cache: for who reads whole trees, and each node once.
//!
//! ```text
//!   nodes, as they are asked for     17 40 18 900 42
//!   on the device                    [17 18] [40 41 42] [900]      41 is read through, not looked at
//!   in the buffer                    |17|18|40|41|42|900|          each node verified in its place
//! ```
//!
//! A read that fails is repeated node by node, so that one bad sector costs the nodes that lie on it and no
//! other.

use super::Store;
use crate::io::{RUN_BLOCKS, failed, offset};
use crate::{Block, BlockFault, BlockRef, BlockType, META_BLOCK_SIZE, MetaBlock, MetaError};
use dedup_device::{AlignedBuf, ReadOp};
use std::vec;
use zerocopy::FromBytes;

/// Most blocks between two nodes that are read through: 32 KiB take a disk as long as an operation costs by
/// itself.
const GAP_MAX: u64 = 8;

/// Nodes that were read together, in the order in which they were asked for.
#[derive(Debug)]
pub struct Bulk {
    buffer: AlignedBuf,
    /// Of each node not handed out yet: its block in the buffer, or what is wrong.
    places: vec::IntoIter<Result<usize, MetaError>>,
}

/// Blocks next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    first: u64,
    blocks: u64,
}

impl Bulk {
    /// The next node.
    pub fn next_node(&mut self) -> Option<Result<&Block, MetaError>> {
        let place = self.places.next()?;
        Some(place.map(|place| block_at(&self.buffer, place)))
    }

    /// Whether there is memory in it that is worth passing on.
    pub fn is_reusable(&self) -> bool {
        !self.buffer.is_empty()
    }
}

impl Default for Bulk {
    /// No nodes and no memory.
    fn default() -> Self {
        Self { buffer: AlignedBuf::zeroed(0), places: Vec::new().into_iter() }
    }
}

impl Store {
    /// Reads nodes of one type and level, each verified as [`read`](crate::NodeSource::read) does it; `shape`
    /// is told the node's place in `nodes`. Takes the memory of `old` if it is large enough: that of as many
    /// nodes always is.
    pub fn read_bulk(
        &self,
        nodes: &[BlockRef],
        kind: BlockType,
        level: u8,
        shape: &dyn Fn(usize, &Block) -> Result<(), BlockFault>,
        old: Bulk,
    ) -> Bulk {
        let damaged = |at: MetaBlock, fault| MetaError::Damaged { block: at, kind, level, fault };
        let blocks = self.blocks();
        let is_there = |at: &BlockRef| at.block.0 < blocks;
        let beyond = |at: &BlockRef| damaged(at.block, self.beyond(at.block));
        let mut places: Vec<Result<usize, MetaError>> =
            nodes.iter().map(|at| if is_there(at) { Ok(0) } else { Err(beyond(at)) }).collect();
        let mut order: Vec<usize> = (0..nodes.len()).filter(|i| is_there(&nodes[*i])).collect();
        order.sort_unstable_by_key(|i| nodes[*i].block);

        // At most as many blocks are read through as there are nodes. Memory that is never written is not
        // taken.
        let extents = extents(order.iter().map(|i| nodes[*i].block.0), nodes.len() as u64);
        let needed = 2 * nodes.len() * META_BLOCK_SIZE;
        let mut buffer = old.buffer;
        if buffer.len() < needed {
            buffer = AlignedBuf::zeroed(needed);
        }
        let read = self.read_extents(&extents, &mut buffer);

        let (mut begin, mut rest) = (0, &order[..]);
        for (extent, whole) in extents.iter().zip(read) {
            let (within, behind) =
                rest.split_at(rest.partition_point(|i| nodes[*i].block.0 < extent.first + extent.blocks));
            rest = behind;
            for i in within {
                let at = nodes[*i];
                let place = begin + (at.block.0 - extent.first) as usize;
                let alone = |buffer: &mut AlignedBuf| {
                    let bytes = &mut buffer[place * META_BLOCK_SIZE..][..META_BLOCK_SIZE];
                    let start = offset(at.block.0);
                    self.device.read(start, bytes).map_err(|error| failed("read", start, error))
                };
                let found = if whole { Ok(()) } else { alone(&mut buffer) };
                places[*i] = found.and_then(|()| {
                    let shape = |block: &Block| shape(*i, block);
                    let checked = self.check(block_at(&buffer, place), at, kind, level, &shape);
                    checked.map(|()| place).map_err(|fault| damaged(at.block, fault))
                });
            }
            begin += extent.blocks as usize;
        }
        Bulk { buffer, places: places.into_iter() }
    }

    /// Fills the buffer from the extents, one after the other; which of them could be read.
    fn read_extents(&self, extents: &[Extent], buffer: &mut [u8]) -> Vec<bool> {
        let (mut ops, mut rest) = (Vec::with_capacity(extents.len()), buffer);
        for extent in extents {
            let (bytes, behind) = rest.split_at_mut(extent.blocks as usize * META_BLOCK_SIZE);
            rest = behind;
            ops.push(ReadOp::new(offset(extent.first), vec![bytes]));
        }
        self.device.read_batch(&mut ops);
        ops.iter().map(|op| op.result.is_ok()).collect()
    }
}

/// What to read for these blocks (not falling), with at most `spare` others between them.
fn extents(blocks: impl Iterator<Item = u64>, mut spare: u64) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for block in blocks {
        if let Some(last) = extents.last_mut() {
            let end = last.first + last.blocks;
            // The same block again, or one a little behind it.
            let gap = block.saturating_sub(end);
            let longer = (block + 1).max(end) - last.first;
            if gap <= GAP_MAX.min(spare) && longer <= RUN_BLOCKS as u64 {
                last.blocks = longer;
                spare -= gap;
                continue;
            }
        }
        extents.push(Extent { first: block, blocks: 1 });
    }
    extents
}

fn block_at(buffer: &[u8], place: usize) -> &Block {
    let bytes = &buffer[place * META_BLOCK_SIZE..][..META_BLOCK_SIZE];
    Block::ref_from_bytes(bytes).expect("a block has any alignment, and the slice is one long")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TxId;
    use crate::test_device::TestDevice;
    use std::sync::Arc;
    use uuid::Uuid;

    const POOL: Uuid = Uuid::from_u128(7);

    /// Leaves of the index at these places, and the references to them.
    fn leaves(device: &TestDevice, places: &[u64]) -> Vec<BlockRef> {
        let seal = |place: &u64| {
            let at = MetaBlock(*place);
            let mut block = Block::new(BlockType::Hint, 0, at, TxId(1));
            let crc = block.seal(POOL);
            crate::io::write_blocks(device, [&*block]).unwrap();
            BlockRef { block: at, crc }
        };
        places.iter().map(seal).collect()
    }

    fn read(store: &Store, nodes: &[BlockRef]) -> Vec<Result<u64, MetaError>> {
        let shape =
            |i: usize, block: &Block| crate::field("place", nodes[i].block.0, block.header.block.get());
        let mut bulk = store.read_bulk(nodes, BlockType::Hint, 0, &shape, Bulk::default());
        std::iter::from_fn(|| Some(bulk.next_node()?.map(|block| block.header.block.get()))).collect()
    }

    #[test]
    fn nodes_come_in_the_order_asked_for_whatever_stands_between_them() {
        let device = Arc::new(TestDevice::new(1024));
        let places = [17, 40, 18, 900, 42, 600, 609, 17];
        let nodes = leaves(&device, &places);
        let store = Store::new(device, POOL, 16);
        let found: Vec<u64> = read(&store, &nodes).into_iter().map(Result::unwrap).collect();
        assert_eq!(found, places);
        assert_eq!(store.cached(), 0);
    }

    #[test]
    fn reads_go_through_gaps_up_to_a_limit_and_to_as_many_blocks_as_are_wanted() {
        let found = |blocks: &[u64], spare| {
            let extents = extents(blocks.iter().copied(), spare);
            extents.iter().map(|extent| (extent.first, extent.blocks)).collect::<Vec<_>>()
        };
        assert_eq!(found(&[5, 6, 6, 8, 17, 27], 9), [(5, 13), (27, 1)]);
        assert_eq!(found(&[5, 7, 9, 11], 2), [(5, 5), (11, 1)]);
        let long: Vec<u64> = (0..600).collect();
        assert_eq!(found(&long, 600), [(0, 256), (256, 256), (512, 88)]);
        assert_eq!(found(&[], 0), []);
    }

    #[test]
    fn one_bad_sector_costs_one_node_and_no_damage_hides_another() {
        let device = Arc::new(TestDevice::new(1024));
        let mut nodes = leaves(&device, &[10, 11, 12, 14, 15]);
        device.make_unreadable(11);
        nodes[3].crc ^= 1;
        nodes.push(BlockRef { block: MetaBlock(1024), crc: 0 });
        let store = Store::new(device, POOL, 16);
        let found = read(&store, &nodes);
        assert!(matches!(found[1], Err(MetaError::Io { block: MetaBlock(11), .. })), "{:?}", found[1]);
        let fault = |found: &Result<u64, MetaError>| match found {
            Err(MetaError::Damaged { fault, .. }) => format!("{fault}"),
            other => panic!("{other:?}"),
        };
        assert!(fault(&found[3]).starts_with("stale or foreign version"));
        assert_eq!(fault(&found[5]), "block number: expected below 1024, found 1024");
        assert!(found.iter().enumerate().all(|(i, found)| found.is_ok() == [0, 2, 4].contains(&i)));
    }
}
