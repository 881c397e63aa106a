//! Power cuts: what is there afterwards is a prefix of what was done, with everything that was acknowledged
//! as durable; the checker finds nothing, the counters are those of that prefix, and the volume goes on
//! working.
//!
//! This is the short form of the campaigns that `cargo run --release -p dedup-tests --bin campaign` runs for
//! as long as one likes. What they have found stands here as scripts, each under its story.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_tests::explore::{Failure, Policy, Script, Session, Torn, exhaustive, formatting, random};
use dedup_tests::rng::Rng;

fn fail(failure: Failure) -> ! {
    panic!("{}\ncampaign replay '{}'", failure.why, failure.script)
}

#[test]
fn no_crash_of_any_two_steps_loses_anything() {
    let mut session = Session::default();
    // A block of data in the log, or none.
    for log_data in [1024, 0] {
        let bounds = exhaustive::Bounds { length: 2, subsets: 6, torn: Torn::Few, close: true, log_data };
        (0..exhaustive::count(&bounds)).for_each(|n| {
            exhaustive::explore(n, &bounds, &mut session).unwrap_or_else(|failure| fail(failure))
        });
    }
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

/// Each open writes a superblock, and a crash can lose its spare. It stayed lost: when the superblock after
/// the next was torn over the slot of the older one, the only other copy was one from long before, whose
/// trees had been written over.
#[test]
fn the_way_back_to_the_older_superblock_survives_a_lost_spare_and_a_torn_slot() {
    replay("| w0=1 ckpt crash:none | w0=2 ckpt crash@14:m0.0-0");
    replay("| w0=1 ckpt w0=2 ckpt crash:none | crash:none | w0=3 ckpt crash@13:m0.0-0");
}

/// With byte comparison, the index led to a block that had been freed and discarded meanwhile. Its zeros
/// differed from the content looked for, which counted as a collision of SHA-256, and hid another block that
/// had the content.
#[test]
fn a_freed_block_that_the_index_still_names_is_no_collision() {
    replay("lbns=12 flushrq=2 discard=1 verify=1 | w8=1 close | w7+2=2 w0=1 crash:all");
    replay("verify=1 | w1=8 ckpt kill | w1=0 ckpt w0=1 w0+2=7 crash:all");
    replay("bs=512 lbns=6 verify=1 | w3=12 ckpt t1536+1024 close | w0+5=8 crash:all");
}
