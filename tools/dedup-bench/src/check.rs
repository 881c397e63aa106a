//! The checker against the device: a check without data, and as many bytes as there is metadata in use read
//! one after the other.
//!
//! ```text
//!   a round   1 MiB, 1 MiB, 1 MiB, ...  direct, from the metadata's begin      what `dd iflag=direct bs=1M` does
//!             dedup_checker::check      in this process                        what `dedup-check` does
//! ```
//!
//! Any volume will do that nobody has open; [`fill`](crate::fill) makes them of any size. Memory is the
//! process's highest, so the checker's with this program's few megabytes.

use crate::args;
use crate::child;
use crate::fill::process_bytes;
use crate::machine::Machine;
use crate::server::cpu_time;
use crate::summary::{Spread, table};
use anyhow::{Context, Result, ensure};
use dedup_checker::{CheckOptions, check};
use dedup_cli::human;
use dedup_device::{AlignedBuf, BlockDevice, FileDevice, IoMode, OpenMode};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a metadata block.
const META_BLOCK: u64 = 4096;
/// Bytes of a sequential read.
const READ_BYTES: usize = 1 << 20;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    stored_blocks: u64,
    metadata_in_use: u64,
    /// By a check, from the device.
    bytes_read: u64,
    sequential_seconds: Spread,
    check_seconds: Spread,
    check_cpu_seconds: Spread,
    /// Time of a check as a part of that of the sequential reads of its round.
    ratio: Spread,
    resident_peak: u64,
    clean: bool,
}

/// One check, and the reads to hold it against.
struct Round {
    sequential: f64,
    check: f64,
    cpu: f64,
    bytes_read: u64,
}

/// Runs everything.
pub(crate) fn run(args: &args::Check) -> Result<Report> {
    let machine = Machine::describe(Some(&args.dir), Vec::new());
    let path = args.dir.join("metadata");
    let (mut rounds, mut last) = (Vec::new(), None);
    for _ in 0..args.rounds {
        child::check_interrupted()?;
        let (begin, cpu, read) = (Instant::now(), cpu_time("self")?, bytes_read()?);
        let options = CheckOptions { cache_bytes: args.cache_size.0, ..CheckOptions::default() };
        let report = check(None, open(&path)?, &options, &mut |_| ())
            .with_context(|| format!("cannot check {}", path.display()))?;
        let (check, cpu) = (begin.elapsed().as_secs_f64(), (cpu_time("self")? - cpu).as_secs_f64());
        let bytes_read = bytes_read()? - read;
        let sequential = sequential(&*open(&path)?, report.summary.metadata_used * META_BLOCK)?;
        rounds.push(Round { sequential, check, cpu, bytes_read });
        last = Some(report);
    }
    let report = last.context("no rounds")?;
    let of = |f: fn(&Round) -> f64| Spread::of(rounds.iter().map(f)).context("no rounds");
    Ok(Report {
        machine,
        rounds: args.rounds,
        stored_blocks: report.summary.data_used,
        metadata_in_use: report.summary.metadata_used * META_BLOCK,
        bytes_read: rounds.iter().map(|round| round.bytes_read).max().unwrap_or(0),
        sequential_seconds: of(|round| round.sequential)?,
        check_seconds: of(|round| round.check)?,
        check_cpu_seconds: of(|round| round.cpu)?,
        ratio: of(|round| round.check / round.sequential)?,
        resident_peak: process_bytes("VmHWM")?,
        clean: report.is_clean(),
    })
}

fn open(path: &Path) -> Result<Arc<dyn BlockDevice>> {
    let device = FileDevice::open(path, OpenMode::ReadOnly, IoMode::Direct)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Arc::new(device))
}

/// Seconds that it takes to read the first `bytes`.
fn sequential(device: &dyn BlockDevice, bytes: u64) -> Result<f64> {
    ensure!(bytes <= device.size(), "expected {} of metadata, found {}", human(bytes), human(device.size()));
    let mut buffer = AlignedBuf::zeroed(READ_BYTES);
    let begin = Instant::now();
    for offset in (0..bytes).step_by(READ_BYTES) {
        let len = (bytes - offset).min(READ_BYTES as u64) as usize;
        device.read(offset, &mut buffer[..len]).context("cannot read the metadata")?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// What this process has read from devices.
fn bytes_read() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io").context("cannot read /proc/self/io")?;
    let value = text.lines().find_map(|line| line.strip_prefix("read_bytes:"));
    value.and_then(|value| value.trim().parse().ok()).context("/proc/self/io: expected read_bytes")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let mut row = table(&[
            "blocks stored",
            "metadata in use",
            "volume",
            "read by the check",
            "sequential s",
            "check s",
            "check CPU s",
            "ratio",
            "min-max",
            "memory",
        ]);
        row.add_row([
            self.stored_blocks.to_string(),
            human(self.metadata_in_use),
            if self.clean { "clean" } else { "NOT CLEAN" }.to_owned(),
            human(self.bytes_read),
            format!("{:.2}", self.sequential_seconds.median),
            format!("{:.2}", self.check_seconds.median),
            format!("{:.2}", self.check_cpu_seconds.median),
            format!("{:.2}", self.ratio.median),
            format!("{:.2}-{:.2}", self.ratio.min, self.ratio.max),
            human(self.resident_peak),
        ]);
        write!(f, "{row}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_filled_volume_is_clean_and_its_metadata_is_read_about_once() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let place = dir.path().to_str().unwrap();
        let parse = |line: &[&str]| args::Args::try_parse_from(line).unwrap().command;
        let fill = ["dedup-bench", "fill", place, "--size", "64M", "--keep-free", "0"];
        match parse(&fill) {
            Some(args::Command::Fill(fill)) => crate::fill::run(&fill).unwrap(),
            other => panic!("{other:?}"),
        }
        let report = match parse(&["dedup-bench", "check", place, "--rounds", "2"]) {
            Some(args::Command::Check(check)) => run(&check).unwrap(),
            other => panic!("{other:?}"),
        };
        assert!(report.clean);
        assert_eq!(report.stored_blocks, 64 << 8);
        // The log is looked at from both superblocks, and a file system without direct I/O reads as it likes.
        let most = 4 * report.metadata_in_use;
        assert!(report.bytes_read <= most, "{} of {most}", report.bytes_read);
        assert!(report.resident_peak > 0 && report.ratio.min > 0.0);
        assert!(report.to_string().contains("clean"));
    }
}
