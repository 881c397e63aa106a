//! `golden`: writes the files that `tests/tests/golden.rs` compares with.
//!
//! ```text
//!   golden images       the images of the present version, if there are none yet
//!   golden today        golden/today.json: after a change of what is written where, on purpose
//!   golden fixtures     the findings in fixtures/damage.json: after a change of what the checker says
//! ```

use anyhow::Result;
use clap::Parser;
use dedup_tests::golden::{Fixture, VERSION, directory, exists, fixtures_file, history, plans, store, today};
use std::fs;

/// Write golden images and what is compared with them
#[derive(Parser, Debug)]
#[command(name = "golden")]
enum Command {
    /// Write the images of the present version of the format that do not exist yet
    Images,
    /// Record what today's code writes
    Today,
    /// Record what the checker finds in the damaged fixtures
    Fixtures,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Images => {
            let missing = plans().into_iter().filter(|(name, _)| !exists(VERSION, name));
            missing.into_iter().try_for_each(|(name, plan)| store(VERSION, name, &history(plan)))
        }
        Command::Today => {
            let sums = serde_json::to_string_pretty(&today())?;
            Ok(fs::write(directory().join("today.json"), sums + "\n")?)
        }
        Command::Fixtures => {
            let mut all = Fixture::all()?;
            for fixture in &mut all {
                fixture.findings = fixture.found()?;
            }
            Ok(fs::write(fixtures_file(), serde_json::to_string_pretty(&all)? + "\n")?)
        }
    }
}
