//! `dedup-bench index`: our metadata engine beside key-value stores, on one stream of keys.
//!
//! ```text
//!   load     keys 0 .. n        1,000,000 a commit   ─┐
//!   then     keys n ..          1,000 a commit        ├─ each in a process of its own, on what the one before left:
//!   then                        1 a commit            │  so peak memory and bytes written belong to it alone
//!   find     hits, misses                            ─┘
//! ```
//!
//! Key `i` is the SHA-256 of a block of 512 bytes that begins with `i`, computed within the timing by
//! everybody; the value is `i`. Every commit is durable when it returns. Peers get the keys of a commit
//! sorted, which a tree likes.
//!
//! Ours does more for a key than a peer does: it is a write to a volume, of a block whose data goes nowhere
//! ([`volume`]). Besides digest -> block, the volume keeps LBN -> block with a CRC, block -> digest and a
//! reference count, and asks first whether the digest is there. A lookup compares the whole digest with the
//! stored one and looks at the count.
//!
//! Bytes are those of write calls, and beside them those that the device below wrote for whomever, the file
//! system's own among them: to be trusted only if nothing else writes there, as on a loop device of one's
//! own.
//!
//! Each engine is given the same memory, by its own settings. Those that read through the page cache have
//! that as well, ours with direct I/O does not. Not here: several writers, deletions, ranges, values of any
//! size.

mod blocks;
#[cfg(feature = "peers")]
mod peers;
mod phase;
mod volume;

use crate::args;
use crate::child::Running;
use crate::machine::Machine;
use crate::summary::table;
use anyhow::{Context, Result, ensure};
use phase::{Outcome, Phase, Work};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use phase::run as run_phase;

/// Keys of a commit while the store is loaded.
const LOAD_COMMIT: u64 = 1_000_000;
/// Longest time that a phase may take before it is taken for hanging.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Store {
    /// The volume, its metadata with direct I/O
    Dedup,
    /// The volume, its metadata through the page cache, as the peers
    DedupBuffered,
    /// A copy-on-write B-tree
    #[cfg(feature = "peers")]
    Redb,
    /// A copy-on-write B-tree in a memory map
    #[cfg(feature = "peers")]
    Lmdb,
    /// A log-structured merge tree
    #[cfg(feature = "peers")]
    Fjall,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    keys: u64,
    cache_bytes: u64,
    rows: Vec<Row>,
}

/// One phase of one store.
#[derive(Debug, Serialize)]
struct Row {
    store: Store,
    work: Work,
    outcome: Outcome,
    operations_per_second: f64,
    written_bytes_each: f64,
    /// What the device below the file system wrote meanwhile, for whomever; `None` if there is no telling.
    device_bytes: Option<u64>,
    /// Of the store's files on disk, after it.
    disk_bytes: u64,
}

/// Runs every phase on every store.
pub(crate) fn run(args: &args::Index) -> Result<Report> {
    let around = args.dir.clone().unwrap_or_else(|| ".".into());
    let machine = Machine::describe(Some(&around), Vec::new());
    let all: Vec<Store> = <Store as clap::ValueEnum>::value_variants().to_vec();
    let stores = if args.engine.is_empty() { all } else { args.engine.clone() };
    let mut rows = Vec::new();
    for store in stores {
        let dir = tempfile::Builder::new().prefix("dedup-bench-").tempdir_in(&around);
        let dir = dir.with_context(|| format!("cannot make a directory in {}", around.display()))?;
        rows.extend(run_store(store, dir.path(), args)?);
    }
    Ok(Report { machine, keys: args.keys(), cache_bytes: args.cache(), rows })
}

fn run_store(store: Store, dir: &Path, args: &args::Index) -> Result<Vec<Row>> {
    let keys = args.keys();
    let commits = args.commit.iter().map(|commit| commit.get());
    let mut works = vec![Work::Insert { commit: LOAD_COMMIT }];
    works.extend(commits.map(|commit| Work::Insert { commit }));
    works.extend([Work::FindStored, Work::FindMissing]);
    let (mut stored, mut rows) = (0, Vec::new());
    for work in works {
        let (count, limit) = match work {
            // The load must be whole: everything after it is measured on so many keys.
            _ if stored == 0 => (keys, None),
            Work::Insert { .. } => (keys / 4, Some(args.limit())),
            Work::FindStored | Work::FindMissing => (keys / 4, Some(args.limit())),
        };
        let phase = Phase {
            store,
            dir: dir.join("store"),
            cache_bytes: args.cache(),
            // The load, and a quarter of it for each size of commits.
            capacity: keys + keys / 4 * args.commit.len() as u64,
            work,
            stored,
            count,
            limit,
        };
        let device_before = device_bytes(dir)?;
        let outcome = in_child(&phase, &dir.join("outcome"))?;
        let device_bytes = device_bytes(dir)?.zip(device_before).map(|(after, before)| after - before);
        if let Work::Insert { .. } = work {
            stored += outcome.operations;
        }
        let disk_bytes = disk_bytes(&phase.dir)?;
        let operations_per_second = outcome.operations as f64 / outcome.seconds;
        let written_bytes_each = outcome.written_bytes as f64 / outcome.operations.max(1) as f64;
        rows.push(Row {
            store,
            work,
            outcome,
            operations_per_second,
            written_bytes_each,
            device_bytes,
            disk_bytes,
        });
    }
    Ok(rows)
}

/// Runs a phase in a process of its own.
fn in_child(phase: &Phase, outcome: &Path) -> Result<Outcome> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("index-phase").arg(serde_json::to_string(phase)?).arg(outcome);
    let status = Running::spawn(&mut command)?.wait_until(Instant::now() + PATIENCE)?;
    ensure!(status.success(), "{:?}, {}: ended with {status}", phase.store, phase.work);
    let text = fs::read_to_string(outcome).context("cannot read what a phase measured")?;
    serde_json::from_str(&text).context("cannot read what a phase measured")
}

/// Bytes written so far to the device that a directory is on, once all that waits in the page cache has been.
fn device_bytes(dir: &Path) -> Result<Option<u64>> {
    let open = fs::File::open(dir)?;
    rustix::fs::syncfs(&open).context("cannot write out what is cached")?;
    let device = open.metadata()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap_or_default();
    // The seventh number is of 512-byte sectors, whatever the device's are.
    Ok(stat.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<u64>().ok()).map(|n| n * 512))
}

/// What files below a directory take on disk.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

impl Store {
    fn name(self) -> &'static str {
        match self {
            Self::Dedup => "dedup, direct",
            Self::DedupBuffered => "dedup, buffered",
            #[cfg(feature = "peers")]
            Self::Redb => "redb",
            #[cfg(feature = "peers")]
            Self::Lmdb => "LMDB",
            #[cfg(feature = "peers")]
            Self::Fjall => "fjall",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, keys, cache_bytes, rows } = self;
        let cache = dedup_cli::human(*cache_bytes);
        writeln!(
            f,
            "{machine}{keys} keys loaded ({LOAD_COMMIT} a commit), {cache} of memory for each engine\n"
        )?;
        let mut inserts = table(&[
            "engine",
            "a commit",
            "inserts",
            "inserts/s",
            "us CPU",
            "bytes an insert",
            "by the device",
            "MiB on disk",
            "peak MiB",
        ]);
        let mut lookups =
            table(&["engine", "lookups", "number", "lookups/s", "us CPU", "open s", "peak MiB"]);
        for row in rows {
            let Row { store, work, outcome, device_bytes, disk_bytes, .. } = row;
            let mib = |bytes: u64| (bytes >> 20).to_string();
            let per = |amount: f64| amount / outcome.operations.max(1) as f64;
            let mut cells = vec![
                store.name().to_owned(),
                work.to_string(),
                outcome.operations.to_string(),
                format!("{:.0}", row.operations_per_second),
                format!("{:.2}", per(outcome.cpu_seconds * 1e6)),
            ];
            if let Work::Insert { .. } = work {
                cells.extend([
                    format!("{:.0}", row.written_bytes_each),
                    device_bytes.map(|bytes| format!("{:.0}", per(bytes as f64))).unwrap_or_default(),
                    mib(*disk_bytes),
                    mib(outcome.peak_bytes),
                ]);
                inserts.add_row(cells);
            } else {
                cells.extend([format!("{:.2}", outcome.open_seconds), mib(outcome.peak_bytes)]);
                lookups.add_row(cells);
            }
        }
        write!(f, "{inserts}\n\n{lookups}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phase::measure;

    /// Keys in each test: enough for several commits of each size.
    const KEYS: u64 = 3000;

    fn every_phase(store: Store) {
        let dir = tempfile::tempdir().unwrap();
        let phase = |work, stored, count| Phase {
            store,
            dir: dir.path().join("store"),
            cache_bytes: 32 << 20,
            capacity: KEYS,
            work,
            stored,
            count,
            limit: None,
        };
        let loaded = measure(&phase(Work::Insert { commit: 1000 }, 0, KEYS - 10)).unwrap();
        assert_eq!(loaded.operations, KEYS - 10);
        assert!(loaded.written_bytes > 0 && disk_bytes(&dir.path().join("store")).unwrap() > 0);
        assert_eq!(measure(&phase(Work::Insert { commit: 1 }, KEYS - 10, 10)).unwrap().operations, 10);
        // Each fails if one is not there that should be, or the other way round.
        assert_eq!(measure(&phase(Work::FindStored, KEYS, 2 * KEYS)).unwrap().operations, 2 * KEYS);
        assert_eq!(measure(&phase(Work::FindMissing, KEYS, KEYS)).unwrap().operations, KEYS);
        assert!(measure(&phase(Work::FindStored, 2 * KEYS, KEYS)).is_err(), "keys that were never inserted");
    }

    #[test]
    fn the_volume_has_after_each_phase_what_was_inserted_and_nothing_else() {
        every_phase(Store::DedupBuffered);
    }

    #[cfg(feature = "peers")]
    #[test]
    fn the_peers_have_after_each_phase_what_was_inserted_and_nothing_else() {
        [Store::Redb, Store::Lmdb, Store::Fjall].into_iter().for_each(every_phase);
    }

    #[test]
    fn a_time_limit_ends_a_phase_at_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        let phase = Phase {
            store: Store::DedupBuffered,
            dir: dir.path().join("store"),
            cache_bytes: 32 << 20,
            capacity: KEYS,
            work: Work::Insert { commit: 100 },
            stored: 0,
            count: KEYS,
            limit: Some(Duration::ZERO),
        };
        assert_eq!(measure(&phase).unwrap().operations, 100);
    }
}
