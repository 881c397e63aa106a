//! `dedup-bench`: measures `dedup-nbd` against other NBD servers, and the engine by itself.
//!
//! ```text
//!   peers    fio ─┬─────────────────────────────────  raw file     both         per round: fresh volume,
//!            (the └ Unix socket ─┬─ nbdkit file         raw file     buffered     a workload on the raw file, then
//!            default)            ├─ dedup-nbd           volume       buffered     on the peer, then
//!                                ├─ qemu-nbd            raw file     direct       on dedup-nbd;
//!                                └─ dedup-nbd           volume       direct       then the next workload
//!
//!   engine   loop ─ Volume ─ memory
//!   index    loop ─┬─ Volume ─ metadata in a file, data nowhere
//!                  └─ redb, LMDB, fjall
//!   fill     loop ─ Volume ─ metadata in a file, data that is made anew for each read; reopen: the same, opened only
//!   check    dedup-check's work ─ metadata in a file, beside reading as much of it from its begin
//! ```
//!
//! `workload` says what is run, `sessions` on which volume and in which order, `server` and `fio` run it,
//! `peers` does the rounds, `summary` makes medians and a table of them, `plots` draws them, `goals` holds
//! what all commands have written against what is aimed for.

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod args;
mod check;
mod child;
mod compare;
mod engine;
mod fill;
mod fio;
mod goals;
mod held;
mod image;
mod index;
mod machine;
mod memory;
mod peers;
mod plots;
mod programs;
mod server;
mod sessions;
mod stamped;
mod summary;
mod workload;

use anyhow::{Context, Result};
use args::{Args, Command};
use dedup_cli::exit;
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Args = match dedup_cli::parse(exit::USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match run(&args) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(error) => {
            exit::report("dedup-bench", error.as_ref());
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    child::watch_signals().context("cannot handle signals")?;
    match &args.command {
        None => {
            let report = peers::run(&args.peers.measure)?;
            say(format_args!("{}\n{}", report.machine, summary::peers_table(&report.results)))?;
            save(args.peers.measure.json.as_deref(), &report)?;
            if let Some(dir) = &args.peers.plots {
                plots::peers(&report.results, dir)?;
            }
            Ok(())
        }
        Some(Command::Compare(compare)) => {
            let report = compare::run(compare)?;
            say(&report)?;
            save(compare.measure.json.as_deref(), &report)
        }
        Some(Command::Engine(engine)) => {
            let report = engine::run(engine)?;
            say(&report)?;
            save(engine.json.as_deref(), &report)
        }
        Some(Command::Index(index)) => {
            let report = index::run(index)?;
            say(&report)?;
            save(index.json.as_deref(), &report)
        }
        Some(Command::IndexPhase { phase, outcome }) => index::run_phase(phase, outcome),
        Some(Command::Check(check)) => {
            let report = check::run(check)?;
            say(&report)?;
            save(check.json.as_deref(), &report)
        }
        Some(Command::Fill(args)) => fill::run(args),
        Some(Command::Reopen(args)) => fill::reopen(args),
        Some(Command::Goals(args)) => {
            let report = goals::run(&args.goals, &args.dir)?;
            say(&report)?;
            save(args.json.as_deref(), &report)
        }
        Some(Command::Plot(args)) => plots::fill(&args.log, &args.svg),
    }
}

/// A line on standard output.
pub(crate) fn say(text: impl std::fmt::Display) -> Result<()> {
    Ok(dedup_cli::tell(|out| writeln!(out, "{text}"))?)
}

/// Writes a report as JSON, if that was asked for.
pub(crate) fn save(path: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let write = || Ok::<_, anyhow::Error>(serde_json::to_writer_pretty(File::create(path)?, report)?);
    write().with_context(|| format!("cannot write {}", path.display()))
}
