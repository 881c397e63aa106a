//! What a unique random write costs on the metadata device: bytes by kind of block, at a size where blocks stored and operations a
//! checkpoint have the proportion of a large volume.
//!
//! ```text
//!  cargo run --release -p dedup-tests --bin write-budget -- --operations 2048 --ratio 800
//! ```
//!
//! Trees cost what the proportion of a delta to the leaves says, not what either is in figures: 1 TiB with 256 k operations a
//! checkpoint is a ratio of 1024. The volume is filled once at random places (*fresh*) and then overwritten at random places (*aged*),
//! all of it new content. Data is thrown away, metadata is in memory, and nothing runs in the background, so a run repeats
//! exactly.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dedup_device::{BlockDevice, MemDevice, ReadOp, WriteOp};
use dedup_meta::{BlockType, META_BLOCK_SIZE};
use dedup_tests::rng::Rng;
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RunPolicy, Volume, erase, format, geometry};
use std::io;
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
}

/// The metadata device: memory, counting what is written by kind of block.
#[derive(Debug)]
struct Counted {
    memory: MemDevice,
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

impl BlockDevice for Counted {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn io_alignment(&self) -> usize {
        1
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let result = self.memory.read(offset, buf);
        Self::count(&self.read, buf);
        result
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        Self::count(&self.written, buf);
        self.memory.write(offset, buf)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        self.memory.read_batch(ops);
        ops.iter().flat_map(|op| &op.bufs).for_each(|buf| Self::count(&self.read, buf));
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        ops.iter().flat_map(|op| &op.bufs).for_each(|buf| Self::count(&self.written, buf));
        self.memory.write_batch(ops);
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// The data device: keeps its label and nothing else.
#[derive(Debug)]
struct Discarding {
    size: u64,
    label: MemDevice,
}

impl BlockDevice for Discarding {
    fn size(&self) -> u64 {
        self.size
    }

    fn io_alignment(&self) -> usize {
        1
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 <= self.label.size() {
            return self.label.read(offset, buf);
        }
        buf.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if offset + buf.len() as u64 <= self.label.size() { self.label.write(offset, buf) } else { Ok(()) }
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        ops.iter_mut().for_each(|op| op.result = Ok(()));
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        ops.iter_mut().for_each(|op| op.result = Ok(()));
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Blocks in an order that looks random and meets each once: a multiplication with a number that has no factor in common.
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

struct Bench {
    volume: Volume,
    metadata: Arc<Counted>,
    flush: u64,
    /// The content of the next write.
    content: u64,
}

impl Bench {
    /// Writes new content to these blocks.
    fn write(&mut self, lbns: &[u64]) -> Result<()> {
        let mut blocks = vec![[0_u8; BLOCK_SIZE as usize]; lbns.len()];
        for block in &mut blocks {
            self.content += 1;
            block[..8].copy_from_slice(&self.content.to_le_bytes());
        }
        let mut failed = None;
        let mut execute = |ops: Vec<Op<'_>>| {
            let batch = ops.into_iter().map(|op| Request { tag: 0, op }).collect();
            self.volume.execute(batch, &mut |_, result| failed = failed.or(result.err()));
        };
        let write = |(lbn, data): (&u64, _)| Op::Write { offset: lbn * BLOCK_SIZE, data, fua: false };
        execute(lbns.iter().zip(blocks.iter().map(|b| &b[..])).map(write).collect());
        if self.content / self.flush != (self.content - lbns.len() as u64) / self.flush {
            execute(vec![Op::Flush]);
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Writes `count` blocks and prints what they cost, a tenth at a time.
    fn phase(&mut self, name: &str, count: u64, mut lbn: impl FnMut(u64) -> u64) -> Result<()> {
        let mut at = 0;
        for part in 1..=PARTS {
            let before = self.metadata.snapshot();
            let begin = at;
            while at < count * part / PARTS {
                let end = (at + BATCH as u64).min(count * part / PARTS);
                let mut lbns: Vec<u64> = (at..end).map(&mut lbn).collect();
                lbns.sort_unstable();
                lbns.dedup();
                self.write(&lbns)?;
                at = end;
            }
            let after = self.metadata.snapshot();
            let each = |i: usize| (after[i] - before[i]) as f64 / (at - begin) as f64;
            let of = |kind: BlockType| each(kind as usize);
            let written: f64 = (0..16).map(each).sum();
            println!(
                "{name} {:3}% {:7.0} {:7.0} {:7.0} {:7.0} {:7.0} {:7.0} {:7.0} {:8.0} {:6.2}",
                part * 100 / PARTS,
                of(BlockType::Mapping) + of(BlockType::MappingRun),
                of(BlockType::Digest),
                of(BlockType::RefCount),
                of(BlockType::Hint),
                of(BlockType::MetaMap),
                of(BlockType::Log),
                (16..32).map(each).sum::<f64>(),
                written,
                written / USER_BYTES
            );
        }
        Ok(())
    }
}

/// Lines of a phase.
const PARTS: u64 = 5;

fn main() -> Result<()> {
    let args = Args::parse();
    let blocks = args.operations * args.ratio;
    let data_blocks = blocks + blocks / 16 + 1;
    let data = Arc::new(Discarding { size: data_blocks * BLOCK_SIZE, label: MemDevice::new(8 * BLOCK_SIZE) });
    let metadata = Arc::new(Counted {
        memory: MemDevice::new(geometry::metadata_size(blocks, data_blocks)),
        written: Default::default(),
        read: Default::default(),
    });
    let device: Arc<dyn BlockDevice> = metadata.clone();
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
    println!("bytes a write  mapping  digest   count   index     map     log    read  written  x user");
    let mut bench = Bench { volume, metadata, flush: args.flush, content: 0 };
    bench.phase("fresh", blocks, |i| scattered(i, blocks, 0))?;
    let mut rng = Rng::new(7);
    bench.phase(" aged", blocks * args.aged / 100, |_| rng.below(blocks))?;
    bench.volume.close().context("close")?;
    Ok(())
}
