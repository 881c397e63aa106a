//! The log on standard error: one short line an event, and nothing that happens to it happens to the program.
//!
//! ```text
//!   event ─> filter by level ─> limit (by call site) ─> format ─> queue ─> a thread ─> standard error
//!                                 a flood: the first lines,        bounded: what has no room is counted
//!                                 then one a second with a count
//! ```
//!
//! Invariants: an event waits for nothing that is outside this process, since it may happen under a lock or
//! in front of a client's answer. A line that cannot be written is counted and the program goes on. The end
//! of the program waits for the log for [`FLUSH_TIME`] at most, that by a panic too. What is written while a
//! log is running goes through the same queue, so that lines keep their order.

mod limit;
mod limited;
mod queue;

use limit::Limits;
use limited::Limited;
use queue::{Queue, Stderr};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::LevelFilter as Level;

/// Libraries that tell at `info` what their own steps are.
const QUIET: [&str; 1] = ["libublk=warn"];
/// How long the end of a program waits until its log is written: what is left by then has no reader.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// The log of this process, from its start on.
static LOG: OnceLock<Arc<Queue>> = OnceLock::new();

/// The `-v` option of every tool that logs.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct LogArgs {
    /// Log more; twice for everything. RUST_LOG, if set, decides instead
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Sees to it, when it is dropped, that what was logged is written before the program ends.
#[derive(Debug)]
#[must_use = "the last lines are lost if nothing waits for them"]
pub struct Log(());

impl Drop for Log {
    fn drop(&mut self) {
        finish();
    }
}

/// Waits until what was logged is written, for [`FLUSH_TIME`] at most.
pub(crate) fn finish() {
    if let Some(queue) = LOG.get() {
        queue.flush(FLUSH_TIME);
    }
}

impl LogArgs {
    /// Begins to log, from `level` on unless told otherwise. Call it once, first thing, and keep what it
    /// returns until the end.
    pub fn start(self, level: Level) -> Log {
        let level = match (self.verbose, level) {
            (0, level) => level,
            (1, Level::INFO) => Level::DEBUG,
            (1, _) => Level::INFO,
            _ => Level::TRACE,
        };
        let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
        // A library's steps are of interest to who asks for more.
        let filter = match self.verbose {
            0 => QUIET.iter().filter_map(|quiet| quiet.parse().ok()).fold(filter, EnvFilter::add_directive),
            _ => filter,
        };
        let limits = Arc::new(Limits::default());
        let queue = Queue::start(Stderr, Arc::clone(&limits));
        let is_terminal = std::io::stderr().is_terminal();
        // A service manager adds the time.
        let format =
            tracing_subscriber::fmt::format().with_ansi(is_terminal).with_target(false).without_time();
        tracing_subscriber::fmt()
            // They would be printed to standard error, which may be what does not work.
            .log_internal_errors(false)
            .with_env_filter(filter)
            .with_ansi(is_terminal)
            .event_format(Limited::new(format, limits, Arc::clone(&queue)))
            .with_writer(queue::Lines(Arc::clone(&queue)))
            .init();
        // A second call would have panicked above.
        let _ = LOG.set(queue);
        panic::set_hook(Box::new(tell_panic));
        Log(())
    }
}

/// Says what the standard library would say, behind what led to it, and waits until it is written: the
/// process may be about to end. The library would write it itself, and wait for a reader without end.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => say(&format!("thread {name}: {panic}\n{backtrace}")),
        _ => say(&format!("thread {name}: {panic}\nRUST_BACKTRACE=1 in the environment adds a backtrace")),
    }
    finish();
}

/// Writes a line to standard error: behind what is logged, if there is a log. It is lost if nobody can read
/// it.
pub fn say(text: &str) {
    let line = format!("{text}\n");
    match LOG.get() {
        Some(queue) => queue.line(line.as_bytes()),
        // Nothing could tell of the failure.
        None => drop(std::io::stderr().write_all(line.as_bytes())),
    }
}
