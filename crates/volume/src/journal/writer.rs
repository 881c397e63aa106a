//! Writing the journal: one frame for all that is published, however many wait for it.
//!
//! Invariants: frames stand in the file in the order of their operations. A segment is begun anew only when everything that it held is
//! durable in the log: when generation n + 2 begins, so the commit of generation n + 1 is cut, and commits follow one another. After a failure
//! nothing is written before a commit has made everything durable that the journal does not have.

use super::JournalFile;
use super::layout::{
    FILE_HEAD, FRAME_HEAD, Owner, SEGMENT_HEAD, SEGMENT_MAX, seal_frame, seal_segment, segment_start,
};
use super::pending::{Part, Parts};
use std::io;
use std::sync::Arc;

/// Bytes of memory that are kept for the next frame: the records of a commit that is due by itself, twice.
const SPARE_MAX: usize = 1 << 20;

/// The end of the journal, from which it grows. Guarded by a lock of its own.
#[derive(Debug)]
pub(crate) struct Writer {
    file: Arc<dyn JournalFile>,
    seed: u32,
    segments: [Segment; 2],
    /// Operations up to this generation are not all in the file.
    broken: Option<u64>,
    /// Why, since the last success.
    pub(super) failure: Option<String>,
    /// Memory for operations that are published next.
    spare: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// 0 if none was written in this opening.
    generation: u64,
    /// Bytes, and the checksum of the last frame.
    end: u64,
    crc: u32,
}

impl Writer {
    /// A writer of a file that is `owner`'s, and in which nothing of the coming generations is.
    pub(super) fn new(file: Arc<dyn JournalFile>, owner: &Owner) -> Self {
        let segments = [Segment::default(); 2];
        Self { file, seed: owner.seed(), segments, broken: None, failure: None, spare: Vec::new() }
    }

    /// Memory to take operations in exchange for.
    pub(super) fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Writes what was published. `false` if the journal lacks some of what is published and not durable: then that may be answered only
    /// when it is durable.
    pub(super) fn write(&mut self, parts: Parts, durable: u64) -> bool {
        if self.broken.is_some_and(|broken| broken > durable) {
            self.broken = self.broken.max(parts.last().map(|part| part.generation));
            return false;
        }
        self.broken = None;
        let last = parts.last().map(|part| part.generation);
        for part in parts.into_iter().filter(|part| part.generation > durable) {
            if let Err(error) = self.append(part) {
                self.failed(&error);
                self.broken = last;
                return false;
            }
        }
        if last.is_some() && self.failure.take().is_some() {
            tracing::info!("acknowledged operations are kept in {} again", self.file.name());
        }
        true
    }

    fn append(&mut self, mut part: Part) -> io::Result<()> {
        let mut segment = self.segments[(part.generation % 2) as usize];
        let is_new = segment.generation != part.generation;
        let skipped = if is_new { 0 } else { SEGMENT_HEAD };
        if is_new {
            let crc = seal_segment(&mut part.bytes, part.generation, self.seed);
            segment = Segment { generation: part.generation, end: 0, crc };
        }
        let frame = &mut part.bytes[SEGMENT_HEAD..];
        debug_assert!(frame.len() > FRAME_HEAD, "a part has an operation");
        segment.crc = seal_frame(frame, part.first, part.operations, &part.counters, segment.crc);
        let bytes = &part.bytes[skipped..];
        if segment.end + bytes.len() as u64 > SEGMENT_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_at(segment_start(part.generation) + segment.end, bytes)?;
        segment.end += bytes.len() as u64;
        self.segments[(part.generation % 2) as usize] = segment;
        if part.bytes.capacity() <= SPARE_MAX {
            self.spare = part.bytes;
        }
        Ok(())
    }

    /// Says so once.
    fn failed(&mut self, error: &io::Error) {
        if self.failure.is_none() {
            tracing::error!(
                "acknowledged operations cannot be kept in {}: {error}; until they can, every change is committed before it is answered, which is slow",
                self.file.name()
            );
        }
        self.failure = Some(error.to_string());
    }

    /// Bytes in the file that belong to it.
    pub(super) fn bytes(&self) -> u64 {
        FILE_HEAD + self.segments.iter().map(|segment| segment.end).sum::<u64>()
    }
}
