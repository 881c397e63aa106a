//! Who leads a commit, and the end of the log that it writes. What a commit does is in
//! [`crate::durability::commit`].

use dedup_meta::LogWriter;
use dedup_schema::Seq;
use dedup_sync::{Mutex, Turns};

/// The commits of a volume.
#[derive(Debug)]
pub(crate) struct Commits {
    /// Who leads; what is reached is the last durable operation.
    pub(crate) turns: Turns,
    /// Only the leader locks it.
    pub(crate) writer: Mutex<LogWriter>,
}

impl Commits {
    /// Commits that go on behind `writer`; operations up to `durable` are durable.
    pub(crate) fn new(writer: LogWriter, durable: Seq) -> Self {
        Self { turns: Turns::new(durable.0), writer: Mutex::new(writer) }
    }

    /// The last durable operation.
    pub(crate) fn durable(&self) -> Seq {
        Seq(self.turns.reached())
    }
}
