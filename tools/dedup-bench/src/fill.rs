//! A volume of any size, written full of unique blocks: the data is not kept (see
//! [`stamped`](crate::stamped)), the metadata is real.
//!
//! ```text
//!   i = 0, 1, 2, ...  ──> LBN: i, or scattered ──> block: number = pass, order, i ──> Volume::execute, a batch at a time
//!   every interval    ──> fill.jsonl: rate, latencies of batches, metadata, memory
//! ```
//!
//! It goes on where it was, after a signal, a kill or a power cut: batches are published one after the other
//! and a crash leaves a prefix, so the first batch that does not read as written is found by bisection. Each
//! reading verifies what it reads: a block's number says which LBN it was written to.

use crate::args;
use crate::child;
use crate::engine::execute;
use crate::held::Held;
use crate::server::cpu_time;
use crate::stamped::{Stamp, StampedDevice};
use crate::workload::BLOCK;
use anyhow::{Context, Result, bail, ensure};
use dedup_cli::human;
use dedup_device::{AlignedBuf, BlockDevice, FileDevice, IoMode};
use dedup_volume::{FormatOptions, Label, Op, OpenOptions, Request, Status, Volume, VolumeError, geometry};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Bytes of a block, as an index.
const BLOCK_BYTES: usize = BLOCK as usize;
/// Data blocks beyond the logical ones, as a part of them: what `dedup-tool format` gives.
const SPARE_PART: u64 = 64;
/// Multiplier that scatters LBNs: 2^64 by the golden ratio, odd, so that it permutes any power of two.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Milliseconds from which on a batch is told apart: what writers may wait for checkpoints.
const SLOW_MS: u64 = 50;
/// Bits of a number that are the place in the order; above them the order, above that the pass.
const PLACE_BITS: u32 = 48;

/// One line of `fill.jsonl`.
#[derive(Debug, Serialize)]
struct Line {
    seconds: f64,
    pass: u16,
    random: bool,
    batch: u64,
    /// Each batch with a flush behind it.
    flush: bool,
    /// Blocks written in this pass, all runs together.
    blocks: u64,
    blocks_per_second: f64,
    cpu_us_per_block: f64,
    /// Of a batch, in this interval.
    p50_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    /// Of all batches of this run so far.
    run_p999_ms: f64,
    metadata_used: u64,
    /// Of the file, on disk.
    metadata_allocated: u64,
    /// By checkpoints since the open.
    checkpoint_written: u64,
    log_used_blocks: u64,
    resident: u64,
    resident_peak: u64,
    load: f64,
}

/// The lines of a `fill.jsonl` that are of the fill itself: what was written afterwards in another way is no
/// part of its curve.
pub(crate) fn of_first_kind(mut lines: Vec<Value>) -> Vec<Value> {
    let kind = |line: &Value| ["pass", "random", "batch", "flush"].map(|name| line[name].clone());
    let first = lines.first().map(kind);
    lines.retain(|line| Some(kind(line)) == first);
    lines
}

/// In which order a pass writes the LBNs, and with which content.
#[derive(Clone, Copy, Debug)]
struct Pass {
    number: u16,
    random: bool,
    blocks: u64,
}

/// A volume and what it was opened from.
struct Opened {
    volume: Volume,
    seconds: f64,
}

impl Pass {
    fn lbn(self, place: u64) -> u64 {
        if self.random { place.wrapping_mul(SCATTER) & (self.blocks - 1) } else { place }
    }

    /// The number that stands in a block: never 0, since passes begin with 1.
    fn content(self, place: u64) -> u64 {
        (u64::from(self.number) << 1 | u64::from(self.random)) << PLACE_BITS | place
    }

    /// The LBN that a block of this content was written to, by whichever pass.
    fn lbn_of(self, content: u64) -> u64 {
        let random = content >> PLACE_BITS & 1 == 1;
        Self { random, ..self }.lbn(content & ((1 << PLACE_BITS) - 1))
    }
}

/// Fills, or goes on.
pub(crate) fn run(args: &args::Fill) -> Result<()> {
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let Opened { volume, seconds } = open(&args.dir, Some(args.size.0), &args.memory, args.hold_checkpoints)?;
    let blocks = volume.logical_size() / BLOCK;
    let pass = Pass { number: args.pass, random: args.random, blocks };
    ensure!(!args.random || blocks.is_power_of_two(), "--random: expected a power of two for the size");
    let first = first_missing(&volume, pass, args.batch)?;
    crate::say(format_args!(
        "opened in {seconds:.3} s, {}; {first} of {blocks} blocks are written",
        memory()?
    ))?;
    let ended = fill(&volume, pass, first, args)?;
    if ended == End::Crash && args.hold_checkpoints {
        crate::say("ends without closing")?;
        std::process::exit(0);
    }
    if ended == End::Crash {
        let status = volume.status();
        crate::say(format_args!(
            "ends without closing, log {} of {} blocks",
            status.commit.log_used_blocks, status.commit.log_blocks
        ))?;
        std::process::exit(0);
    }
    let begin = Instant::now();
    volume.close().context("cannot close the volume")?;
    crate::say(format_args!("{ended:?}; closed in {:.3} s, {}", begin.elapsed().as_secs_f64(), memory()?))?;
    Ok(())
}

/// Opens, tells, and ends as if killed, so that the next opening finds the same.
pub(crate) fn reopen(args: &args::Reopen) -> Result<()> {
    let Opened { volume, seconds } = open(&args.dir, None, &args.memory, false)?;
    let Status { logical_used_blocks, commit, metadata_used_blocks, .. } = volume.status();
    crate::say(format_args!(
        "opened in {seconds:.3} s, {}; {} stored, {} of metadata in use, {} operations and {} of {} log blocks replayed",
        memory()?,
        human(logical_used_blocks * BLOCK),
        human(metadata_used_blocks * BLOCK),
        commit.delta_operations,
        commit.log_used_blocks,
        commit.log_blocks
    ))?;
    let reopened = Reopened {
        seconds,
        resident_peak: process_bytes("VmHWM")?,
        stored: logical_used_blocks * BLOCK,
        metadata_used: metadata_used_blocks * BLOCK,
        operations_replayed: commit.delta_operations,
        log_used_blocks: commit.log_used_blocks,
        log_blocks: commit.log_blocks,
    };
    crate::save(args.json.as_deref(), &reopened)?;
    std::process::exit(0);
}

/// What `reopen` tells; sizes in bytes.
#[derive(Debug, Serialize)]
struct Reopened {
    seconds: f64,
    resident_peak: u64,
    stored: u64,
    metadata_used: u64,
    operations_replayed: u64,
    log_used_blocks: u64,
    log_blocks: u64,
}

/// Why a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Interrupted,
    Time,
    LittleSpace,
    Crash,
}

fn fill(volume: &Volume, pass: Pass, first: u64, args: &args::Fill) -> Result<End> {
    let stamp = Stamp::new();
    let mut memory = AlignedBuf::zeroed(args.batch as usize * BLOCK_BYTES);
    memory.chunks_exact_mut(BLOCK_BYTES).for_each(|block| stamp.make(block, 0));
    let log = args.dir.join("fill.jsonl");
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let begin = Instant::now();
    let (mut since, mut since_place, mut since_cpu) = (begin, first, cpu_time("self")?);
    let mut latencies: Vec<Duration> = Vec::new();
    let mut all = Histogram::<u64>::new(3).context("cannot make a histogram")?;
    let mut place = first;
    // Nor more than a delta takes: half of one is sealed, and beside the checkpoint that never ends writers
    // get no more than half of the next.
    let delta = OpenOptions::default().delta_operations(pass.blocks) / 8 * 7;
    // Nor more than two quarters of the log, at each of which a checkpoint is due (R7).
    let log_blocks = volume.status().commit.log_blocks;
    let to_hold =
        (log_blocks * args.crash_at.unwrap_or(100) / 100).min(delta / args.batch).min(log_blocks / 16 * 7);
    let end = loop {
        let batch = place..(place + args.batch).min(pass.blocks);
        if batch.is_empty() {
            break End::Complete;
        }
        let (requests, next) = (requests(pass, batch.clone(), &mut memory), batch.end);
        let started = Instant::now();
        execute(volume, requests)?;
        if args.flush {
            execute(volume, vec![Request { tag: 0, op: Op::Flush }])?;
        }
        let took = started.elapsed();
        latencies.push(took);
        all.record(took.as_micros() as u64).context("cannot record how long a batch took")?;
        place = next;
        if args.hold_checkpoints {
            // The status waits for a checkpoint that is under way. Each flushed batch is one log block or
            // more.
            let written = (place - first).div_ceil(args.batch);
            if written >= to_hold || child::check_interrupted().is_err() {
                break End::Crash;
            }
            continue;
        }
        if let Some(percent) = args.crash_at {
            let commit = volume.status().commit;
            if commit.log_used_blocks * 100 >= commit.log_blocks * percent {
                break End::Crash;
            }
        }
        let interrupted = child::check_interrupted().is_err();
        if since.elapsed() < Duration::from_secs(args.interval) && !interrupted && place < pass.blocks {
            continue;
        }
        let cpu = cpu_time("self")?;
        let interval =
            Interval { elapsed: since.elapsed(), blocks: place - since_place, cpu: cpu - since_cpu };
        let line = line(volume, &args.dir, pass, &mut latencies, interval)?;
        let line = Line {
            seconds: begin.elapsed().as_secs_f64(),
            blocks: place,
            batch: args.batch,
            flush: args.flush,
            run_p999_ms: all.value_at_percentile(99.9) as f64 / 1e3,
            ..line
        };
        crate::say(format_args!(
            "{:7.0} s {:6.2} % {:8.0} blocks/s {:5.2} us CPU, a batch p50 {:.1} p99.9 {:.1} max {:.1} ms, metadata {}, resident {}, load {:.1}",
            line.seconds,
            place as f64 * 100.0 / pass.blocks as f64,
            line.blocks_per_second,
            line.cpu_us_per_block,
            line.p50_ms,
            line.p999_ms,
            line.max_ms,
            human(line.metadata_used),
            human(line.resident),
            line.load
        ))?;
        writeln!(log, "{}", serde_json::to_string(&line)?).context("cannot write fill.jsonl")?;
        (since, since_place, since_cpu) = (Instant::now(), place, cpu);
        latencies.clear();
        if interrupted {
            break End::Interrupted;
        }
        if args.seconds.is_some_and(|seconds| begin.elapsed() >= Duration::from_secs(seconds)) {
            break End::Time;
        }
        let space = rustix::fs::statvfs(&args.dir).context("cannot ask the file system for its space")?;
        if space.f_bavail * space.f_frsize < args.keep_free.0 {
            break End::LittleSpace;
        }
    };
    crate::say(waits(&all))?;
    Ok(end)
}

/// How long batches took over a whole run, in microseconds: whether single ones waited for what the others
/// did not, and the part of the time that went into these.
fn waits(batches: &Histogram<u64>) -> String {
    let ms = |percentile| batches.value_at_percentile(percentile) as f64 / 1e3;
    let time = |from: u64| -> f64 {
        let slow = batches.iter_recorded().filter(|step| step.value_iterated_to() >= from);
        slow.map(|step| step.value_iterated_to() as f64 * step.count_at_value() as f64)
            .fold(0.0, |sum, took| sum + took)
    };
    format!(
        "{} batches: p50 {:.1} p90 {:.1} p99 {:.1} p99.9 {:.1} max {:.1} ms; {} took {SLOW_MS} ms and more, {:.1} % of the time",
        batches.len(),
        ms(50.0),
        ms(90.0),
        ms(99.0),
        ms(99.9),
        ms(100.0),
        batches.len() - batches.count_between(0, SLOW_MS * 1000 - 1),
        time(SLOW_MS * 1000) * 100.0 / time(0).max(1.0),
    )
}

/// What was done since the last line.
struct Interval {
    elapsed: Duration,
    blocks: u64,
    cpu: Duration,
}

fn line(
    volume: &Volume,
    dir: &Path,
    pass: Pass,
    latencies: &mut [Duration],
    interval: Interval,
) -> Result<Line> {
    latencies.sort_unstable();
    let part = |per_mille: usize| {
        let place = (latencies.len() * per_mille / 1000).min(latencies.len().saturating_sub(1));
        latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    let status = volume.status();
    let allocated = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(dir.join("metadata"))?) * 512;
    Ok(Line {
        seconds: 0.0,
        pass: pass.number,
        random: pass.random,
        batch: 0,
        flush: false,
        blocks: 0,
        blocks_per_second: interval.blocks as f64 / interval.elapsed.as_secs_f64(),
        cpu_us_per_block: interval.cpu.as_secs_f64() * 1e6 / interval.blocks.max(1) as f64,
        p50_ms: part(500),
        p999_ms: part(999),
        max_ms: part(1000),
        run_p999_ms: 0.0,
        metadata_used: status.metadata_used_blocks * BLOCK,
        metadata_allocated: allocated,
        checkpoint_written: status.commit.checkpoint_blocks_written * BLOCK,
        log_used_blocks: status.commit.log_used_blocks,
        resident: process_bytes("VmRSS")?,
        resident_peak: process_bytes("VmHWM")?,
        load: crate::machine::load_average(),
    })
}

fn requests(pass: Pass, places: std::ops::Range<u64>, memory: &mut [u8]) -> Vec<Request<'_>> {
    let blocks = memory.chunks_exact_mut(BLOCK_BYTES).zip(places);
    blocks
        .map(|(block, place)| {
            Stamp::renumber(block, pass.content(place));
            Request { tag: place, op: Op::Write { offset: pass.lbn(place) * BLOCK, data: block, fua: false } }
        })
        .collect()
}

/// The first place of the first batch that is not all written.
fn first_missing(volume: &Volume, pass: Pass, batch: u64) -> Result<u64> {
    let (mut written, mut end) = (0, pass.blocks.div_ceil(batch));
    while written < end {
        let middle = written.midpoint(end);
        match is_written(volume, pass, middle * batch..((middle + 1) * batch).min(pass.blocks))? {
            true => written = middle + 1,
            false => end = middle,
        }
    }
    Ok((written * batch).min(pass.blocks))
}

/// Whether this pass has written all of these places. What it has not must be unmapped, or what an earlier
/// pass left.
fn is_written(volume: &Volume, pass: Pass, places: std::ops::Range<u64>) -> Result<bool> {
    let stamp = Stamp::new();
    let mut memory = AlignedBuf::zeroed((places.end - places.start) as usize * BLOCK_BYTES);
    let reads = memory.chunks_exact_mut(BLOCK_BYTES).zip(places.clone());
    let reads = reads
        .map(|(buf, place)| Request { tag: place, op: Op::Read { offset: pass.lbn(place) * BLOCK, buf } });
    execute(volume, reads.collect())?;
    let mut whole = true;
    for (block, place) in memory.chunks_exact(BLOCK_BYTES).zip(places) {
        let lbn = pass.lbn(place);
        match stamp.number(block) {
            Some(number) if number == pass.content(place) => {}
            Some(number) if pass.lbn_of(number) == lbn => whole = false,
            None if block.iter().all(|byte| *byte == 0) => whole = false,
            found => bail!("LBN {lbn} reads as a block of {found:x?}, expected {:x}", pass.content(place)),
        }
    }
    Ok(whole)
}

/// Opens the volume in `dir`; makes it first if `size` is given and there is none. With `hold`, no checkpoint
/// ends from then on.
fn open(dir: &Path, size: Option<u64>, memory: &args::Memory, hold: bool) -> Result<Opened> {
    let defaults = OpenOptions::default();
    let options = OpenOptions {
        cache_bytes: memory.cache_size.0,
        filter_bytes_max: memory.filter_size.0,
        digest_threads: memory.digest_threads.unwrap_or(defaults.digest_threads),
        log_data: if hold { 0 } else { defaults.log_data },
        ..defaults
    };
    let data_path = dir.join("data");
    // The label says how large the volume is that is there.
    let known = StampedDevice::open(&data_path, 1 << 62)
        .with_context(|| format!("cannot open {}", data_path.display()))
        .map(|device| Label::read(&device).map(|label| label.size).ok())?;
    let begin = Instant::now();
    let found = known.map(|data_size| -> Result<_> {
        let data = StampedDevice::open(&data_path, data_size)?;
        let metadata = metadata(dir, 0)?;
        let opened = match hold {
            true => open_and_hold(data, metadata, &options),
            false => Volume::open(Arc::new(data), metadata, &options),
        };
        Ok(opened.map(|volume| Opened { volume, seconds: begin.elapsed().as_secs_f64() }))
    });
    match found.transpose()? {
        Some(Ok(opened)) => return Ok(opened),
        // A format that was killed leaves a label and no superblock.
        Some(Err(VolumeError::NoVolume { .. })) | None => {}
        Some(Err(error)) => return Err(error).context("cannot open the volume"),
    }
    let size = size.context("there is no volume: `dedup-bench fill` makes one")?;
    let blocks = size / BLOCK;
    let data_blocks = blocks + (blocks / SPARE_PART).max(4096) + 1;
    let data: Arc<dyn BlockDevice> = Arc::new(StampedDevice::open(&data_path, data_blocks * BLOCK)?);
    let metadata = metadata(dir, geometry::metadata_size(blocks, data_blocks))?;
    let mut format = FormatOptions::new(size, Uuid::from_u128(0x5ca1e), Uuid::from_u128(1));
    format.force = known.is_some();
    dedup_volume::format(&*data, &metadata, &format).context("cannot format the volume")?;
    let begin = Instant::now();
    let volume = Volume::open(data, metadata, &options).context("cannot open the new volume")?;
    Ok(Opened { volume, seconds: begin.elapsed().as_secs_f64() })
}

/// Opens a volume whose log is to be filled.
fn open_and_hold(
    data: StampedDevice,
    metadata: Arc<dyn BlockDevice>,
    options: &OpenOptions,
) -> Result<Volume, VolumeError> {
    let survey = dedup_meta::load_superblocks(&*metadata);
    let ring = survey.newest(None).ok().map(|superblock| superblock.layout.log);
    let (device, held) = Held::on(metadata);
    let volume = Volume::open(Arc::new(data.without_sync()), device, options)?;
    if let Some(ring) = ring {
        held.hold(ring.start.0 * BLOCK..(ring.start.0 + ring.blocks) * BLOCK);
    }
    Ok(volume)
}

/// The metadata device, direct where the file system can.
fn metadata(dir: &Path, size: u64) -> Result<Arc<dyn BlockDevice>> {
    let path = dir.join("metadata");
    let size = size.max(fs::metadata(&path).map_or(0, |found| found.len()));
    let device = FileDevice::create(&path, size, IoMode::Direct)
        .or_else(|_| FileDevice::create(&path, size, IoMode::Buffered))?;
    Ok(Arc::new(device))
}

fn memory() -> Result<String> {
    let (now, peak) = (process_bytes("VmRSS")?, process_bytes("VmHWM")?);
    Ok(format!("resident {}, at most {}", human(now), human(peak)))
}

/// A size of proc(5)'s `status`, in bytes.
pub(crate) fn process_bytes(field: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).with_context(|| format!("/proc/self/status: expected {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(dir: &Path, more: &[&str]) -> args::Fill {
        let dir = dir.to_str().unwrap();
        let line = ["dedup-bench", "fill", dir, "--size", "8M", "--batch", "64", "--keep-free", "0"];
        match args::Args::try_parse_from(line.iter().chain(more)).unwrap().command {
            Some(args::Command::Fill(fill)) => fill,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fill_that_was_killed_goes_on_behind_what_was_committed_and_every_block_reads_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path(), &[]);
        let pass = Pass { number: 1, random: false, blocks: 2048 };
        let Opened { volume, .. } = open(dir.path(), Some(8 << 20), &args.memory, false).unwrap();
        let mut memory = AlignedBuf::zeroed(64 * BLOCK_BYTES);
        let stamp = Stamp::new();
        for block in memory.chunks_exact_mut(BLOCK_BYTES) {
            stamp.make(block, 0);
        }
        for batch in 0..20 {
            execute(&volume, requests(pass, batch * 64..(batch + 1) * 64, &mut memory)).unwrap();
            if batch == 9 {
                execute(&volume, vec![Request { tag: 0, op: Op::Flush }]).unwrap();
            }
        }
        drop(volume);
        let Opened { volume, .. } = open(dir.path(), None, &args.memory, false).unwrap();
        let first = first_missing(&volume, pass, 64).unwrap();
        assert!((640..=1280).contains(&first), "{first}");
        drop(volume);
        run(&args).unwrap();
        let Opened { volume, .. } = open(dir.path(), None, &args.memory, false).unwrap();
        for batch in 0..32 {
            assert!(is_written(&volume, pass, batch * 64..(batch + 1) * 64).unwrap(), "batch {batch}");
        }
        assert_eq!(volume.status().data_used_blocks, 2048);
    }

    #[test]
    fn a_second_pass_in_scattered_order_replaces_every_block_once() {
        let dir = tempfile::tempdir().unwrap();
        run(&args(dir.path(), &[])).unwrap();
        let again = args(dir.path(), &["--random", "--pass", "2"]);
        run(&again).unwrap();
        let Opened { volume, .. } = open(dir.path(), None, &again.memory, false).unwrap();
        let pass = Pass { number: 2, random: true, blocks: 2048 };
        assert_eq!(first_missing(&volume, pass, 64).unwrap(), 2048);
        let status = volume.status();
        assert_eq!((status.data_used_blocks, status.counters.overwrites), (2048, 2048));
    }

    #[test]
    fn batches_that_waited_are_told_apart_with_their_part_of_the_time() {
        let mut batches = Histogram::new(3).unwrap();
        batches.record_n(10_000, 95).unwrap();
        batches.record_n(1_000_000, 5).unwrap();
        let text = waits(&batches);
        assert!(text.starts_with("100 batches: p50 10.0 p90 10.0 p99 1000"), "{text}");
        assert!(text.ends_with("; 5 took 50 ms and more, 84.0 % of the time"), "{text}");
    }

    #[test]
    fn a_block_of_another_lbn_is_an_error_and_not_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path(), &[]);
        let pass = Pass { number: 1, random: false, blocks: 2048 };
        let Opened { volume, .. } = open(dir.path(), Some(8 << 20), &args.memory, false).unwrap();
        let mut block = vec![0; BLOCK_BYTES];
        Stamp::new().make(&mut block, pass.content(7));
        execute(
            &volume,
            vec![Request { tag: 0, op: Op::Write { offset: 5 * BLOCK, data: &block, fua: false } }],
        )
        .unwrap();
        assert!(is_written(&volume, pass, 0..64).unwrap_err().to_string().contains("LBN 5"));
    }
}
