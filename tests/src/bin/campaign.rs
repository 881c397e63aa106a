//! Campaigns of power cuts.

use clap::{Parser, Subcommand};
use dedup_tests::explore::{Failure, Policy, Script, Session, random};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Random scripts.
    Random {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// One script.
    Replay { script: String },
}

fn main() -> ExitCode {
    let mut session = Session::default();
    let result: Result<(), Failure> = match Args::parse().command {
        Command::Random { seconds, seed } => {
            let start = Instant::now();
            let mut result = Ok(());
            let mut n = seed;
            while start.elapsed() < Duration::from_secs(seconds) && result.is_ok() {
                result = random::explore(n, &mut session).inspect_err(|_| println!("seed {n}"));
                n += 1;
            }
            println!("seeds {seed}..{n} in {:.1} s", start.elapsed().as_secs_f64());
            result
        }
        Command::Replay { script } => {
            let script: Script = match script.parse() {
                Ok(script) => script,
                Err(why) => {
                    eprintln!("{why}");
                    return ExitCode::from(2);
                }
            };
            session.run(&script, Policy::Nothing).map(|_| ())
        }
    };
    println!("{}", session.tally);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("FAILED: {}\nreproduce: campaign replay '{}'", failure.why, failure.script);
            ExitCode::FAILURE
        }
    }
}
