//! Which metadata blocks belong to a tree, found by walking all trees (rule R10). Leaves are known by the
//! references to them, and not read.
//!
//! - Online, after a damaged tree was dropped: nobody can tell from it which blocks it had. What the map
//!   counts as used and no walk met is freed by the next checkpoint.
//! - At an open, if the map itself is damaged: the trees tell it anew.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::trees::metamap;
use crate::trees::tables::Tables;
use dedup_btree::{Descend, KeySet, Visit, Visitor};
use dedup_meta::{BlockRef, MetaBlock, MetaError, Root, Store, Superblock};
use dedup_schema::{BAD, COUNTS, DIGESTS, HINTS, HintKey, MAPPING_RUNS, MAPPINGS, META_MAP, OVERFLOW};
use dedup_spacemap::SpaceMap;

/// Remembers every block that is referred to, and goes on beside what cannot be read.
pub(crate) struct Reachable {
    met: Vec<bool>,
    /// The last node that could not be read.
    damage: Option<MetaError>,
}

impl Visitor for Reachable {
    fn reference(&mut self, at: BlockRef, level: u8, _parent: Option<MetaBlock>) -> bool {
        match self.met.get_mut(at.block.0 as usize) {
            Some(met) => *met = true,
            None => return false,
        }
        level > 0
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        match visit.node {
            Ok(_) => Descend::Yes,
            Err(error) => {
                self.damage = Some(error);
                Descend::No
            }
        }
    }
}

impl Reachable {
    fn new(blocks: u64) -> Self {
        Self { met: vec![false; blocks as usize], damage: None }
    }

    /// All blocks that a superblock leads to.
    pub(crate) fn of(store: &Store, superblock: &Superblock) -> Self {
        let mut all = Self::new(superblock.layout.metadata_blocks);
        let tables = Tables::of(superblock);
        all.truth(store, &tables);
        all.index(store, &tables);
        all.map(store, &superblock.roots.metamap);
        all
    }

    /// Whether a block was met.
    pub(crate) fn has(&self, block: u64) -> bool {
        self.met.get(block as usize) == Some(&true)
    }

    fn truth(&mut self, store: &Store, tables: &Tables) {
        MAPPINGS.walk(store, &tables.mappings.base, self);
        tables.mappings.runs.iter().for_each(|run| MAPPING_RUNS.tree().walk(store, run, self));
        DIGESTS.walk(store, &tables.digests, self);
        COUNTS.walk(store, &tables.counts, self);
        OVERFLOW.walk(store, &tables.overflow, self);
        BAD.walk(store, &tables.bad, self);
    }

    fn index(&mut self, store: &Store, tables: &Tables) {
        KeySet::<HintKey>::trees(&tables.hints).for_each(|root| HINTS.walk(store, root, self));
    }

    fn map(&mut self, store: &Store, root: &Root) {
        META_MAP.walk(store, root, self);
    }
}

/// A metadata map that the trees told.
pub(crate) struct Recounted {
    pub(crate) map: SpaceMap,
    /// Blocks of the damaged map, to be freed by the checkpoint that writes the new one.
    pub(crate) leaked: Vec<MetaBlock>,
    /// The index is damaged as well. What could be found of it counts as used.
    pub(crate) index: Option<MetaError>,
}

/// The map of a superblock whose own map is damaged. Fails if a tree of the truth is damaged above its
/// leaves: then there is no saying which blocks it has.
pub(crate) fn map_of(store: &Store, superblock: &Superblock) -> Result<Recounted, MetaError> {
    let tables = Tables::of(superblock);
    let mut trees = Reachable::new(superblock.layout.metadata_blocks);
    trees.truth(store, &tables);
    if let Some(error) = trees.damage {
        return Err(error);
    }
    trees.index(store, &tables);
    let mut own = Reachable::new(superblock.layout.metadata_blocks);
    own.map(store, &superblock.roots.metamap);
    let mut map = metamap::empty(&superblock.layout);
    let mut leaked = Vec::new();
    for block in (0..map.len()).filter(|block| trees.has(*block) || own.has(*block)) {
        if !trees.has(block) && !superblock.layout.is_reserved(MetaBlock(block)) {
            leaked.push(MetaBlock(block));
        }
        map.set_count(block, 1);
    }
    Ok(Recounted { map, leaked, index: trees.damage })
}

/// Walks everything once. Runs where checkpoints run, so none installs new roots meanwhile.
pub(crate) fn run(engine: &Engine) -> Result<(), VolumeError> {
    let mut meta = engine.meta.lock();
    let (tables, still_needed) = {
        let state = engine.state.lock();
        (Tables::clone(state.layers.tables()), state.recount_needed && !state.layers.is_sealed())
    };
    if !still_needed {
        return Ok(());
    }
    let mut reachable = Reachable::new(meta.map.len());
    reachable.truth(&engine.store, &tables);
    if reachable.damage.is_none() {
        reachable.index(&engine.store, &tables);
        reachable.map(&engine.store, &meta.map_root);
    }
    if let Some(error) = reachable.damage {
        return Ok(engine.drop_damaged_hints(&tables.hints, error)?);
    }
    for block in meta.superblock.layout.reserved() {
        reachable.met[block.0 as usize] = true;
    }
    let leaked =
        (0..meta.map.len()).filter(|b| meta.map.count(*b) > 0 && !reachable.met[*b as usize]).map(MetaBlock);
    let leaked: Vec<MetaBlock> = leaked.collect();
    tracing::info!("metadata recounted: {} blocks belong to no tree and are freed", leaked.len());
    meta.leaked = leaked;
    engine.state.lock().recount_needed = false;
    Ok(())
}
