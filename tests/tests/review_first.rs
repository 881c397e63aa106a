//! Review.
#![allow(warnings, clippy::all, clippy::pedantic, clippy::unwrap_used)]
use dedup_device::*;
use dedup_tests::*;
use dedup_volume::*;
use std::io;
use std::sync::atomic::*;
use std::sync::*;

fn batch(volume: &Volume, ops: Vec<Op<'_>>) -> Vec<Result<(), RequestError>> {
    let mut out = vec![Ok(()); ops.len()];
    let reqs = ops.into_iter().enumerate().map(|(i, op)| Request { tag: i as u64, op }).collect();
    volume.execute(reqs, &mut |r, res| out[r.tag as usize] = res);
    out
}

/// trim whose ignored edge is a block that another request of the batch writes in part
#[test]
fn a_trim_edge() {
    for shared in [0u64, 1, 2] {
        let disks = formatted(64, 4096);
        let volume = disks.open(&options()).unwrap();
        if shared > 0 {
            write(&volume, 0, 7);
        }
        if shared > 1 {
            write(&volume, 9, 7);
        }
        let part = vec![5u8; 100];
        let r = batch(
            &volume,
            vec![
                Op::Write { offset: 0, data: &part, fua: false },
                Op::Trim { offset: 2048, len: 4096 * 2, fua: false },
            ],
        );
        println!("shared {shared}: results {r:?}");
        let mut want = if shared > 0 { block(7, 4096) } else { vec![0; 4096] };
        want[..100].fill(5);
        println!("  content kept: {}", read(&volume, 0).map(|b| b == want) == Ok(true));
        let s = volume.status();
        println!("  mapped {} used {}", s.logical_used_blocks, s.data_used_blocks);
        flush(&volume);
        drop(volume);
        match disks.open(&options()) {
            Ok(v) => {
                if shared > 1 {
                    write(&v, 0, 50);
                    flush(&v);
                    for i in 0..40 {
                        let _ = try_write(&v, 20 + i, 100 + i, false);
                    }
                    println!("  lbn 9 after: {:?}", read(&v, 9).map(|b| b == block(7, 4096)));
                }
                println!("  reopened");
            }
            Err(e) => println!("  REOPEN FAILS: {e}"),
        }
    }
}

#[test]
fn b_heal_of_a_block_freed_meanwhile() {
    let disks = formatted(16, 4096);
    let volume = disks.open(&options()).unwrap();
    write(&volume, 0, 1);
    flush(&volume);
    // damage: first pbn is 1
    disks.data.write(4096, &vec![9u8; 4096]).unwrap();
    println!("read: {:?}", read(&volume, 0).map(|_| ()));
    println!("bad now {}", volume.status().bad_blocks_now);
    let (c1, z) = (block(1, 4096), vec![0u8; 4096]);
    let r = batch(
        &volume,
        vec![
            Op::Write { offset: 5 * 4096, data: &c1, fua: false },
            Op::Write { offset: 0, data: &z, fua: false },
        ],
    );
    println!("{r:?} lbn5 ok: {}", read(&volume, 5).map(|b| b == c1) == Ok(true));
    flush(&volume);
    let copy = disks.crash(|_, _, _| true);
    match copy.open(&options()) {
        Ok(_) => println!("reopened"),
        Err(e) => println!("REOPEN FAILS: {e}"),
    }
    // lots of new content
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for round in 0..4u64 {
            for i in 6..16u64 {
                let _ = try_write(&volume, i, 1000 + round * 100 + i, false);
            }
            flush(&volume);
        }
    }));
    println!("panicked: {}", outcome.is_err());
    if outcome.is_ok() {
        println!("lbn5 after: {:?}", read(&volume, 5).map(|b| b == c1));
    }
}

#[test]
fn c_metamap_pages_that_become_empty() {
    let disks = Disks::new(64 * 4096, 512 << 20);
    disks.format(&format_options(32 * 4096));
    let volume = disks.open(&options()).unwrap();
    for i in 0..60_000u64 {
        write(&volume, i % 4, 1 + i);
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| volume.checkpoint()));
        match r {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                println!("checkpoint {i}: {e}");
                return;
            }
            Err(_) => {
                println!("checkpoint {i} PANICS");
                std::mem::forget(volume);
                return;
            }
        }
        disks.data.flush().unwrap();
    }
    println!("no panic in 60000, blocks {}", volume.status().commit.checkpoint_blocks_written);
}

/// Passes through; can hold a read, or panic at a flush.
#[derive(Debug)]
struct Hook {
    inner: Arc<SimDevice>,
    hold_read: AtomicBool,
    held: AtomicBool,
    panic_flush: AtomicBool,
    fail_write: AtomicBool,
    slow: bool,
}
impl Hook {
    fn new(inner: Arc<SimDevice>) -> Self {
        Self {
            inner,
            hold_read: false.into(),
            held: false.into(),
            panic_flush: false.into(),
            fail_write: false.into(),
            slow: false,
        }
    }
}
impl BlockDevice for Hook {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn io_alignment(&self) -> usize {
        self.inner.io_alignment()
    }
    fn read(&self, o: u64, b: &mut [u8]) -> io::Result<()> {
        self.inner.read(o, b)
    }
    fn write(&self, o: u64, b: &[u8]) -> io::Result<()> {
        if self.fail_write.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.write(o, b)
    }
    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        self.inner.read_batch(ops);
        if self.hold_read.swap(false, Ordering::SeqCst) {
            self.held.store(true, Ordering::SeqCst);
            while self.held.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }
    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        if self.fail_write.load(Ordering::SeqCst) {
            for op in ops {
                op.result = Err(io::ErrorKind::StorageFull.into());
            }
            return;
        }
        self.inner.write_batch(ops)
    }
    fn flush(&self) -> io::Result<()> {
        if self.panic_flush.swap(false, Ordering::SeqCst) {
            panic!("planted")
        }
        if self.slow {
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
        self.inner.flush()
    }
    fn discard(&self, o: u64, l: u64) -> io::Result<()> {
        self.inner.discard(o, l)
    }
    fn bypass_cache(&self) -> io::Result<bool> {
        self.inner.bypass_cache()
    }
}

#[test]
fn d_digest_check_of_a_block_freed_during_the_read() {
    let disks = formatted(64, 4096);
    let hook = Arc::new(Hook::new(disks.data.clone()));
    let volume = Volume::open(
        hook.clone(),
        disks.metadata(),
        &OpenOptions { check_on_read: CheckOnRead::Digest, ..options() },
    )
    .unwrap();
    write(&volume, 0, 1);
    hook.hold_read.store(true, Ordering::SeqCst);
    std::thread::scope(|s| {
        let reader = s.spawn(|| read(&volume, 0).map(|b| b == block(1, 4096)));
        while !hook.held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        write(&volume, 0, 2);
        volume.checkpoint().unwrap();
        hook.held.store(false, Ordering::SeqCst);
        println!("read: {:?}", reader.join().unwrap());
    });
}

#[test]
fn e_data_enospc_sets_blocks_aside() {
    let disks = formatted(32, 4096);
    let hook = Arc::new(Hook::new(disks.data.clone()));
    let volume = Volume::open(hook.clone(), disks.metadata(), &options()).unwrap();
    hook.fail_write.store(true, Ordering::SeqCst);
    for i in 0..100 {
        let r = try_write(&volume, 0, 1 + i, false);
        assert_eq!(r, Err(RequestError::NoSpace));
    }
    hook.fail_write.store(false, Ordering::SeqCst);
    println!(
        "after the device has room again: {:?}, free {}",
        try_write(&volume, 0, 5000, false),
        volume.status().data_free_blocks
    );
}

fn contention(fua: bool, threads: u64, n: u64, slow: bool) {
    let size = 16384u64 * 4096;
    let disks = Disks::new(size + (4 << 20), 64 << 20);
    disks.format(&format_options(size));
    let hook = Arc::new(Hook { slow, ..Hook::new(disks.metadata.clone()) });
    let volume = Volume::open(disks.data(), hook, &OpenOptions { background: true, ..options() }).unwrap();
    let errors = Mutex::new(std::collections::BTreeMap::new());
    std::thread::scope(|s| {
        for t in 0..threads {
            let (volume, errors) = (&volume, &errors);
            s.spawn(move || {
                for round in 0..60u64 {
                    let blocks: Vec<Vec<u8>> =
                        (0..n).map(|i| block(1 + t * 1_000_000 + round * 1000 + i, 4096)).collect();
                    let ops = blocks
                        .iter()
                        .enumerate()
                        .map(|(i, b)| Op::Write { offset: ((t * n + i as u64) % 16384) * 4096, data: b, fua })
                        .collect();
                    for r in batch(volume, ops) {
                        if let Err(e) = r {
                            *errors.lock().unwrap().entry(format!("{e:?}")).or_insert(0) += 1;
                        }
                    }
                }
            });
        }
    });
    let s = volume.status();
    println!(
        "fua {fua} threads {threads} n {n}: errors {:?}, mode {} {:?}, txid {}, log {} rebuilding {} entries {} used {} metafree {}",
        errors.lock().unwrap(),
        s.mode,
        s.failure,
        s.commit.transaction,
        s.commit.log_blocks,
        s.gc.rebuilding,
        s.index_entries,
        s.data_used_blocks,
        s.metadata_free_blocks
    );
    flush(&volume);
    volume.checkpoint().unwrap();
    volume.checkpoint().unwrap();
    let s = volume.status();
    println!(
        "   later: rebuilding {} entries {} used {}",
        s.gc.rebuilding, s.index_entries, s.data_used_blocks
    );
}

#[test]
fn f_contention() {
    contention(false, 16, 64, true);
    contention(true, 16, 32, true);
    contention(true, 32, 1, true);
}

#[test]
fn g_panicking_leader() {
    let disks = formatted(32, 4096);
    let hook = Arc::new(Hook::new(disks.data.clone()));
    let volume = Arc::new(Volume::open(hook.clone(), disks.metadata(), &options()).unwrap());
    write(&volume, 0, 1);
    hook.panic_flush.store(true, Ordering::SeqCst);
    let v = volume.clone();
    println!("leader: {:?}", std::thread::spawn(move || flush(&v)).join().is_err());
    let (tx, rx) = mpsc::channel();
    let v = volume.clone();
    std::thread::spawn(move || tx.send(run(&v, Op::Flush)));
    println!("next flush: {:?}", rx.recv_timeout(std::time::Duration::from_secs(5)));
    std::mem::forget(volume);
}
