//! `dedup-ublk`: serves a volume as a local block device.
//!
//! ```text
//!   add      args ─> open ─> device ─> queues ─> workers ─> Volume      until a signal, or `del`
//!   recover  record ─> args ─> open ─> replay what was not flushed ─> the same
//!   del      driver: stop ─> the server drains, closes, ends ─> the device is gone
//!   list     driver, records
//! ```
//!
//! Not here: what a command of the driver means (the library beside), the engine, how volumes are opened.

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod driver;

use anyhow::Result;
use dedup_cli::{Level, exit};
use dedup_ublk::args::{Args, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Args = match dedup_cli::parse(exit::USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match run(args.command) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(error) => {
            exit::report("dedup-ublk", error.as_ref());
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Add(args) => {
            let _log = args.log.start(Level::INFO);
            driver::serve::add(&args)
        }
        Command::Recover(args) => {
            let _log = args.log.start(Level::INFO);
            driver::serve::recover(&args)
        }
        Command::Del(args) => driver::manage::del(&args),
        Command::List(args) => driver::manage::list(&args),
    }
}
