//! The command line.

use clap::{Parser, Subcommand};
use dedup_cli::Size;
use std::path::PathBuf;
use std::time::Duration;

/// Measure dedup-nbd against other NBD servers
///
/// Runs fio against nbdkit and `dedup-nbd --io buffered`, and against qemu-nbd and `dedup-nbd --io direct`, each workload on
/// one server right after the other, and prints medians over the rounds. A ratio is the median of the ratios within
/// a round, so load that comes and goes touches it less than the rates. Needs fio, nbdkit and qemu-nbd, with dedup-nbd and
/// dedup-tool beside this program.
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
    /// Measure the engine alone, in this process, on devices in memory
    Engine(Engine),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Peers {
    /// Directory to work in, on the file system to measure; up to 5 times the size is needed [default: the current one]
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
    /// Only workloads whose name contains this, and what they depend on
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
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl Peers {
    /// Bytes of the working set.
    pub(crate) fn size(&self) -> u64 {
        if self.quick { 64 << 20 } else { self.size.0 }
    }

    pub(crate) fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    pub(crate) fn limit(&self) -> Duration {
        // 40 runs in two minutes, most of them short.
        Duration::from_secs(if self.quick { 6 } else { self.limit.into() })
    }
}

/// The smallest size that gives every workload a few requests, in a multiple of what the largest request takes.
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
        let quick = Args::try_parse_from(["dedup-bench", "--quick"]).unwrap().peers;
        assert_eq!((quick.size(), quick.rounds()), (64 << 20, 1));
        assert!(Args::try_parse_from(["dedup-bench", "--quick", "--rounds", "2"]).is_err());
    }

    #[test]
    fn sizes_that_the_workloads_cannot_cover_exactly_are_refused() {
        for size in ["4M", "1025K", "8388609"] {
            assert!(Args::try_parse_from(["dedup-bench", "--size", size]).is_err(), "{size}");
        }
        assert!(Args::try_parse_from(["dedup-bench", "engine", "--size", "8M"]).is_ok());
    }
}
