//! Writing the journal: one frame for all that is published, however many wait for it.
//!
//! Invariants: frames stand in the file in the order of their operations. A segment is begun anew only when
//! everything that it held is durable in the log: when a generation begins, the commit of the one before is
//! cut, and commits follow one another. After a failure nothing is written before a commit has made
//! everything durable that the journal does not have.

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
    pub(crate) failure: Option<String>,
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
    pub(crate) fn new(file: Arc<dyn JournalFile>, owner: &Owner) -> Self {
        let segments = [Segment::default(); 2];
        Self { file, seed: owner.seed(), segments, broken: None, failure: None, spare: Vec::new() }
    }

    /// Memory to take operations in exchange for.
    pub(crate) fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Writes what was published. `false` if the journal lacks some of what is published and not durable:
    /// then that may be answered only when it is durable.
    pub(crate) fn write(&mut self, parts: Parts, durable: u64) -> bool {
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
        assert!(
            segment.generation <= part.generation,
            "generation {} behind {}",
            part.generation,
            segment.generation
        );
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
    pub(crate) fn bytes(&self) -> u64 {
        FILE_HEAD + self.segments.iter().map(|segment| segment.end).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_schema::Counters;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use uuid::Uuid;

    /// Notes where it is written, unless it fails.
    #[derive(Debug, Default)]
    struct Noted {
        fails: AtomicBool,
        writes: Mutex<Vec<u64>>,
    }

    impl JournalFile for Noted {
        fn name(&self) -> String {
            "noted".into()
        }

        fn write_at(&self, offset: u64, _: &[u8]) -> io::Result<()> {
            if self.fails.load(SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.writes.lock().unwrap().push(offset);
            Ok(())
        }

        fn read_at(&self, _: u64, _: usize) -> io::Result<Vec<u8>> {
            Ok(Vec::new())
        }

        fn remove(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn begun() -> (Arc<Noted>, Writer) {
        let (id, file) = (Uuid::from_u128(1), Arc::new(Noted::default()));
        let owner = Owner { id, pool: id, boot: id, device: "the device".into() };
        (Arc::clone(&file), Writer::new(file, &owner))
    }

    /// One operation of a generation.
    fn part(generation: u64, first: u64) -> Parts {
        let bytes = vec![7; SEGMENT_HEAD + FRAME_HEAD + 10];
        std::iter::once(Part { generation, first, operations: 1, counters: Counters::default(), bytes })
            .collect()
    }

    /// An operation behind the cut of a commit came while that commit was to bring what the journal lacked.
    /// It was not written either, and the next one, behind it, would have left a gap, which an open refuses.
    #[test]
    fn after_a_failure_nothing_is_kept_before_all_that_is_lacking_is_durable() {
        let (file, mut writer) = begun();
        assert!(writer.write(part(1, 1), 0));
        file.fails.store(true, SeqCst);
        assert!(!writer.write(part(1, 2), 0) && writer.failure.is_some());
        file.fails.store(false, SeqCst);
        assert!(!writer.write(part(2, 3), 0));
        assert!(!writer.write(Parts::new(), 0));
        assert!(!writer.write(part(2, 4), 1) && writer.failure.is_some(), "operation 3 is lacking");
        assert!(writer.write(part(3, 5), 2) && writer.failure.is_none());
        assert_eq!(file.writes.lock().unwrap().len(), 2);
    }

    #[test]
    fn what_is_durable_meanwhile_is_not_written_and_a_segment_begins_anew_at_its_place() {
        let (file, mut writer) = begun();
        assert!(writer.write(part(1, 1), 1));
        assert!(file.writes.lock().unwrap().is_empty());
        for (generation, first) in [(2, 2), (2, 3), (3, 4), (4, 5)] {
            assert!(writer.write(part(generation, first), generation - 2));
        }
        let (even, odd) = (segment_start(2), segment_start(3));
        let frame = (FRAME_HEAD + 10) as u64;
        assert_eq!(*file.writes.lock().unwrap(), [even, even + SEGMENT_HEAD as u64 + frame, odd, even]);
    }
}
