//! Writers beside a checkpoint: they are slowed down as the next delta fills, and never stopped as a whole
//! while there is room.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::hooked::{Hooked, Rig, WATCHDOG, watched};
use dedup_tests::*;
use dedup_volume::{FormatOptions, OpenOptions, RunPolicy};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a writer that does not get further is watched.
const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes of a block.
const BLOCK: usize = 4096;
/// LBNs between two writes: more than a leaf of mappings has.
const APART: u64 = 340;

/// A call that is held at the device.
struct Held {
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl Held {
    /// Holds the `n`-th call of a kind from now on.
    fn new(device: &Hooked, kind: IoKind, n: u64) -> Self {
        let (arrived_tx, arrived) = channel();
        let (go, go_rx) = channel::<()>();
        device.before(kind, n, move || {
            let _ = arrived_tx.send(());
            // An error means that the test has failed already and lets everything go.
            let _ = go_rx.recv();
        });
        Self { arrived, go }
    }

    fn arrive(&self) {
        self.arrived.recv_timeout(WATCHDOG).expect("the call comes to the device");
    }
}

/// A volume with room for everything but the delta, and a writer that writes block after block in a thread of
/// its own.
struct Scene {
    rig: Rig,
    written: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
}

impl Scene {
    fn new(delta_max: u64) -> Self {
        let blocks = 4 * delta_max;
        let disks = Disks::new((blocks + 100) * BLOCK as u64, 128 << 20);
        // So large a log that nobody waits for a commit.
        let format = format_options(blocks * APART * BLOCK as u64);
        disks.format(&FormatOptions { log_blocks: Some(8192), ..format });
        let options = OpenOptions { background: true, delta_max, runs: RunPolicy::Never, ..options() };
        let rig = Rig::open(disks, &options).unwrap();
        Self { rig, written: Arc::default(), ends: Arc::default() }
    }

    /// Writes the next block.
    fn write(&self) {
        let n = self.written.load(SeqCst);
        write(&self.rig.volume, n * APART, n + 1);
        self.written.fetch_add(1, SeqCst);
    }

    /// Writes until told to end, or all that there is to write.
    fn write_on(&self, max: u64) {
        while !self.ends.load(SeqCst) && self.written.load(SeqCst) < max {
            self.write();
        }
    }

    /// Waits until the writer has got to at least `least`, and then no further; how far that is.
    fn rest(&self, least: u64) -> u64 {
        let begin = Instant::now();
        let (mut seen, mut since) = (0, begin);
        while seen < least || since.elapsed() < PATIENCE {
            assert!(begin.elapsed() < WATCHDOG, "the writer got to {seen} blocks, expected {least}");
            thread::sleep(Duration::from_millis(5));
            let now = self.written.load(SeqCst);
            if now > seen {
                (seen, since) = (now, Instant::now());
            }
        }
        seen
    }
}

/// Whoever found the delta full beside a checkpoint waited for the end of that one, and then ran another one
/// itself: at full rate and 1 TiB, for seconds.
#[test]
fn who_waits_for_a_checkpoint_goes_on_when_it_ends_and_waits_for_no_other() {
    watched(WATCHDOG, || {
        let scene = &Scene::new(64);
        // A checkpoint flushes its log, its trees and its superblock.
        let first = Held::new(&scene.rig.metadata, IoKind::Flush, 0);
        let second = Held::new(&scene.rig.metadata, IoKind::Flush, 3);
        (0..33).for_each(|_| scene.write());
        first.arrive();
        // What is held goes on when this ends, in whatever way.
        thread::scope(move |scope| {
            scope.spawn(|| scene.write_on(150));
            let rest = scene.rest(33 + 32);
            assert_eq!(rest, 33 + 32, "half a delta is free beside a checkpoint that has done nothing yet");
            first.go.send(()).unwrap();
            second.arrive();
            let rest = scene.rest(rest + 1);
            second.go.send(()).unwrap();
            scene.ends.store(true, SeqCst);
            assert!(rest > 33 + 32, "{rest}");
        });
    });
}

/// A delta could be filled in a second, and then nothing was written until the checkpoint had ended.
#[test]
fn writers_get_as_far_as_the_checkpoint_beside_them() {
    watched(WATCHDOG, || {
        let scene = &Scene::new(1024);
        // A checkpoint writes its log, and then its nodes, 256 at a time.
        let log = Held::new(&scene.rig.metadata, IoKind::Write, 0);
        let nodes = Held::new(&scene.rig.metadata, IoKind::Write, 2);
        (0..513).for_each(|_| scene.write());
        log.arrive();
        // What is held goes on when this ends, in whatever way.
        thread::scope(move |scope| {
            scope.spawn(|| scene.write_on(3000));
            assert_eq!(scene.rest(513 + 512), 513 + 512);
            log.go.send(()).unwrap();
            nodes.arrive();
            let rest = scene.rest(513 + 513);
            nodes.go.send(()).unwrap();
            scene.ends.store(true, SeqCst);
            assert!((513 + 600..513 + 900).contains(&rest), "{rest}: the checkpoint was half done");
        });
        for n in 0..513 {
            assert!(read(&scene.rig.volume, n * APART).unwrap() == block(n + 1, BLOCK), "block {n}");
        }
    });
}
