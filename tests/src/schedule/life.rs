//! The lives of a volume under many clients, each ended by a power cut or a close, half of them with a
//! failure of a device.

use super::causes::{Causes, Failure};
use super::clients::{BLOCK_SIZES, LBNS, Record, client, last_content, operator, value_of};
use super::oracle::{History, Value};
use crate::rng::Rng;
use crate::{Disks, format_options, options, read};
use dedup_volume::{DigestAlgorithm, FormatOptions, OpenOptions, RunPolicy, Volume};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// What a seed did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Everything that clients saw, life after life, and what was found afterwards.
    pub trace: Vec<(History, Vec<Value>)>,
    /// Requests answered.
    pub replies: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Device operations, begun and ended.
    pub device_events: u64,
}

/// Bytes of stack for each thread: debug builds of the engine need some.
const STACK_BYTES: usize = 1 << 20;
/// Switches after which a life counts as one that never ends.
const STEPS_MAX: usize = 3_000_000;

/// The smallest data device that can be formatted, in bytes.
const DATA_BYTES_MIN: u64 = 16 << 10;

/// How one life goes.
#[derive(Clone)]
struct Plan {
    seed: u64,
    failure: Option<Failure>,
    clients: u64,
    batches: u64,
    options: OpenOptions,
    closes: bool,
}

/// Runs one seed.
///
/// # Panics
/// If anything is there that must not be, or a thread waits for ever; the message begins with the seed.
pub fn run(seed: u64) -> Outcome {
    run_with(seed, |_| ())
}

/// Runs one seed with other options.
///
/// # Panics
/// As [`run`].
pub fn run_with(seed: u64, adjust: impl FnOnce(&mut OpenOptions)) -> Outcome {
    let mut rng = Rng::new(seed);
    let block = [4096, 4096, BLOCK_SIZES[rng.below(3) as usize]][rng.below(3) as usize];
    let algorithms = [DigestAlgorithm::Sha256, DigestAlgorithm::Blake3, DigestAlgorithm::Md5];
    let algorithm = [algorithms[0], algorithms[rng.below(3) as usize]][rng.below(2) as usize];
    // In one seed of three two data blocks are to spare, one of which may fail, and one is the label's; the
    // log ring and the deltas are as small as they may be in half of them.
    let data_blocks = LBNS as u64 + [3, 8, 40][rng.below(3) as usize];
    let data_bytes = (data_blocks * block as u64).max(DATA_BYTES_MIN);
    let mut disks = Disks::new(data_bytes, 4 << 20);
    let log_blocks = Some([16, 24, 64, 200][rng.below(4) as usize]);
    let block_size = block as u32;
    disks.format(&FormatOptions {
        block_size,
        algorithm,
        log_blocks,
        ..format_options((LBNS * block) as u64)
    });
    let mut options = OpenOptions {
        background: true,
        flushrq: Some([0, 0, 0, 1][rng.below(4) as usize]),
        delta_max: [4, 16, 200][rng.below(3) as usize],
        discard: rng.below(3) == 0,
        verify_match: Some(rng.below(4) == 0),
        log_data: [0, 2 * block as u64][rng.below(2) as usize],
        runs: if seed.is_multiple_of(2) { RunPolicy::Always } else { RunPolicy::ByCost },
        ..options()
    };
    adjust(&mut options);
    let mut outcome = Outcome::default();
    let mut initial = vec![[0; 2]; LBNS];
    for life in 0..3 {
        let story = format!("seed {seed}, life {life}");
        let plan = Plan {
            seed: rng.below(u64::MAX >> 34),
            failure: (rng.below(2) == 0).then(|| Failure::any(&mut rng)),
            clients: 2 + rng.below(3),
            batches: 3 + rng.below(6),
            options: options.clone(),
            closes: rng.below(6) == 0,
        };
        let events_max = [60, 600, 600][rng.below(3) as usize];
        let cut_after = 10 + rng.below(events_max);
        let record = Arc::new(Record::new(initial, block));
        outcome.device_events += one_life(&disks, &plan, cut_after, &record, &story);
        let (history, replies) = record.take();
        outcome.replies += replies;
        outcome.cuts += 1;
        disks = crash(&disks, &mut rng);
        disks.assert_clean(&story);
        let found = recover(&disks, &plan, &history, &story);
        if let Err(refuted) = history.explain(&found.iter().copied().map(Some).collect::<Vec<_>>()) {
            panic!("{story}: {refuted:?}\nfound {found:?}\n{}", tell(&history, &refuted.lbns));
        }
        disks.assert_clean(&format!("{story}, reopened"));
        outcome.trace.push((history, found.clone()));
        initial = found;
    }
    outcome
}

/// The clients' part of a life, up to the power cut. Returns the device operations.
fn one_life(disks: &Disks, plan: &Plan, cut_after: u64, record: &Arc<Record>, story: &str) -> u64 {
    let (events, is_cut) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    for disk in [&disks.data, &disks.metadata] {
        let (events, is_cut, seed) = (Arc::clone(&events), Arc::clone(&is_cut), plan.seed);
        let (data, metadata) = (Arc::downgrade(&disks.data), Arc::downgrade(&disks.metadata));
        disk.on_operation(move || {
            let event = events.fetch_add(1, SeqCst);
            if event == cut_after {
                is_cut.store(true, SeqCst);
                [&data, &metadata].iter().filter_map(|d| d.upgrade()).for_each(|d| d.set_cut_after(0));
            }
            // A device operation takes as long as a number of steps of the others.
            let turns = Rng::new(seed ^ event << 20).below(12);
            (0..turns).for_each(|_| shuttle::thread::yield_now());
        });
    }
    disks.data.set_reorder(plan.seed);
    disks.metadata.set_reorder(plan.seed + 1);
    under_schedule(plan.seed, {
        let (disks, plan, record, story) =
            (disks.clone(), plan.clone(), Arc::clone(record), story.to_string());
        let causes = Causes::new(&disks, is_cut, plan.failure);
        let causes = Arc::new(causes);
        move || live(&disks, &plan, &record, &causes).unwrap_or_else(|wrong| panic!("{story}: {wrong}"))
    });
    events.load(SeqCst)
}

/// `Err` says what was answered that must not be.
fn live(disks: &Disks, plan: &Plan, record: &Arc<Record>, causes: &Arc<Causes>) -> Result<(), String> {
    causes.order(true);
    let volume = match disks.open(&plan.options) {
        Ok(volume) => Arc::new(volume),
        Err(error) => return causes.allow_open(&error),
    };
    causes.order(false);
    let flushrq_is_1 = plan.options.flushrq == Some(1);
    let mut threads: Vec<_> = (0..plan.clients)
        .map(|id| {
            let (volume, record, causes) = (Arc::clone(&volume), Arc::clone(record), Arc::clone(causes));
            let (seed, batches) = (plan.seed * 8 + id, plan.batches);
            shuttle::thread::spawn(move || client(&volume, &record, &causes, seed, batches, flushrq_is_1))
        })
        .collect();
    threads.push({
        let (volume, record, causes) = (Arc::clone(&volume), Arc::clone(record), Arc::clone(causes));
        let seed = plan.seed;
        shuttle::thread::spawn(move || operator(&volume, &record, &causes, seed, 6))
    });
    for thread in threads {
        thread.join().unwrap()?;
    }
    causes.allow_mode(volume.is_read_only())?;
    match Arc::try_unwrap(volume) {
        Ok(volume) if plan.closes => {
            let request = record.now();
            match volume.close() {
                Ok(()) => record.flushed(request),
                Err(error) => return causes.allow_stop(&error),
            }
        }
        volume => drop(volume),
    }
    Ok(())
}

/// What the devices hold after a cut: one in four keeps nothing that was not flushed, one in four everything.
fn crash(disks: &Disks, rng: &mut Rng) -> Disks {
    let keep_in_8 = [0, 8, 1 + rng.below(7), 1 + rng.below(7)][rng.below(4) as usize];
    let (whole_writes, salt) = (rng.below(2) == 0, rng.below(u64::MAX >> 34));
    disks.crash(|device, write, sector| {
        let sector = if whole_writes { 0 } else { sector as u64 };
        Rng::new(salt ^ (device as u64) << 50 ^ (write as u64) << 20 ^ sector).below(8) < keep_in_8
    })
}

/// Opens the volume, reads all blocks, uses it a little and leaves it as if the power had failed.
fn recover(disks: &Disks, plan: &Plan, history: &History, story: &str) -> Vec<Value> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let (disks, options, last) = (disks.clone(), plan.options.clone(), last_content(history));
    under_schedule(plan.seed, {
        let (found, story) = (Arc::clone(&found), story.to_string());
        move || {
            let volume = disks.open(&options).unwrap_or_else(|error| panic!("{story}: {error}"));
            *found.lock().unwrap() = (0..LBNS as u64).map(|lbn| value(&volume, lbn, last, &story)).collect();
        }
    });
    let found = found.lock().unwrap();
    found.clone()
}

fn value(volume: &Volume, lbn: u64, last: u64, story: &str) -> Value {
    let bytes = read(volume, lbn).unwrap_or_else(|error| panic!("{story}: LBN {lbn}: {error:?}"));
    value_of(&bytes, last).unwrap_or_else(|| panic!("{story}: LBN {lbn} holds what was never written"))
}

/// Runs `life` once, on the schedule that `seed` fixes: every thread equally likely at each step, or, for one
/// seed in four, by priorities that change rarely.
fn under_schedule(seed: u64, life: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS_MAX);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    match seed % 4 {
        0 => Runner::new(PctScheduler::new_from_seed(seed, 3, 1), config).run(life),
        _ => Runner::new(RandomScheduler::new_from_seed(seed, 1), config).run(life),
    };
}

/// The part of a history that concerns these blocks, for who has to find out.
fn tell(history: &History, lbns: &[usize]) -> String {
    let mut events: Vec<_> = history.events.iter().filter(|event| lbns.contains(&event.lbn)).collect();
    events.sort_by_key(|event| event.request);
    let lines: Vec<String> = events.iter().map(|event| format!("  {event:?}")).collect();
    format!(
        "initially {:?}, flushes requested at {:?}\n{}",
        history.initial,
        history.flushes,
        lines.join("\n")
    )
}
