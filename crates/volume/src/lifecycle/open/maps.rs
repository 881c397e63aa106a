//! Which metadata blocks are in use and which are held, by the metadata maps of the two superblocks, or by
//! their trees where a map is damaged.

use super::find::Found;
use crate::background::recount::{self, Reachable};
use crate::engine::meta_side::MetaSide;
use crate::error::VolumeError;
use crate::state::{Mode, State};
use crate::trees::metamap;
use dedup_meta::{LogSeq, MetaBlock, MetaError, Root, Store, Superblock};
use dedup_spacemap::{Generations, SpaceMap};

/// The newest superblock's map, with what only the older one reaches held back.
pub(super) fn load(
    store: &Store,
    found: &Found,
    older_log: LogSeq,
    state: &mut State,
) -> Result<MetaSide, VolumeError> {
    let newest = &found.newest;
    let (mut map, map_root, leaked) = match metamap::load(store, newest) {
        Ok(map) => (map, newest.roots.metamap, Vec::new()),
        Err(error) if state.mode == Mode::ReadOnly => {
            tracing::warn!("opened without knowing how much metadata is in use: {error}");
            (metamap::empty(&newest.layout), Root::EMPTY, Vec::new())
        }
        Err(error) => recounted(store, newest, state, error)?,
    };
    let mut generations = Generations::new();
    if let Some(older) = found.older.as_ref().filter(|_| state.mode != Mode::ReadOnly) {
        let only_old = only_older(store, older, &map);
        only_old.iter().for_each(|block| map.hold(*block));
        generations.freed(newest.txid.0, only_old);
    }
    Ok(MetaSide {
        map,
        map_root,
        generations,
        superblock: newest.clone(),
        older_log,
        leaked,
        merging_mappings: None,
        merging_hints: None,
        blocks_written: 0,
    })
}

/// The map that the trees tell in place of a damaged one. The next checkpoint writes it as a whole.
fn recounted(
    store: &Store,
    newest: &Superblock,
    state: &mut State,
    damage: MetaError,
) -> Result<(SpaceMap, Root, Vec<MetaBlock>), VolumeError> {
    tracing::warn!("{damage}; it is told anew by the trees");
    let recounted = recount::map_of(store, newest)?;
    tracing::info!("{} of {} metadata blocks are in use", recounted.map.in_use(), recounted.map.len());
    if let Some(error) = recounted.index {
        // Whatever is wrong with it: it can be built anew, and what was not found of it is not to be read
        // again.
        tracing::warn!("digest index dropped, to be rebuilt: {error}");
        state.drop_hints();
    }
    Ok((recounted.map, Root::EMPTY, recounted.leaked))
}

/// Blocks that the older superblock reaches and the newest map calls free.
fn only_older(store: &Store, older: &Superblock, map: &SpaceMap) -> Vec<u64> {
    let free = (0..map.len()).filter(|block| map.count(*block) == 0);
    match metamap::load(store, older) {
        Ok(old) => free.filter(|block| old.count(*block) > 0).collect(),
        Err(_) => {
            let old = Reachable::of(store, older);
            free.filter(|block| old.has(*block)).collect()
        }
    }
}
