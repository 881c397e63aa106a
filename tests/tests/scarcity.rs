//! What happens when something is short: the log ring, the metadata device, the time between a healing write and its publication.
//!
//! Each of these was found by reading the code and shown by a run: a healed block was mapped although its last reference had gone
//! meanwhile; clients that only waited for each other were told that there is no space, or had the index dropped; a trim's step
//! became zero and never ended.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, MemDevice, ReadOp, WriteOp};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RequestError, Volume, format};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Hooks {
    write: Mutex<Option<Hook>>,
    read: Mutex<Option<Hook>>,
    slow_write: Mutex<Duration>,
    slow_flush: Mutex<Duration>,
}
impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hooks")
    }
}

#[derive(Debug)]
struct Hooked {
    inner: MemDevice,
    hooks: Hooks,
}
impl Hooked {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { inner: MemDevice::new(size), hooks: Hooks::default() })
    }
    fn before_write(&self) {
        let hook = self.hooks.write.lock().unwrap().take();
        if let Some(hook) = hook {
            hook()
        }
        let slow = *self.hooks.slow_write.lock().unwrap();
        if !slow.is_zero() {
            std::thread::sleep(slow)
        }
    }
    fn before_read(&self) {
        let hook = self.hooks.read.lock().unwrap().take();
        if let Some(hook) = hook {
            hook()
        }
    }
}
impl BlockDevice for Hooked {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn io_alignment(&self) -> usize {
        self.inner.io_alignment()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.before_read();
        self.inner.read(offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.before_write();
        self.inner.write(offset, buf)
    }
    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        self.before_read();
        self.inner.read_batch(ops)
    }
    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        self.before_write();
        self.inner.write_batch(ops)
    }
    fn flush(&self) -> io::Result<()> {
        let slow = *self.hooks.slow_flush.lock().unwrap();
        if !slow.is_zero() {
            std::thread::sleep(slow)
        }
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn bypass_cache(&self) -> io::Result<bool> {
        self.inner.bypass_cache()
    }
}

fn dynd(d: &Arc<Hooked>) -> Arc<dyn BlockDevice> {
    d.clone()
}

fn assert_clean(data: &Arc<Hooked>, metadata: &Arc<Hooked>, story: &str) {
    let report = check(Some(&**data), dynd(metadata), &CheckOptions::tiny(), &mut |_| ()).unwrap();
    assert!(report.is_clean(), "{story}: {report}");
}

/// The healed block loses its last reference while its healing write is in flight.
fn heal_race(checkpoint: bool) {
    let (data, metadata) = (Hooked::new(40 * 4096), Hooked::new(8 << 20));
    format(&*data, &dynd(&metadata), &format_options(32 * 4096)).unwrap();
    let volume = Arc::new(Volume::open(dynd(&data), dynd(&metadata), &options()).unwrap());
    write(&volume, 0, 1);
    flush(&volume);
    let content = block(1, 4096);
    let mut found = vec![0; 4096];
    let place = (1..40)
        .map(|pbn| pbn * 4096)
        .find(|o| {
            data.inner.read(*o, &mut found).unwrap();
            found == content
        })
        .unwrap();
    found[17] ^= 1;
    data.inner.write(place, &found).unwrap();
    assert_eq!(read(&volume, 0), Err(RequestError::Io));
    if checkpoint {
        volume.checkpoint().unwrap();
    }
    let other = volume.clone();
    *data.hooks.write.lock().unwrap() = Some(Box::new(move || trim(&other, 0, 1)));
    write(&volume, 5, 1);
    flush(&volume);
    assert_content(&volume, 5, 1);
    // a crash here?
    let copy = |d: &Arc<Hooked>| {
        Arc::new(Hooked { inner: MemDevice::from_image(d.inner.image()), hooks: Hooks::default() })
    };
    let (d2, m2) = (copy(&data), copy(&metadata));
    match Volume::open(dynd(&d2), dynd(&m2), &options()) {
        Ok(v) => assert_content(&v, 5, 1),
        Err(e) => println!("REOPEN FAILS: {e}"),
    }
    for lbn in 6..32 {
        let _ = try_write(&volume, lbn, 100 + lbn, false);
    }
    flush(&volume);
    for lbn in 6..32 {
        let _ = try_write(&volume, lbn, 200 + lbn, false);
    }
    flush(&volume);
    assert_content(&volume, 5, 1);
    drop(volume);
    let volume = Volume::open(dynd(&data), dynd(&metadata), &options()).unwrap();
    assert_content(&volume, 5, 1);
    drop(volume);
    assert_clean(&data, &metadata, "after");
}
#[test]
fn a_healed_block_that_lost_its_last_reference_meanwhile_is_not_mapped() {
    heal_race(false)
}
#[test]
fn the_same_behind_a_checkpoint_that_a_crash_would_replay_from() {
    heal_race(true)
}

fn ring_stress(
    ring: u64,
    threads: u64,
    batch: u64,
    fua: bool,
    slow: Duration,
    meta_slow: Duration,
    seconds: u64,
) {
    let lbns = threads * 64;
    let (data, metadata) = (Hooked::new((lbns * 2 + 50) * 4096), Hooked::new(32 << 20));
    format(
        &*data,
        &dynd(&metadata),
        &FormatOptions { log_blocks: Some(ring), ..format_options(lbns * 4096) },
    )
    .unwrap();
    *data.hooks.slow_write.lock().unwrap() = slow;
    *metadata.hooks.slow_flush.lock().unwrap() = meta_slow;
    let volume =
        Volume::open(dynd(&data), dynd(&metadata), &OpenOptions { background: true, ..options() }).unwrap();
    let stop = AtomicBool::new(false);
    let rebuilding = AtomicBool::new(false);
    let errors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (volume, stop, errors) = (&volume, &stop, &errors);
            scope.spawn(move || {
                let mut n = 0u64;
                let mut rng = Rng::new(t + 77);
                while !stop.load(Ordering::Relaxed) {
                    let contents: Vec<Vec<u8>> = (0..batch)
                        .map(|_| {
                            n += 1;
                            if rng.below(3) == 0 && fua { block(0, 4096) } else { block(t << 40 | n, 4096) }
                        })
                        .collect();
                    let requests = contents
                        .iter()
                        .enumerate()
                        .map(|(i, data)| Request {
                            tag: 0,
                            op: Op::Write { offset: (t * 64 + i as u64) * 4096, data, fua },
                        })
                        .collect();
                    volume.execute(requests, &mut |_, result| {
                        if let Err(e) = result {
                            errors.lock().unwrap().push(e)
                        }
                    });
                    if errors.lock().unwrap().iter().any(|e| *e != RequestError::NoSpace) {
                        break;
                    }
                }
            });
        }
        for _ in 0..seconds * 100 {
            std::thread::sleep(Duration::from_millis(10));
            if volume.status().gc.rebuilding {
                rebuilding.store(true, Ordering::Relaxed)
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let status = volume.status();
    let errors = errors.into_inner().unwrap();
    println!(
        "ring {ring} threads {threads} batch {batch}: writes {} tx {} mode {} failure {:?} rebuilding seen {} meta free {}/{} errors {:?}",
        status.counters.writes,
        status.commit.transaction,
        status.mode,
        status.failure,
        rebuilding.load(Ordering::Relaxed),
        status.metadata_free_blocks,
        status.metadata_total_blocks,
        (errors.len(), errors.iter().filter(|e| **e != RequestError::NoSpace).count())
    );
    assert!(errors.is_empty() && status.mode == "read-write");
    assert!(
        !rebuilding.load(Ordering::Relaxed),
        "the index was dropped although the metadata device is nearly empty"
    );
}
#[test]
fn clients_of_the_smallest_ring_wait_for_each_other_and_are_never_told_no_space() {
    ring_stress(16, 16, 1, true, Duration::ZERO, Duration::ZERO, 2)
}
#[test]
fn the_same_with_slow_flushes() {
    ring_stress(16, 16, 2, true, Duration::ZERO, Duration::from_micros(200), 2)
}
#[test]
fn batches_that_wait_for_slow_writes_of_others_do_not_cost_the_index() {
    ring_stress(256, 12, 32, false, Duration::from_millis(3), Duration::ZERO, 2)
}

fn fill(
    volume: &Volume,
    lbns: u64,
    rng: &mut Rng,
    next: &mut u64,
    model: &mut [u64],
    max: u64,
    batch: u64,
) -> u64 {
    let size = u64::from(volume.block_size());
    let mut failures = 0;
    for round in 0..max {
        let mut picks: Vec<u64> = (0..batch).map(|_| rng.below(lbns)).collect();
        picks.sort_unstable();
        picks.dedup();
        let contents: Vec<(u64, u64, Vec<u8>)> = picks
            .iter()
            .map(|l| {
                *next += 1;
                (*l, *next, block(*next, size as usize))
            })
            .collect();
        let requests = contents
            .iter()
            .enumerate()
            .map(|(i, (l, _, data))| Request {
                tag: i as u64,
                op: Op::Write { offset: l * size, data, fua: false },
            })
            .collect();
        let mut full = 0;
        volume.execute(requests, &mut |r, result| match result {
            Ok(()) => model[contents[r.tag as usize].0 as usize] = contents[r.tag as usize].1,
            Err(RequestError::NoSpace) => full += 1,
            Err(e) => panic!("round {round}: {e} {:?}", volume.status().failure),
        });
        failures += u64::from(full > 0);
        if failures >= 3 {
            return round;
        }
    }
    max
}

fn metadata_full(ring: u64, batch: u64, background: bool) {
    let (lbns, bs) = (400_000u64, 512u32);
    let (data, metadata) = (Hooked::new((lbns + 50) * 512), Hooked::new(4 << 20));
    format(
        &*data,
        &dynd(&metadata),
        &FormatOptions { log_blocks: Some(ring), block_size: bs, ..format_options(lbns * 512) },
    )
    .unwrap();
    let opts = OpenOptions { background, ..options() };
    let mut volume = Volume::open(dynd(&data), dynd(&metadata), &opts).unwrap();
    let mut rng = Rng::new(1);
    let (mut next, mut model) = (0, vec![0u64; lbns as usize]);
    for life in 0..4 {
        let rounds = fill(&volume, lbns, &mut rng, &mut next, &mut model, 3000, batch);
        let s = volume.status();
        println!(
            "life {life}: full after {rounds} rounds, mapped {} meta free {} used {} mode {} hints {} rebuilding {}",
            s.logical_used_blocks,
            s.metadata_free_blocks,
            s.metadata_used_blocks,
            s.mode,
            s.index_entries,
            s.gc.rebuilding
        );
        flush(&volume);
        // reads go on
        for l in (0..lbns).filter(|l| model[*l as usize] != 0).take(50) {
            assert_content(&volume, l, model[l as usize]);
        }
        if life % 2 == 0 {
            drop(volume);
        } else {
            volume.close().unwrap();
        }
        assert_clean(&data, &metadata, &format!("life {life}"));
        volume = Volume::open(dynd(&data), dynd(&metadata), &opts).unwrap();
        volume.checkpoint().unwrap_or_else(|e| panic!("life {life}: checkpoint after reopen: {e}"));
        // trim some
        let start = life * 50_000;
        run(&volume, Op::Trim { offset: start * 512, len: 20_000 * 512, fua: true })
            .unwrap_or_else(|e| panic!("life {life}: trim: {e} {:?}", volume.status().failure));
        model[start as usize..][..20_000].fill(0);
        volume.checkpoint().unwrap();
        let mut steps = 0;
        while volume.collect_some().unwrap_or_else(|e| {
            println!("collect: {e}");
            false
        }) && steps < 500
        {
            steps += 1
        }
        println!("collect steps {steps} tx {}", volume.status().commit.transaction);
        for l in (0..lbns).filter(|l| model[*l as usize] != 0).take(50) {
            assert_content(&volume, l, model[l as usize]);
        }
    }
    drop(volume);
    assert_clean(&data, &metadata, "end");
}
#[test]
fn a_full_metadata_device_says_no_space_and_trims_make_room_again() {
    metadata_full(16, 40, false)
}
#[test]
fn the_same_with_a_larger_ring() {
    metadata_full(256, 300, false)
}
#[test]
fn the_same_with_threads_of_its_own() {
    metadata_full(256, 300, true)
}

/// A reader that is slow while the metadata device fills up: does a trim end?
fn slow_reader(ring: u64) {
    let (lbns, bs) = (400_000u64, 512u32);
    let (data, metadata) = (Hooked::new((lbns + 50) * 512), Hooked::new(4 << 20));
    format(
        &*data,
        &dynd(&metadata),
        &FormatOptions { log_blocks: Some(ring), block_size: bs, ..format_options(lbns * 512) },
    )
    .unwrap();
    let volume = Arc::new(Volume::open(dynd(&data), dynd(&metadata), &options()).unwrap());
    write(&volume, 0, 7);
    volume.checkpoint().unwrap();
    let (send, receive) = mpsc::channel();
    let other = volume.clone();
    *data.hooks.read.lock().unwrap() = Some(Box::new(move || {
        let mut rng = Rng::new(1);
        let (mut next, mut model) = (0, vec![0u64; lbns as usize]);
        fill(&other, lbns, &mut rng, &mut next, &mut model, 3000, 40);
        send.send("full".to_string()).unwrap();
        let mut ok = 0;
        loop {
            match run(&other, Op::Trim { offset: ok * 2000 * 512, len: 2000 * 512, fua: false }) {
                Ok(()) => {
                    ok += 1;
                    if ok == 190 {
                        break;
                    }
                }
                Err(e) => {
                    send.send(format!("trim error after {ok}: {e}")).unwrap();
                    break;
                }
            }
        }
        send.send(format!("trims {ok}")).unwrap();
    }));
    let reader = volume.clone();
    std::thread::spawn(move || {
        let _ = read(&reader, 0);
    });
    loop {
        match receive.recv_timeout(Duration::from_secs(10)) {
            Ok(text) => {
                println!("{text}");
                if text.starts_with("trims") {
                    return;
                }
            }
            Err(_) => {
                for _ in 0..3 {
                    let c = volume.status().commit;
                    println!("tx {} published {} delta {}", c.transaction, c.published, c.delta_operations);
                    std::thread::sleep(Duration::from_millis(500));
                }
                panic!("the trim hangs")
            }
        }
    }
}
#[test]
fn a_trim_ends_even_if_a_reader_holds_back_what_it_frees() {
    slow_reader(16)
}
#[test]
fn the_same_with_the_default_ring_of_a_small_volume() {
    slow_reader(256)
}

/// A trim's edge blocks are not its own: it neither locks nor changes them. Together with a partial write to one of them, in one
/// batch, it once zeroed bytes of that block and took its old mapping twice.
#[test]
fn a_trim_beside_a_partial_write_in_one_batch_leaves_the_edge_block_to_the_write() {
    let disks = formatted(16, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..4).for_each(|lbn| write(&volume, lbn, 5));
    let data = [9; 100];
    let batch = vec![
        Request { tag: 0, op: Op::Write { offset: 0, data: &data, fua: true } },
        Request { tag: 1, op: Op::Trim { offset: 2048, len: 8192, fua: true } },
    ];
    volume.execute(batch, &mut |_, result| result.unwrap());
    let mut expected = block(5, 4096);
    expected[..100].fill(9);
    assert!(read(&volume, 0).unwrap() == expected);
    assert_content(&volume, 1, 0);
    assert_content(&volume, 2, 5);
    drop(volume);
    let disks = disks.lose_everything_unflushed();
    disks.assert_clean("after the batch");
    let volume = disks.open(&options()).unwrap();
    assert!(read(&volume, 0).unwrap() == expected);
}

/// The metadata map reserves the blocks that it is written to; when freeing its own old blocks emptied a page, it needed one less
/// than it had reserved. Several pages of 16256 blocks and next to nothing in use make pages run empty.
#[test]
fn a_metadata_map_of_several_nearly_empty_pages_can_be_written_again_and_again() {
    let disks = Disks::new(1 << 20, 5 * 16256 * 4096);
    disks.format(&FormatOptions { log_blocks: Some(64), ..format_options(1 << 19) });
    let volume = disks.open(&options()).unwrap();
    for round in 0..9000 {
        write(&volume, round % 100, 1 + round);
        volume.checkpoint().unwrap();
    }
    volume.close().unwrap();
    disks.assert_clean("after many checkpoints");
}
