//! For which part of the CPU time each lock was held.

use super::{Devices, Measured, Row, Work};
use crate::summary::{Spread, table};
use comfy_table::Table;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Readings of the clock to measure one.
const CLOCKS: u32 = 100_000;
/// Locks held for less are not told.
const SHARE_MIN: f64 = 0.001;

/// What locks were held since `before`: what they guard, how often, nanoseconds.
pub(super) fn since(before: &[dedup_volume::LockTime]) -> Vec<(&'static str, u64, f64)> {
    let now = dedup_volume::lock_times().into_iter();
    now.map(|now| {
        let then = before.iter().find(|then| then.name == now.name);
        let (holds, held) = then.map_or((0, Duration::ZERO), |then| (then.holds, then.held));
        (now.name, now.holds - holds, (now.held - held).as_nanos() as f64)
    })
    .collect()
}

/// The median parts over some rounds, largest first. A hold has one reading of the clock in it, and costs two
/// in all: both are taken off.
pub(super) fn shares<'a>(rounds: impl Iterator<Item = &'a Measured> + Clone) -> Vec<(&'static str, f64)> {
    let clock = clock_nanos();
    let share = |measured: &Measured, name: &str| {
        let all: u64 = measured.locks.iter().map(|(_, holds, _)| holds).sum();
        let cpu = measured.cpu.as_nanos() as f64 - 2.0 * clock * all as f64;
        let of_name = measured.locks.iter().filter(|(of, ..)| *of == name);
        of_name.map(|(_, holds, nanos)| (nanos - clock * *holds as f64) / cpu).sum::<f64>()
    };
    let names = rounds.clone().next().into_iter().flat_map(|round| &round.locks).map(|(name, ..)| *name);
    let median = |name| Spread::of(rounds.clone().map(|round| share(round, name))).map(|s| (name, s.median));
    let mut shares: Vec<(&'static str, f64)> =
        names.filter_map(median).filter(|(_, s)| *s >= SHARE_MIN).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

/// Over all rows of unique writes on memory.
pub(super) fn largest_of_unique(rows: &[Row]) -> Option<f64> {
    let unique = rows.iter().filter(|row| row.work == Work::Unique && row.setup.device == Devices::Memory);
    unique.filter_map(|row| row.locks.first()).map(|(_, share)| *share).max_by(f64::total_cmp)
}

/// The rows with what was held, as a table.
pub(super) fn table_of(rows: &[Row]) -> Table {
    let mut table = table(&[
        "4 KiB blocks",
        "devices",
        "batch",
        "callers",
        "digest threads",
        "% of CPU time with a lock held",
    ]);
    for row in rows {
        let short = |name: &str| name.rsplit("::").next().unwrap_or(name).to_owned();
        let locks = row.locks.iter().map(|(name, share)| format!("{} {:.1}", short(name), share * 100.0));
        table.add_row([
            row.work.name().to_owned(),
            row.setup.device.name().to_owned(),
            row.setup.batch.to_string(),
            row.setup.callers.to_string(),
            row.setup.digest_threads.to_string(),
            locks.collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}

/// What reading the clock takes.
fn clock_nanos() -> f64 {
    let begin = Instant::now();
    for _ in 0..CLOCKS {
        black_box(Instant::now());
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CLOCKS)
}
