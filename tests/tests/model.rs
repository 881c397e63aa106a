//! Random scripts on a volume and on plain bytes: block sizes, digests, options, sub-block requests, batches,
//! lives and crashes.
//!
//! `PROPTEST_CASES` scales it, `MODEL_SEED` makes it another run; `cargo run --release -p dedup-tests --bin
//! model -- --help` for longer ones, and to play a script that failed.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_tests::model::{Script, campaign, scripts};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// Half a minute on one core, most of it in the few volumes with large blocks.
const CASES: u32 = 2000;

fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn a_volume_behaves_as_the_bytes_that_were_written_to_it_through_any_script() {
    let (seed, cases) = (from_environment("MODEL_SEED", 1), from_environment("PROPTEST_CASES", CASES));
    campaign(seed, cases, 24).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_script_is_read_back_from_what_it_prints() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..200 {
        let script = scripts(24).new_tree(&mut runner).unwrap().current();
        assert_eq!(script.to_string().parse::<Script>().unwrap(), script);
    }
}
