//! Power cuts: what is there afterwards is a prefix of what was done, with everything that was acknowledged as durable; the checker finds
//! nothing, the counters are those of that prefix, and the volume goes on working.
//!
//! This is the short form of the campaigns that `cargo run --release -p dedup-tests --bin campaign` runs for as long as one likes.
//! What they have found stands here as scripts, each under its story.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_tests::explore::{Failure, Policy, Script, Session, Torn, exhaustive, formatting, random};
use dedup_tests::rng::Rng;

fn fail(failure: Failure) -> ! {
    panic!("{}\ncampaign replay '{}'", failure.why, failure.script)
}

#[test]
fn no_crash_of_any_two_steps_loses_anything() {
    let bounds = exhaustive::Bounds { length: 2, subsets: 6, torn: Torn::Few, close: true };
    let mut session = Session::default();
    (0..exhaustive::count(&bounds))
        .for_each(|n| exhaustive::explore(n, &bounds, &mut session).unwrap_or_else(|failure| fail(failure)));
    println!("{}", session.tally);
    assert!(session.tally.distinct() > 1000, "the sequences reach too few states");
}

#[test]
fn no_crash_of_random_scripts_loses_anything() {
    let mut session = Session::default();
    (0..SEEDS).for_each(|seed| random::explore(seed, &mut session).unwrap_or_else(|failure| fail(failure)));
    println!("{}", session.tally);
    assert!(session.tally.distinct() > 50 * SEEDS, "the scripts reach too few states");
}

/// What takes about half a minute in the test profile.
const SEEDS: u64 = 60;

#[test]
fn an_interrupted_format_leaves_the_older_volume_or_none_or_a_new_one() {
    for older in [false, true] {
        let policy = Policy::Subsets { max: 10, torn: Torn::All, rng: Rng::new(1) };
        formatting::explore(older, policy, &mut Session::default()).unwrap();
    }
}

/// Runs a script that failed once.
fn replay(script: &str) {
    let script: Script = script.parse().unwrap();
    let mut session = Session::default();
    for policy in [Policy::Nothing, Policy::Subsets { max: 4, torn: Torn::Few, rng: Rng::new(1) }] {
        session.run(&script, policy, 0).unwrap_or_else(|failure| fail(failure));
    }
}
