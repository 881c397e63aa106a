//! The log on standard error: one short line an event.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::LevelFilter as Level;

/// Libraries that tell at `info` what their own steps are.
const QUIET: [&str; 1] = ["libublk=warn"];

/// The `-v` option of every tool that logs.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct LogArgs {
    /// Log more; twice for everything. RUST_LOG, if set, decides instead
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl LogArgs {
    /// Begins to log, from `level` on unless told otherwise. Call it once, first thing.
    pub fn start(self, level: Level) {
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
        // A service manager adds the time.
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .without_time()
            .init();
    }
}
