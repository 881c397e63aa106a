//! The journal of acknowledged operations: what a killed process has answered and not committed, kept where
//! it outlives the process.
//!
//! A block write is published when its data is written; only its records are in the memory of the process
//! until a commit. So before the reply they go to a file in memory (a tmpfs), with one write for all that
//! wait, and the next open takes them in. A power cut takes the journal with it, and nobody misses it: what
//! was not flushed may be lost then.
//!
//! ```text
//!   publish ──> log builder ──────────────────────> commit ──> intent log, durable
//!          └──> pending ──> journal ──> reply         │
//!                           segment n ────────────────┘ cut: the next operations go to segment n + 1;
//!                           segment n + 1               durable: segment n is dead
//!
//!   superblock of an open for writing: {journal's id, boot of the machine, place}; cleared by a clean close
//!   open, same boot:   that journal must be there, be of this device and go on where the log ends ──> applied after the log, committed
//!         other boot:  the machine was restarted: nothing is expected
//! ```
//!
//! Invariants:
//! - I16: nothing is answered that is neither in the journal nor durable. Where the journal cannot be
//!   written, changes are committed before they are answered.
//! - The journal has no gap: its first operation behind the log is the log's last one plus 1, and so on. Else
//!   the open refuses.
//! - What an open takes in stays in the journal until it is durable in the log, so an open that is killed can
//!   be repeated.
//!
//! Files: `layout` the bytes, `pending` under the state's lock, `writer` behind a lock of its own, `take_in`
//! at an open. Not here: where files are and what tells devices apart ([`JournalPlace`]), boots and ids,
//! which the caller gives.

pub(crate) mod layout;
pub(crate) mod pending;
pub(crate) mod writer;

use dedup_schema::Seq;
use dedup_sync::{Arc, AtomicU64, Mutex};
use layout::Owner;
use pending::Parts;
use std::fmt::Debug;
use std::io;
use std::sync::atomic::Ordering;
use uuid::Uuid;
use writer::Writer;

/// Where journals are kept, for one volume: by whoever opens it.
pub trait JournalPlace: Debug + Send + Sync {
    /// A file for the journal of this id, which never had one. The files of others, also of a device that had
    /// the same numbers, stay.
    fn create(&self, id: Uuid) -> io::Result<Arc<dyn JournalFile>>;

    /// The file of a [name](JournalFile::name) that an earlier process has given; `NotFound` if there is
    /// none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn JournalFile>>;

    /// What tells this metadata device from every other, also from its copies, as long as the machine is up;
    /// up to 64 bytes.
    fn device(&self) -> String;
}

/// The file of a journal.
pub trait JournalFile: Debug + Send + Sync {
    /// Where it is, for people and for [`JournalPlace::open`]; up to 223 bytes.
    fn name(&self) -> String;

    /// Writes all of `bytes` at `offset`. They need not survive anything but the end of the process. Offsets
    /// are far apart: what lies between is to take no memory.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads up to `len` bytes at `offset`; fewer only at the end.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Removes the file: the volume is closed.
    fn remove(&self) -> io::Result<()>;
}

/// How acknowledged operations are kept over the end of the process, for
/// [`OpenOptions::journal`](crate::OpenOptions::journal).
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Where.
    pub place: Arc<dyn JournalPlace>,
    /// This boot of the machine; nil if it is not known.
    pub boot: Uuid,
    /// The id of a journal that has to be begun, never used before.
    pub id: Uuid,
}

/// The journal of an open volume.
#[derive(Debug)]
pub(crate) enum Journal {
    /// Nobody asked for one, or nothing is written.
    None,
    /// It could not be begun: changes are committed before they are answered.
    Failed(String),
    /// It is kept.
    Kept(Kept),
}

/// A journal that is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    file: Arc<dyn JournalFile>,
    /// Held over a write.
    writer: Mutex<Writer>,
    /// Every operation up to this one is in the file or durable. It may be behind the truth.
    reached: AtomicU64,
    /// Bytes in the file that belong to the journal.
    bytes: AtomicU64,
    /// Why it cannot be written, since the last success.
    failure: Mutex<Option<String>>,
}

/// What a status tells of the journal.
#[derive(Clone, Debug, serde::Serialize)]
pub struct JournalStatus {
    /// Whether what is acknowledged survives the death of the process; else, unless nobody asked for it, by a
    /// commit before each reply.
    pub kept: bool,
    /// Where it is kept.
    pub place: Option<String>,
    /// Why it cannot be written, if so.
    pub failure: Option<String>,
    /// Operations acknowledged or in work that no commit has made durable: what the next open would take in,
    /// or, of a volume open for reading, what this one has.
    pub operations: u64,
    /// Memory for them.
    pub bytes: u64,
}

impl Journal {
    /// The volume is closed: nobody needs it any more.
    pub(crate) fn remove(&self) {
        if let Self::Kept(kept) = self
            && let Err(error) = kept.file.remove()
        {
            // It is of no volume now, and replaced when this one is opened again.
            tracing::warn!("the journal of a closed volume stays behind: {error}");
        }
    }
}

impl Kept {
    pub(crate) fn new(file: Arc<dyn JournalFile>, owner: &Owner) -> Self {
        Self {
            writer: Mutex::new(Writer::new(Arc::clone(&file), owner)),
            file,
            reached: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failure: Mutex::new(None),
        }
    }

    pub(crate) fn has_reached(&self, seq: Seq) -> bool {
        self.reached.load(Ordering::Acquire) >= seq.0
    }

    /// Everything up to `seq` is in the file, or durable.
    pub(crate) fn reaches(&self, seq: Seq) {
        self.reached.fetch_max(seq.0, Ordering::AcqRel);
    }

    /// Has the file hold everything published so far, which `take` gives in exchange for memory: the
    /// operations, the last generation that needs no journal any more, and the last operation. Who comes
    /// while another one writes waits for that: it may be writing what this one has published.
    pub(crate) fn write(&self, take: impl FnOnce(Vec<u8>) -> (Parts, u64, Seq)) -> bool {
        let mut writer = self.writer.lock();
        let (spare, has_failed) = (writer.take_spare(), writer.failure.is_some());
        let (parts, durable, seq) = take(spare);
        let is_kept = writer.write(parts, durable);
        if is_kept {
            self.reaches(seq);
        }
        self.bytes.store(writer.bytes(), Ordering::Relaxed);
        if has_failed || writer.failure.is_some() {
            *self.failure.lock() = writer.failure.clone();
        }
        is_kept
    }

    /// Where it is kept.
    pub(crate) fn name(&self) -> String {
        self.file.name()
    }

    /// Why it cannot be written, since the last success.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Bytes in the file that belong to it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
