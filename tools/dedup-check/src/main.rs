//! `dedup-check`: verifies everything on a volume that is not being served, and changes nothing.
//!
//! Exit codes are those of fsck(8): 0 clean, 4 errors found (none is ever corrected), 8 the check could not
//! be done, 16 wrong arguments. The checks are the `dedup-checker` library's; findings and JSON are
//! documented in `docs/check.md`.

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod text;

use anyhow::Result;
use clap::Parser;
use dedup_checker::{CheckOptions, Phase, Report, check};
use dedup_cli::{
    Devices, Io, Level, LogArgs, OutputArgs, Progress, Size, Unit, VolumeArgs, VolumePaths, exit,
    journal_options, tell,
};
use dedup_device::OpenMode;
use dedup_volume::{Label, OpenOptions, Volume, VolumeError};
use std::io;
use std::process::ExitCode;

/// Check a volume that is not being served; nothing is ever written to it
///
/// Exit codes: 0 clean, 4 errors were found, 8 the check could not be done, 16 wrong arguments.
#[derive(Parser, Debug)]
#[command(name = "dedup-check", version)]
struct Args {
    #[command(flatten)]
    volume: VolumeArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Read all data too, and compare it with digests and checksums
    #[arg(long)]
    data: bool,
    /// Print nothing of a clean volume, and only errors and warnings of any other
    #[arg(short, long)]
    quiet: bool,
    /// How to read the data device
    #[arg(long, value_enum)]
    io: Option<Io>,
    /// Memory for metadata blocks
    #[arg(long, value_name = "SIZE", default_value = "16M")]
    cache_size: Size,
    #[command(flatten)]
    log: LogArgs,
}

fn main() -> ExitCode {
    let args: Args = match dedup_cli::parse(exit::fsck::USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let _log = args.log.start(Level::WARN);
    match run(&args) {
        Ok(true) => ExitCode::from(exit::fsck::CLEAN),
        Ok(false) => ExitCode::from(exit::fsck::UNCORRECTED),
        Err(error) => {
            exit::report("dedup-check", error.as_ref());
            ExitCode::from(exit::fsck::OPERATIONAL)
        }
    }
}

/// Checks and tells; whether the volume is clean.
fn run(args: &Args) -> Result<bool> {
    let paths = args.volume.resolve()?.existing()?;
    let devices = Devices::open(&paths, OpenMode::ReadOnly, args.io)?;
    let options = CheckOptions { data: args.data, cache_bytes: args.cache_size.0 };
    let mut bar: Option<(Phase, Progress)> = None;
    let report = check(Some(&*devices.data), devices.metadata.clone(), &options, &mut |progress| {
        if !args.quiet {
            show(&mut bar, progress);
        }
    })?;
    drop(bar);
    print(args, &paths.name, &report)?;
    Ok(report.is_clean() && journal(&paths, devices)?)
}

/// Tells what waits in the journal of a process that died; whether an open can take it in. What was checked
/// is the volume as of its log.
fn journal(paths: &VolumePaths, devices: Devices) -> Result<bool> {
    let survey = dedup_meta::load_superblocks(&*devices.metadata);
    let pool = Label::read(&*devices.data)?.pool;
    if survey.newest(Some(pool)).is_ok_and(|superblock| superblock.journal.is_none()) {
        return Ok(true);
    }
    let options = OpenOptions {
        read_only: true,
        background: false,
        digest_threads: 1,
        journal: Some(journal_options(&paths.metadata)?),
        ..OpenOptions::default()
    };
    match Volume::open(devices.data, devices.metadata, &options) {
        Ok(volume) => {
            let waiting = volume.status().journal.operations;
            if waiting > 0 {
                tracing::warn!(
                    "the process that had the volume open has died: {waiting} operations that it had acknowledged and not committed wait in its \
                     journal, and the next open takes them in; the volume was checked as of its log"
                );
            }
            Ok(true)
        }
        Err(error @ VolumeError::Journal { .. }) => {
            tracing::error!("the volume was checked as of its log, and does not open: {error}");
            Ok(false)
        }
        // The report says what it found.
        Err(_) => Ok(true),
    }
}

/// Advances the bar of the phase at hand.
fn show(bar: &mut Option<(Phase, Progress)>, progress: dedup_checker::Progress) {
    let label = match progress.phase {
        Phase::Trees => "metadata",
        Phase::Data => "data",
    };
    let current = bar.take().filter(|(phase, _)| *phase == progress.phase);
    let (_, current) = bar.insert(
        current.unwrap_or_else(|| (progress.phase, Progress::new(label, progress.total, Unit::Count))),
    );
    current.set_total(progress.total);
    current.set(progress.done);
}

fn print(args: &Args, name: &str, report: &Report) -> io::Result<()> {
    tell(|out| {
        if args.output.json {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)
        } else {
            write!(out, "{}", text::Told { name, report, quiet: args.quiet })
        }
    })
}
