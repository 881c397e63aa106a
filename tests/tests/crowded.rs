//! Many clients where something is scarce: nobody is refused because of others, and a refusal costs others
//! nothing.
//!
//! The story of the full volume (I17): four clients overwrote a full volume of the default format, one
//! mebibyte and 32 requests at a time, and within seconds one was told that there is no space, although the
//! blocks that the others were about to free were more than enough. Whoever was short made a commit and two
//! checkpoints, three tries in all, and each time the others took what that had freed.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, IoKind, MemDevice};
use dedup_tests::hooked::Rig;
use dedup_tests::rng::Rng;
use dedup_tests::{Disks, assert_content, block, format_options, options, run, trim, try_write, write};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RequestError, RunPolicy, Volume, format};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

const BLOCK: usize = 512;
/// How long a read hangs at most: some twenty times what goes on beside it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A full volume: its logical blocks, what its store has beyond them, and its clients.
struct Full {
    lbns: u64,
    spare: u64,
    clients: u64,
    /// Blocks that a client overwrites at a time.
    batch: u64,
    rounds: u64,
    options: OpenOptions,
}

impl Full {
    /// Each client overwrites its own part of the volume, always with content that is nowhere else. The
    /// volume must take all of it.
    fn run(&self, story: &str) {
        let blocks = self.lbns + self.spare + 1;
        let data: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(blocks * BLOCK as u64));
        let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(16 << 20));
        let format_options =
            FormatOptions { block_size: BLOCK as u32, ..format_options(self.lbns * BLOCK as u64) };
        format(&*data, &metadata, &format_options).unwrap();
        let volume = Volume::open(data.clone(), metadata.clone(), &self.options).unwrap();
        let contents = AtomicU64::new(0);
        self.overwrite(&volume, 0..self.lbns, self.lbns, &contents, story);
        let share = self.lbns / self.clients;
        thread::scope(|scope| {
            for client in 0..self.clients {
                let (volume, contents) = (&volume, &contents);
                scope.spawn(move || {
                    let mut rng = Rng::new(client);
                    for _ in 0..self.rounds {
                        let first = client * share + rng.below(share + 1 - self.batch.min(share));
                        let lbns = first..first + self.batch.min(share);
                        self.overwrite(volume, lbns, 1 + rng.below(self.batch), contents, story);
                    }
                });
            }
        });
        volume.close().unwrap();
        let report = check(Some(&*data), metadata, &CheckOptions::tiny(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{story}: {report}");
    }

    /// One batch, in requests of `each` blocks.
    fn overwrite(
        &self,
        volume: &Volume,
        lbns: std::ops::Range<u64>,
        each: u64,
        contents: &AtomicU64,
        story: &str,
    ) {
        let starts: Vec<u64> = lbns.clone().step_by(each as usize).collect();
        let next = || 1 + contents.fetch_add(1, Ordering::Relaxed);
        let bytes = |start: &u64| (*start..lbns.end.min(start + each)).flat_map(|_| block(next(), BLOCK));
        let buffers: Vec<Vec<u8>> = starts.iter().map(|start| bytes(start).collect()).collect();
        let batch = starts
            .iter()
            .zip(&buffers)
            .map(|(start, data)| {
                let offset = start * BLOCK as u64;
                Request { tag: *start, op: Op::Write { offset, data, fua: false } }
            })
            .collect();
        volume.execute(batch, &mut |request, result| {
            assert_eq!(result, Ok(()), "{story}: an overwrite of LBN {}", request.tag);
        });
    }
}

#[test]
fn clients_that_overwrite_a_full_volume_wait_for_each_others_blocks_and_are_not_refused() {
    let options = OpenOptions { background: true, ..options() };
    for (clients, batch, spare) in [(4, 512, 1), (8, 64, 1), (6, 300, 40), (16, 8, 3)] {
        let full = Full { lbns: 4096, spare, clients, batch, rounds: 12, options: options.clone() };
        full.run(&format!("{clients} clients, {batch} blocks a batch, {spare} to spare"));
    }
}

/// Each refused write once cost two checkpoints, and a neighbour that wrote duplicates 0.58 of its rate.
/// Nothing comes free by itself on a volume whose blocks are all in use.
#[test]
fn a_write_that_is_refused_on_a_full_volume_costs_no_commit_and_no_checkpoint() {
    let disks = Disks::new(17 * 4096, 8 << 20);
    disks.format(&format_options(64 * 4096));
    let volume = disks.open(&options()).unwrap();
    (0..16).for_each(|lbn| write(&volume, lbn, lbn + 1));
    assert_eq!(try_write(&volume, 20, 100, false), Err(RequestError::NoSpace));
    let before = volume.status().commit;
    for n in 0..50 {
        write(&volume, 30 + n % 10, 1 + n % 16);
        assert_eq!(try_write(&volume, 20, 100, false), Err(RequestError::NoSpace));
    }
    let after = volume.status().commit;
    assert_eq!((after.transaction, after.durable), (before.transaction, before.durable), "work for nothing");
    trim(&volume, 0, 64);
    write(&volume, 20, 100);
}

/// A volume whose metadata device is small for it: 4 MiB for 400,000 blocks, each change in leaves of its
/// own.
struct Scarce {
    disks: Disks,
    options: OpenOptions,
}

const SCARCE_LBNS: u64 = 400_000;

impl Scarce {
    fn new(background: bool) -> Self {
        let disks = Disks::new((SCARCE_LBNS + 50) * BLOCK as u64, 4 << 20);
        let size = SCARCE_LBNS * BLOCK as u64;
        let (block_size, log_blocks) = (BLOCK as u32, Some(64));
        disks.format(&FormatOptions { log_blocks, block_size, ..format_options(size) });
        Self { disks, options: OpenOptions { background, runs: RunPolicy::Never, ..options() } }
    }

    /// Writes blocks far apart until there is no room for one more; says which.
    fn fill(volume: &Volume) -> Vec<u64> {
        let far_apart = |n: u64| n * 7919 % SCARCE_LBNS;
        let written: Vec<u64> =
            (0..).map(far_apart).take_while(|lbn| try_write(volume, *lbn, lbn + 1, false).is_ok()).collect();
        assert!(written.len() > 100 && !volume.is_read_only(), "{:?}", volume.status().failure);
        written
    }
}

/// A client's read hung in the data device. Its pin held back all metadata that was freed meanwhile, and
/// after nine seconds of duplicates the others were told that there is no space. A read needs no metadata any
/// more once it waits for data.
#[test]
fn a_read_that_hangs_in_the_data_device_holds_back_no_metadata() {
    nothing_waits_for_a_hanging_read(false, |volume| assert_content(volume, 1, 7));
}

/// The same where a duplicate's bytes are read to compare them.
#[test]
fn a_comparison_that_hangs_in_the_data_device_holds_back_no_metadata() {
    nothing_waits_for_a_hanging_read(true, |volume| write(volume, 2, 7));
}

fn nothing_waits_for_a_hanging_read(verify_match: bool, read: impl FnOnce(&Volume) + Send) {
    let scarce = Scarce::new(false);
    let options = OpenOptions { verify_match: Some(verify_match), ..scarce.options };
    let rig = Rig::open(scarce.disks, &options).unwrap();
    write(&rig.volume, 1, 7);
    rig.volume.checkpoint().unwrap();
    let (hangs, is_hanging) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let was_waited_for = Arc::new(AtomicBool::new(false));
    let waited_for = Arc::clone(&was_waited_for);
    rig.data.before(IoKind::Read, 0, move || {
        hangs.send(()).unwrap();
        waited_for
            .store(may_go_on.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout), Ordering::Relaxed);
    });
    thread::scope(|scope| {
        scope.spawn(|| read(&rig.volume));
        is_hanging.recv().unwrap();
        // Each round rewrites a hundred leaves: some ten rounds' worth fit the device.
        for round in 0..30 {
            for n in 0..100 {
                let written = try_write(&rig.volume, n * 3001, 7 + round % 2, false);
                assert_eq!(written, Ok(()), "round {round}: a duplicate beside a read that hangs");
            }
            rig.volume.checkpoint().unwrap();
        }
        drop(go_on);
    });
    assert!(!was_waited_for.load(Ordering::Relaxed), "duplicates waited for a read that hangs");
    assert_content(&rig.volume, 1, 7);
}

/// A batch was refused as a whole where the same blocks passed one by one: what one asks for at a time is
/// nobody's business.
#[test]
fn a_batch_is_refused_only_where_its_blocks_are_refused_one_by_one() {
    let scarce = Scarce::new(false);
    let volume = scarce.disks.open(&scarce.options).unwrap();
    let mut refused = 0;
    for round in 0..40 {
        let first = round * 9973 % SCARCE_LBNS;
        let lbns: Vec<u64> = (0..256).map(|n| (first + n * 1553) % SCARCE_LBNS).collect();
        let contents: Vec<Vec<u8>> = lbns.iter().map(|lbn| block((round << 32) + lbn + 1, BLOCK)).collect();
        let batch = lbns.iter().zip(&contents).map(|(lbn, data)| {
            let op = Op::Write { offset: lbn * BLOCK as u64, data, fua: false };
            Request { tag: *lbn, op }
        });
        let mut failed = Vec::new();
        volume.execute(batch.collect(), &mut |request, result| {
            if result == Err(RequestError::NoSpace) {
                failed.push(request.tag);
            }
        });
        for lbn in failed.iter().take(3) {
            let alone = try_write(&volume, *lbn, (1 << 50) + lbn, false);
            assert_eq!(alone, Err(RequestError::NoSpace), "round {round}: LBN {lbn} was refused in a batch");
        }
        refused += failed.len();
        if refused > 600 {
            break;
        }
    }
    assert!(refused > 0, "the metadata device was never full");
    let before = volume.status().commit.transaction;
    assert_eq!(try_write(&volume, 5, 1 << 60, false), Err(RequestError::NoSpace));
    assert_eq!(volume.status().commit.transaction, before, "checkpoints for nothing");
    scarce.disks.assert_clean("after refused batches");
}

/// Trims of several clients were refused, some 4 in 1,000, although each passed when it was tried again:
/// three checkpoints made room, and others had taken it each time.
#[test]
fn clients_that_trim_on_a_full_metadata_device_are_not_refused() {
    let scarce = Scarce::new(true);
    let volume = scarce.disks.open(&scarce.options).unwrap();
    let written = Scarce::fill(&volume);
    let share = written.len().div_ceil(6);
    thread::scope(|scope| {
        for part in written.chunks(share) {
            let volume = &volume;
            scope.spawn(move || {
                for lbn in part.iter().take(60) {
                    let (offset, len) = (lbn * BLOCK as u64, BLOCK as u64);
                    assert_eq!(
                        run(volume, Op::Trim { offset, len, fua: false }),
                        Ok(()),
                        "trim of LBN {lbn}"
                    );
                }
            });
        }
    });
    volume.close().unwrap();
    scarce.disks.assert_clean("after trims");
}
