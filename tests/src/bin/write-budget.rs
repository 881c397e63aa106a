//! What a write costs on the metadata device: bytes by kind of block, at a size where blocks stored and
//! operations a checkpoint have the proportion of a large volume.
//!
//! ```text
//!  cargo run --release -p dedup-tests --bin write-budget -- --operations 2048 --ratio 800
//! ```
//!
//! Trees cost what the proportion of a delta to the leaves says, not what either is in figures: 1 TiB with
//! 256 k operations a checkpoint is a ratio of 1024. The volume is filled once at random places (*fresh*) and
//! then overwritten at random places (*aged*), all of it new content. With `--more`, the aged volume then
//! gets other workloads, one after the other (see [`MORE`]). Data is thrown away, metadata is in memory, and
//! nothing runs in the background, so a run repeats exactly.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dedup_device::{BlockDevice, InterceptDevice, IoKind, MemDevice};
use dedup_meta::{BlockType, META_BLOCK_SIZE};
use dedup_tests::rng::Rng;
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RunPolicy, Volume, erase, format, geometry};
use serde::Serialize;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// Bytes of a block here: the smallest, since no metadata depends on it.
const BLOCK_SIZE: u64 = 512;
/// Bytes of the user's write that metadata is held against.
const USER_BYTES: f64 = 4096.0;
/// Writes handed over at once.
const BATCH: usize = 64;

#[derive(Parser)]
struct Args {
    /// Operations in a delta when its checkpoint begins.
    #[arg(long, default_value_t = 2048)]
    operations: u64,
    /// Blocks stored for each of them.
    #[arg(long, default_value_t = 800)]
    ratio: u64,
    /// Writes between two flushes.
    #[arg(long, default_value_t = 1000)]
    flush: u64,
    /// Overwrites, in hundredths of the volume.
    #[arg(long, default_value_t = 100)]
    aged: u64,
    /// Without runs.
    #[arg(long)]
    no_runs: bool,
    /// Other workloads too.
    #[arg(long)]
    more: bool,
    /// The mean of each phase as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The phases of `--more`, each of a part of the volume's blocks. The first writes the originals of the
/// duplicates.
///
/// - `sequential`: a quarter of the volume is overwritten in the order of its LBNs, with new content.
/// - `near`, `far`: that content is written again to scattered LBNs, in its order, or drawn from all of it.
/// - `commits`: new content at random LBNs, a flush behind each write.
/// - `trims`: single blocks in a scattered order; `trim-all`: what is left, in requests of 1 MiB.
const MORE: [&str; 6] = ["sequential", "near", "far", "commits", "trims", "trim-all"];

/// What the metadata device has written and read, by kind of block.
#[derive(Debug, Default)]
struct Counted {
    /// Bytes written and bytes read, by the type in a block's header.
    written: [AtomicU64; 16],
    read: [AtomicU64; 16],
}

impl Counted {
    fn count(figures: &[AtomicU64; 16], bytes: &[u8]) {
        for block in bytes.chunks(META_BLOCK_SIZE) {
            let kind = usize::from(block[4]).min(figures.len() - 1);
            figures[kind].fetch_add(block.len() as u64, Ordering::Relaxed);
        }
    }

    /// What was written, then what was read.
    fn snapshot(&self) -> [u64; 32] {
        let figure = |i: usize| if i < 16 { &self.written[i] } else { &self.read[i - 16] };
        std::array::from_fn(|i| figure(i).load(Ordering::Relaxed))
    }
}

/// The metadata device: memory that is counted. It keeps what is discarded.
fn counting(size: u64, counted: &Arc<Counted>) -> Arc<dyn BlockDevice> {
    let counted = Arc::clone(counted);
    Arc::new(InterceptDevice::new(Arc::new(MemDevice::new(size)), move |call| {
        let figures = match call.kind() {
            IoKind::Read => &counted.read,
            IoKind::Write => &counted.written,
            IoKind::Flush | IoKind::Discard => return Ok(()),
        };
        call.pass();
        call.bufs().into_iter().for_each(|buf| Counted::count(figures, buf));
        Ok(())
    }))
}

/// Bytes at the start of the data device that are kept: the label's.
const LABEL: u64 = 8 * BLOCK_SIZE;

/// The data device: keeps its label and nothing else.
fn discarding(size: u64) -> Arc<dyn BlockDevice> {
    Arc::new(InterceptDevice::new(Arc::new(MemDevice::new(size)), |call| {
        if matches!(call.kind(), IoKind::Read | IoKind::Write) && call.offsets().iter().all(|at| *at < LABEL)
        {
            call.pass();
        }
        Ok(())
    }))
}

/// Blocks in an order that looks random and meets each once: a multiplication with a number that has no
/// factor in common.
fn scattered(i: u64, blocks: u64, salt: u64) -> u64 {
    let mut factor = ((blocks as f64 * 0.618_034) as u64 + salt) | 1;
    while gcd(factor, blocks) != 1 {
        factor += 2;
    }
    (u128::from(i) * u128::from(factor) % u128::from(blocks)) as u64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One request.
#[derive(Clone, Copy)]
enum Action {
    /// Content that was never written.
    New { lbn: u64 },
    /// The content with this number, once more.
    Again { lbn: u64, content: u64 },
    /// So many blocks from this one on.
    Trim { lbn: u64, blocks: u64 },
}

/// The mean of a phase, in bytes a write, or a block trimmed.
#[derive(Serialize)]
struct Phase {
    name: String,
    mapping: f64,
    digest: f64,
    count: f64,
    index: f64,
    map: f64,
    log: f64,
    read: f64,
    written: f64,
    times_user: f64,
}

struct Bench {
    volume: Volume,
    metadata: Arc<Counted>,
    /// The content of the last new write.
    content: u64,
    phases: Vec<Phase>,
}

impl Action {
    fn lbn(self) -> u64 {
        match self {
            Self::New { lbn } | Self::Again { lbn, .. } | Self::Trim { lbn, .. } => lbn,
        }
    }

    fn blocks(self) -> u64 {
        match self {
            Self::New { .. } | Self::Again { .. } => 1,
            Self::Trim { blocks, .. } => blocks,
        }
    }
}

impl Bench {
    /// Does all of these at once.
    fn execute(&mut self, actions: &[Action]) -> Result<()> {
        let mut blocks = vec![[0_u8; BLOCK_SIZE as usize]; actions.len()];
        for (block, action) in blocks.iter_mut().zip(actions) {
            let content = match action {
                Action::New { .. } => {
                    self.content += 1;
                    self.content
                }
                Action::Again { content, .. } => *content,
                Action::Trim { .. } => 0,
            };
            block[..8].copy_from_slice(&content.to_le_bytes());
        }
        let ops = actions.iter().zip(&blocks).map(|(action, data)| match *action {
            Action::New { lbn } | Action::Again { lbn, .. } => {
                Op::Write { offset: lbn * BLOCK_SIZE, data, fua: false }
            }
            Action::Trim { lbn, blocks } => {
                Op::Trim { offset: lbn * BLOCK_SIZE, len: blocks * BLOCK_SIZE, fua: false }
            }
        });
        self.send(ops.collect())
    }

    fn send(&self, ops: Vec<Op<'_>>) -> Result<()> {
        let mut failed = None;
        let batch = ops.into_iter().map(|op| Request { tag: 0, op }).collect();
        self.volume.execute(batch, &mut |_, result| failed = failed.take().or(result.err()));
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Does `count` actions, handed over in batches, with a flush each time that `flush` more are done, and
    /// prints what they cost, a part at a time.
    fn phase(
        &mut self,
        name: &str,
        count: u64,
        flush: u64,
        mut action: impl FnMut(u64) -> Action,
    ) -> Result<()> {
        let (mut at, begin, mut blocks) = (0, self.metadata.snapshot(), 0);
        for part in 1..=PARTS {
            let (before, mut of_part) = (self.metadata.snapshot(), 0);
            while at < count * part / PARTS {
                let end = (at + (BATCH as u64).min(flush)).min(count * part / PARTS);
                let mut actions: Vec<Action> = (at..end).map(&mut action).collect();
                actions.sort_by_key(|action| action.lbn());
                actions.dedup_by_key(|action| action.lbn());
                self.execute(&actions)?;
                // What was drawn twice counts as it did before it was dropped.
                of_part += (end - at) * actions.iter().map(|a| a.blocks()).max().unwrap_or(1);
                if end / flush != at / flush {
                    self.send(vec![Op::Flush])?;
                }
                at = end;
            }
            blocks += of_part;
            print(
                &format!("{name:>10} {:3}%", part * 100 / PARTS),
                &Phase::of(name, before, self.metadata.snapshot(), of_part),
            );
        }
        self.phases.push(Phase::of(name, begin, self.metadata.snapshot(), blocks));
        Ok(())
    }

    /// The phases of `--more`.
    fn more(&mut self, blocks: u64, args: &Args) -> Result<()> {
        let [sequential, near, far, commits, trims, trim_all] = MORE;
        let (quarter, half) = (blocks / 4, blocks / 2);
        let first = self.content + 1;
        self.phase(sequential, quarter, args.flush, |i| Action::New { lbn: i })?;
        let place = |i| half + scattered(i, quarter, 1);
        self.phase(near, quarter, args.flush, |i| Action::Again { lbn: place(i), content: first + i })?;
        let place = |i| half + quarter + scattered(i, quarter, 3);
        let drawn = |i| first + scattered(i, quarter, 5);
        self.phase(far, quarter, args.flush, |i| Action::Again { lbn: place(i), content: drawn(i) })?;
        let mut rng = Rng::new(11);
        self.phase(commits, 8 * args.operations, 1, |_| Action::New { lbn: rng.below(blocks) })?;
        self.phase(trims, quarter, args.flush, |i| Action::Trim {
            lbn: scattered(i, quarter, 7),
            blocks: 1,
        })?;
        let large = (1 << 20) / USER_BYTES as u64;
        self.phase(trim_all, (blocks - quarter) / large, args.flush, |i| Action::Trim {
            lbn: quarter + i * large,
            blocks: large,
        })
    }
}

impl Phase {
    fn of(name: &str, before: [u64; 32], after: [u64; 32], blocks: u64) -> Self {
        let each = |i: usize| (after[i] - before[i]) as f64 / blocks.max(1) as f64;
        let of = |kind: BlockType| each(kind as usize);
        let written: f64 = (0..16).map(each).sum();
        Self {
            name: name.to_owned(),
            mapping: of(BlockType::Mapping) + of(BlockType::MappingRun),
            digest: of(BlockType::Digest),
            count: of(BlockType::RefCount) + of(BlockType::Overflow),
            index: of(BlockType::Hint),
            map: of(BlockType::MetaMap),
            log: of(BlockType::Log),
            read: (16..32).map(each).sum(),
            written,
            times_user: written / USER_BYTES,
        }
    }
}

fn print(head: &str, phase: &Phase) {
    let Phase { mapping, digest, count, index, map, log, read, written, times_user, .. } = phase;
    println!(
        "{head} {mapping:7.0} {digest:7.0} {count:7.0} {index:7.0} {map:7.0} {log:7.0} {read:7.0} {written:8.0} {times_user:6.2}"
    );
}

/// Lines of a phase.
const PARTS: u64 = 5;

fn main() -> Result<()> {
    let args = Args::parse();
    let blocks = args.operations * args.ratio;
    let data_blocks = blocks + blocks / 16 + 1;
    let data = discarding(data_blocks * BLOCK_SIZE);
    let metadata = Arc::new(Counted::default());
    let device = counting(geometry::metadata_size(blocks, data_blocks), &metadata);
    let mut options = FormatOptions::new(blocks * BLOCK_SIZE, Uuid::from_u128(1), Uuid::from_u128(2));
    options.block_size = BLOCK_SIZE as u32;
    // Large enough that the delta decides when a checkpoint begins.
    options.log_blocks = Some(16 * args.operations);
    erase(&*device)?;
    format(&*data, &device, &options)?;
    let runs = if args.no_runs { RunPolicy::Never } else { RunPolicy::ByCost };
    let options =
        OpenOptions { delta_max: 2 * args.operations, background: false, runs, ..OpenOptions::default() };
    let volume = Volume::open(data, device, &options).context("open")?;
    ensure!(args.flush > 0 && args.operations > 0 && args.ratio > 0, "all figures are at least 1");
    println!("  bytes a write mapping  digest   count   index     map     log    read  written  x user");
    let mut bench = Bench { volume, metadata, content: 0, phases: Vec::new() };
    bench.phase("fresh", blocks, args.flush, |i| Action::New { lbn: scattered(i, blocks, 0) })?;
    let mut rng = Rng::new(7);
    bench.phase("aged", blocks * args.aged / 100, args.flush, |_| Action::New { lbn: rng.below(blocks) })?;
    if args.more {
        bench.more(blocks, &args)?;
    }
    bench.volume.close().context("close")?;
    if let Some(path) = args.json {
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &bench.phases)?;
    }
    Ok(())
}
