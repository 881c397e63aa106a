//! The metadata device's own space map on disk: pages of 2-bit counts below an index, like every other array.
//!
//! Writing the map allocates blocks, which changes the map. So the blocks are reserved *first*, to a
//! fixpoint: reserve what the changed pages need; that, and the old pages that become free, may change
//! further pages; repeat until nothing is added. Then the map is encoded into exactly these blocks: writing
//! it allocates nothing (rule R10).

use dedup_meta::{
    Block, BlockFault, BlockRef, BlockType, Layout, MetaBlock, MetaError, NodeSink, NodeSource, Root,
    ShapeCheck, Store, Superblock, TxId,
};
use dedup_schema::META_MAP;
use dedup_spacemap::SpaceMap;
use dedup_spacemap::page::{self, PAGE_BYTES};
use dedup_sync::Arc;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// A map in which only the places that no checkpoint writes (superblocks, log) are in use.
pub(crate) fn empty(layout: &Layout) -> SpaceMap {
    let mut map = SpaceMap::new(layout.metadata_blocks);
    for block in layout.reserved() {
        map.set_count(block.0, 1);
    }
    map
}

/// The map as a superblock has it. A map that calls free what this superblock says is in use is damaged.
pub(crate) fn load(store: &Store, superblock: &Superblock) -> Result<SpaceMap, MetaError> {
    let (layout, root) = (&superblock.layout, &superblock.roots.metamap);
    let mut map = SpaceMap::new(layout.metadata_blocks);
    for i in 0..map.page_count() {
        if let Some(leaf) = META_MAP.leaf(store, root, i as u64)? {
            let at = MetaBlock(leaf.header.block.get());
            if leaf.payload.iter().any(|counts| counts & COUNTS_ABOVE_ONE != 0) {
                return Err(wrong(at, "0 or 1", "2 or 3"));
            }
            map.load_page(i, &leaf.payload)
                .map_err(|error| wrong(at, "no counts beyond the device", error))?;
        }
    }
    let roots = superblock.roots().filter_map(|(.., root)| root.node).map(|node| node.block);
    if let Some(block) = layout.reserved().chain(roots).find(|block| map.count(block.0) == 0) {
        return Err(wrong(block, "1 for a block that the superblock names", 0));
    }
    map.clear_dirty();
    Ok(map)
}

/// Four counts of which one is 2 or 3.
const COUNTS_ABOVE_ONE: u8 = 0b1010_1010;

/// The map does not fit.
fn wrong(block: MetaBlock, expected: &str, found: impl std::fmt::Display) -> MetaError {
    let (expected, found) = (expected.into(), found.to_string());
    let fault = BlockFault::Field { field: "counts", expected, found };
    MetaError::Damaged { block, kind: BlockType::MetaMap, level: 0, fault }
}

/// Frees a block of an older tree, and holds it. An error if the map never had it in use: then map and tree
/// contradict each other.
pub(crate) fn free_held(map: &mut SpaceMap, block: u64) -> Result<(), MetaError> {
    if block >= map.len() || map.count(block) != 1 || map.is_held(block) {
        return Err(wrong(MetaBlock(block), "1 for a block that a tree gives back", "none"));
    }
    map.free_held(block);
    Ok(())
}

/// Writes the changed pages of `map` as transaction `txid`, and returns the new root and the blocks freed on
/// the way, which are held in `map` already. What other trees freed must be marked before.
pub(crate) fn save(
    store: &Store,
    map: &mut SpaceMap,
    txid: TxId,
    root: &Root,
) -> Result<(Root, Vec<u64>, u64), MetaError> {
    let mut reserved: Vec<MetaBlock> = Vec::new();
    let mut freed: BTreeSet<u64> = BTreeSet::new();
    loop {
        let dirty: Vec<(u64, bool)> =
            map.dirty_pages().map(|i| (i as u64, page::used(map.page(i)) != 0)).collect();
        let (needed, replaced) = META_MAP.put_leaves_cost(store, root, &dirty)?;
        let new_frees: Vec<u64> = replaced.iter().map(|b| b.0).filter(|b| !freed.contains(b)).collect();
        if !new_frees.is_empty() {
            new_frees.iter().try_for_each(|block| free_held(map, *block))?;
            freed.extend(new_frees);
            continue;
        }
        match needed.cmp(&(reserved.len() as u64)) {
            Ordering::Equal => break,
            Ordering::Greater => {
                let full = MetaError::NoSpace { in_use: map.in_use(), total: map.len() };
                reserved.push(MetaBlock(map.allocate().ok_or(full)?));
            }
            // A page that has become empty on the way is dropped and needs no block. Giving one back can
            // empty another page, but never asks for more, so this ends.
            Ordering::Less => {
                if let Some(surplus) = reserved.pop() {
                    map.free_held(surplus.0);
                    freed.insert(surplus.0);
                }
            }
        }
    }
    // Ascending, so that the map lies side by side on the device.
    reserved.reverse();
    let leaves: Vec<(u64, &[u8; PAGE_BYTES])> =
        map.dirty_pages().filter_map(|i| Some((i as u64, map.page(i).try_into().ok()?))).collect();
    let mut sink = Reserved { store, txid, blocks: reserved, written: 0 };
    let new_root = META_MAP.put_leaves(&mut sink, root, &leaves)?;
    if !sink.blocks.is_empty() {
        let reason =
            format!("the metadata map took {} blocks less than were reserved for it", sink.blocks.len());
        return Err(MetaError::Dead { reason });
    }
    let written = sink.written;
    map.clear_dirty();
    Ok((new_root, freed.into_iter().collect(), written))
}

/// Hands out blocks that were reserved before; what is freed was accounted for before, too.
struct Reserved<'a> {
    store: &'a Store,
    txid: TxId,
    blocks: Vec<MetaBlock>,
    written: u64,
}

impl NodeSource for Reserved<'_> {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.store.read(at, kind, level, shape)
    }
}

impl NodeSink for Reserved<'_> {
    fn birth(&self) -> TxId {
        self.txid
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.blocks.pop().ok_or_else(|| MetaError::Dead {
            reason: "the metadata map took more blocks than were reserved for it".into(),
        })
    }

    fn write(&mut self, mut block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        let at = MetaBlock(block.header.block.get());
        shape(&block).map_err(|fault| MetaError::Damaged {
            block: at,
            kind: BlockType::MetaMap,
            level: block.header.level,
            fault,
        })?;
        let crc = block.seal(self.store.pool());
        self.store.write_raw(&block)?;
        self.written += 1;
        Ok(BlockRef { block: at, crc })
    }

    fn free(&mut self, _block: MetaBlock) {}
}
