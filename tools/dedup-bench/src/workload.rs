//! What a workload is: what it sends, its fio options, and what it must leave on a volume. The table of all
//! is in [`sessions`](crate::sessions).
//!
//! Every session begins with a fresh volume. Work is bounded by bytes, not by time, so that every
//! server does the same. fio's random map sees to it that no block is written or read twice.

use serde::Serialize;

/// Bytes of a random request, and of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of a sequential request, and of a trim.
pub(crate) const LARGE: u64 = 1 << 20;
/// Bytes of a sequential request of middling size: what read-ahead and many programs send.
pub(crate) const MEDIUM: u64 = 128 << 10;
/// Bytes of a database's page.
pub(crate) const PAGE: u64 = 8 << 10;
/// Requests in flight where the workload is not about a single one.
const QUEUE_DEPTH: u32 = 32;
/// Connections of "over 4 connections".
pub(crate) const CONNECTIONS: u64 = 4;
/// Requests in flight on each of 4 connections: as many in all as over one.
pub(crate) const DEPTH_PER_CONNECTION: u32 = 8;
/// The same where each write is followed by a flush: 16 in all.
pub(crate) const FLUSHED_DEPTH_PER_CONNECTION: u32 = 4;
/// Percentage of the size that "50 %" and "90 % duplicate" draw from. fio takes the pool from the unique
/// blocks of the same run, so it adds none.
pub(crate) const POOL_PERCENT: u32 = 1;
/// Percentage that "far" duplicates are drawn from, at random: fio wants its duplicates and what they are
/// drawn from to be no more than all.
pub(crate) const FAR_POOL_PERCENT: u32 = 25;
/// One request at a time does this part of the size, since a request takes as long as a reply is under way.
const DEPTH_1_PART: u64 = 8;
/// Reads of the 70/30 mix.
const MIX_READ_PERCENT: u32 = 70;
/// Fewest write + flush pairs: enough for a 99.9th percentile.
const FLUSHED_WRITES_MIN: u64 = 1024;
/// Most: a disk that takes 10 ms for a flush should not need more than a minute.
const FLUSHED_WRITES_MAX: u64 = 4096;
/// Reads a second of each of the connections that read beside "pages": half of what a small server does for
/// its writes, so that both servers have the same beside them.
const PAGE_READS_PER_SECOND: u32 = 500;

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
pub(crate) enum Place {
    FirstHalf,
    SecondHalf,
    ThirdQuarter,
    LastQuarter,
}

/// Whose content: equal seeds of workloads that cover as much give equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    First,
    Second,
    Third,
}

/// Blocks that repeat earlier ones of the same content.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Duplicates {
    percent: u32,
    /// Part of the range's blocks that they are drawn from.
    pool_percent: u32,
}

/// One thing that is measured. The table of them is [`SESSIONS`](crate::sessions::SESSIONS).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    /// Bytes of a request.
    block: u64,
    connections: u64,
    /// Requests in flight on each connection.
    depth: u32,
    place: Place,
    content: Content,
    duplicates: Option<Duplicates>,
    /// Whether each write is followed by a flush.
    pub(crate) is_flushed: bool,
    /// Data blocks that it must add to a volume, in percent of those that it sends; of an image, of those
    /// that differ.
    adds_percent: i64,
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

impl Serialize for Workload {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// A row of the table: what it sends over one connection with a deep queue, into the first half.
pub(crate) const fn row(name: &'static str, work: Work, block: u64) -> Workload {
    Workload {
        name,
        work,
        block,
        connections: 1,
        depth: QUEUE_DEPTH,
        place: Place::FirstHalf,
        content: Content::First,
        duplicates: None,
        is_flushed: false,
        adds_percent: 0,
    }
}

/// What else a row says.
impl Workload {
    pub(crate) const fn over(mut self, connections: u64, depth: u32) -> Self {
        (self.connections, self.depth) = (connections, depth);
        self
    }

    pub(crate) const fn at(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    pub(crate) const fn of(mut self, content: Content) -> Self {
        self.content = content;
        self
    }

    pub(crate) const fn duplicates(mut self, percent: u32, pool_percent: u32) -> Self {
        self.duplicates = Some(Duplicates { percent, pool_percent });
        self
    }

    pub(crate) const fn flushed(mut self) -> Self {
        self.is_flushed = true;
        self
    }

    pub(crate) const fn adds(mut self, percent: i64) -> Self {
        self.adds_percent = percent;
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
    /// Whether it can be done on a plain file by fio itself.
    pub(crate) fn is_for_files(self) -> bool {
        !matches!(self.work, Work::Trim | Work::Copy)
    }

    /// Whether its rate is told in MB/s, and not in requests a second.
    pub(crate) fn is_sequential(self) -> bool {
        matches!(self.work, Work::SequentialWrite | Work::SequentialRead | Work::Trim | Work::Copy)
    }

    /// Requests that it makes, flushes not counted.
    pub(crate) fn requests(self, size: u64) -> u64 {
        match self.is_flushed {
            true => (size / BLOCK / 64).clamp(FLUSHED_WRITES_MIN, FLUSHED_WRITES_MAX),
            false if self.depth == 1 && self.block == BLOCK => size / self.block / DEPTH_1_PART,
            false => size / self.block,
        }
    }

    /// Requests below which it was cut off.
    pub(crate) fn requests_min(self, size: u64) -> u64 {
        match self.work {
            // Its clients end together, with the first of them.
            Work::WriteBesideReads => self.requests(size) / 2,
            _ => self.requests(size),
        }
    }

    /// First byte and number of bytes of what it covers.
    pub(crate) fn range(self, size: u64) -> (u64, u64) {
        self.place.range(size)
    }

    /// Data blocks that it must add to a volume, where an image has so many that differ.
    pub(crate) fn new_blocks(self, size: u64, in_image: u64) -> i64 {
        let sent = match self.work {
            Work::Copy => in_image,
            _ => self.requests(size) * self.block / BLOCK,
        };
        // A trim ends with a block that is written.
        sent.cast_signed() * self.adds_percent / 100 + i64::from(self.work == Work::Trim)
    }

    /// fio's jobs: options, all but engine and address; `flush` is its option for a flush after so many
    /// writes.
    pub(crate) fn fio_jobs(self, size: u64, flush: &str) -> Vec<FioJob> {
        let (offset, range) = self.place.range(size);
        let range = range / self.connections;
        let direction = match self.work {
            Work::RandomWrite | Work::WriteBesideReads => "randwrite",
            Work::SequentialWrite | Work::Copy => "write",
            Work::RandomRead => "randread",
            Work::SequentialRead => "read",
            Work::Mix => "randrw",
            Work::Trim => "trim",
        };
        let mut options = vec![
            format!("--rw={direction}"),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            format!("--offset={offset}"),
            format!("--size={range}"),
            format!("--io_size={}", self.requests(size) / self.connections * self.block),
            format!("--randseed={}", self.content.seed()),
        ];
        if self.connections > 1 {
            // A process for each connection, its range behind the one before; told as one.
            options.extend([
                format!("--numjobs={}", self.connections),
                format!("--offset_increment={range}"),
                "--group_reporting=1".to_owned(),
            ]);
        }
        if !matches!(self.work, Work::RandomRead | Work::SequentialRead | Work::Trim) {
            options.extend(["--refill_buffers=1", "--end_fsync=1"].map(str::to_owned));
        }
        if self.work == Work::Mix {
            options.push(format!("--rwmixread={MIX_READ_PERCENT}"));
        }
        if let Some(Duplicates { percent, pool_percent }) = self.duplicates {
            options.extend([
                format!("--dedupe_percentage={percent}"),
                "--dedupe_mode=working_set".to_owned(),
                format!("--dedupe_working_set_percentage={pool_percent}"),
            ]);
        }
        if self.is_flushed {
            options.push(format!("--{flush}=1"));
        }
        let mut jobs = Vec::new();
        if self.work == Work::WriteBesideReads {
            options.extend(["--exitall=1", "--exit_what=all"].map(str::to_owned));
            jobs.push(FioJob { role: Role::Beside, options: self.reads_beside(size) });
        }
        jobs.insert(0, FioJob { role: Role::Main, options });
        if self.work == Work::Trim {
            jobs.push(FioJob { role: Role::After, options: self.flush_after(offset) });
        }
        jobs
    }

    /// Random reads of the same range at a fixed rate, until the main job ends.
    fn reads_beside(self, size: u64) -> Vec<String> {
        let (offset, range) = self.place.range(size);
        vec![
            "--new_group=1".to_owned(),
            "--rw=randread".to_owned(),
            format!("--bs={}", self.block),
            "--iodepth=1".to_owned(),
            format!("--offset={offset}"),
            format!("--size={range}"),
            format!("--numjobs={}", self.connections),
            "--group_reporting=1".to_owned(),
            "--time_based=1".to_owned(),
            format!("--rate_iops={PAGE_READS_PER_SECOND}"),
            format!("--randseed={}", self.content.seed()),
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
            format!("--randseed={}", self.content.seed()),
        ]
    }
}

#[cfg(test)]
mod tests;
