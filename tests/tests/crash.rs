//! Power cuts at random moments: what is there afterwards is a prefix of what was done, with everything that
//! was acknowledged as durable, and the volume goes on working.
//!
//! The two devices have caches of their own; a cut keeps any subset of the sectors not yet flushed.
//! `CRASH_SEEDS=from..to` runs other seeds than the default ones.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::BlockDevice;
use dedup_tests::history::one_history;
use dedup_tests::*;
use dedup_volume::FormatOptions;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("CRASH_SEEDS") else { return 0..300 };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("CRASH_SEEDS: expected FROM..TO, found {text}"))
}

#[test]
fn after_any_power_cut_the_volume_holds_a_prefix_with_everything_acknowledged_as_durable() {
    seeds().for_each(|seed| one_history(seed, |_| {}));
}

#[test]
fn an_interrupted_format_leaves_no_volume_or_a_whole_one() {
    for cut in 0..40 {
        let disks = Disks::new(1 << 20, 4 << 20);
        disks.format(&format_options(1 << 19));
        disks.data.set_cut_after(cut);
        disks.metadata.set_cut_after(cut);
        let options = FormatOptions {
            force: true,
            ..FormatOptions::new(1 << 18, uuid::Uuid::from_u128(8), uuid::Uuid::from_u128(9))
        };
        let formatted = dedup_volume::format(&*disks.data, &disks.metadata(), &options).is_ok();
        for keep in [false, true] {
            let disks = disks.crash(|_, write, _| keep && write % 2 == 0);
            match disks.open(&dedup_tests::options()) {
                Ok(volume) => assert_content(&volume, 0, 0),
                Err(_) => assert!(!formatted || keep, "cut {cut}: a format that succeeded left no volume"),
            }
        }
        assert!(disks.data.size() > 0);
    }
}
