//! What went wrong in systems of this kind before, one test a story.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, InterceptDevice, IoKind, MemDevice};
use dedup_tests::*;
use dedup_volume::{DigestAlgorithm, FormatOptions, Op, OpenOptions, RequestError, Volume, format};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Says that a write has arrived, and is told whether it succeeds. While there is none, the gate is open.
type Gate = Arc<Mutex<Option<(Sender<()>, Receiver<bool>)>>>;

/// A volume behind a gate, which is open. While it is closed, writes of data wait until the test says how
/// each ends.
fn gated() -> (Gate, Volume) {
    let gate = Gate::default();
    let closed = Arc::clone(&gate);
    let data = InterceptDevice::new(Arc::new(MemDevice::new(1 << 20)), move |call| {
        if call.kind() == IoKind::Write
            && let Some((arrived, verdict)) = &*closed.lock().unwrap()
        {
            arrived.send(()).unwrap();
            if !verdict.recv().unwrap() {
                return Err(io::Error::other("refused at the gate"));
            }
        }
        call.pass();
        Ok(())
    });
    let data = Arc::new(data.one_by_one());
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
    format(&*data, &metadata, &format_options(1 << 19)).unwrap();
    let volume = Volume::open(data, metadata, &options()).unwrap();
    (gate, volume)
}

/// dm-dedup acknowledged a duplicate as soon as its digest was in the index, while the block itself was still
/// on its way: if that write then failed, both LBNs pointed at garbage.
#[test]
fn a_duplicate_of_a_block_in_flight_waits_for_it_and_takes_over_if_its_write_fails() {
    for first_succeeds in [true, false] {
        let (gate, volume) = gated();
        let (arrived_tx, arrived) = channel();
        let (verdict, verdict_rx) = channel();
        *gate.lock().unwrap() = Some((arrived_tx, verdict_rx));
        thread::scope(|scope| {
            let first = scope.spawn(|| try_write(&volume, 0, 7, false));
            arrived.recv().unwrap();
            let (done_tx, done) = channel();
            let volume = &volume;
            let second = scope.spawn(move || {
                let result = try_write(volume, 1, 7, false);
                done_tx.send(()).unwrap();
                result
            });
            assert!(done.recv_timeout(Duration::from_millis(100)).is_err(), "acknowledged while in flight");
            verdict.send(first_succeeds).unwrap();
            if !first_succeeds {
                // The duplicate becomes the writer.
                arrived.recv().unwrap();
                verdict.send(true).unwrap();
            }
            assert_eq!(first.join().unwrap(), if first_succeeds { Ok(()) } else { Err(RequestError::Io) });
            assert_eq!(second.join().unwrap(), Ok(()));
        });
        *gate.lock().unwrap() = None;
        assert_content(&volume, 0, if first_succeeds { 7 } else { 0 });
        assert_content(&volume, 1, 7);
    }
}

/// Two sector writes to one block were read, modified and written back at the same time: one of them was
/// lost.
#[test]
fn sector_writes_to_one_block_from_several_clients_are_all_there() {
    let disks = formatted(8, 4096);
    let volume = disks.open(&options()).unwrap();
    for round in 1..50u8 {
        thread::scope(|scope| {
            for sector in 0..8u64 {
                let volume = &volume;
                scope.spawn(move || {
                    let data = [round ^ sector as u8; 512];
                    let offset = 4096 + sector * 512;
                    run(volume, dedup_volume::Op::Write { offset, data: &data, fua: false }).unwrap();
                });
            }
        });
        let block = read(&volume, 1).unwrap();
        for sector in 0..8usize {
            assert!(
                block[sector * 512..][..512].iter().all(|b| *b == round ^ sector as u8),
                "sector {sector}"
            );
        }
    }
}

/// VDO stores a block again after 254 references; counts here have no such limit, and go all the way back
/// down.
#[test]
fn a_thousand_references_to_one_block_are_counted_up_and_down() {
    let disks = formatted(1200, 4096);
    let volume = disks.open(&OpenOptions { delta_max: 100, ..options() }).unwrap();
    (0..1000).for_each(|lbn| write(&volume, lbn, 9));
    assert_eq!(volume.status().data_used_blocks, 1);
    volume.close().unwrap();
    disks.assert_clean("a thousand references");
    let volume = disks.open(&options()).unwrap();
    trim(&volume, 0, 999);
    assert_content(&volume, 999, 9);
    assert_eq!(volume.status().data_used_blocks, 1);
    trim(&volume, 999, 1);
    assert_eq!(volume.status().data_used_blocks, 0);
    volume.close().unwrap();
    disks.assert_clean("none left");
}

/// SHA-512 overflowed a buffer, and other digests than the default were hardly ever run.
#[test]
fn every_digest_finds_duplicates_and_survives_a_reopen() {
    for algorithm in DigestAlgorithm::ALL {
        let disks = Disks::new(1 << 20, 8 << 20);
        disks.format(&FormatOptions { algorithm, ..format_options(1 << 19) });
        let volume = disks.open(&options()).unwrap();
        (0..20).for_each(|lbn| write(&volume, lbn, 1 + lbn % 10));
        volume.close().unwrap();
        let check_on_read = dedup_volume::CheckOnRead::Digest;
        let volume = disks.open(&OpenOptions { check_on_read, ..options() }).unwrap();
        write(&volume, 30, 3);
        (0..20).for_each(|lbn| assert_content(&volume, lbn, 1 + lbn % 10));
        assert_eq!(volume.status().data_used_blocks, 10, "{algorithm}");
        assert_eq!(volume.status().verify_match, algorithm.is_weak(), "{algorithm}");
        flush(&volume);
        disks.assert_clean(algorithm.name());
    }
}

/// Block numbers were kept in 32 bits: beyond 16 TiB they wrapped around.
#[test]
fn blocks_beyond_32_bits_are_themselves() {
    let disks = Disks::new(1 << 20, 64 << 20);
    disks.format(&format_options(1 << 50));
    let volume = disks.open(&options()).unwrap();
    let far = (1 << 32) + 5;
    write(&volume, 5, 1);
    write(&volume, far, 2);
    volume.checkpoint().unwrap();
    assert_content(&volume, 5, 1);
    assert_content(&volume, far, 2);
    trim(&volume, far, 1);
    assert_content(&volume, 5, 1);
}

/// A trim of an LBN that was not mapped was passed down to the data device, at the logical address: it
/// destroyed another block.
#[test]
fn only_blocks_that_lost_their_last_reference_are_discarded() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&OpenOptions { discard: true, ..options() }).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, 1 + lbn / 2));
    trim(&volume, 20, 40);
    flush(&volume);
    assert_eq!(disks.data.counters().discards, 0, "nothing was mapped there");
    trim(&volume, 0, 1);
    flush(&volume);
    assert_eq!(disks.data.counters().discards, 0, "its block has another reference");
    trim(&volume, 1, 1);
    assert_eq!(disks.data.counters().discards, 0, "not committed yet");
    flush(&volume);
    assert_eq!(disks.data.counters().discards, 1);
    (2..8).for_each(|lbn| assert_content(&volume, lbn, 1 + lbn / 2));
}

/// A data device of one volume was opened with the metadata of another, or with other parameters than it was
/// formatted with: every read returned something else.
#[test]
fn what_does_not_belong_together_is_refused_and_says_why() {
    let (one, other) = (formatted(64, 4096), Disks::new(1 << 20, 8 << 20));
    let mut options_of_other = format_options(1 << 19);
    options_of_other.pool = uuid::Uuid::from_u128(77);
    other.format(&options_of_other);
    let open = |data: &Disks, metadata: &Disks, options: &OpenOptions| {
        Volume::open(data.data(), metadata.metadata(), options).unwrap_err().to_string()
    };
    assert!(open(&one, &other, &options()).contains("do not belong together"));
    let sizes = OpenOptions { block_size: Some(8192), ..options() };
    assert!(open(&one, &one, &sizes).contains("--block-size 8192"));
    let digest = OpenOptions { algorithm: Some(DigestAlgorithm::Md5), ..options() };
    assert!(open(&one, &one, &digest).contains("--crypto-alg md5"));
    let empty = Disks::new(1 << 20, 8 << 20);
    assert!(open(&empty, &one, &options()).contains("holds no label"));
    assert!(open(&one, &empty, &options()).contains("holds no volume"));
}

/// A read-only open met a damaged mapping and recorded in the superblock that a check is needed: it wrote.
#[test]
fn a_read_only_open_writes_nothing_even_when_it_meets_damage() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&options()).unwrap();
    write(&volume, 0, 1);
    volume.close().unwrap();
    let label = dedup_volume::Label::read(&*disks.data).unwrap();
    let survey = dedup_meta::load_superblocks(&*disks.metadata);
    let root = survey.newest(Some(label.pool)).unwrap().volumes[0].mapping.base.node.unwrap();
    disks.metadata.write(root.block.0 * 4096 + 512, &[0xff; 512]).unwrap();
    let before = disks.metadata.image();
    let volume = disks.open(&OpenOptions { read_only: true, ..options() }).unwrap();
    assert_eq!(read(&volume, 0), Err(RequestError::Io));
    assert!(disks.metadata.image() == before);
    drop(volume);
    // Opened for writing, the damage stops all writes, and is recorded for the next open.
    let volume = disks.open(&options()).unwrap();
    assert_eq!(read(&volume, 0), Err(RequestError::Io));
    assert_eq!(try_write(&volume, 5, 2, false), Err(RequestError::Io));
    drop(volume);
    assert!(disks.open(&OpenOptions { read_only: true, ..options() }).unwrap().status().needs_check);
}

/// Whoever asks for a volume that cannot be is told which parameter it is, before anything on the devices is
/// touched.
#[test]
fn a_volume_that_cannot_be_is_refused_by_the_name_of_what_is_wrong_and_nothing_is_written() {
    let size = 1 << 20;
    let good = || format_options(size);
    for (data, metadata, options, says) in [
        (size, 8 << 20, FormatOptions { block_size: 0, ..good() }, "block size"),
        (size, 8 << 20, FormatOptions { block_size: 256, ..good() }, "block size"),
        (size, 8 << 20, FormatOptions { block_size: 3 << 10, ..good() }, "block size"),
        (size, 8 << 20, FormatOptions { block_size: 2 << 20, ..good() }, "block size"),
        (size, 8 << 20, FormatOptions { logical_size: size + 512, ..good() }, "logical size"),
        (size, 8 << 20, FormatOptions { logical_size: 0, ..good() }, "logical size"),
        (4096, 8 << 20, good(), "the data device"),
        (size, 1 << 20, good(), "the metadata device"),
        (size, 8 << 20, FormatOptions { log_blocks: Some(1 << 20), ..good() }, "log size"),
    ] {
        let disks = Disks::new(data, metadata);
        let error = dedup_volume::format(&*disks.data, &disks.metadata(), &options).unwrap_err().to_string();
        assert!(error.starts_with(says), "expected to hear of the {says}, found: {error}");
        for device in [&disks.data, &disks.metadata] {
            let changes = device.operations(IoKind::Write) + device.operations(IoKind::Discard);
            assert_eq!(changes, 0, "{says}");
        }
    }
}

/// Sizes that no memory holds the map of were an abort instead of an error.
#[test]
fn absurd_sizes_are_refused() {
    let data = MemDevice::new(1 << 20);
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(1 << 60));
    let error = format(&data, &metadata, &format_options(1 << 19)).unwrap_err().to_string();
    assert!(error.contains("at most 17592186044416 bytes"), "{error}");
}

/// An index entry whose block had been freed was taken for a match of a weak digest; the block held other
/// content by then, and the counter said that somebody had made a collision.
#[test]
fn a_stale_index_entry_is_no_collision() {
    let disks = formatted(8, 4096);
    let volume = disks.open(&OpenOptions { verify_match: Some(true), ..options() }).unwrap();
    write(&volume, 0, 1);
    volume.checkpoint().unwrap();
    trim(&volume, 0, 1);
    flush(&volume);
    // Content 1 stays in the index, naming a block that is free, then takes up another content.
    (1..8).for_each(|lbn| write(&volume, lbn, 100 + lbn));
    write(&volume, 0, 1);
    assert_eq!((volume.status().counters.collisions, volume.status().data_used_blocks), (0, 8));
}

/// The index named a freed block; several writes of its old content in one request found that out together,
/// the first of them stored it anew in that very block, and the others would not take it: they stored it once
/// more.
#[test]
fn a_freed_block_that_takes_up_its_old_content_again_is_a_match_for_its_neighbours() {
    for verify_match in [false, true] {
        let disks = Disks::new(5 * 4096, 8 << 20);
        disks.format(&format_options(4 * 4096));
        let volume = disks.open(&OpenOptions { verify_match: Some(verify_match), ..options() }).unwrap();
        (0..4).for_each(|lbn| write(&volume, lbn, 1 + lbn));
        volume.checkpoint().unwrap();
        trim(&volume, 0, 4);
        flush(&volume);
        let data = [block(1, 4096), block(2, 4096), block(1, 4096), block(2, 4096)].concat();
        run(&volume, Op::Write { offset: 0, data: &data, fua: false }).unwrap();
        assert_eq!(volume.status().data_used_blocks, 2, "byte comparison: {verify_match}");
    }
}

/// A request that overwrote more than the free blocks of a nearly full device was refused half way, although
/// each block that it overwrote made room for the next.
#[test]
fn one_request_overwrites_a_full_volume_by_way_of_a_single_spare_block() {
    let disks = Disks::new((64 + 2) * 4096, 8 << 20);
    disks.format(&format_options(64 * 4096));
    let volume = disks.open(&options()).unwrap();
    let all = |from: u64| (from..from + 64).flat_map(|content| block(content, 4096)).collect::<Vec<u8>>();
    for from in [1, 1000] {
        run(&volume, Op::Write { offset: 0, data: &all(from), fua: false }).unwrap();
        (0..64).for_each(|lbn| assert_content(&volume, lbn, from + lbn));
    }
    assert_eq!(volume.status().data_used_blocks, 64);
}
