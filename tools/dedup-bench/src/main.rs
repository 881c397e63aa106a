//! `dedup-bench`: measures `dedup-nbd` against other NBD servers, and the engine by itself.
//!
//! ```text
//!   peers    fio ─ Unix socket ─┬─ nbdkit file          raw file     buffered     per round: fresh volume,
//!            (the default)      ├─ dedup-nbd            volume       buffered     a workload on the peer,
//!                               ├─ qemu-nbd             raw file     direct       the same on dedup-nbd,
//!                               └─ dedup-nbd            volume       direct       then the next workload
//!
//!   engine   loop ─ Volume ─ memory
//!   index    loop ─┬─ Volume ─ metadata in a file, data nowhere
//!                  └─ redb, LMDB, fjall
//!   fill     loop ─ Volume ─ metadata in a file, data that is made anew for each read; reopen: the same, opened only
//! ```
//!
//! `workload` says what is run, `server` and `fio` run it, `peers` does the rounds, `summary` makes medians and a table of them.
//! Not here: any judgement whether a number is good, except the goals that stand beside the workloads.

mod args;
mod child;
mod engine;
mod fill;
mod fio;
mod image;
mod index;
mod machine;
mod peers;
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
            let report = peers::run(&args.peers)?;
            println!("{}\n{}", report.machine, summary::peers_table(&report.results));
            save(args.peers.json.as_deref(), &report)
        }
        Some(Command::Engine(engine)) => {
            let report = engine::run(engine)?;
            println!("{report}");
            save(engine.json.as_deref(), &report)
        }
        Some(Command::Index(index)) => {
            let report = index::run(index)?;
            println!("{report}");
            save(index.json.as_deref(), &report)
        }
        Some(Command::IndexPhase { phase, outcome }) => index::run_phase(phase, outcome),
        Some(Command::Fill(args)) => fill::run(args),
        Some(Command::Reopen(args)) => fill::reopen(args),
    }
}

fn save(path: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let write = || Ok::<_, anyhow::Error>(serde_json::to_writer_pretty(File::create(path)?, report)?);
    write().with_context(|| format!("cannot write {}", path.display()))
}
