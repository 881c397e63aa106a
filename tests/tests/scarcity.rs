//! What happens when something is short: the log ring, the metadata device.
//!
//! Each of these was found by reading the code and shown by a run: clients that only waited for each other
//! were told that there is no space, or had the index dropped; a trim's step became zero and never ended.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, InterceptDevice, IoKind, MemDevice};
use dedup_tests::hooked::{Rig, WATCHDOG, watched};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RequestError, Volume, format};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memory that takes its time.
fn slow(size: u64, write: Duration, flush: Duration) -> Arc<dyn BlockDevice> {
    Arc::new(InterceptDevice::new(Arc::new(MemDevice::new(size)), move |call| {
        match call.kind() {
            IoKind::Write => std::thread::sleep(write),
            IoKind::Flush => std::thread::sleep(flush),
            IoKind::Read | IoKind::Discard => {}
        }
        call.pass();
        Ok(())
    }))
}

/// Writes of one batch: (LBN, content). The places of those that had no space; no other error is one.
fn write_batch(volume: &Volume, writes: &[(u64, u64)], fua: bool) -> Vec<usize> {
    let size = u64::from(volume.block_size());
    let contents: Vec<Vec<u8>> = writes.iter().map(|(_, content)| block(*content, size as usize)).collect();
    let batch = writes.iter().zip(&contents).enumerate().map(|(tag, ((lbn, _), data))| Request {
        tag: tag as u64,
        op: Op::Write { offset: lbn * size, data, fua },
    });
    let mut refused = Vec::new();
    volume.execute(batch.collect(), &mut |request, result| match result {
        Ok(()) => {}
        Err(RequestError::NoSpace) => refused.push(request.tag as usize),
        Err(error) => panic!("{error}: {:?}", volume.status().failure),
    });
    refused
}

/// How long clients meet on a small ring.
const STRESS: Duration = Duration::from_millis(1500);

/// Clients write to a nearly empty volume, each to its own blocks: nobody is told that there is no space, and
/// the index stays.
fn clients_wait_for_each_other(
    ring: u64,
    clients: u64,
    batch: u64,
    fua: bool,
    data: Duration,
    log: Duration,
) {
    let lbns = clients * 64;
    let data = slow((lbns * 2 + 50) * 4096, data, Duration::ZERO);
    let metadata = slow(32 << 20, Duration::ZERO, log);
    format(&*data, &metadata, &FormatOptions { log_blocks: Some(ring), ..format_options(lbns * 4096) })
        .unwrap();
    let volume = Volume::open(data, metadata, &OpenOptions { background: true, ..options() }).unwrap();
    let end = Instant::now() + STRESS;
    std::thread::scope(|scope| {
        for client in 0..clients {
            let volume = &volume;
            scope.spawn(move || {
                let (mut rng, mut content) = (Rng::new(client + 77), client << 40);
                while Instant::now() < end {
                    let mut next = || {
                        content += 1;
                        // Trims in between, as a zero write is one.
                        if fua && rng.below(3) == 0 { 0 } else { content }
                    };
                    let writes: Vec<(u64, u64)> = (0..batch).map(|i| (client * 64 + i, next())).collect();
                    let refused = write_batch(volume, &writes, fua);
                    assert!(refused.is_empty(), "no space for clients that only wait for each other");
                    assert!(!volume.status().gc.rebuilding, "the index was dropped for want of room");
                }
            });
        }
    });
    assert_eq!(volume.status().mode, "read-write");
}

#[test]
fn clients_of_the_smallest_ring_wait_for_each_other_and_are_never_told_no_space() {
    clients_wait_for_each_other(16, 16, 1, true, Duration::ZERO, Duration::ZERO);
}

#[test]
fn clients_of_the_smallest_ring_wait_for_slow_flushes() {
    clients_wait_for_each_other(16, 16, 2, true, Duration::ZERO, Duration::from_micros(200));
}

#[test]
fn batches_that_wait_for_slow_writes_of_others_do_not_cost_the_index() {
    clients_wait_for_each_other(256, 12, 32, false, Duration::from_millis(3), Duration::ZERO);
}

/// Logical blocks of 512 bytes, far more than the smallest metadata device can map when they are scattered.
const SCATTERED: u64 = 400_000;

/// A volume of so many.
fn scattered(ring: u64) -> Disks {
    let disks = Disks::new((SCATTERED + 50) * 512, 4 << 20);
    disks.format(&FormatOptions {
        log_blocks: Some(ring),
        block_size: 512,
        ..format_options(SCATTERED * 512)
    });
    disks
}

/// What the volume should hold, and the content that was written last.
struct Model {
    rng: Rng,
    blocks: Vec<u64>,
    content: u64,
}

impl Model {
    fn new() -> Self {
        Self { rng: Rng::new(1), blocks: vec![0; SCATTERED as usize], content: 0 }
    }

    /// Writes all over the volume until three batches had no space; how many blocks were written.
    fn fill(&mut self, volume: &Volume, batch: u64) -> usize {
        let (mut written, mut full) = (0, 0);
        while full < 3 {
            let mut lbns: Vec<u64> = (0..batch).map(|_| self.rng.below(SCATTERED)).collect();
            lbns.sort_unstable();
            lbns.dedup();
            let writes: Vec<(u64, u64)> = (self.content + 1..).zip(lbns).map(|(c, lbn)| (lbn, c)).collect();
            self.content += writes.len() as u64;
            let refused = write_batch(volume, &writes, false);
            for (place, (lbn, content)) in writes.iter().enumerate() {
                if !refused.contains(&place) {
                    self.blocks[*lbn as usize] = *content;
                }
            }
            full += u64::from(!refused.is_empty());
            written += writes.len() - refused.len();
            assert!(written < 100_000, "the metadata device is never full");
        }
        written
    }

    fn trimmed(&mut self, lbn: u64, blocks: u64) {
        self.blocks[lbn as usize..][..blocks as usize].fill(0);
    }

    /// A sample of what is mapped reads as it was written.
    fn assert_read(&self, volume: &Volume) {
        let mapped = self.blocks.iter().enumerate().filter(|(_, content)| **content != 0);
        mapped.take(50).for_each(|(lbn, content)| assert_content(volume, lbn as u64, *content));
    }
}

/// Slices of collection that a volume with so few blocks in use may take.
const SLICES_MAX: usize = 3000;

fn a_full_metadata_device_takes_trims_and_then_writes(ring: u64, batch: u64, background: bool) {
    let disks = scattered(ring);
    let options = OpenOptions { background, ..options() };
    let mut model = Model::new();
    for life in 0..4 {
        let volume = disks.open(&options).unwrap();
        assert!(model.fill(&volume, batch) > 0, "life {life}: what trims gave back takes no write");
        flush(&volume);
        model.assert_read(&volume);
        match life % 2 {
            0 => drop(volume),
            _ => volume.close().unwrap(),
        }
        disks.assert_clean(&format!("life {life}"));
        let volume = disks.open(&options).unwrap();
        volume.checkpoint().unwrap();
        let first = life * 50_000;
        run(&volume, Op::Trim { offset: first * 512, len: 20_000 * 512, fua: true }).unwrap();
        model.trimmed(first, 20_000);
        volume.checkpoint().unwrap();
        let ended = (0..SLICES_MAX).any(|_| !volume.collect_some().unwrap());
        assert!(ended, "life {life}: collection never ends");
        assert_eq!(volume.status().mode, "read-write");
        model.assert_read(&volume);
    }
    disks.assert_clean("at the end");
}

#[test]
fn a_full_metadata_device_says_no_space_and_trims_make_room_again() {
    a_full_metadata_device_takes_trims_and_then_writes(16, 40, false);
}

#[test]
fn a_full_metadata_device_with_a_larger_ring_takes_trims() {
    a_full_metadata_device_takes_trims_and_then_writes(256, 300, false);
}

#[test]
fn a_full_metadata_device_with_threads_of_its_own_takes_trims() {
    a_full_metadata_device_takes_trims_and_then_writes(256, 300, true);
}

/// A reader is slow while the metadata device fills up, and holds back what trims free there: a trim may be
/// refused, but it ends, and once the reader has gone all of them are possible, and writes too.
fn trims_end_beside_a_slow_reader(ring: u64) {
    const TRIMMED: u64 = 2000;
    let rig = Rig::open(scattered(ring), &options()).unwrap();
    write(&rig.volume, 0, 7);
    rig.volume.checkpoint().unwrap();
    let trim = |volume: &Volume, n: u64| {
        run(volume, Op::Trim { offset: n * TRIMMED * 512, len: TRIMMED * 512, fua: false })
    };
    let other = Arc::clone(&rig.volume);
    rig.data.before(IoKind::Read, 0, move || {
        Model::new().fill(&other, 40);
        let refused = (0..SCATTERED / TRIMMED).find_map(|n| trim(&other, n).err());
        assert!(matches!(refused, None | Some(RequestError::NoSpace)), "{refused:?}");
    });
    assert_content(&rig.volume, 0, 7);
    for n in 0..SCATTERED / TRIMMED {
        assert_eq!(trim(&rig.volume, n), Ok(()), "trim {n} after the reader has gone");
    }
    assert!(Model::new().fill(&rig.volume, 40) > 0, "nothing has room where all was trimmed");
}

#[test]
fn a_trim_ends_even_if_a_reader_holds_back_what_it_frees() {
    watched(WATCHDOG, || trims_end_beside_a_slow_reader(16));
}

#[test]
fn a_trim_ends_beside_a_slow_reader_with_the_default_ring_of_a_small_volume() {
    watched(WATCHDOG, || trims_end_beside_a_slow_reader(256));
}

/// A trim's edge blocks are not its own: it neither locks nor changes them. Together with a partial write to
/// one of them, in one batch, it once zeroed bytes of that block and took its old mapping twice.
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

/// The metadata map reserves the blocks that it is written to; when freeing its own old blocks emptied a
/// page, it needed one less than it had reserved. Several pages of 16256 blocks and next to nothing in use
/// make pages run empty.
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
