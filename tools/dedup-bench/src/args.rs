//! The command line.

use clap::{Parser, Subcommand};
use dedup_cli::Size;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

/// Measure dedup-nbd against other NBD servers
///
/// Runs fio against nbdkit and `dedup-nbd --io buffered`, and against qemu-nbd and `dedup-nbd --io direct`,
/// each workload on one server right after the other, and prints medians over the rounds. A ratio is the
/// median of the ratios within a round, so load that comes and goes touches it less than the rates. Beside
/// them stands what fio has on a raw file without any server. Needs fio, nbdkit, qemu-nbd and qemu-img, with
/// dedup-nbd and dedup-tool beside this program.
#[derive(Parser, Debug)]
#[command(name = "dedup-bench", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) peers: Peers,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Measure two builds of dedup-nbd against one another, and their engines alone
    ///
    /// Each workload is run on both builds, one right after the other, each on a volume of its own, and
    /// `dedup-bench engine` of both builds by turns; who is first alternates from round to round. A ratio is
    /// the median of the ratios within a round. `--only engine` chooses the engine alone.
    Compare(Compare),
    /// Measure the engine alone, in this process, on devices in memory
    Engine(Engine),
    /// Measure the metadata engine beside key-value stores, on one stream of keys (those need the feature
    /// `peers`)
    Index(Index),
    /// One phase of that, in a process of its own
    #[command(hide = true)]
    IndexPhase { phase: String, outcome: PathBuf },
    /// Write a volume of any size full of unique blocks, of which only the metadata is kept; goes on where it
    /// was
    Fill(Fill),
    /// Open such a volume, say how long that took and what memory, and end without closing it
    Reopen(Reopen),
    /// Draw what `fill` has noted as SVG
    Plot(Plot),
    /// Hold what a report directory has against what is aimed for
    Goals(Goals),
    /// Check a volume's metadata, and say how that compares with reading as much, and what memory
    Check(Check),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Peers {
    #[command(flatten)]
    pub(crate) measure: Measure,
    /// Draw ratios and latencies as SVG into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Compare {
    /// Directory of the older build: dedup-nbd and dedup-tool, and dedup-bench for the engine alone
    #[arg(long, value_name = "DIR")]
    pub(crate) before: PathBuf,
    /// Directory of the newer build
    #[arg(long, value_name = "DIR")]
    pub(crate) after: PathBuf,
    #[command(flatten)]
    pub(crate) measure: Measure,
}

/// What servers are measured with.
#[derive(clap::Args, Debug)]
pub(crate) struct Measure {
    /// Directory to work in, on the file system to measure; up to 8 times the size is needed [default: the
    /// current one]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Bytes that each workload writes or reads, each block once
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub(crate) size: Size,
    /// How often everything is repeated
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Longest time for one workload on one server; what is cut off is marked in the table
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// One round of 64M: a look, not a measurement; below two minutes
    #[arg(long, conflicts_with_all = ["size", "rounds", "limit"])]
    pub(crate) quick: bool,
    /// All workloads: also other sizes and numbers of requests and connections, near and far duplicates, a
    /// full volume, mixes, trims, copies of an image (which need mke2fs)
    #[arg(long)]
    pub(crate) all: bool,
    /// Only workloads whose name contains this, of all, and what they depend on
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Only this mode of I/O
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) mode: Option<dedup_cli::Io>,
    /// Write everything, each round by itself, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Engine {
    /// Bytes that are written, read and written again as duplicates; held in memory
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(crate) size: Size,
    /// How often everything is repeated
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Measure on files in this directory too, through the page cache and around it
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep what is acknowledged over the end of the process, as servers do; in $DEDUP_RUNTIME_DIR
    #[arg(long)]
    pub(crate) journal: bool,
    /// Only with so many requests handed over at once: 32 or 256
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<u64>,
    /// Only with so many threads that compute digests: 1 or 2
    #[arg(long, value_name = "N")]
    pub(crate) digest_threads: Option<usize>,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Index {
    /// Keys that are loaded; a quarter as many are inserted for each `--commit` and looked up, unless the
    /// time is over before
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(4000..))]
    keys: u64,
    /// Keys of a commit, after the load, which takes a million; again for more
    #[arg(long, value_name = "N", default_values = ["1000", "1"])]
    pub(crate) commit: Vec<NonZeroU64>,
    /// What to measure; again for more [default: all there are]
    #[arg(long, value_name = "NAME", value_enum)]
    pub(crate) engine: Vec<crate::index::Store>,
    /// Memory that each engine may use for its cache and for changes that are not in place yet
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    cache: Size,
    /// Longest time for the inserts of one `--commit`, and for the lookups
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    limit: u64,
    /// Directory to work in, on the file system to measure; some 400 bytes a key are needed [default: the
    /// current one]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// A quarter of the keys and of the memory, 3 seconds for each: a look, not a measurement
    #[arg(long, conflicts_with_all = ["keys", "cache", "limit"])]
    quick: bool,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Fill {
    /// Directory of the volume: `metadata`, `data` and `fill.jsonl`, to which a line is added in each
    /// interval
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Logical size of the volume, for a new one
    #[arg(long, value_name = "SIZE", default_value = "1T", value_parser = parse_size)]
    pub(crate) size: Size,
    /// Write the LBNs in a scattered order, each once; the size must be a power of two
    #[arg(long)]
    pub(crate) random: bool,
    /// Which time the volume is written: 1 fills it, 2 and more overwrite all of it with other content
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..0x4000))]
    pub(crate) pass: u16,
    /// Blocks handed over at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub(crate) batch: u64,
    /// Flush after each batch
    #[arg(long)]
    pub(crate) flush: bool,
    /// Seconds between two lines
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) interval: u64,
    /// Close the volume after this time
    #[arg(long, value_name = "SECONDS")]
    pub(crate) seconds: Option<u64>,
    /// Close the volume when the file system has less than this left
    #[arg(long, value_name = "SIZE", default_value = "15G")]
    pub(crate) keep_free: Size,
    /// End as if killed, without closing the volume, when the log has this many percent of the blocks that it
    /// may reach
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) crash_at: Option<u64>,
    /// Let no checkpoint come to its end and put no data into the log, so that it can be filled to
    /// --crash-at, a record a block with --batch 1 --flush, of a volume that was closed. No flush reaches the
    /// disk
    #[arg(long, requires = "crash_at")]
    pub(crate) hold_checkpoints: bool,
    #[command(flatten)]
    pub(crate) memory: Memory,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Reopen {
    /// Directory of the volume
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Write what is told as JSON too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) memory: Memory,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Plot {
    /// `fill.jsonl` of a volume
    #[arg(value_name = "JSONL")]
    pub(crate) log: PathBuf,
    /// Where to draw to
    #[arg(value_name = "SVG")]
    pub(crate) svg: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Goals {
    /// The table of goals: docs/goals.md
    #[arg(value_name = "GOALS")]
    pub(crate) goals: PathBuf,
    /// Directory that report.sh has made, or JSON files of the names that it gives them
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Write the table as JSON too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Check {
    /// Directory of the volume, of which `metadata` is read
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// How often it is checked and read
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Memory for metadata blocks, as for `dedup-check`
    #[arg(long, value_name = "SIZE", default_value = "16M")]
    pub(crate) cache_size: Size,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What the volume may take, with the servers' defaults.
#[derive(clap::Args, Debug)]
pub(crate) struct Memory {
    /// Memory for metadata blocks
    #[arg(long, value_name = "SIZE", default_value = "128M")]
    pub(crate) cache_size: Size,
    /// Memory at most for the filter
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) filter_size: Size,
    /// Threads that compute digests [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) digest_threads: Option<usize>,
}

impl Measure {
    /// Bytes of the working set.
    pub(crate) fn size(&self) -> u64 {
        if self.quick { 64 << 20 } else { self.size.0 }
    }

    /// Whether the workloads that are not part of a usual run can be chosen.
    pub(crate) fn wants_more(&self) -> bool {
        self.all || self.only.is_some()
    }

    pub(crate) fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    pub(crate) fn limit(&self) -> Duration {
        // 60 runs in two minutes, most of them short.
        Duration::from_secs(if self.quick { 6 } else { self.limit.into() })
    }
}

impl Index {
    /// Keys that are loaded.
    pub(crate) fn keys(&self) -> u64 {
        if self.quick { self.keys / 4 } else { self.keys }
    }

    /// Bytes for each engine.
    pub(crate) fn cache(&self) -> u64 {
        if self.quick { self.cache.0 / 4 } else { self.cache.0 }
    }

    /// Of one phase that is not the load.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(if self.quick { 3 } else { self.limit })
    }
}

/// The smallest size that gives every workload a few requests, in a multiple of what the largest request
/// takes.
fn parse_size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: dedup_cli::SizeError| error.to_string())?;
    match size.0 >= 8 << 20 && size.0.is_multiple_of(1 << 20) {
        true => Ok(size),
        false => Err("expected whole MiB, at least 8M".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_excludes_what_it_decides() {
        let quick = Args::try_parse_from(["dedup-bench", "--quick"]).unwrap().peers.measure;
        assert_eq!((quick.size(), quick.rounds()), (64 << 20, 1));
        assert!(Args::try_parse_from(["dedup-bench", "--quick", "--rounds", "2"]).is_err());
    }

    #[test]
    fn more_workloads_are_run_only_if_asked_for() {
        let wants = |args: &[&str]| Args::try_parse_from(args).unwrap().peers.measure.wants_more();
        assert!(!wants(&["dedup-bench"]));
        assert!(wants(&["dedup-bench", "--quick", "--all"]) && wants(&["dedup-bench", "--only", "128K"]));
    }

    #[test]
    fn sizes_that_the_workloads_cannot_cover_exactly_are_refused() {
        for size in ["4M", "1025K", "8388609"] {
            assert!(Args::try_parse_from(["dedup-bench", "--size", size]).is_err(), "{size}");
        }
        assert!(Args::try_parse_from(["dedup-bench", "engine", "--size", "8M"]).is_ok());
    }
}
