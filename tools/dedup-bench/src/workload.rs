//! What is run: the workloads, their fio options, what they must leave on a volume, and the goals set for them.
//!
//! Every session (see [`sessions`](crate::sessions)) begins with a fresh volume. Work is bounded by bytes, not by time, so that every
//! server does the same. fio's random map sees to it that no block is written or read twice.

use crate::server::Mode;
use serde::Serialize;

/// Bytes of a random request, and of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of a sequential request, and of a trim.
const LARGE: u64 = 1 << 20;
/// Bytes of a sequential request of middling size: what read-ahead and many programs send.
const MEDIUM: u64 = 128 << 10;
/// Bytes of a database's page.
const PAGE: u64 = 8 << 10;
/// Requests in flight where the workload is not about a single one.
const QUEUE_DEPTH: u32 = 32;
/// Connections of "over 4 connections".
const CONNECTIONS: u64 = 4;
/// Requests in flight on each of 4 connections: as many in all as over one.
const DEPTH_PER_CONNECTION: u32 = 8;
/// The same where each write is followed by a flush: 16 in all.
const FLUSHED_DEPTH_PER_CONNECTION: u32 = 4;
/// Percentage of the size that "50 %" and "90 % duplicate" draw from. fio takes the pool from the unique blocks of the same run, so it
/// adds none.
const POOL_PERCENT: u32 = 1;
/// Percentage that "far" duplicates are drawn from, at random: fio wants its duplicates and what they are drawn from to be no more than all.
const FAR_POOL_PERCENT: u32 = 25;
/// One request at a time does this part of the size, since a request takes as long as a reply is under way.
const DEPTH_1_PART: u64 = 8;
/// Reads of the 70/30 mix.
const MIX_READ_PERCENT: u32 = 70;
/// Fewest write + flush pairs: enough for a 99.9th percentile.
const FLUSHED_WRITES_MIN: u64 = 1024;
/// Most: a disk that takes 10 ms for a flush should not need more than a minute.
const FLUSHED_WRITES_MAX: u64 = 4096;
/// Reads a second of each of the connections that read beside "pages": half of what a small server does for its writes, so that both
/// servers have the same beside them.
const PAGE_READS_PER_SECOND: u32 = 500;

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    RandomUnique,
    RandomDuplicate90,
    RandomDuplicate100,
    RandomOverwrite,
    SequentialUnique,
    SequentialBlake3,
    SequentialDuplicate,
    RandomRead,
    SequentialRead,
    WriteFlush,
    WriteFlushConnections,
    MediumUnique,
    FullOverwrite,
    RandomDuplicate50,
    SmallCacheUnique,
    NearDuplicate,
    FarOriginals,
    FarDuplicate,
    RandomConnections,
    RandomDepth1,
    RandomReadConnections,
    RandomReadDepth1,
    SequentialReadConnections,
    SequentialReadDepth1,
    Mix,
    Pages,
    Trim,
    ImageCopy,
    ImageCopyAgain,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    RandomWrite,
    SequentialWrite,
    RandomRead,
    SequentialRead,
    /// Random reads and writes.
    Mix,
    /// Random writes, with random reads at a fixed rate beside them.
    WriteBesideReads,
    /// Trims of everything, then one block written and a flush, which fio has not for trims alone.
    Trim,
    /// An image, copied by qemu-img.
    Copy,
}

/// Which part of the logical device it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    FirstHalf,
    SecondHalf,
    ThirdQuarter,
    LastQuarter,
}

/// Whose content: equal seeds of workloads that cover as much give equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    First,
    Second,
    Third,
}

/// Blocks that repeat earlier ones of the same content.
#[derive(Clone, Copy, Debug)]
struct Duplicates {
    percent: u32,
    /// Part of the range's blocks that they are drawn from.
    pool_percent: u32,
}

#[derive(Clone, Copy, Debug)]
struct Spec {
    name: &'static str,
    work: Work,
    /// Bytes of a request.
    block: u64,
    connections: u64,
    /// Requests in flight on each connection.
    depth: u32,
    place: Place,
    content: Content,
    duplicates: Option<Duplicates>,
    /// Whether each write is followed by a flush.
    flushed: bool,
    /// Least rates aimed for as parts of the peer's: buffered, direct.
    goal: Option<[f64; 2]>,
}

/// fio's options for one job, and how its figures count.
#[derive(Debug)]
pub(crate) struct FioJob {
    pub(crate) role: Role,
    pub(crate) options: Vec<String>,
}

/// How the figures of a job count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// This is what is measured.
    Main,
    /// Runs beside it; of its figures, only latencies are told.
    Beside,
    /// Runs behind it; its time is part of the time.
    After,
}

impl Role {
    /// The job's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Beside => "beside",
            Self::After => "after",
        }
    }
}

impl Spec {
    const fn new(name: &'static str, work: Work, block: u64) -> Self {
        Self {
            name,
            work,
            block,
            connections: 1,
            depth: QUEUE_DEPTH,
            place: Place::FirstHalf,
            content: Content::First,
            duplicates: None,
            flushed: false,
            goal: None,
        }
    }

    const fn over(mut self, connections: u64, depth: u32) -> Self {
        (self.connections, self.depth) = (connections, depth);
        self
    }

    const fn at(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    const fn of(mut self, content: Content) -> Self {
        self.content = content;
        self
    }

    const fn duplicates(mut self, percent: u32, pool_percent: u32) -> Self {
        self.duplicates = Some(Duplicates { percent, pool_percent });
        self
    }

    const fn flushed(mut self) -> Self {
        self.flushed = true;
        self
    }

    const fn goal(mut self, buffered: f64, direct: f64) -> Self {
        self.goal = Some([buffered, direct]);
        self
    }
}

impl Place {
    /// First byte and number of bytes.
    fn range(self, size: u64) -> (u64, u64) {
        match self {
            Self::FirstHalf => (0, size),
            Self::SecondHalf => (size, size),
            Self::ThirdQuarter => (size, size / 2),
            Self::LastQuarter => (size + size / 2, size / 2),
        }
    }
}

impl Content {
    fn seed(self) -> u32 {
        // Any three numbers.
        20_140_401 + self as u32
    }
}

impl Workload {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 29] = [
        Self::RandomUnique,
        Self::RandomDuplicate90,
        Self::RandomDuplicate100,
        Self::RandomOverwrite,
        Self::SequentialUnique,
        Self::SequentialBlake3,
        Self::SequentialDuplicate,
        Self::RandomRead,
        Self::SequentialRead,
        Self::WriteFlush,
        Self::WriteFlushConnections,
        Self::MediumUnique,
        Self::FullOverwrite,
        Self::RandomDuplicate50,
        Self::SmallCacheUnique,
        Self::NearDuplicate,
        Self::FarOriginals,
        Self::FarDuplicate,
        Self::RandomConnections,
        Self::RandomDepth1,
        Self::RandomReadConnections,
        Self::RandomReadDepth1,
        Self::SequentialReadConnections,
        Self::SequentialReadDepth1,
        Self::Mix,
        Self::Pages,
        Self::Trim,
        Self::ImageCopy,
        Self::ImageCopyAgain,
    ];

    const fn spec(self) -> Spec {
        use Content::{Second, Third};
        use Place::{LastQuarter, SecondHalf, ThirdQuarter};
        use Work::{RandomRead, RandomWrite, SequentialRead, SequentialWrite};
        match self {
            Self::RandomUnique => {
                Spec::new("4K random write, unique, QD32", RandomWrite, BLOCK).goal(0.6, 1.0)
            }
            Self::RandomDuplicate90 => Spec::new("4K random write, 90 % duplicate, QD32", RandomWrite, BLOCK)
                .duplicates(90, POOL_PERCENT)
                .goal(0.8, 1.5),
            Self::RandomDuplicate100 => {
                Spec::new("4K random write, 100 % duplicate, QD32", RandomWrite, BLOCK)
                    .at(SecondHalf)
                    .goal(0.9, 2.0)
            }
            Self::RandomOverwrite => {
                Spec::new("4K random overwrite, unique, QD32", RandomWrite, BLOCK).of(Second)
            }
            Self::SequentialUnique => {
                Spec::new("1M sequential write, unique, QD32", SequentialWrite, LARGE).goal(0.5, 0.5)
            }
            Self::SequentialBlake3 => {
                Spec::new("1M sequential write, unique, BLAKE3, QD32", SequentialWrite, LARGE).goal(0.8, 0.8)
            }
            Self::SequentialDuplicate => {
                Spec::new("1M sequential write, duplicate, QD32", SequentialWrite, LARGE)
                    .at(SecondHalf)
                    .goal(1.0, 1.0)
            }
            Self::RandomRead => Spec::new("4K random read, QD32", RandomRead, BLOCK).goal(0.9, 0.9),
            Self::SequentialRead => {
                Spec::new("1M sequential read, QD32", SequentialRead, LARGE).goal(0.8, 0.8)
            }
            Self::WriteFlush => Spec::new("4K random write + flush, QD1", RandomWrite, BLOCK)
                .over(1, 1)
                .at(ThirdQuarter)
                .of(Second)
                .flushed()
                .goal(0.7, 0.7),
            Self::WriteFlushConnections => Spec::new("4K random write + flush, 4 x QD4", RandomWrite, BLOCK)
                .over(CONNECTIONS, FLUSHED_DEPTH_PER_CONNECTION)
                .at(LastQuarter)
                .of(Third)
                .flushed()
                .goal(1.0, 1.0),
            Self::MediumUnique => Spec::new("128K sequential write, unique, QD32", SequentialWrite, MEDIUM),
            Self::FullOverwrite => {
                Spec::new("4K random overwrite of a full volume, QD32", RandomWrite, BLOCK).of(Second)
            }
            Self::RandomDuplicate50 => Spec::new("4K random write, 50 % duplicate, QD32", RandomWrite, BLOCK)
                .duplicates(50, POOL_PERCENT),
            Self::SmallCacheUnique => {
                Spec::new("4K random write, unique, small cache, QD32", RandomWrite, BLOCK)
            }
            Self::NearDuplicate => {
                Spec::new("4K random write, near duplicates, small cache, QD32", RandomWrite, BLOCK)
                    .at(SecondHalf)
            }
            Self::FarOriginals => {
                Spec::new("4K random write, 75 % far duplicates, small cache, QD32", RandomWrite, BLOCK)
                    .of(Second)
                    .duplicates(100 - FAR_POOL_PERCENT, FAR_POOL_PERCENT)
            }
            Self::FarDuplicate => {
                Spec::new("4K random write, far duplicates, small cache, QD32", RandomWrite, BLOCK)
                    .at(SecondHalf)
                    .of(Second)
                    .duplicates(100 - FAR_POOL_PERCENT, FAR_POOL_PERCENT)
            }
            Self::RandomConnections => Spec::new("4K random write, unique, 4 x QD8", RandomWrite, BLOCK)
                .over(CONNECTIONS, DEPTH_PER_CONNECTION),
            Self::RandomDepth1 => Spec::new("4K random write, unique, QD1", RandomWrite, BLOCK)
                .over(1, 1)
                .at(ThirdQuarter)
                .of(Second),
            Self::RandomReadConnections => Spec::new("4K random read, 4 x QD8", RandomRead, BLOCK)
                .over(CONNECTIONS, DEPTH_PER_CONNECTION),
            Self::RandomReadDepth1 => Spec::new("4K random read, QD1", RandomRead, BLOCK).over(1, 1),
            Self::SequentialReadConnections => {
                Spec::new("1M sequential read, 4 x QD8", SequentialRead, LARGE)
                    .over(CONNECTIONS, DEPTH_PER_CONNECTION)
            }
            Self::SequentialReadDepth1 => {
                Spec::new("1M sequential read, QD1", SequentialRead, LARGE).over(1, 1)
            }
            Self::Mix => Spec::new("4K random 70 % read 30 % write, QD32", Work::Mix, BLOCK).of(Second),
            Self::Pages => {
                Spec::new("8K pages: write + flush, 4 clients, beside reads", Work::WriteBesideReads, PAGE)
                    .over(CONNECTIONS, 1)
                    .of(Third)
                    .flushed()
            }
            Self::Trim => Spec::new("1M trim of everything, QD32", Work::Trim, LARGE).of(Third),
            Self::ImageCopy => Spec::new("image of a file system, copied in", Work::Copy, LARGE),
            Self::ImageCopyAgain => {
                Spec::new("image of a file system, copied in again", Work::Copy, LARGE).at(SecondHalf)
            }
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.spec().name
    }

    pub(crate) fn work(self) -> Work {
        self.spec().work
    }

    /// The least rate aimed for, as a part of the peer's.
    pub(crate) fn goal(self, mode: Mode) -> Option<f64> {
        let [buffered, direct] = self.spec().goal?;
        Some(if mode == Mode::Buffered { buffered } else { direct })
    }

    /// Whether it can be done on a plain file by fio itself.
    pub(crate) fn is_for_files(self) -> bool {
        !matches!(self.work(), Work::Trim | Work::Copy)
    }

    /// Whether its rate is told in MB/s, and not in requests a second.
    pub(crate) fn is_sequential(self) -> bool {
        matches!(self.work(), Work::SequentialWrite | Work::SequentialRead | Work::Trim | Work::Copy)
    }

    /// Whether each write is followed by a flush.
    pub(crate) fn is_flushed(self) -> bool {
        self.spec().flushed
    }

    /// Whether it changes what is stored.
    #[cfg(test)]
    pub(crate) fn is_read(self) -> bool {
        matches!(self.work(), Work::RandomRead | Work::SequentialRead)
    }

    /// Requests that it makes, flushes not counted.
    pub(crate) fn requests(self, size: u64) -> u64 {
        let spec = self.spec();
        match spec.flushed {
            true => (size / BLOCK / 64).clamp(FLUSHED_WRITES_MIN, FLUSHED_WRITES_MAX),
            false if spec.depth == 1 && spec.block == BLOCK => size / spec.block / DEPTH_1_PART,
            false => size / spec.block,
        }
    }

    /// Requests below which it was cut off.
    pub(crate) fn requests_min(self, size: u64) -> u64 {
        match self.work() {
            // Its clients end together, with the first of them.
            Work::WriteBesideReads => self.requests(size) / 2,
            _ => self.requests(size),
        }
    }

    /// First byte and number of bytes of what it covers.
    pub(crate) fn range(self, size: u64) -> (u64, u64) {
        self.spec().place.range(size)
    }

    /// Data blocks that it must add to a volume; `None` if that depends on the image.
    pub(crate) fn new_blocks(self, size: u64) -> Option<i64> {
        let blocks = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let all = blocks(size / BLOCK);
        Some(match self {
            // The old content of what is overwritten is also in the other half.
            Self::RandomUnique
            | Self::RandomOverwrite
            | Self::SequentialUnique
            | Self::SequentialBlake3
            | Self::MediumUnique
            | Self::SmallCacheUnique
            | Self::RandomConnections => all,
            Self::RandomDuplicate50 => all / 2,
            Self::FarOriginals => all / 4,
            // It replaces the last of what the small cache began with.
            Self::FarDuplicate => -all,
            Self::RandomDuplicate90 => all / 10,
            Self::WriteFlush | Self::WriteFlushConnections | Self::RandomDepth1 => {
                blocks(self.requests(size))
            }
            Self::Trim => 1 - all,
            Self::RandomDuplicate100
            | Self::NearDuplicate
            | Self::SequentialDuplicate
            | Self::RandomRead
            | Self::SequentialRead
            | Self::RandomReadConnections
            | Self::RandomReadDepth1
            | Self::SequentialReadConnections
            | Self::SequentialReadDepth1
            // A block is freed for each that is added.
            | Self::FullOverwrite
            | Self::Mix
            | Self::Pages => 0,
            Self::ImageCopy | Self::ImageCopyAgain => return None,
        })
    }

    /// fio's jobs: options, all but engine and address; `flush` is its option for a flush after so many writes.
    pub(crate) fn fio_jobs(self, size: u64, flush: &str) -> Vec<FioJob> {
        let spec = self.spec();
        let (offset, range) = spec.place.range(size);
        let range = range / spec.connections;
        let direction = match spec.work {
            Work::RandomWrite | Work::WriteBesideReads => "randwrite",
            Work::SequentialWrite | Work::Copy => "write",
            Work::RandomRead => "randread",
            Work::SequentialRead => "read",
            Work::Mix => "randrw",
            Work::Trim => "trim",
        };
        let mut options = vec![
            format!("--rw={direction}"),
            format!("--bs={}", spec.block),
            format!("--iodepth={}", spec.depth),
            format!("--offset={offset}"),
            format!("--size={range}"),
            format!("--io_size={}", self.requests(size) / spec.connections * spec.block),
            format!("--randseed={}", spec.content.seed()),
        ];
        if spec.connections > 1 {
            // A process for each connection, its range behind the one before; told as one.
            options.extend([
                format!("--numjobs={}", spec.connections),
                format!("--offset_increment={range}"),
                "--group_reporting=1".to_owned(),
            ]);
        }
        if !matches!(spec.work, Work::RandomRead | Work::SequentialRead | Work::Trim) {
            options.extend(["--refill_buffers=1", "--end_fsync=1"].map(str::to_owned));
        }
        if spec.work == Work::Mix {
            options.push(format!("--rwmixread={MIX_READ_PERCENT}"));
        }
        if let Some(Duplicates { percent, pool_percent }) = spec.duplicates {
            options.extend([
                format!("--dedupe_percentage={percent}"),
                "--dedupe_mode=working_set".to_owned(),
                format!("--dedupe_working_set_percentage={pool_percent}"),
            ]);
        }
        if spec.flushed {
            options.push(format!("--{flush}=1"));
        }
        let mut jobs = Vec::new();
        if spec.work == Work::WriteBesideReads {
            options.extend(["--exitall=1", "--exit_what=all"].map(str::to_owned));
            jobs.push(FioJob { role: Role::Beside, options: self.reads_beside(size) });
        }
        jobs.insert(0, FioJob { role: Role::Main, options });
        if spec.work == Work::Trim {
            jobs.push(FioJob { role: Role::After, options: self.flush_after(offset) });
        }
        jobs
    }

    /// Random reads of the same range at a fixed rate, until the main job ends.
    fn reads_beside(self, size: u64) -> Vec<String> {
        let spec = self.spec();
        let (offset, range) = spec.place.range(size);
        vec![
            "--new_group=1".to_owned(),
            "--rw=randread".to_owned(),
            format!("--bs={}", spec.block),
            "--iodepth=1".to_owned(),
            format!("--offset={offset}"),
            format!("--size={range}"),
            format!("--numjobs={}", spec.connections),
            "--group_reporting=1".to_owned(),
            "--time_based=1".to_owned(),
            format!("--rate_iops={PAGE_READS_PER_SECOND}"),
            format!("--randseed={}", spec.content.seed()),
        ]
    }

    /// One block, and the flush that makes what came before it durable.
    fn flush_after(self, offset: u64) -> Vec<String> {
        vec![
            "--stonewall".to_owned(),
            "--new_group=1".to_owned(),
            "--rw=write".to_owned(),
            format!("--bs={BLOCK}"),
            format!("--offset={offset}"),
            format!("--size={BLOCK}"),
            "--refill_buffers=1".to_owned(),
            "--end_fsync=1".to_owned(),
            format!("--randseed={}", self.spec().content.seed()),
        ]
    }
}

#[cfg(test)]
mod tests;
