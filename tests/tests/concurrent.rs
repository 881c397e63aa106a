//! Several clients at once, with the volume's own threads: what one client wrote is what it reads, whatever
//! the others do.
//!
//! The story behind the tight deltas: a write once looked its LBN up in trees that it had pinned a moment
//! before it asked the deltas. A checkpoint that ended in between had moved the mapping from the frozen delta
//! to new trees, so it was found in neither, and a block that was still in use lost its last reference. A few
//! of these runs met that moment.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_checker::{CheckOptions, check};
use dedup_device::MemDevice;
use dedup_tests::rng::Rng;
use dedup_tests::{Disks, block, format_options, options};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, Volume, format};
use std::sync::Arc;
use std::thread;

const CLIENTS: u64 = 4;
/// LBNs of each client; the contents are everybody's.
const LBNS: u64 = 64;
const CONTENTS: u64 = 40;
const BLOCK: usize = 4096;

/// One client: batches of writes, trims, partial writes and reads on its own LBNs, checked against what it
/// remembers.
fn client(volume: &Volume, client: u64, batches: u64, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(seed * CLIENTS + client);
    let first = client * LBNS;
    let mut model: Vec<Vec<u8>> = vec![vec![0; BLOCK]; LBNS as usize];
    for _ in 0..batches {
        let mut lbns: Vec<u64> = (0..1 + rng.below(12)).map(|_| rng.below(LBNS)).collect();
        lbns.sort_unstable();
        lbns.dedup();
        let contents: Vec<Vec<u8>> = lbns.iter().map(|_| block(rng.below(CONTENTS), BLOCK)).collect();
        let kinds: Vec<u64> = lbns.iter().map(|_| rng.below(10)).collect();
        let mut bufs: Vec<Vec<u8>> = lbns.iter().map(|_| vec![1; BLOCK]).collect();
        let before = model.clone();
        let mut batch = Vec::new();
        for (i, buf) in bufs.iter_mut().enumerate() {
            let (lbn, offset) = (lbns[i] as usize, (first + lbns[i]) * BLOCK as u64);
            let op = match kinds[i] {
                0..5 => {
                    model[lbn].copy_from_slice(&contents[i]);
                    Op::Write { offset, data: &contents[i], fua: kinds[i] == 0 }
                }
                5 => {
                    model[lbn].fill(0);
                    Op::Trim { offset, len: BLOCK as u64, fua: false }
                }
                6 => {
                    model[lbn][700..900].copy_from_slice(&contents[i][700..900]);
                    Op::Write { offset: offset + 700, data: &contents[i][700..900], fua: false }
                }
                7 => {
                    model[lbn][..100].fill(0);
                    Op::WriteZeroes { offset, len: 100, fua: false }
                }
                _ => Op::Read { offset, buf },
            };
            batch.push(Request { tag: i as u64, op });
        }
        if rng.below(8) == 0 {
            batch.push(Request { tag: u64::MAX, op: Op::Flush });
        }
        let mut answered = 0;
        let expected = batch.len();
        volume.execute(batch, &mut |request, result| {
            result.unwrap_or_else(|error| panic!("client {client}, request {}: {error}", request.tag));
            if let Op::Read { buf, .. } = &request.op {
                let lbn = lbns[request.tag as usize];
                assert!(**buf == before[lbn as usize], "client {client}, LBN {lbn}: not what it wrote");
            }
            answered += 1;
        });
        assert_eq!(answered, expected);
    }
    model
}

fn run_clients(volume: &Volume, batches: u64, seed: u64) -> Vec<Vec<Vec<u8>>> {
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|c| scope.spawn(move || client(volume, c, batches, seed))).collect();
        clients.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

fn verify(volume: &Volume, models: &[Vec<Vec<u8>>], story: &str) {
    for (client, model) in models.iter().enumerate() {
        for (i, expected) in model.iter().enumerate() {
            let lbn = client as u64 * LBNS + i as u64;
            let found = dedup_tests::read(volume, lbn).unwrap();
            assert!(found == *expected, "{story}: LBN {lbn}");
        }
    }
}

/// Options under which everything that can wait, waits often: small deltas, small log, threads on.
fn tight() -> OpenOptions {
    OpenOptions { background: true, delta_max: 100, digest_threads: 2, ..options() }
}

#[test]
fn each_client_reads_what_it_wrote_and_all_of_it_survives_a_power_cut_after_a_flush() {
    for seed in 0..4 {
        let blocks = CLIENTS * LBNS;
        // Hardly more data blocks than needed: clients wait for space, and for each other's frees.
        let disks = Disks::new((blocks + 12) * BLOCK as u64, 6 << 20);
        let format = FormatOptions { log_blocks: Some(128), ..format_options(blocks * BLOCK as u64) };
        disks.format(&format);
        let volume = disks.open(&tight()).unwrap();
        let models = run_clients(&volume, 250, seed);
        verify(&volume, &models, "running");
        dedup_tests::flush(&volume);
        drop(volume);
        let disks = disks.lose_everything_unflushed();
        disks.assert_clean(&format!("seed {seed}, after a power cut"));
        let volume = disks.open(&tight()).unwrap();
        verify(&volume, &models, "reopened");
        volume.close().unwrap();
        disks.assert_clean(&format!("seed {seed}, closed"));
    }
}

#[test]
fn clients_and_garbage_collection_do_not_hurt_each_other() {
    let blocks = CLIENTS * LBNS;
    let data = Arc::new(MemDevice::new((blocks + 200) * BLOCK as u64));
    let metadata: Arc<dyn dedup_device::BlockDevice> = Arc::new(MemDevice::new(8 << 20));
    format(&*data, &metadata, &format_options(blocks * BLOCK as u64)).unwrap();
    let volume = Volume::open(data.clone(), metadata.clone(), &tight()).unwrap();
    let models = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            for _ in 0..200 {
                volume.gc_start();
                volume.gc_estimate().unwrap();
                thread::yield_now();
            }
        });
        let models = run_clients(&volume, 200, 99);
        collector.join().unwrap();
        models
    });
    verify(&volume, &models, "running");
    volume.close().unwrap();
    let report = check(Some(&*data), metadata, &CheckOptions::tiny(), &mut |_| ()).unwrap();
    assert!(report.is_clean(), "{report}");
}
