//! Keeping acknowledged operations in the [journal](crate::journal): before a reply, and until they are
//! durable in the log.

use crate::engine::Engine;
use crate::journal::{Journal, JournalStatus};
use crate::state::State;
use dedup_schema::Seq;

impl Engine {
    /// Has the journal hold everything published so far. `false` if it does not: then what is to be answered
    /// has to be committed first.
    pub(crate) fn keep_published(&self) -> bool {
        match &self.journal {
            Journal::None => true,
            Journal::Failed(_) => false,
            Journal::Kept(kept) => kept.write(|spare| {
                let mut state = self.state.lock();
                let State { journal, counters, seq, .. } = &mut *state;
                let (parts, durable) = journal.take(spare, counters);
                (parts, durable, *seq)
            }),
        }
    }

    /// Has the journal hold what was published up to `seq`, as far as it can: a read has shown it to
    /// somebody.
    pub(crate) fn keep_shown(&self, seq: Seq) {
        if let Journal::Kept(kept) = &self.journal
            && !kept.has_reached(seq)
        {
            self.keep_published();
        }
    }

    /// A commit is durable: the journal need not have what it covers.
    pub(crate) fn let_go_of(&self, seq: Seq, generation: u64) {
        self.state.lock().journal.durable(generation);
        if let Journal::Kept(kept) = &self.journal {
            kept.reaches(seq);
        }
    }

    /// For the status. It waits for no write to the file: that may be on a disk.
    pub(crate) fn journal_status(&self, durable: Seq) -> JournalStatus {
        let (place, failure, in_file) = match &self.journal {
            Journal::None => (None, None, 0),
            Journal::Failed(reason) => (None, Some(reason.clone()), 0),
            Journal::Kept(kept) => (Some(kept.name()), kept.failure(), kept.bytes()),
        };
        let state = self.state.lock();
        JournalStatus {
            kept: place.is_some() && failure.is_none(),
            operations: state.seq.0.saturating_sub(durable.0),
            bytes: in_file + state.journal.bytes(),
            place,
            failure,
        }
    }
}
