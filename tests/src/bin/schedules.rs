//! Runs many clients on seeded schedules, seed after seed.
//!
//!     cargo run --release -p dedup-tests --features shuttle --bin schedules -- --seconds 60
//!     cargo run --release -p dedup-tests --features shuttle --bin schedules -- --seed 4711 --count 1

use clap::Parser;
use dedup_tests::schedule::run;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(about = "Runs many clients at once on schedules that seeds fix, with power cuts")]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds; without, as many as the time allows.
    #[arg(long)]
    count: Option<u64>,
    /// Seconds after which no new seed begins.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seeds that run side by side, each on a thread of its own.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (next, failed) = (AtomicU64::new(args.seed), AtomicBool::new(false));
    let (replies, cuts, events) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let end = args.count.map_or(u64::MAX, |count| args.seed + count);
    let work = || {
        while !failed.load(SeqCst) && start.elapsed() < Duration::from_secs(args.seconds) {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= end {
                return;
            }
            match catch_unwind(|| run(seed)) {
                Ok(outcome) => {
                    // The first seed twice: if that gave something else, no failure could be reproduced.
                    assert!(seed > args.seed || run(seed) == outcome, "seed {seed} does not repeat");
                    replies.fetch_add(outcome.replies, SeqCst);
                    cuts.fetch_add(outcome.cuts, SeqCst);
                    events.fetch_add(outcome.device_events, SeqCst);
                }
                Err(_) => {
                    failed.store(true, SeqCst);
                    println!("FAILED: seed {seed}; reproduce: schedules --seed {seed} --count 1");
                }
            }
        }
    };
    std::thread::scope(|scope| (0..args.jobs).for_each(|_| drop(scope.spawn(work))));
    let last = next.load(SeqCst).min(end);
    println!(
        "seeds {}..{last} in {:.1} s: {} power cuts, {} requests answered, {} device operations",
        args.seed,
        start.elapsed().as_secs_f64(),
        cuts.into_inner(),
        replies.into_inner(),
        events.into_inner() / 2,
    );
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
