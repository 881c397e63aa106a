//! Finding metadata blocks that belong to no tree: after a damaged tree was dropped, nobody can tell from it
//! which blocks it had (rule R10). All live trees are walked, online, from one checkpoint's roots; what the
//! map counts as used and no walk met is freed by the next checkpoint.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::fault::Fault;
use crate::mapping::{BAD, COUNTS, DIGESTS, HINTS, HintKey, MAPPING_RUNS, MAPPINGS, META_MAP, OVERFLOW};
use crate::tables::Tables;
use dedup_btree::{Descend, KeySet, Visit, Visitor};
use dedup_meta::{BlockRef, MetaBlock, MetaError};

/// Remembers every block that is referred to.
struct Reachable {
    met: Vec<bool>,
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
                Descend::Stop
            }
        }
    }
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
    let mut reachable = Reachable { met: vec![false; meta.map.len() as usize], damage: None };
    let (store, visitor) = (&engine.store, &mut reachable);
    MAPPINGS.walk(store, &tables.mappings.base, visitor);
    if !engine.planted(Fault::RecountForgetsRuns) {
        tables.mappings.runs.iter().for_each(|run| MAPPING_RUNS.tree().walk(store, run, visitor));
    }
    DIGESTS.walk(store, &tables.digests, visitor);
    COUNTS.walk(store, &tables.counts, visitor);
    if !engine.planted(Fault::RecountForgetsTree) {
        OVERFLOW.walk(store, &tables.overflow, visitor);
    }
    KeySet::<HintKey>::trees(&tables.hints).for_each(|root| HINTS.walk(store, root, visitor));
    BAD.walk(store, &tables.bad, visitor);
    META_MAP.walk(store, &meta.superblock.roots.metamap, visitor);
    if let Some(error) = reachable.damage {
        return Ok(engine.drop_damaged_hints(error)?);
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
