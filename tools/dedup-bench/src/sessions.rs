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

use crate::workload::{
    BLOCK, CONNECTIONS, Content, DEPTH_PER_CONNECTION, FAR_POOL_PERCENT, FLUSHED_DEPTH_PER_CONNECTION, LARGE,
    MEDIUM, PAGE, POOL_PERCENT, Place, Work, Workload, row,
};
use Content::{Second, Third};
use Place::{LastQuarter, SecondHalf, ThirdQuarter};
use Work::{Copy, Mix, RandomRead, RandomWrite, SequentialRead, SequentialWrite, Trim, WriteBesideReads};

/// Part of the size that "small cache" gives the cache of metadata: a sixteenth of the metadata, which is
/// some 64 bytes a block.
const SMALL_CACHE_PART: u64 = 1024;

/// Workloads on one volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    volume: Volume,
    /// Whether it is only run if all are asked for, or one of its workloads by name.
    pub(crate) is_more: bool,
    pub(crate) workloads: &'static [Workload],
}

/// What is particular about the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Volume {
    Default,
    Blake3,
    SmallCache,
    /// No logical block beyond what the first workload writes.
    Full,
}

/// All workloads, in the order in which they are run and shown.
pub(crate) const SESSIONS: [Session; 9] = [
    Session {
        volume: Volume::Default,
        is_more: false,
        workloads: &[
            row("4K random write, unique, QD32", RandomWrite, BLOCK).adds(100),
            row("4K random read, QD32", RandomRead, BLOCK),
            row("4K random write, 100 % duplicate, QD32", RandomWrite, BLOCK).at(SecondHalf),
            // The old content of what is overwritten is also in the other half.
            row("4K random overwrite, unique, QD32", RandomWrite, BLOCK).of(Second).adds(100),
        ],
    },
    Session {
        volume: Volume::Default,
        is_more: false,
        workloads: &[
            row("1M sequential write, unique, QD32", SequentialWrite, LARGE).adds(100),
            row("1M sequential read, QD32", SequentialRead, LARGE),
            row("1M sequential write, duplicate, QD32", SequentialWrite, LARGE).at(SecondHalf),
        ],
    },
    Session {
        volume: Volume::Default,
        is_more: false,
        workloads: &[
            row("4K random write, 90 % duplicate, QD32", RandomWrite, BLOCK)
                .duplicates(90, POOL_PERCENT)
                .adds(10),
            row("4K random write + flush, QD1", RandomWrite, BLOCK)
                .over(1, 1)
                .at(ThirdQuarter)
                .of(Second)
                .flushed()
                .adds(100),
            row("4K random write + flush, 4 x QD4", RandomWrite, BLOCK)
                .over(CONNECTIONS, FLUSHED_DEPTH_PER_CONNECTION)
                .at(LastQuarter)
                .of(Third)
                .flushed()
                .adds(100),
        ],
    },
    Session {
        volume: Volume::Blake3,
        is_more: false,
        workloads: &[row("1M sequential write, unique, BLAKE3, QD32", SequentialWrite, LARGE).adds(100)],
    },
    Session {
        volume: Volume::Default,
        is_more: true,
        workloads: &[
            row("4K random write, unique, 4 x QD8", RandomWrite, BLOCK)
                .over(CONNECTIONS, DEPTH_PER_CONNECTION)
                .adds(100),
            row("4K random read, 4 x QD8", RandomRead, BLOCK).over(CONNECTIONS, DEPTH_PER_CONNECTION),
            row("4K random read, QD1", RandomRead, BLOCK).over(1, 1),
            // A block is freed for each that these two add.
            row("4K random 70 % read 30 % write, QD32", Mix, BLOCK).of(Second),
            row("8K pages: write + flush, 4 clients, beside reads", WriteBesideReads, PAGE)
                .over(CONNECTIONS, 1)
                .of(Third)
                .flushed(),
        ],
    },
    Session {
        volume: Volume::Default,
        is_more: true,
        workloads: &[
            row("4K random write, 50 % duplicate, QD32", RandomWrite, BLOCK)
                .duplicates(50, POOL_PERCENT)
                .adds(50),
            row("4K random write, unique, QD1", RandomWrite, BLOCK)
                .over(1, 1)
                .at(ThirdQuarter)
                .of(Second)
                .adds(100),
        ],
    },
    Session {
        volume: Volume::SmallCache,
        is_more: true,
        workloads: &[
            row("4K random write, unique, small cache, QD32", RandomWrite, BLOCK).adds(100),
            row("4K random write, near duplicates, small cache, QD32", RandomWrite, BLOCK).at(SecondHalf),
            row("4K random write, 75 % far duplicates, small cache, QD32", RandomWrite, BLOCK)
                .of(Second)
                .duplicates(100 - FAR_POOL_PERCENT, FAR_POOL_PERCENT)
                .adds(25),
            // It replaces the last of what the small cache began with.
            row("4K random write, far duplicates, small cache, QD32", RandomWrite, BLOCK)
                .at(SecondHalf)
                .of(Second)
                .duplicates(100 - FAR_POOL_PERCENT, FAR_POOL_PERCENT)
                .adds(-100),
        ],
    },
    Session {
        volume: Volume::Full,
        is_more: true,
        workloads: &[
            row("128K sequential write, unique, QD32", SequentialWrite, MEDIUM).adds(100),
            row("1M sequential read, QD1", SequentialRead, LARGE).over(1, 1),
            row("1M sequential read, 4 x QD8", SequentialRead, LARGE).over(CONNECTIONS, DEPTH_PER_CONNECTION),
            row("4K random overwrite of a full volume, QD32", RandomWrite, BLOCK).of(Second),
            row("1M trim of everything, QD32", Trim, LARGE).of(Third).adds(-100),
        ],
    },
    Session {
        volume: Volume::Default,
        is_more: true,
        workloads: &[
            row("image of a file system, copied in", Copy, LARGE).adds(100),
            row("image of a file system, copied in again", Copy, LARGE).at(SecondHalf),
        ],
    },
];

/// All workloads.
pub(crate) fn workloads() -> impl Iterator<Item = Workload> {
    SESSIONS.iter().flat_map(|session| session.workloads).copied()
}

impl Session {
    /// The session up to this many workloads.
    pub(crate) fn up_to(self, count: usize) -> Self {
        Self { workloads: &self.workloads[..count], ..self }
    }

    pub(crate) fn has(self, work: Work) -> bool {
        self.workloads.iter().any(|workload| workload.work == work)
    }

    /// Bytes of the logical device.
    pub(crate) fn logical_size(self, size: u64) -> u64 {
        if self.volume == Volume::Full { size } else { 2 * size }
    }

    /// Options of `dedup-nbd`.
    pub(crate) fn volume_options(self, size: u64) -> Vec<String> {
        match self.volume {
            Volume::Default | Volume::Full => Vec::new(),
            Volume::Blake3 => vec!["--crypto-alg=blake3".to_owned()],
            Volume::SmallCache => vec![format!("--cache-size={}", size / SMALL_CACHE_PART)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_workloads_have_one_name() {
        let names: std::collections::BTreeSet<_> = workloads().map(|workload| workload.name).collect();
        assert_eq!(names.len(), workloads().count());
    }

    #[test]
    fn reads_come_after_writes_that_filled_what_they_read() {
        let is_read = |workload: &&Workload| matches!(workload.work, RandomRead | SequentialRead);
        for session in SESSIONS {
            let first = session.workloads[0];
            assert!(!is_read(&&first) && first.new_blocks(1 << 30, 1) > 0);
            for workload in session.workloads.iter().filter(is_read) {
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
