//! One phase on one store, in this process: opened, driven, closed, and what that took.

use super::Store;
use super::blocks::Block;
use super::volume;
use crate::fill::process_bytes;
use crate::server::cpu_time;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Keys looked up at once, sorted.
const FIND_BATCH: usize = 1000;
/// Multiplier that scatters numbers: 2^64 by the golden ratio.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The first number that is never inserted.
const MISSING: u64 = 1 << 48;
/// Lookups before the timing begins, as a part of those in it: what was read for them is in the caches.
const WARM_UP_PART: u64 = 4;

/// What is done to every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Work {
    Insert {
        /// Keys that are made durable together.
        commit: u64,
    },
    FindStored,
    FindMissing,
}

/// All that a phase has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Phase {
    pub(super) store: Store,
    /// Of the store; made if it is not there.
    pub(super) dir: PathBuf,
    /// Memory that the store may use.
    pub(super) cache_bytes: u64,
    /// Keys that it will have at most.
    pub(super) capacity: u64,
    pub(super) work: Work,
    /// Keys that it has: 0 up to before this number.
    pub(super) stored: u64,
    /// Keys to insert or to look up.
    pub(super) count: u64,
    /// Ends after this time; the commit under way is finished.
    pub(super) limit: Option<Duration>,
}

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Keys inserted or looked up.
    pub(super) operations: u64,
    /// For inserts with the closing, after which nothing is left to do; without the opening.
    pub(super) seconds: f64,
    /// The same of CPU time, all threads.
    pub(super) cpu_seconds: f64,
    pub(super) open_seconds: f64,
    /// Handed to the kernel to be written, from before the opening to after the closing.
    pub(super) written_bytes: u64,
    pub(super) peak_bytes: u64,
}

/// A store that is open.
pub(super) trait Index {
    /// Makes the keys of these numbers durable in one commit.
    fn insert(&mut self, numbers: Range<u64>) -> Result<()>;

    /// How many of these keys, which are sorted, are stored.
    fn find(&mut self, keys: &[[u8; 32]]) -> Result<u64>;

    /// Ends everything that goes on in the background.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Runs a phase that another process has described, and leaves what it took in a file.
pub(crate) fn run(phase: &str, outcome: &Path) -> Result<()> {
    let phase: Phase = serde_json::from_str(phase).context("cannot read the phase")?;
    fs::write(outcome, serde_json::to_string(&measure(&phase)?)?).context("cannot write the outcome")
}

/// Runs a phase.
pub(super) fn measure(phase: &Phase) -> Result<Outcome> {
    fs::create_dir_all(&phase.dir).with_context(|| format!("cannot make {}", phase.dir.display()))?;
    let written_before = written_bytes(phase.store)?;
    let begin = Instant::now();
    let mut index = open(phase)?;
    let open_seconds = begin.elapsed().as_secs_f64();
    if !matches!(phase.work, Work::Insert { .. }) {
        find(&mut *index, phase, phase.count / WARM_UP_PART, MISSING / 2)?;
    }
    let (begin, cpu) = (Instant::now(), cpu_time("self")?);
    let operations = match phase.work {
        Work::Insert { commit } => {
            let inserted = insert(&mut *index, phase, commit)?;
            index.close()?;
            inserted
        }
        Work::FindStored | Work::FindMissing => find(&mut *index, phase, phase.count, 0)?,
    };
    Ok(Outcome {
        operations,
        seconds: begin.elapsed().as_secs_f64(),
        cpu_seconds: (cpu_time("self")? - cpu).as_secs_f64(),
        open_seconds,
        written_bytes: written_bytes(phase.store)? - written_before,
        peak_bytes: process_bytes("VmHWM")?,
    })
}

fn open(phase: &Phase) -> Result<Box<dyn Index>> {
    #[cfg(feature = "peers")]
    use super::peers;
    Ok(match phase.store {
        Store::Dedup => Box::new(volume::Volume::open(phase, dedup_device::IoMode::Direct)?),
        Store::DedupBuffered => Box::new(volume::Volume::open(phase, dedup_device::IoMode::Buffered)?),
        #[cfg(feature = "peers")]
        Store::Redb => Box::new(peers::Redb::open(phase)?),
        #[cfg(feature = "peers")]
        Store::Lmdb => Box::new(peers::Lmdb::open(phase)?),
        #[cfg(feature = "peers")]
        Store::Fjall => Box::new(peers::Fjall::open(phase)?),
    })
}

fn insert(index: &mut dyn Index, phase: &Phase, commit: u64) -> Result<u64> {
    let begin = Instant::now();
    let mut done = 0;
    while done < phase.count {
        let next = (done + commit).min(phase.count);
        index.insert(phase.stored + done..phase.stored + next)?;
        done = next;
        if phase.limit.is_some_and(|limit| begin.elapsed() >= limit) {
            break;
        }
    }
    Ok(done)
}

/// Looks up `count` keys, the `from`-th scattered one and those after it.
fn find(index: &mut dyn Index, phase: &Phase, count: u64, from: u64) -> Result<u64> {
    let begin = Instant::now();
    let mut block = Block::new();
    let mut done = 0;
    while done < count {
        let next = (done + FIND_BATCH as u64).min(count);
        let number = |i: u64| match phase.work {
            Work::FindMissing => MISSING + from + i,
            _ => (from + i).wrapping_mul(SCATTER) % phase.stored,
        };
        let mut keys: Vec<[u8; 32]> = (done..next).map(|i| block.key(number(i))).collect();
        keys.sort_unstable();
        let expected = if phase.work == Work::FindStored { next - done } else { 0 };
        let found = index.find(&keys)?;
        ensure!(found == expected, "{found} of {} keys were found, expected {expected}", next - done);
        done = next;
        if phase.limit.is_some_and(|limit| begin.elapsed() >= limit) {
            break;
        }
    }
    Ok(done)
}

/// What this process has handed to the kernel to be written. Not `write_bytes` for what goes through the page
/// cache: where a file system caches in large folios, that counts a whole one for each page made dirty. Nor
/// `wchar` for direct I/O, since it leaves out io_uring.
fn written_bytes(store: Store) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io").context("cannot read /proc/self/io")?;
    let field = if store == Store::Dedup { "write_bytes: " } else { "wchar: " };
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.parse().ok());
    value.with_context(|| format!("/proc/self/io: expected {field}"))
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insert { commit } => write!(f, "{commit}"),
            Self::FindStored => f.write_str("stored"),
            Self::FindMissing => f.write_str("not stored"),
        }
    }
}
