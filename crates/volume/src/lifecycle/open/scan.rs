//! The log behind the superblock, from the medium and not from a cache (R5).

use super::find::Found;
use crate::error::VolumeError;
use crate::lifecycle::options::OpenOptions;
use dedup_meta::{CopyState, LogDamage, Reach, Scan, Store, load_superblocks};

/// The log behind a superblock. If the device may have shown what is only cached, log and superblocks are
/// written back byte for byte and flushed before anything is built upon them (R5).
pub(super) fn scan_log(
    store: &Store,
    found: &Found,
    options: &OpenOptions,
    from_medium: bool,
) -> Result<Scan, VolumeError> {
    // A superblock that was lost may have had a higher epoch (R4): then every log block is asked for its own.
    let reach = match found.both_slots {
        true => Reach::Log,
        false => Reach::Ring,
    };
    let log = dedup_meta::scan_log(&**store.device(), &found.newest, reach);
    if let Some(damage) = &log.damage {
        if !(options.read_only && options.rescue) {
            let what = damage.to_string();
            return Err(match damage {
                LogDamage::Unreadable { .. } => VolumeError::LogUnreadable { what },
                _ => VolumeError::LogDamaged { what },
            });
        }
        tracing::warn!("opened as of before the damage in the log: {damage}");
    }
    if !from_medium && !options.read_only {
        for block in &log.blocks {
            store.write_raw(&*store.read_raw(found.newest.layout.log.place(block.seq))?)?;
        }
        store.flush()?;
        rewrite_superblocks(store)?;
    }
    Ok(log)
}

/// Does the same with the superblocks: one that only the cache has would count as the way back from the next
/// one. Copy by copy, so that a power cut tears no more than one.
fn rewrite_superblocks(store: &Store) -> Result<(), VolumeError> {
    let survey = load_superblocks(&**store.device());
    for copy in survey.copies {
        if matches!(&copy.state, CopyState::Valid(superblock) if superblock.pool == store.pool()) {
            store.write_raw(&*store.read_raw(copy.block)?)?;
            store.flush()?;
        }
    }
    Ok(())
}
