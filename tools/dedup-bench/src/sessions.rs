//! Which workloads share a fresh volume, in which order, and what is particular about the volume.
//!
//! ```text
//!   logical device       0 ........................ size ........................ 2 x size
//!   "random"             unique, read,                      duplicate (the content of the first half again)
//!                        then overwritten
//!   "sequential"         unique, read                       duplicate
//!   "mixed"              90 % duplicate                     write + flush, then over 4 connections in the last quarter
//!   "blake3"             unique, on a volume with that digest
//!   with --all:
//!   "depths"             unique over 4 connections, reads, 70/30 mix, pages
//!   "half"               50 % duplicate                     unique, one at a time
//!   "spread"             unique,                            duplicates in the order of their originals,
//!                        then 75 % duplicates drawn from    then the same content again: all duplicates, drawn from all over
//!                        all over (small cache)
//!   "full"               unique, reads, all overwritten, all trimmed; there is no second half
//!   "image"              image                              the same image
//! ```

use crate::workload::{Work, Workload};

/// Part of the size that "small cache" gives the cache of metadata: a sixteenth of the metadata, which is some 64 bytes a block.
const SMALL_CACHE_PART: u64 = 1024;

/// Workloads on one volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) workloads: &'static [Workload],
    /// Whether it is only run if all are asked for, or one of its workloads by name.
    pub(crate) is_more: bool,
    kind: Kind,
}

/// What is particular about the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Default,
    Blake3,
    SmallCache,
    /// No logical block beyond what the first workload writes.
    Full,
}

/// All of them.
pub(crate) const SESSIONS: [Session; 9] = [
    Session::of(&[
        Workload::RandomUnique,
        Workload::RandomRead,
        Workload::RandomDuplicate100,
        Workload::RandomOverwrite,
    ]),
    Session::of(&[Workload::SequentialUnique, Workload::SequentialRead, Workload::SequentialDuplicate]),
    Session::of(&[Workload::RandomDuplicate90, Workload::WriteFlush, Workload::WriteFlushConnections]),
    Session::of(&[Workload::SequentialBlake3]).on(Kind::Blake3),
    Session::of(&[
        Workload::RandomConnections,
        Workload::RandomReadConnections,
        Workload::RandomReadDepth1,
        Workload::Mix,
        Workload::Pages,
    ])
    .more(),
    Session::of(&[Workload::RandomDuplicate50, Workload::RandomDepth1]).more(),
    Session::of(&[
        Workload::SmallCacheUnique,
        Workload::NearDuplicate,
        Workload::FarOriginals,
        Workload::FarDuplicate,
    ])
    .more()
    .on(Kind::SmallCache),
    Session::of(&[
        Workload::MediumUnique,
        Workload::SequentialReadDepth1,
        Workload::SequentialReadConnections,
        Workload::FullOverwrite,
        Workload::Trim,
    ])
    .more()
    .on(Kind::Full),
    Session::of(&[Workload::ImageCopy, Workload::ImageCopyAgain]).more(),
];

impl Session {
    const fn of(workloads: &'static [Workload]) -> Self {
        Self { workloads, is_more: false, kind: Kind::Default }
    }

    const fn more(mut self) -> Self {
        self.is_more = true;
        self
    }

    const fn on(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The session up to this many workloads.
    pub(crate) fn up_to(self, count: usize) -> Self {
        Self { workloads: &self.workloads[..count], ..self }
    }

    pub(crate) fn has(self, work: Work) -> bool {
        self.workloads.iter().any(|workload| workload.work() == work)
    }

    /// Bytes of the logical device.
    pub(crate) fn logical_size(self, size: u64) -> u64 {
        if self.kind == Kind::Full { size } else { 2 * size }
    }

    /// Options of `dedup-nbd`.
    pub(crate) fn volume_options(self, size: u64) -> Vec<String> {
        match self.kind {
            Kind::Default | Kind::Full => Vec::new(),
            Kind::Blake3 => vec!["--crypto-alg=blake3".to_owned()],
            Kind::SmallCache => vec![format!("--cache-size={}", size / SMALL_CACHE_PART)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::BLOCK;

    #[test]
    fn every_workload_is_in_one_session() {
        let mut run: Vec<_> = SESSIONS.iter().flat_map(|session| session.workloads).copied().collect();
        run.sort();
        assert_eq!(run, Workload::ALL);
    }

    #[test]
    fn reads_come_after_writes_that_filled_what_they_read() {
        for session in SESSIONS {
            let first = session.workloads[0];
            assert!(!first.is_read());
            assert!(first.work() == Work::Copy || first.new_blocks(1 << 30).unwrap() > 0);
            for workload in session.workloads.iter().filter(|workload| workload.is_read()) {
                assert_eq!(workload.range(1 << 30), first.range(1 << 30));
            }
        }
    }

    #[test]
    fn workloads_stay_within_the_device_of_their_session() {
        for session in SESSIONS {
            for workload in session.workloads {
                let (offset, len) = workload.range(1 << 30);
                assert!(offset + len <= session.logical_size(1 << 30), "{workload:?}");
                assert!(workload.requests(1 << 30) * BLOCK <= len, "{workload:?}");
            }
        }
    }
}
