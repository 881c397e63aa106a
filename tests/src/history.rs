//! Histories of one volume through several power cuts, from a seed, with the oracle that tells what may be
//! there afterwards.

use super::*;
pub use crate::rng::Rng;
use dedup_device::IoKind;

/// Few LBNs and few contents, so that every kind of collision between operations is frequent.
const LBNS: u64 = 24;
const CONTENTS: u64 = 12;

#[derive(Clone, Debug)]
enum Step {
    Write { lbn: u64, content: u64, fua: bool },
    Trim { lbn: u64, blocks: u64, fua: bool },
    Flush,
    Checkpoint,
    Collect,
}

fn step(rng: &mut Rng) -> Step {
    match rng.below(100) {
        0..70 => Step::Write { lbn: rng.below(LBNS), content: rng.below(CONTENTS), fua: rng.below(12) == 0 },
        70..80 => {
            let lbn = rng.below(LBNS);
            Step::Trim { lbn, blocks: 1 + rng.below(LBNS - lbn), fua: rng.below(6) == 0 }
        }
        80..92 => Step::Flush,
        92..98 => Step::Checkpoint,
        _ => Step::Collect,
    }
}

/// What the volume should hold: the state after each step, and the last one known durable.
struct Oracle {
    states: Vec<Vec<u64>>,
    durable: usize,
    /// Whether every write is a commit.
    flushrq_is_1: bool,
}

impl Oracle {
    fn run(&mut self, volume: &Volume, step: &Step) -> Result<(), RequestError> {
        let size = u64::from(volume.block_size());
        let mut next = self.states.last().unwrap().clone();
        let (result, durable) = match *step {
            Step::Write { lbn, content, fua } => {
                next[lbn as usize] = content;
                (try_write(volume, lbn, content, fua), fua || self.flushrq_is_1)
            }
            Step::Trim { lbn, blocks, fua } => {
                // A trim is whole block by block, in ascending order, not as one.
                for lbn in lbn..lbn + blocks - 1 {
                    next[lbn as usize] = 0;
                    self.states.push(next.clone());
                }
                next[(lbn + blocks - 1) as usize] = 0;
                (run(volume, Op::Trim { offset: lbn * size, len: blocks * size, fua }), fua)
            }
            Step::Flush => (run(volume, Op::Flush), true),
            Step::Checkpoint => (volume.checkpoint().map_err(|e| e.for_client()), true),
            Step::Collect => {
                volume.gc_start();
                (volume.collect_some().map(|_| ()).map_err(|e| e.for_client()), false)
            }
        };
        self.states.push(next);
        if result.is_ok() && durable {
            self.durable = self.states.len() - 1;
        }
        result
    }

    /// Starts anew from what a reopened volume holds, which must be one of the states that may be there.
    /// `false`, and nothing said, if the power fails again meanwhile.
    fn recover(&mut self, disks: &Disks, volume: &Volume, story: &str) -> bool {
        let found: Option<Vec<u64>> = (0..LBNS).map(|lbn| content_of(volume, lbn, story)).collect();
        let Some(found) = found else {
            assert!(disks.have_lost_power(), "{story}: an I/O error from devices that work");
            return false;
        };
        let allowed = &self.states[self.durable..];
        assert!(
            allowed.contains(&found),
            "{story}: found {found:?}, which is none of the states from the last durable one on: {:?}",
            allowed
        );
        let status = volume.status();
        assert_eq!(
            status.logical_used_blocks,
            found.iter().filter(|c| **c != 0).count() as u64,
            "{story}: mapped LBNs"
        );
        let mut distinct: Vec<u64> = found.iter().copied().filter(|c| *c != 0).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(status.data_used_blocks >= distinct.len() as u64, "{story}: blocks in use");
        self.states = vec![found];
        self.durable = 0;
        true
    }
}

fn content_of(volume: &Volume, lbn: u64, story: &str) -> Option<u64> {
    let found = read(volume, lbn).ok()?;
    let content = (0..CONTENTS).find(|content| found == block(*content, found.len()));
    assert!(content.is_some(), "{story}: LBN {lbn} holds something that was never written");
    content
}

/// One volume through several lives, each ended by a power cut.
pub fn one_history(seed: u64, adjust: impl Fn(&mut OpenOptions)) {
    let mut rng = Rng::new(seed);
    let mut disks = Disks::new((LBNS + 3 + rng.below(20)) * 4096, 4 << 20);
    let size = LBNS * 4096;
    disks.format(&FormatOptions {
        log_blocks: Some([16, 32, 200][rng.below(3) as usize]),
        ..format_options(size)
    });
    let flushrq = [0, 0, 1, 5][rng.below(4) as usize];
    let mut options = OpenOptions {
        flushrq: Some(flushrq),
        delta_max: [8, 64, 1000][rng.below(3) as usize],
        discard: rng.below(3) == 0,
        ..super::options()
    };
    adjust(&mut options);
    let mut oracle = Oracle { states: vec![vec![0; LBNS as usize]], durable: 0, flushrq_is_1: flushrq == 1 };
    for life in 0..6 {
        let (d, m) = (rng.below(120), rng.below(120));
        if rng.below(2) == 0 {
            disks.data.set_cut_after(d);
            disks.metadata.set_cut_after(m);
        } else if rng.below(2) == 0 {
            disks.metadata.set_cut_after(m);
        }
        let story = format!("seed {seed}, life {life}");
        let volume = disks.open(&options).ok().filter(|volume| oracle.recover(&disks, volume, &story));
        if let Some(volume) = volume {
            for _ in 0..rng.below(80) {
                let step = step(&mut rng);
                match oracle.run(&volume, &step) {
                    Ok(()) => {}
                    Err(RequestError::NoSpace) => {
                        oracle.states.pop();
                    }
                    Err(_) => break,
                }
            }
            if rng.below(6) == 0 {
                let _ = volume.close();
            }
        }
        // One in four cuts keeps nothing, one in four everything, the others a part.
        let keep_in_8 = [0, 8, 1 + rng.below(7), 1 + rng.below(7)][rng.below(4) as usize];
        let whole_writes = rng.below(2) == 0;
        let salt = rng.below(u64::MAX >> 34);
        disks = disks.crash(|device, write, sector| {
            let sector = if whole_writes { 0 } else { sector as u64 };
            Rng::new(salt ^ (device as u64) << 50 ^ (write as u64) << 20 ^ sector).below(8) < keep_in_8
        });
        disks.assert_clean(&format!("seed {seed}, after life {life}"));
    }
    disks.assert_clean(&format!("seed {seed}, at the end"));
    let volume = disks.open(&options).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(
        oracle.recover(&disks, &volume, &format!("seed {seed}, at the end")),
        "seed {seed}: devices that work"
    );
}

/// A short history in which the `n`-th operation of a kind fails on one device (0 data, 1 metadata), then a
/// power cut. `false` once the history has no `n`-th such operation.
pub fn one_failure(seed: u64, device: usize, kind: IoKind, n: u64, keep_unflushed: bool) -> bool {
    let story = format!("seed {seed}, {kind:?} {n} of device {device}");
    let mut rng = Rng::new(seed);
    let disks = Disks::new((LBNS + 8) * 4096, 4 << 20);
    disks.format(&FormatOptions { log_blocks: Some(32), ..format_options(LBNS * 4096) });
    let faulty = [&disks.data, &disks.metadata][device];
    let options = OpenOptions { delta_max: 24, cache_bytes: 0, ..super::options() };
    let mut oracle = Oracle { states: vec![vec![0; LBNS as usize]], durable: 0, flushrq_is_1: false };
    let before = operations(faulty, kind);
    faulty.fail_nth(kind, n);
    if let Ok(volume) = disks.open(&options) {
        for _ in 0..60 {
            let step = step(&mut rng);
            let acknowledged = oracle.states.len();
            if oracle.run(&volume, &step).is_err() {
                if volume.is_read_only() {
                    // Stopped (I6): from now on nothing may be acknowledged as durable.
                    assert!(run(&volume, Op::Flush).is_err(), "{story}: a flush after a failed one");
                    assert!(try_write(&volume, 0, 1, true).is_err(), "{story}: FUA after a failed flush");
                    break;
                }
                oracle.states.truncate(acknowledged);
                oracle.check_failed(&volume, &step, &story);
            }
        }
    }
    let met = operations(faulty, kind) - before >= n;
    faulty.clear_faults();
    let disks = disks.crash(|_, _, _| keep_unflushed);
    disks.assert_clean(&story);
    let volume = disks.open(&options).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert!(oracle.recover(&disks, &volume, &story), "{story}: devices that work");
    met
}

/// Successful operations of a kind so far.
fn operations(device: &SimDevice, kind: IoKind) -> u64 {
    let counters = device.counters();
    match kind {
        IoKind::Read => counters.reads,
        IoKind::Write => counters.writes,
        IoKind::Flush => counters.flushes,
        _ => counters.discards,
    }
}

impl Oracle {
    /// A request failed and the volume goes on: what it would have changed is as it was (I9).
    fn check_failed(&self, volume: &Volume, step: &Step, story: &str) {
        let Step::Write { lbn, .. } = *step else { return };
        let expected = self.states.last().unwrap()[lbn as usize];
        let found = content_of(volume, lbn, story);
        assert!(
            found.is_none_or(|found| found == expected),
            "{story}: a failed write left LBN {lbn} as {found:?}, not {expected}"
        );
    }
}
