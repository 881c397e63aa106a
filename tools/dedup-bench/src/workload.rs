//! What is run: the workloads, their fio options, what they must leave on a volume, and the goals set for them.
//!
//! ```text
//!   logical device       0 ........................ size ........................ 2 x size
//!   session "random"     random unique, random read,     random duplicate (the content of the first half again)
//!                        then overwritten
//!   session "sequential" sequential unique, read         sequential duplicate
//!   session "mixed"      90 % duplicate                  write + flush, then over 4 connections in the last quarter
//!   with --all:
//!   session "medium"     128 KiB sequential unique       50 % duplicate
//!   session "depths"     unique over 4 connections       unique, one at a time
//! ```
//!
//! Every session begins with a fresh volume. Work is bounded by bytes, not by time, so that every server does the same. fio's random
//! map sees to it that no block is written or read twice.

use crate::server::Mode;
use serde::Serialize;

/// Bytes of a random request, and of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of a sequential request.
const LARGE: u64 = 1 << 20;
/// Bytes of a sequential request of middling size: what read-ahead and many programs send.
const MEDIUM: u64 = 128 << 10;
/// Requests in flight where the workload is not about a single one.
const QUEUE_DEPTH: u32 = 32;
/// The one seed of "random unique" and "random duplicate": the same content twice.
const SEED: u32 = 20_140_401;
/// Another one, for content that is stored nowhere yet.
const OTHER_SEED: u32 = SEED + 1;
/// A third one, for the same.
const THIRD_SEED: u32 = SEED + 2;
/// Connections of "over 4 connections", and requests in flight on each.
const CONNECTIONS: u64 = 4;
/// See [`CONNECTIONS`].
const DEPTH_PER_CONNECTION: u32 = 4;
/// The same for writes without flushes: as many in all as over one connection.
const UNIQUE_DEPTH_PER_CONNECTION: u32 = 8;
/// Percentage of the size that duplicates are drawn from. fio takes the pool from the unique blocks of the same run, so it adds none.
const POOL_PERCENT: u32 = 1;
/// Duplicates in "50 % duplicate".
const HALF_PERCENT: u32 = 50;
/// "One at a time" writes this part of the size, since a request takes as long as a reply is under way.
const DEPTH_1_PART: u64 = 8;
/// Duplicates in "90 % duplicate".
const DUPLICATE_PERCENT: u32 = 90;
/// Fewest write + flush pairs: enough for a 99.9th percentile.
const FLUSHED_WRITES_MIN: u64 = 1024;
/// Most: a disk that takes 10 ms for a flush should not need more than a minute.
const FLUSHED_WRITES_MAX: u64 = 4096;

/// One fio job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    RandomUnique,
    RandomDuplicate90,
    RandomDuplicate100,
    RandomOverwrite,
    SequentialUnique,
    SequentialDuplicate,
    RandomRead,
    SequentialRead,
    WriteFlush,
    WriteFlushConnections,
    MediumUnique,
    RandomDuplicate50,
    RandomConnections,
    RandomDepth1,
}

/// Workloads that share a fresh volume, in order.
pub(crate) const SESSIONS: [&[Workload]; 3] = [
    &[Workload::RandomUnique, Workload::RandomRead, Workload::RandomDuplicate100, Workload::RandomOverwrite],
    &[Workload::SequentialUnique, Workload::SequentialRead, Workload::SequentialDuplicate],
    &[Workload::RandomDuplicate90, Workload::WriteFlush, Workload::WriteFlushConnections],
];

/// The same, of the workloads that are run if all are asked for, or one of them by its name.
pub(crate) const MORE_SESSIONS: [&[Workload]; 2] = [
    &[Workload::MediumUnique, Workload::RandomDuplicate50],
    &[Workload::RandomConnections, Workload::RandomDepth1],
];

impl Workload {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 14] = [
        Self::RandomUnique,
        Self::RandomDuplicate90,
        Self::RandomDuplicate100,
        Self::RandomOverwrite,
        Self::SequentialUnique,
        Self::SequentialDuplicate,
        Self::RandomRead,
        Self::SequentialRead,
        Self::WriteFlush,
        Self::WriteFlushConnections,
        Self::MediumUnique,
        Self::RandomDuplicate50,
        Self::RandomConnections,
        Self::RandomDepth1,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandomUnique => "4K random write, unique, QD32",
            Self::RandomDuplicate90 => "4K random write, 90 % duplicate, QD32",
            Self::RandomDuplicate100 => "4K random write, 100 % duplicate, QD32",
            Self::RandomOverwrite => "4K random overwrite, unique, QD32",
            Self::SequentialUnique => "1M sequential write, unique, QD32",
            Self::SequentialDuplicate => "1M sequential write, duplicate, QD32",
            Self::RandomRead => "4K random read, QD32",
            Self::SequentialRead => "1M sequential read, QD32",
            Self::WriteFlush => "4K random write + flush, QD1",
            Self::WriteFlushConnections => "4K random write + flush, 4 x QD4",
            Self::MediumUnique => "128K sequential write, unique, QD32",
            Self::RandomDuplicate50 => "4K random write, 50 % duplicate, QD32",
            Self::RandomConnections => "4K random write, unique, 4 x QD8",
            Self::RandomDepth1 => "4K random write, unique, QD1",
        }
    }

    /// The least rate aimed for, as a part of the peer's.
    pub(crate) fn goal(self, mode: Mode) -> Option<f64> {
        let (buffered, direct) = match self {
            Self::RandomUnique => (0.6, 1.0),
            Self::RandomDuplicate90 => (0.8, 1.5),
            Self::RandomDuplicate100 => (0.9, 2.0),
            Self::SequentialUnique => (0.5, 0.5),
            Self::SequentialDuplicate => (1.0, 1.0),
            Self::RandomRead => (0.9, 0.9),
            Self::SequentialRead => (0.8, 0.8),
            Self::WriteFlush => (0.7, 0.7),
            Self::WriteFlushConnections => (1.0, 1.0),
            Self::RandomOverwrite
            | Self::MediumUnique
            | Self::RandomDuplicate50
            | Self::RandomConnections
            | Self::RandomDepth1 => return None,
        };
        Some(if mode == Mode::Buffered { buffered } else { direct })
    }

    pub(crate) fn is_read(self) -> bool {
        matches!(self, Self::RandomRead | Self::SequentialRead)
    }

    /// Whether its rate is told in MB/s, and not in requests a second.
    pub(crate) fn is_sequential(self) -> bool {
        self.block() > BLOCK
    }

    /// Bytes of a request.
    fn block(self) -> u64 {
        match self {
            Self::SequentialUnique | Self::SequentialDuplicate | Self::SequentialRead => LARGE,
            Self::MediumUnique => MEDIUM,
            _ => BLOCK,
        }
    }

    /// Whether each write is followed by a flush.
    pub(crate) fn is_flushed(self) -> bool {
        matches!(self, Self::WriteFlush | Self::WriteFlushConnections)
    }

    /// Requests that it makes, flushes not counted.
    pub(crate) fn requests(self, size: u64) -> u64 {
        match self {
            Self::RandomDepth1 => size / BLOCK / DEPTH_1_PART,
            _ if self.is_flushed() => (size / BLOCK / 64).clamp(FLUSHED_WRITES_MIN, FLUSHED_WRITES_MAX),
            _ => size / self.block(),
        }
    }

    /// Data blocks that it must add to a volume.
    pub(crate) fn new_blocks(self, size: u64) -> u64 {
        match self {
            // The old content of what is overwritten is also in the other half.
            Self::RandomUnique
            | Self::RandomOverwrite
            | Self::SequentialUnique
            | Self::MediumUnique
            | Self::RandomConnections => size / BLOCK,
            Self::RandomDuplicate50 => size / BLOCK * u64::from(100 - HALF_PERCENT) / 100,
            Self::RandomDuplicate90 => size / BLOCK * u64::from(100 - DUPLICATE_PERCENT) / 100,
            Self::WriteFlush | Self::WriteFlushConnections | Self::RandomDepth1 => self.requests(size),
            Self::RandomDuplicate100
            | Self::SequentialDuplicate
            | Self::RandomRead
            | Self::SequentialRead => 0,
        }
    }

    /// fio's options, all but engine and address.
    pub(crate) fn fio_options(self, size: u64) -> Vec<String> {
        let direction = match self {
            Self::RandomRead => "randread",
            Self::SequentialRead => "read",
            _ if self.is_sequential() => "write",
            _ => "randwrite",
        };
        let block = self.block();
        let depth = match self {
            Self::WriteFlush | Self::RandomDepth1 => 1,
            Self::RandomConnections => UNIQUE_DEPTH_PER_CONNECTION,
            Self::WriteFlushConnections => DEPTH_PER_CONNECTION,
            _ => QUEUE_DEPTH,
        };
        let (offset, range) = match self {
            Self::RandomDuplicate100 | Self::SequentialDuplicate | Self::RandomDuplicate50 => (size, size),
            Self::WriteFlush | Self::RandomDepth1 => (size, size / 2),
            Self::RandomConnections => (0, size / CONNECTIONS),
            Self::WriteFlushConnections => (size + size / 2, size / 2 / CONNECTIONS),
            _ => (0, size),
        };
        let seed = match self {
            Self::WriteFlush | Self::RandomOverwrite | Self::RandomDuplicate50 | Self::RandomDepth1 => {
                OTHER_SEED
            }
            Self::WriteFlushConnections => THIRD_SEED,
            _ => SEED,
        };
        let is_over_connections = matches!(self, Self::WriteFlushConnections | Self::RandomConnections);
        let jobs = if is_over_connections { CONNECTIONS } else { 1 };
        let mut options = vec![
            format!("--rw={direction}"),
            format!("--bs={block}"),
            format!("--iodepth={depth}"),
            format!("--offset={offset}"),
            format!("--size={range}"),
            format!("--io_size={}", self.requests(size) / jobs * block),
            format!("--randseed={seed}"),
        ];
        if jobs > 1 {
            // A process for each connection, its range behind the one before; told as one.
            options.extend([
                format!("--numjobs={jobs}"),
                format!("--offset_increment={range}"),
                "--group_reporting=1".to_owned(),
            ]);
        }
        if !self.is_read() {
            options.extend(["--refill_buffers=1", "--end_fsync=1"].map(str::to_owned));
        }
        let duplicates = |percent: u32| {
            [
                format!("--dedupe_percentage={percent}"),
                "--dedupe_mode=working_set".to_owned(),
                format!("--dedupe_working_set_percentage={POOL_PERCENT}"),
            ]
        };
        match self {
            Self::RandomDuplicate90 => options.extend(duplicates(DUPLICATE_PERCENT)),
            Self::RandomDuplicate50 => options.extend(duplicates(HALF_PERCENT)),
            _ if self.is_flushed() => options.push("--fsync=1".to_owned()),
            _ => {}
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_in_one_session_and_in_the_table() {
        let mut run: Vec<_> = [SESSIONS.concat(), MORE_SESSIONS.concat()].concat();
        run.sort();
        assert_eq!(run, Workload::ALL);
    }

    #[test]
    fn reads_come_after_writes_that_filled_what_they_read() {
        for session in SESSIONS.iter().chain(&MORE_SESSIONS) {
            assert!(!session[0].is_read());
            assert_eq!(session[0].requests(1 << 30) * session[0].block(), 1 << 30);
        }
    }

    #[test]
    fn content_is_repeated_only_where_it_is_meant_to_be() {
        let seed =
            |workload: Workload| workload.fio_options(1 << 30).iter().find(|o| o.contains("seed")).cloned();
        assert_eq!(seed(Workload::RandomUnique), seed(Workload::RandomDuplicate100));
        assert_ne!(seed(Workload::RandomDuplicate90), seed(Workload::WriteFlush));
    }
}
