//! Operations on their way to the journal: appended as they are published, under the state's lock.
//!
//! ```text
//!   generation      1          2          3
//!   operations  ────────┼──────────┼─────────>       ┼ the cut of a commit, which a new generation begins at
//!                       │ durable: generation 1 and before are dropped, written or not
//! ```
//!
//! Invariant: the parts hold, in order and without a gap, every operation that is neither durable nor taken.

use super::layout::{FRAME_HEAD, SEGMENT_HEAD};
use dedup_schema::{Counters, Seq};
use smallvec::SmallVec;

/// Published operations of one generation, as one frame of the journal will hold them.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) generation: u64,
    /// Number of the first one.
    pub(crate) first: u64,
    pub(crate) operations: u32,
    /// As of the last one, once it is taken or another generation has begun.
    pub(crate) counters: Counters,
    /// Room for a segment's head and a frame's, then the operations.
    pub(crate) bytes: Vec<u8>,
}

/// Those of two generations, mostly of one.
pub(crate) type Parts = SmallVec<[Part; 2]>;

/// What is published and not yet in the journal.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Whether a journal is kept at all.
    kept: bool,
    /// That of the next operation.
    generation: u64,
    /// Everything up to this generation is durable in the log.
    durable: u64,
    parts: Parts,
    /// Memory for the next part.
    spare: Vec<u8>,
}

impl Pending {
    /// Nothing yet, for a journal whose next operation begins this generation.
    pub(crate) fn new(generation: u64) -> Self {
        Self { kept: true, generation, durable: generation - 1, ..Self::default() }
    }

    /// Whether operations are to be [pushed](Self::push).
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Appends an operation, whose records `encode` appends to what it is given; returns these.
    pub(crate) fn push(&mut self, seq: Seq, encode: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        if self.parts.last().is_none_or(|part| part.generation != self.generation) {
            let mut bytes = std::mem::take(&mut self.spare);
            bytes.clear();
            bytes.resize(SEGMENT_HEAD + FRAME_HEAD, 0);
            let (generation, counters) = (self.generation, Counters::default());
            self.parts.push(Part { generation, first: seq.0, operations: 0, counters, bytes });
        }
        let last = self.parts.len() - 1;
        let part = &mut self.parts[last];
        let start = part.bytes.len() + 2;
        part.bytes.extend_from_slice(&[0; 2]);
        encode(&mut part.bytes);
        // An operation is at most a handful of records, far below 64 KiB: the log asserts it.
        let length = (part.bytes.len() - start) as u16;
        part.bytes[start - 2..start].copy_from_slice(&length.to_le_bytes());
        part.operations += 1;
        &part.bytes[start..]
    }

    /// A commit takes everything published so far, as of which the counters are these: returns its
    /// generation, for [`Self::durable`].
    pub(crate) fn cut(&mut self, counters: &Counters) -> u64 {
        self.count(counters);
        self.generation += 1;
        self.generation - 1
    }

    /// The commit that was cut there is durable: the journal need not have what it covers.
    pub(crate) fn durable(&mut self, generation: u64) {
        self.durable = generation;
        self.parts.retain(|part| part.generation > generation);
    }

    fn count(&mut self, counters: &Counters) {
        if let Some(part) = self.parts.last_mut().filter(|part| part.generation == self.generation) {
            part.counters = *counters;
        }
    }

    /// Takes all parts, as of the last of which the counters are these; `spare` is memory for the next one.
    /// Also says up to which generation everything is durable.
    pub(crate) fn take(&mut self, spare: Vec<u8>, counters: &Counters) -> (Parts, u64) {
        self.count(counters);
        if self.spare.capacity() < spare.capacity() {
            self.spare = spare;
        }
        (std::mem::take(&mut self.parts), self.durable)
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }
}
