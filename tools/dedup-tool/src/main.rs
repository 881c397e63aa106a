//! `dedup-tool`: makes volumes and looks into them.
//!
//! One module a subcommand. Not here: serving (`dedup-nbd`), checking and repair (`dedup-check`).

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod dump;
mod format;
mod gc;
mod new_uuid;
mod status;

use anyhow::Result;
use clap::{Parser, Subcommand};
use dedup_cli::{Level, LogArgs, exit};
use std::process::ExitCode;

/// Make and examine deduplicated volumes
#[derive(Parser, Debug)]
#[command(name = "dedup-tool", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    Format(format::Args),
    Status(status::Args),
    DumpSuperblock(dump::Args),
    Gc(gc::Args),
    NewUuid(new_uuid::Args),
}

fn main() -> ExitCode {
    let args: Args = match dedup_cli::parse(exit::USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let _log = args.log.start(Level::WARN);
    match run(&args.command) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(error) => {
            exit::report("dedup-tool", error.as_ref());
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Format(args) => format::run(args),
        Command::Status(args) => status::run(args),
        Command::DumpSuperblock(args) => dump::run(args),
        Command::Gc(args) => gc::run(args),
        Command::NewUuid(args) => new_uuid::run(args),
    }
}
