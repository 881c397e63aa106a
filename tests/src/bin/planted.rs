//! Tries the planted faults: makes the copy of the sources that has them (`dedup_tests::planted`), and runs
//! its test there.

#![allow(clippy::print_stdout, reason = "a program")]

use anyhow::Context;
use clap::Parser;
use dedup_tests::planted::{copy, faults, workspace};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Try the faults of tests/planted: each is put into a copy of the sources and must be caught by its property
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these
    faults: Vec<String>,
    /// Print what there is and end
    #[arg(long)]
    list: bool,
    /// Where the copy is made
    #[arg(long, value_name = "DIR")]
    copy: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let faults = faults()?;
    if arguments.list {
        for fault in &faults {
            println!("{}: {}\n    caught by {}", fault.name, fault.harm.trim(), fault.caught_by);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in &arguments.faults {
        anyhow::ensure!(
            faults.iter().any(|fault| fault.name == *name),
            "there is no fault {name}: --list shows what there is"
        );
    }
    let root = workspace().canonicalize()?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let to = arguments.copy.unwrap_or_else(|| target.join("planted"));
    copy(&faults, &to)?;
    let tests = [("planted", ""), ("media", "with_a_planted_fault")];
    for (test, filter) in tests {
        // The same features of all packages as for every other test: what is built of other people's crates
        // serves both.
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["test", "--workspace", "--features", "dedup-tests/planted,dedup-ublk/driver"])
            .args(["--test", test, "--", filter, "--nocapture", "--test-threads=1"])
            .current_dir(&to)
            .env("CARGO_TARGET_DIR", &target)
            .env("DEDUP_PLANTED", arguments.faults.join(","))
            .status()
            .context("cargo")?;
        if !status.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
