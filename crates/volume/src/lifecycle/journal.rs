//! Beginning the journal of an opening, or going on with what was [taken in](super::take_in).

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::journal::layout::Owner;
use crate::journal::pending::Pending;
use crate::journal::{Journal, JournalFile, JournalOptions, Kept};
use crate::lifecycle::take_in::{Existing, TakenIn};
use dedup_meta::{JOURNAL_PLACE_MAX, JournalRecord, Superblock};
use dedup_sync::Arc;
use std::io;

/// Begins one, or goes on with what was taken in. Returns it with what a superblock is to say, and what waits
/// to be written.
pub(super) fn begin(
    options: Option<&JournalOptions>,
    found: Option<Existing>,
    superblock: &Superblock,
) -> (Journal, Option<JournalRecord>, Pending) {
    let Some(options) = options else { return (Journal::None, None, Pending::default()) };
    let begun = match found {
        Some(found) => Ok(found.go_on()),
        None => create(options, superblock).map(|(file, owner)| (file, owner, 1)),
    };
    match begun {
        Ok((file, owner, generation)) => {
            let record = JournalRecord { id: owner.id, boot: owner.boot, place: file.name() };
            (Journal::Kept(Kept::new(file, &owner)), Some(record), Pending::new(generation))
        }
        Err(error) => {
            tracing::error!(
                "acknowledged operations cannot be kept over the end of this process: {error}; every change is committed before it is answered, \
                 which is slow"
            );
            (Journal::Failed(error.to_string()), None, Pending::default())
        }
    }
}

fn create(options: &JournalOptions, superblock: &Superblock) -> io::Result<(Arc<dyn JournalFile>, Owner)> {
    if options.boot.is_nil() {
        return Err(io::Error::other("which boot of the machine this is cannot be found out"));
    }
    let owner =
        Owner { id: options.id, pool: superblock.pool, boot: options.boot, device: options.place.device() };
    let head = owner.encode()?;
    let file = options.place.create(options.id)?;
    let name = file.name();
    if name.len() > JOURNAL_PLACE_MAX {
        return Err(io::Error::other(format!("{name}: expected a path of up to {JOURNAL_PLACE_MAX} bytes")));
    }
    file.write_at(0, &head)?;
    Ok((file, owner))
}

impl Engine {
    /// Makes what an open has taken in durable, before anything else is answered.
    pub(crate) fn settle_taken_in(&self, taken: &TakenIn) -> Result<(), VolumeError> {
        if taken.operations == 0 {
            return Ok(());
        }
        self.commit(self.published_seq())?;
        tracing::info!(
            "{} operations that were acknowledged and not committed are in the log",
            taken.operations
        );
        Ok(())
    }
}
