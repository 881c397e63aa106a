//! Kills the real server, again and again, under a writer that knows what must be there afterwards.
//!
//! Uses the `dedup-nbd`, `dedup-tool` and `dedup-check` that stand beside it: `cargo build --release --bins`
//! first. What was found wrong is printed, with the server's log; the volume is then left where it is.

use anyhow::Result;
use clap::Parser;
use dedup_tests::process::{KillLoop, Place, Programs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Kill -9 the real server in a loop, and verify what is left
#[derive(Parser)]
struct Args {
    /// How long to go on
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Fixes what is written and which moments are chosen
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to put the volume [default: the directory of temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the programs are [default: beside this one]
    #[arg(long)]
    bin: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let programs = args.bin.as_deref().map_or_else(Programs::beside, Programs::in_directory)?;
    let mut place = Place::new(&programs, args.dir.as_deref())?;
    let mut killing = KillLoop::new(&place, args.seed)?;
    let start = Instant::now();
    let mut rounds = 0_u64;
    let mut failed = None;
    while start.elapsed() < Duration::from_secs(args.seconds) && failed.is_none() {
        rounds += 1;
        failed = killing.round().err();
        if rounds.is_multiple_of(50) {
            eprintln!("{} s: {killing}", start.elapsed().as_secs());
        }
    }
    println!("seed {}, {rounds} rounds in {} s: {killing}", args.seed, start.elapsed().as_secs());
    let Some(error) = failed else { return Ok(()) };
    let kept = place.keep();
    Err(error.context(format!(
        "seed {}, round {rounds}; the volume is kept in {}",
        args.seed,
        kept.display()
    )))
}
