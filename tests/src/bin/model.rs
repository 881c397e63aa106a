//! Plays random scripts on a volume and on its model for a given time, or one script from a file.
//!
//! A failure prints the smallest script found that still fails, and ends with 1. Written to a file, it can be
//! changed by hand and played again.

use clap::Parser;
use dedup_tests::model::{Script, campaign, play};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Play scripts on a volume and on plain bytes, and compare
#[derive(Parser)]
struct Args {
    /// A script to play, instead of random ones
    script: Option<PathBuf>,
    /// How long to go on
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where to begin; each following round has the next seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Scripts in a round
    #[arg(long, default_value_t = 1000)]
    cases: u32,
    /// Longest script, in steps
    #[arg(long, default_value_t = 40)]
    steps: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.script.as_ref().map_or_else(|| random(&args), play_file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play_file(path: &PathBuf) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let script: Script = text.parse().map_err(|error| format!("{}: {error:#}", path.display()))?;
    play(&script).map_err(|error| format!("{error:#}"))?;
    println!("{} steps, as expected", script.steps.len());
    Ok(())
}

fn random(args: &Args) -> Result<(), String> {
    let start = Instant::now();
    let mut seed = args.seed;
    while start.elapsed() < Duration::from_secs(args.seconds) {
        campaign(seed, args.cases, args.steps)?;
        println!("seed {seed}: {} scripts as expected, {} s", args.cases, start.elapsed().as_secs());
        seed += 1;
    }
    Ok(())
}
