//! Campaigns of power cuts: `campaign random --seconds 600 --seed 1 --jobs 2`, `campaign exhaustive --length
//! 3`, `campaign replay 'SCRIPT'`.
//!
//! Prints how far it is, and at the end what was explored. What fails is shrunk and printed as a script that
//! `replay` repeats. Exit code 0: nothing failed; 1: something did; 2: wrong arguments.

use clap::{Args, Parser, Subcommand, ValueEnum};
use dedup_tests::explore::{
    Policy, Script, Session, Tally, Torn, exhaustive, formatting, random, running, shrink,
};
use dedup_tests::rng::Rng;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Explores what power cuts leave of a volume.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    campaign: Campaign,
}

#[derive(Subcommand)]
enum Campaign {
    /// Random scripts of several lives, one a seed.
    Random {
        /// How long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        jobs: Jobs,
    },
    /// All sequences of a few steps over two blocks, with the crashes of format before them.
    Exhaustive {
        /// Steps in a sequence.
        #[arg(long, default_value_t = 2)]
        length: u32,
        /// Pending writes, beside the newest, of which all subsets are taken.
        #[arg(long, default_value_t = 10)]
        subsets: usize,
        /// How the newest write is torn.
        #[arg(long, value_enum, default_value_t = TornAs::All)]
        torn: TornAs,
        /// Only sequences with a flush at their end, none with a close.
        #[arg(long)]
        no_close: bool,
        /// Bytes of data that a commit may carry in the log; a block has 1024.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        log_data: u64,
        #[command(flatten)]
        jobs: Jobs,
    },
    /// One script, to its end.
    Replay {
        /// As it was printed.
        script: String,
        /// Also tries the crash states on the way, a few subsets at each event.
        #[arg(long)]
        explore: bool,
    },
    /// Makes a failing script shorter.
    Shrink {
        /// As it was printed.
        script: String,
    },
}

#[derive(Args)]
struct Jobs {
    /// Threads, each with scripts of its own.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum TornAs {
    /// Three ways.
    Few,
    /// Every beginning, every end, every sector.
    All,
}

/// Why a campaign failed.
struct Failed {
    why: String,
    script: Option<Script>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tell_panics();
    match arguments.campaign {
        Campaign::Random { seconds, seed, jobs } => {
            let until = Instant::now() + Duration::from_secs(seconds);
            let next = AtomicU64::new(seed);
            let work = |session: &mut Session| {
                if Instant::now() >= until {
                    return Ok(false);
                }
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let explored = random::explore(seed, session);
                explored
                    .map(|()| true)
                    .map_err(|f| Failed { why: format!("seed {seed}: {}", f.why), script: Some(f.script) })
            };
            let ended = campaign(jobs.jobs, &work);
            println!("seeds {seed} to {}", next.load(Ordering::Relaxed) - 1);
            ended
        }
        Campaign::Exhaustive { length, subsets, torn, no_close, log_data, jobs } => {
            let torn = match torn {
                TornAs::Few => Torn::Few,
                TornAs::All => Torn::All,
            };
            let bounds = exhaustive::Bounds { length, subsets, torn, close: !no_close, log_data };
            exhaust(&bounds, jobs.jobs)
        }
        Campaign::Replay { script, explore } => replay(&script, explore),
        Campaign::Shrink { script } => match script.parse() {
            Ok(script) => {
                println!("{}", reproduce(&shrunk(script)));
                ExitCode::SUCCESS
            }
            Err(why) => usage(&why),
        },
    }
}

fn usage(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(2)
}

/// A release build aborts on a panic: what was being looked at is told, and shrunk in processes of its own,
/// before that.
fn tell_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if let Some(script) = running() {
            println!("FAILED: a panic\n{}", reproduce(&script));
            if std::env::var_os(PROBE).is_none() {
                println!("shrunk: {}", reproduce(&shrunk(script)));
            }
        }
    }));
}

/// Set in the processes that only try out a script.
const PROBE: &str = "CAMPAIGN_PROBE";

fn exhaust(bounds: &exhaustive::Bounds, jobs: u64) -> ExitCode {
    let (scripts, next) = (exhaustive::count(bounds), AtomicU64::new(0));
    println!("{scripts} scripts of {} steps", bounds.length);
    // The numbers before the scripts': formats of blank devices, and over an older volume.
    let work = |session: &mut Session| {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n < 2 {
            let policy = Policy::Subsets { max: bounds.subsets, torn: bounds.torn, rng: Rng::new(n) };
            let formatted = formatting::explore(n == 1, policy, session);
            return formatted.map(|()| true).map_err(|why| Failed { why, script: None });
        }
        if n - 2 >= scripts {
            return Ok(false);
        }
        let explored = exhaustive::explore(n - 2, bounds, session);
        explored
            .map(|()| true)
            .map_err(|f| Failed { why: format!("script {}: {}", n - 2, f.why), script: Some(f.script) })
    };
    campaign(jobs, &work)
}

/// Between two lines of progress.
const PROGRESS_SECONDS: u64 = 10;

/// Does pieces of work in `jobs` threads until there is none or something fails.
fn campaign(jobs: u64, work: &(dyn Fn(&mut Session) -> Result<bool, Failed> + Sync)) -> ExitCode {
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let (failures, total) = (Mutex::new(Vec::new()), Mutex::new(Tally::default()));
    let (judged, scripts, told) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let mut session = Session::default();
                while !stop.load(Ordering::Relaxed) {
                    let before = session.tally.judged;
                    match work(&mut session) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(failed) => {
                            stop.store(true, Ordering::Relaxed);
                            lock(&failures).push(failed);
                        }
                    }
                    let judged = judged.fetch_add(session.tally.judged - before, Ordering::Relaxed);
                    let scripts = scripts.fetch_add(1, Ordering::Relaxed) + 1;
                    let seconds = start.elapsed().as_secs();
                    if seconds >= told.load(Ordering::Relaxed) + PROGRESS_SECONDS {
                        told.store(seconds, Ordering::Relaxed);
                        eprintln!("{seconds:>6} s: {scripts} scripts, {judged} crash states judged");
                    }
                }
                lock(&total).add(session.tally);
            });
        }
    });
    print!("{:.1} s: {}", start.elapsed().as_secs_f64(), lock(&total));
    let failures = std::mem::take(&mut *lock(&failures));
    println!("{} failures", failures.len());
    for failed in &failures {
        println!("FAILED: {}", failed.why);
        if let Some(script) = &failed.script {
            println!("{}\nshrunk: {}", reproduce(script), reproduce(&shrunk(script.clone())));
        }
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn reproduce(script: &Script) -> String {
    format!("{REPRODUCE}{script}'")
}

const REPRODUCE: &str = "campaign replay '";

fn replay(script: &str, explore: bool) -> ExitCode {
    let mut session = Session::default();
    let script: Script = match script.parse() {
        Ok(script) => script,
        Err(why) => return usage(&why),
    };
    let mut result = session.run(&script, Policy::Nothing, 0);
    if explore && result.is_ok() {
        result = session.run(&script, Policy::Subsets { max: 3, torn: Torn::Few, rng: Rng::new(1) }, 0);
    }
    print!("{}", session.tally);
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("FAILED: {}\n{}", failure.why, reproduce(&failure.script));
            ExitCode::FAILURE
        }
    }
}

/// Shrinks a script. Each candidate runs in a process of its own, since it may end with a panic.
fn shrunk(script: Script) -> Script {
    shrink::shrink(script, &mut |candidate| {
        candidate.validate().ok()?;
        let program = std::env::current_exe().ok()?;
        let mut command = Command::new(program);
        command.args(["replay", "--explore", &candidate.to_string()]).env(PROBE, "1");
        let output = command.stderr(Stdio::null()).output().ok()?;
        if output.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(REPRODUCE))?;
        line.trim_end_matches('\'').parse().ok()
    })
}
