//! Instructions that the engine's main paths take, against figures kept in `tests/instructions.json`.
//!
//! ```text
//!   instructions ── valgrind --tool=callgrind instructions drive ──┐
//!        │                                   measured_unique()     │ a dump of its instructions
//!        │                                   measured_duplicate()  │ another ...
//!        └── dumps, digests taken off <──────────────────────────── ┘
//! ```
//!
//! Times are noisy, instructions are not: one thread, devices in memory, nothing in the background, hashing
//! without random state. The plain digest is measured like the rest and taken off for each block written,
//! since valgrind hides the CPU's SHA instructions and its share would drown everything else. What remains:
//! batches, locks, tables, records, the log, checkpoints, the copy into memory.
//!
//! A second volume keeps a journal of what it acknowledges, as servers do, in a file that takes nothing: what
//! the engine does for it.
//!
//! Not here: what waiting, caches and system calls cost. `dedup-bench` measures that. Figures are of one
//! compiler; with another one the tolerance is wider, and they should be renewed.

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use dedup_device::{AlignedBuf, BlockDevice, MemDevice};
use dedup_volume::{
    DigestAlgorithm, FormatOptions, JournalFile, JournalOptions, JournalPlace, Op, OpenOptions, Request,
    Volume, geometry,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use uuid::Uuid;

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Blocks of the phases that work on batches.
const BLOCKS: u64 = 1024;
/// Requests in a batch.
const BATCH: u64 = 32;
/// Write + flush pairs.
const PAIRS: u64 = 256;
/// Digests in the phase that measures them alone.
const DIGESTS: u64 = 64;
/// How much more than the kept figure a path may take: runs of one build differ by far less, changes that
/// matter by more.
const TOLERANCE: f64 = 0.03;
/// The same if the figures are of another compiler.
const TOLERANCE_OTHER_COMPILER: f64 = 0.15;
/// Multiplier that scatters LBNs; odd, so it permutes a power of two.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Compare the instructions of the engine's main paths with the kept figures
#[derive(Parser)]
struct Args {
    /// Where the figures are kept
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json"))]
    figures: PathBuf,
    /// Keep what is measured now as the new figures
    #[arg(long)]
    renew: bool,
    #[command(subcommand)]
    command: Option<Drive>,
}

#[derive(Subcommand)]
enum Drive {
    /// Only run the paths, for valgrind to count
    Drive,
}

/// What is kept.
#[derive(Serialize, Deserialize)]
struct Figures {
    /// `rustc --version` of the build.
    compiler: String,
    /// Path -> instructions of one unit, digests left out.
    instructions: BTreeMap<String, u64>,
}

/// A measured path: its name, how many units it does, how many blocks of them are hashed.
struct Phase {
    name: &'static str,
    units: u64,
    digests: u64,
}

/// In the order in which `drive` runs them.
const PHASES: [Phase; 14] = [
    Phase { name: "digest", units: DIGESTS, digests: 0 },
    Phase { name: "write a unique block", units: BLOCKS, digests: BLOCKS },
    Phase { name: "write a duplicate block", units: BLOCKS, digests: BLOCKS },
    Phase { name: "overwrite a block", units: BLOCKS, digests: BLOCKS },
    Phase { name: "read a block", units: BLOCKS, digests: 0 },
    Phase { name: "write + flush a block", units: PAIRS, digests: PAIRS },
    Phase { name: "trim a block", units: BLOCKS, digests: 0 },
    Phase { name: "open after a crash, an operation", units: BLOCKS, digests: 0 },
    Phase { name: "checkpoint, an operation", units: BLOCKS, digests: 0 },
    Phase { name: "write a unique block, journal", units: BLOCKS, digests: BLOCKS },
    Phase { name: "write a duplicate block, journal", units: BLOCKS, digests: BLOCKS },
    Phase { name: "overwrite a block, journal", units: BLOCKS, digests: BLOCKS },
    Phase { name: "read a block, journal", units: BLOCKS, digests: 0 },
    Phase { name: "write + flush a block, journal", units: PAIRS, digests: PAIRS },
];

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Some(Drive::Drive) => drive(),
        None => {
            measure().and_then(|found| if args.renew { keep(&args, found) } else { check(&args, &found) })
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Counts the instructions of every phase, with this program under valgrind.
fn measure() -> Result<BTreeMap<String, u64>> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-before=*measured_*", "--dump-before=*between_phases*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .arg("drive")
        // The C library chooses its memcpy by the CPU; the same on all of them.
        .env_clear()
        .env("PATH", path)
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM")
        .stdin(Stdio::null())
        .output()
        .context("cannot run valgrind")?;
    ensure!(output.status.success(), "valgrind: {}", String::from_utf8_lossy(&output.stderr));
    // A dump has what came since the one before: odd ones what is between the phases, even ones the phases.
    let counted = (1..=PHASES.len()).map(|n| total(&out.with_extension((2 * n).to_string())));
    let counted = counted.collect::<Result<Vec<u64>>>()?;
    ensure!(
        !out.with_extension((2 * PHASES.len() + 1).to_string()).exists(),
        "more dumps than there are paths: a measured function has run twice"
    );
    let digest = counted[0] / PHASES[0].units;
    let of = |(phase, counted): (&Phase, u64)| {
        let left = counted.checked_sub(digest * phase.digests).context("less than its digests take")?;
        Ok((phase.name.to_owned(), left / phase.units))
    };
    PHASES.iter().zip(counted).skip(1).map(of).collect()
}

/// The instructions of one dump.
fn total(dump: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(dump)
        .with_context(|| format!("no dump {}: is a measured function gone?", dump.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
    line.context("a dump without a total")?.trim().parse().context("a dump whose total is no number")
}

/// Prints what was found beside what is kept; an error if a path takes too much more.
fn check(args: &Args, found: &BTreeMap<String, u64>) -> Result<()> {
    let text = std::fs::read_to_string(&args.figures)
        .with_context(|| format!("cannot read {}", args.figures.display()))?;
    let kept: Figures = serde_json::from_str(&text)?;
    let same = kept.compiler == compiler()?;
    let tolerance = if same { TOLERANCE } else { TOLERANCE_OTHER_COMPILER };
    if !same {
        println!("the figures are of another compiler ({}): tolerance {tolerance}", kept.compiler);
    }
    let mut worse = Vec::new();
    for (name, &found) in found {
        let kept = *kept.instructions.get(name).with_context(|| format!("no figure for '{name}'"))?;
        let change = found as f64 / kept as f64 - 1.0;
        let verdict = match change {
            c if c > tolerance => "MORE",
            c if c < -tolerance => "less: keep it with --renew",
            _ => "ok",
        };
        println!("{name:34} {found:>8} instructions, kept {kept:>8}, {:+6.1} %  {verdict}", change * 100.0);
        if change > tolerance {
            worse.push(name.as_str());
        }
    }
    if !worse.is_empty() {
        bail!(
            "more instructions than kept, by over {:.0} %: {}. If that is what it costs: instructions --renew",
            tolerance * 100.0,
            worse.join("; ")
        );
    }
    Ok(())
}

fn keep(args: &Args, instructions: BTreeMap<String, u64>) -> Result<()> {
    for (name, count) in &instructions {
        println!("{name:34} {count:>8} instructions");
    }
    let figures = Figures { compiler: compiler()?, instructions };
    let text = serde_json::to_string_pretty(&figures)? + "\n";
    std::fs::write(&args.figures, text).with_context(|| format!("cannot write {}", args.figures.display()))
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("cannot run rustc")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A volume in memory, and what its devices are.
struct Bed {
    data: Arc<MemDevice>,
    metadata: Arc<MemDevice>,
    volume: Volume,
}

/// Runs every path once, on one volume.
fn drive() -> Result<()> {
    measured_digest(&[7; BLOCK]);
    between_phases();
    let bed = Bed::new(None)?;
    let paths: [fn(&Bed) -> Result<()>; 6] = [
        measured_unique,
        measured_duplicate,
        measured_overwrite,
        measured_read,
        measured_write_flush,
        measured_trim,
    ];
    for path in paths {
        path(&bed)?;
        between_phases();
    }
    // The next two are about exactly these operations.
    bed.volume.checkpoint()?;
    write_all(&bed, 0, 3)?;
    execute(&bed.volume, vec![Request { tag: 0, op: Op::Flush }])?;
    let data = Arc::new(MemDevice::from_image(bed.data.image()));
    let metadata = Arc::new(MemDevice::from_image(bed.metadata.image()));
    let reopened = measured_open(data, metadata)?;
    between_phases();
    ensure!(reopened.status().commit.delta_operations > 0, "nothing was replayed");
    measured_checkpoint(&bed)?;
    between_phases();
    let options =
        JournalOptions { place: Arc::new(Nowhere), boot: Uuid::from_u128(3), id: Uuid::from_u128(4) };
    let bed = Bed::new(Some(options))?;
    let paths: [fn(&Bed) -> Result<()>; 5] = [
        measured_unique_with_journal,
        measured_duplicate_with_journal,
        measured_overwrite_with_journal,
        measured_read_with_journal,
        measured_write_flush_with_journal,
    ];
    for path in paths {
        path(&bed)?;
        between_phases();
    }
    Ok(())
}

/// Makes a function another one than what does the same: the compiler would make one of them.
#[inline(always)]
fn not_merged() {
    black_box("journal");
}

/// A place for journals, and a file, that keep nothing: what the kernel does for them is not counted.
#[derive(Debug)]
struct Nowhere;

impl JournalPlace for Nowhere {
    fn create(&self, _: Uuid) -> io::Result<Arc<dyn JournalFile>> {
        Ok(Arc::new(Self))
    }

    fn open(&self, _: &str) -> io::Result<Arc<dyn JournalFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn device(&self) -> String {
        "memory".into()
    }
}

impl JournalFile for Nowhere {
    fn name(&self) -> String {
        "nowhere".into()
    }

    fn write_at(&self, _: u64, bytes: &[u8]) -> io::Result<()> {
        black_box(bytes);
        Ok(())
    }

    fn read_at(&self, _: u64, _: usize) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn remove(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Where valgrind ends the count of what was measured before it.
#[inline(never)]
fn between_phases() {
    black_box(());
}

impl Bed {
    fn new(journal: Option<JournalOptions>) -> Result<Self> {
        let blocks = 8 * BLOCKS;
        let data = Arc::new(MemDevice::new(blocks * BLOCK as u64));
        let metadata = Arc::new(MemDevice::new(geometry::metadata_size(blocks, blocks)));
        let options = FormatOptions::new(blocks * BLOCK as u64, Uuid::from_u128(1), Uuid::from_u128(2));
        let shared: Arc<dyn BlockDevice> = metadata.clone();
        dedup_volume::format(&*data, &shared, &options)?;
        let volume = open(data.clone(), metadata.clone(), journal)?;
        Ok(Self { data, metadata, volume })
    }
}

fn open(data: Arc<MemDevice>, metadata: Arc<MemDevice>, journal: Option<JournalOptions>) -> Result<Volume> {
    let options = OpenOptions { digest_threads: 1, background: false, journal, ..OpenOptions::default() };
    Ok(Volume::open(data, metadata, &options)?)
}

#[inline(never)]
fn measured_digest(block: &[u8]) {
    for _ in 0..DIGESTS {
        black_box(DigestAlgorithm::Sha256.digest(black_box(block)));
    }
}

#[inline(never)]
fn measured_unique(bed: &Bed) -> Result<()> {
    write_all(bed, 0, 1)
}

#[inline(never)]
fn measured_duplicate(bed: &Bed) -> Result<()> {
    write_all(bed, 4 * BLOCKS, 1)
}

#[inline(never)]
fn measured_overwrite(bed: &Bed) -> Result<()> {
    write_all(bed, 0, 2)
}

#[inline(never)]
fn measured_read(bed: &Bed) -> Result<()> {
    read_all(bed)
}

fn read_all(bed: &Bed) -> Result<()> {
    let mut memory = AlignedBuf::zeroed(BATCH as usize * BLOCK);
    for first in (0..BLOCKS).step_by(BATCH as usize) {
        let bufs = memory.chunks_mut(BLOCK).zip(first..);
        let read = |(buf, i)| Request { tag: i, op: Op::Read { offset: scattered(i), buf } };
        execute(&bed.volume, bufs.map(read).collect())?;
    }
    Ok(())
}

#[inline(never)]
fn measured_write_flush(bed: &Bed) -> Result<()> {
    write_and_flush_some(bed)
}

fn write_and_flush_some(bed: &Bed) -> Result<()> {
    let mut memory = AlignedBuf::zeroed(BLOCK);
    for i in 0..PAIRS {
        stamp(&mut memory, i, 4);
        let offset = 2 * BLOCKS * BLOCK as u64 + scattered(i);
        execute(&bed.volume, vec![Request { tag: i, op: Op::Write { offset, data: &memory, fua: false } }])?;
        execute(&bed.volume, vec![Request { tag: i, op: Op::Flush }])?;
    }
    Ok(())
}

#[inline(never)]
fn measured_trim(bed: &Bed) -> Result<()> {
    let len = BATCH * BLOCK as u64;
    for first in (0..BLOCKS).step_by(BATCH as usize) {
        let op = Op::Trim { offset: first * BLOCK as u64, len, fua: false };
        execute(&bed.volume, vec![Request { tag: first, op }])?;
    }
    Ok(())
}

#[inline(never)]
fn measured_open(data: Arc<MemDevice>, metadata: Arc<MemDevice>) -> Result<Volume> {
    open(data, metadata, None)
}

#[inline(never)]
fn measured_checkpoint(bed: &Bed) -> Result<()> {
    Ok(bed.volume.checkpoint()?)
}

#[inline(never)]
fn measured_unique_with_journal(bed: &Bed) -> Result<()> {
    not_merged();
    write_all(bed, 0, 1)
}

#[inline(never)]
fn measured_duplicate_with_journal(bed: &Bed) -> Result<()> {
    not_merged();
    write_all(bed, 4 * BLOCKS, 1)
}

#[inline(never)]
fn measured_overwrite_with_journal(bed: &Bed) -> Result<()> {
    not_merged();
    write_all(bed, 0, 2)
}

#[inline(never)]
fn measured_read_with_journal(bed: &Bed) -> Result<()> {
    not_merged();
    read_all(bed)
}

#[inline(never)]
fn measured_write_flush_with_journal(bed: &Bed) -> Result<()> {
    not_merged();
    write_and_flush_some(bed)
}

/// Writes content of `generation` to all blocks from `place` on, in batches, scattered.
fn write_all(bed: &Bed, place: u64, generation: u64) -> Result<()> {
    let mut memory = AlignedBuf::zeroed(BATCH as usize * BLOCK);
    for first in (0..BLOCKS).step_by(BATCH as usize) {
        let blocks = memory.chunks_mut(BLOCK).zip(first..);
        let batch = blocks.map(|(block, i)| {
            stamp(block, i, generation);
            let offset = place * BLOCK as u64 + scattered(i);
            Request { tag: i, op: Op::Write { offset, data: block, fua: false } }
        });
        execute(&bed.volume, batch.collect())?;
    }
    Ok(())
}

/// Byte offset of the i-th block: each once, none near the one before.
fn scattered(i: u64) -> u64 {
    (i.wrapping_mul(SCATTER) & (BLOCKS - 1)) * BLOCK as u64
}

/// Makes a block's content that of (`number`, `generation`); never all zeros.
fn stamp(block: &mut [u8], number: u64, generation: u64) {
    block[..8].copy_from_slice(&number.to_le_bytes());
    block[8..16].copy_from_slice(&generation.to_le_bytes());
}

fn execute(volume: &Volume, batch: Vec<Request<'_>>) -> Result<()> {
    let mut outcome = Ok(());
    volume.execute(batch, &mut |_, result| {
        if let Err(error) = result {
            outcome = Err(error);
        }
    });
    outcome.context("a request failed")
}
