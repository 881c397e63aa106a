//! The last step of an open for writing: the superblock of its epoch (R4).

use super::find::Found;
use crate::engine::Engine;
use crate::error::VolumeError;
use dedup_meta::{Epoch, Features, JournalRecord, LogSeq, Superblock};

/// Makes the new epoch, the end of the accepted log and which journal is kept durable, before anything is
/// appended.
pub(super) fn begin_epoch(
    engine: &Engine,
    found: &Found,
    (epoch, accepted): (Epoch, LogSeq),
    journal: Option<JournalRecord>,
) -> Result<(), VolumeError> {
    let mut meta = engine.meta.lock();
    // The next superblock goes over the slot of the older one. If it is torn there, the way back is the older
    // one's spare; and soon after the newest one's, which a crash may have lost as well.
    for superblock in &found.without_spare {
        dedup_meta::write_spare(&engine.store, superblock)?;
    }
    // What cannot be read now may be a superblock that is newer than all others, and readable later: beside
    // its successor, which has the same number and need not have its spare yet. It must not come back.
    if let Some(at) = found.unreadable_spare {
        dedup_meta::erase_copy(&**engine.store.device(), at)?;
    }
    if !found.without_spare.is_empty() || found.unreadable_spare.is_some() {
        engine.store.flush()?;
    }
    let mut features = meta.superblock.features;
    if engine.state.lock().unflushed.goes_to_the_log() {
        features.incompat |= Features::LOG_DATA;
    }
    let superblock = Superblock {
        features,
        txid: found.next_txid,
        epoch,
        epoch_start: accepted,
        clean: false,
        journal,
        ..meta.superblock.clone()
    };
    engine.write_superblock_with_journal(&mut meta, superblock)?;
    engine.release_log(&meta, false, |_| {});
    Ok(())
}
