//! The engine by itself: a volume on two devices, driven by a loop in this process.
//!
//! ```text
//!   caller 1 ─ LBNs 0 .. n/2 ─┐
//!                             ├─ Volume::execute(batch) ─ memory x 2, or files x 2
//!   caller 2 ─ LBNs n/2 .. n ─┘
//! ```
//!
//! Blocks differ in their first 16 bytes only; digests take the same time for any content. LBNs come in a
//! scattered order. What a front end, a socket and a disk cost is not in the numbers on memory; what copying
//! into it costs, is. All of it has been touched before (see [`memory`](crate::memory)).
//!
//! Configurations take turns within a round, so that load which comes and goes touches them alike, and two
//! callers are compared with one of the same round. With the feature `lock-times`, the parts of the CPU time
//! for which locks were held stand beside the rest: what they guard, callers cannot do at the same time.

use crate::args;
use crate::child;
use crate::memory::TouchedMemory;
use crate::peers::fill;
use crate::server::cpu_time;
use crate::summary::{Spread, table};
use crate::workload::BLOCK;
use anyhow::{Context, Result, anyhow};
use dedup_device::{AlignedBuf, BlockDevice, FileDevice, IoMode};
use dedup_volume::{DigestAlgorithm, FormatOptions, Op, OpenOptions, Request, Volume, geometry};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

use crate::machine::Machine;

#[cfg(feature = "lock-times")]
mod locks;

/// Bytes of a block, as an index.
const BLOCK_BYTES: usize = BLOCK as usize;
/// Requests handed over at once: what a client with a queue of 32 sends, and what several such clients add up
/// to.
const BATCHES: [u64; 2] = [32, 256];
/// Threads that call the engine, and threads that it computes digests with.
const THREADS: [(usize, usize); 4] = [(1, 1), (2, 1), (1, 2), (2, 2)];
/// Write + flush pairs of each caller.
const FLUSHED_WRITES: u64 = 4096;
/// Blocks hashed to measure a digest: 64 MiB, some 0.2 s.
const DIGESTED_BLOCKS: u32 = 16 << 10;
/// Multiplier that scatters LBNs: 2^64 by the golden ratio, odd, so that it permutes any power of two.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    size: u64,
    rounds: u32,
    /// Whether acknowledged operations were kept in a journal.
    journal: bool,
    digests: Vec<DigestRate>,
    results: Vec<Row>,
    /// The largest part of the CPU time of unique writes on memory for which one lock was held; only if that
    /// was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    serial_share: Option<f64>,
}

/// What a checksum of a 4 KiB block costs on one core.
#[derive(Debug, Serialize)]
struct DigestRate {
    name: &'static str,
    us_per_block: f64,
    blocks_per_second: f64,
}

/// One kind of work, over all rounds.
#[derive(Debug, Serialize)]
struct Row {
    work: Work,
    #[serde(flatten)]
    setup: Setup,
    blocks_per_second: Spread,
    cpu_us_per_block: Spread,
    /// Rate as a multiple of one caller's, in the same round; for more than one.
    of_one_caller: Option<Spread>,
    /// Parts of the CPU time for which locks were held, by what they guard, longest first.
    #[cfg(feature = "lock-times")]
    locks: Vec<(&'static str, f64)>,
}

/// What another build's JSON is read for.
#[derive(Debug, Deserialize)]
pub(crate) struct Rates {
    pub(crate) results: Vec<Rate>,
}

/// A [`Row`] as far as builds are compared by it.
#[derive(Debug, Deserialize)]
pub(crate) struct Rate {
    work: Work,
    #[serde(flatten)]
    setup: Setup,
    pub(crate) blocks_per_second: Spread,
    pub(crate) cpu_us_per_block: Spread,
}

/// What the work is done on and with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Setup {
    device: Devices,
    batch: u64,
    callers: usize,
    digest_threads: usize,
}

/// What the volume stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Devices {
    Memory,
    /// Files, through the page cache.
    Buffered,
    /// Files, around it.
    Direct,
}

/// What is done with every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Work {
    Unique,
    Duplicate,
    Read,
    WriteFlush,
}

/// A caller's share of the LBNs: `blocks` is a power of two.
#[derive(Clone, Copy)]
struct Share {
    first: u64,
    blocks: u64,
    batch: u64,
}

/// A run of one kind of work.
struct Measured {
    blocks: u64,
    elapsed: Duration,
    cpu: Duration,
    /// What guards how many holds, and nanoseconds of them.
    #[cfg(feature = "lock-times")]
    locks: Vec<(&'static str, u64, f64)>,
}

/// Runs everything.
pub(crate) fn run(args: &args::Engine) -> Result<Report> {
    let machine = Machine::describe(args.dir.as_deref(), Vec::new());
    let blocks = (args.size.0 / BLOCK).next_power_of_two();
    let setups = setups(args);
    // By round, setup, work.
    let mut rounds: Vec<Vec<Vec<Measured>>> = Vec::new();
    for _ in 0..args.rounds {
        let round = setups.iter().map(|setup| round(blocks, *setup, args));
        rounds.push(round.collect::<Result<_>>()?);
    }
    let mut results = Vec::new();
    for (place, setup) in setups.iter().enumerate() {
        let alone = setups.iter().position(|other| *other == Setup { callers: 1, ..*setup });
        for (index, work) in Work::ALL.into_iter().enumerate() {
            let of = |f: fn(&Measured) -> f64| {
                Spread::of(rounds.iter().map(|round| f(&round[place][index]))).context("no rounds")
            };
            let alone = alone.filter(|alone| *alone != place);
            let of_one_caller = alone.and_then(|alone| {
                Spread::of(rounds.iter().map(|round| round[place][index].rate() / round[alone][index].rate()))
            });
            results.push(Row {
                work,
                setup: Setup { batch: if work == Work::WriteFlush { 1 } else { setup.batch }, ..*setup },
                blocks_per_second: of(Measured::rate)?,
                cpu_us_per_block: of(|m| m.cpu.as_secs_f64() * 1e6 / m.blocks as f64)?,
                of_one_caller,
                #[cfg(feature = "lock-times")]
                locks: locks::shares(rounds.iter().map(|round| &round[place][index])),
            });
        }
    }
    #[cfg(feature = "lock-times")]
    let serial_share = locks::largest_of_unique(&results);
    #[cfg(not(feature = "lock-times"))]
    let serial_share = None;
    let digests = digests();
    let args::Engine { rounds, journal, .. } = *args;
    Ok(Report { machine, size: blocks * BLOCK, rounds, journal, digests, results, serial_share })
}

/// What is measured: memory in every way, files as front ends use them.
fn setups(args: &args::Engine) -> Vec<Setup> {
    let mut setups = Vec::new();
    for (callers, digest_threads) in THREADS {
        for batch in BATCHES {
            setups.push(Setup { device: Devices::Memory, batch, callers, digest_threads });
        }
    }
    for device in [Devices::Buffered, Devices::Direct].into_iter().filter(|_| args.dir.is_some()) {
        for callers in [1, 2] {
            setups.push(Setup { device, batch: BATCHES[0], callers, digest_threads: 1 });
        }
    }
    setups.retain(|setup| args.batch.is_none_or(|batch| setup.batch == batch));
    setups.retain(|setup| args.digest_threads.is_none_or(|threads| setup.digest_threads == threads));
    setups
}

impl Rate {
    /// What was done, and how.
    pub(crate) fn name(&self) -> String {
        let Setup { batch, callers, digest_threads, .. } = self.setup;
        format!(
            "{}, batches of {batch}, callers {callers}, digest threads {digest_threads}",
            self.work.name()
        )
    }

    pub(crate) fn device(&self) -> &'static str {
        self.setup.device.name()
    }
}

impl Measured {
    fn rate(&self) -> f64 {
        self.blocks as f64 / self.elapsed.as_secs_f64()
    }
}

impl Devices {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Buffered => "files, buffered",
            Self::Direct => "files, direct",
        }
    }
}

impl Work {
    const ALL: [Self; 4] = [Self::Unique, Self::Duplicate, Self::Read, Self::WriteFlush];

    fn name(self) -> &'static str {
        match self {
            Self::Unique => "write, unique",
            Self::Duplicate => "write, duplicate",
            Self::Read => "read",
            Self::WriteFlush => "write + flush",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let mut digests = table(&["checksum of 4 KiB, one core", "us", "MB/s"]);
        for DigestRate { name, us_per_block, blocks_per_second } in &self.digests {
            digests.add_row([
                (*name).to_owned(),
                format!("{us_per_block:.2}"),
                format!("{:.0}", BLOCK as f64 * blocks_per_second / 1e6),
            ]);
        }
        let mut results = table(&[
            "4 KiB blocks",
            "devices",
            "batch",
            "callers",
            "digest threads",
            "blocks/s",
            "min-max",
            "of one caller",
            "min-max",
            "us CPU/block",
            "min-max",
        ]);
        for row in &self.results {
            let (rate, cpu, setup) = (row.blocks_per_second, row.cpu_us_per_block, row.setup);
            let of_one = |f: fn(Spread) -> String| row.of_one_caller.map(f).unwrap_or_default();
            results.add_row([
                row.work.name().to_owned(),
                setup.device.name().to_owned(),
                setup.batch.to_string(),
                setup.callers.to_string(),
                setup.digest_threads.to_string(),
                format!("{:.0}", rate.median),
                format!("{:.0}-{:.0}", rate.min, rate.max),
                of_one(|ratio| format!("{:.2}", ratio.median)),
                of_one(|ratio| format!("{:.2}-{:.2}", ratio.min, ratio.max)),
                format!("{:.2}", cpu.median),
                format!("{:.2}-{:.2}", cpu.min, cpu.max),
            ]);
        }
        write!(f, "{digests}\n\n{results}")?;
        #[cfg(feature = "lock-times")]
        write!(f, "\n\n{}", locks::table_of(&self.results))?;
        Ok(())
    }
}

/// Every kind of work once, on one volume.
fn round(blocks: u64, setup: Setup, args: &args::Engine) -> Result<Vec<Measured>> {
    child::check_interrupted()?;
    // Removed when it goes out of scope.
    let dir = args
        .dir
        .as_ref()
        .map(|dir| tempfile::Builder::new().prefix("dedup-bench-").tempdir_in(dir))
        .transpose();
    let dir = dir.context("cannot make a directory to work in")?;
    let volume = volume(blocks, setup, dir.as_ref().map(|dir| dir.path()), args.journal)?;
    let Setup { batch, callers, .. } = setup;
    let share = blocks / callers as u64;
    let mut measured = Vec::new();
    for work in Work::ALL {
        #[cfg(feature = "lock-times")]
        let locks_before = dedup_volume::lock_times();
        let (begin, cpu) = (Instant::now(), cpu_time("self")?);
        let done = thread::scope(|scope| {
            let threads: Vec<_> = (0..callers as u64)
                .map(|caller| {
                    let share = Share { first: caller * share, blocks: share, batch };
                    let volume = &volume;
                    scope.spawn(move || call(volume, work, share, blocks))
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a caller panicked"))))
                .sum::<Result<u64>>()
        })?;
        measured.push(Measured {
            blocks: done,
            elapsed: begin.elapsed(),
            cpu: cpu_time("self")? - cpu,
            #[cfg(feature = "lock-times")]
            locks: locks::since(&locks_before),
        });
    }
    volume.close().context("cannot close the volume")?;
    Ok(measured)
}

/// A volume for `blocks` blocks, the same again as duplicates, and those that are flushed one by one.
fn volume(blocks: u64, setup: Setup, dir: Option<&Path>, journal: bool) -> Result<Volume> {
    let logical_blocks = 2 * blocks;
    // A block for the label, as much again for what is freed only with the next commit.
    let data_blocks = 2 * blocks + 2 * FLUSHED_WRITES + 1;
    let device = |name: &str, size: u64| -> Result<Arc<dyn BlockDevice>> {
        let file = |io| {
            let path = dir.context("expected a directory for files")?.join(name);
            Ok::<_, anyhow::Error>(Arc::new(FileDevice::create(path, size, io)?))
        };
        Ok(match setup.device {
            Devices::Memory => Arc::new(TouchedMemory::new(size)),
            Devices::Buffered => file(IoMode::Buffered)?,
            Devices::Direct => file(IoMode::Direct)?,
        })
    };
    let data = device("data", data_blocks * BLOCK)?;
    let metadata = device("metadata", geometry::metadata_size(logical_blocks, data_blocks))?;
    let options = FormatOptions::new(logical_blocks * BLOCK, Uuid::from_u128(1), Uuid::from_u128(2));
    dedup_volume::format(&*data, &metadata, &options).context("cannot format the devices")?;
    // Memory has no name; that of a directory is as good.
    let names = tempfile::tempdir().context("cannot make a directory")?;
    let journal = journal.then(|| dedup_cli::journal_options(names.path())).transpose();
    let journal = journal.context("cannot keep a journal")?;
    let options = OpenOptions { digest_threads: setup.digest_threads, journal, ..OpenOptions::default() };
    Volume::open(data, metadata, &options).context("cannot open the volume")
}

/// One caller's part of the work; gives the number of blocks.
fn call(volume: &Volume, work: Work, share: Share, blocks: u64) -> Result<u64> {
    let mut memory = AlignedBuf::zeroed(share.batch as usize * BLOCK_BYTES);
    fill(&mut memory, &mut 1);
    if work == Work::WriteFlush {
        let pairs = FLUSHED_WRITES.min(share.blocks);
        for i in 0..pairs {
            let lbn = share.lbn(i);
            // Content that no other caller and no other work has.
            stamp(&mut memory[..BLOCK_BYTES], lbn, 1);
            execute(volume, vec![write(0, lbn, &memory[..BLOCK_BYTES])])?;
            execute(volume, vec![Request { tag: 0, op: Op::Flush }])?;
        }
        return Ok(pairs);
    }
    for start in (0..share.blocks).step_by(share.batch as usize) {
        let numbers = start..(start + share.batch).min(share.blocks);
        let chunks = memory.chunks_mut(BLOCK_BYTES).zip(numbers);
        let batch = match work {
            Work::Read => chunks.map(|(buf, i)| read(i, share.lbn(i), buf)).collect(),
            _ => {
                let place = if work == Work::Duplicate { blocks } else { 0 };
                let stamped = chunks.map(|(block, i)| {
                    stamp(block, share.lbn(i), 0);
                    write(i, place + share.lbn(i), block)
                });
                stamped.collect()
            }
        };
        execute(volume, batch)?;
    }
    Ok(share.blocks)
}

impl Share {
    /// The LBN of the i-th request: each once, none near the one before.
    fn lbn(self, i: u64) -> u64 {
        self.first + (i.wrapping_mul(SCATTER) & (self.blocks - 1))
    }
}

/// Makes a block's content that of (`number`, `generation`).
fn stamp(block: &mut [u8], number: u64, generation: u64) {
    block[..8].copy_from_slice(&number.to_le_bytes());
    block[8..16].copy_from_slice(&generation.to_le_bytes());
}

fn write(tag: u64, lbn: u64, data: &[u8]) -> Request<'_> {
    Request { tag, op: Op::Write { offset: lbn * BLOCK, data, fua: false } }
}

fn read(tag: u64, lbn: u64, buf: &mut [u8]) -> Request<'_> {
    Request { tag, op: Op::Read { offset: lbn * BLOCK, buf } }
}

/// Runs a batch; the error is the last one of its requests, or why the volume has stopped.
pub(crate) fn execute(volume: &Volume, batch: Vec<Request<'_>>) -> Result<()> {
    let mut outcome = Ok(());
    volume.execute(batch, &mut |_, result| {
        if let Err(error) = result {
            outcome = Err(error);
        }
    });
    outcome.with_context(|| match volume.status().failure {
        Some(failure) => format!("the volume has stopped: {failure}"),
        None => "a request failed".to_owned(),
    })
}

fn digests() -> Vec<DigestRate> {
    let mut rates: Vec<DigestRate> = DigestAlgorithm::ALL
        .into_iter()
        .map(|a| rate_of(a.name(), |block| a.digest(block).0[0].into()))
        .collect();
    rates.push(rate_of("crc32c", crc32c::crc32c));
    rates
}

fn rate_of(name: &'static str, checksum: impl Fn(&[u8]) -> u32) -> DigestRate {
    let mut block = [0; BLOCK_BYTES];
    fill(&mut block, &mut 1);
    let begin = Instant::now();
    for i in 0..DIGESTED_BLOCKS {
        block[..4].copy_from_slice(&i.to_le_bytes());
        black_box(checksum(black_box(&block)));
    }
    let blocks_per_second = f64::from(DIGESTED_BLOCKS) / begin.elapsed().as_secs_f64();
    DigestRate { name, us_per_block: 1e6 / blocks_per_second, blocks_per_second }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_lbns_cover_a_share_once_each() {
        let share = Share { first: 64, blocks: 64, batch: 32 };
        let mut lbns: Vec<u64> = (0..64).map(|i| share.lbn(i)).collect();
        assert_ne!(lbns[1], lbns[0] + 1);
        lbns.sort_unstable();
        assert_eq!(lbns, (64..128).collect::<Vec<_>>());
    }

    #[test]
    fn a_round_stores_unique_blocks_once_and_duplicates_not_at_all() {
        let setup = Setup { device: Devices::Memory, batch: 32, callers: 1, digest_threads: 1 };
        let volume = volume(256, setup, None, false).unwrap();
        let share = Share { first: 0, blocks: 256, batch: 32 };
        call(&volume, Work::Unique, share, 256).unwrap();
        assert_eq!(volume.status().data_used_blocks, 256);
        call(&volume, Work::Duplicate, share, 256).unwrap();
        let status = volume.status();
        assert_eq!((status.data_used_blocks, status.logical_used_blocks), (256, 512));
        call(&volume, Work::Read, share, 256).unwrap();
        call(&volume, Work::WriteFlush, share, 256).unwrap();
        assert_eq!(volume.status().counters.uniqwrites, 512);
    }
}
