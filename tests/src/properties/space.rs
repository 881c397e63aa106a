//! Space comes back when it is free, not before, and its end is an answer, not a failure.

use super::*;
use crate::hooked::{Rig, while_held};
use dedup_device::{IoKind, SimFileSystem};
use dedup_volume::RunPolicy;

/// One of two references goes: the block stays.
pub fn a_block_stays_as_long_as_anything_is_mapped_to_it(options: &OpenOptions) {
    for references in [2, 10] {
        for checkpoint in [false, true] {
            let disks = full(16, options);
            let volume = disks.open(options).unwrap();
            (20..20 + references - 1).for_each(|lbn| write(&volume, lbn, 1));
            if checkpoint {
                volume.checkpoint().unwrap();
            }
            trim(&volume, 20, references.min(4) - 1);
            flush(&volume);
            fill(&volume, 30..40, 100);
            assert_content(&volume, 0, 1);
        }
    }
}

/// While a block is being overwritten, a duplicate takes another reference to what it held, and a checkpoint
/// moves the counts into the trees: the reference counts, at whatever moment it comes.
pub fn a_reference_taken_during_an_overwrite_counts(options: &OpenOptions) {
    // The new content is unknown, and the moment is its data write; or known, and the moment is the
    // comparison of its bytes.
    let options = &OpenOptions { verify_match: Some(true), ..options.clone() };
    for kind in [IoKind::Write, IoKind::Read] {
        let rig = Rig::open(full(16, options), options).unwrap();
        make_one_go_round(&rig.volume);
        trim(&rig.volume, 16, 1);
        rig.volume.checkpoint().unwrap();
        rig.data.before(kind, 0, another_reference(&rig.volume));
        write(&rig.volume, 0, if kind == IoKind::Write { 100 } else { 2 });
        assert_reference_counts(rig);
    }
}

/// The same while the only other reference is being trimmed.
pub fn a_reference_taken_during_a_trim_counts(options: &OpenOptions) {
    let disks = full(16, options);
    disks.open(options).unwrap().close().unwrap();
    // Opened anew, with nothing in the cache: the trim reads nodes, which is the moment.
    let rig = Rig::open(disks, options).unwrap();
    rig.metadata.before(IoKind::Read, 0, another_reference(&rig.volume));
    trim(&rig.volume, 0, 1);
    assert_reference_counts(rig);
}

/// Maps LBN 20 to the block of LBN 0.
fn another_reference(volume: &Arc<Volume>) -> impl FnOnce() + Send + 'static {
    let volume = volume.clone();
    move || {
        write(&volume, 20, 1);
        volume.checkpoint().unwrap();
    }
}

fn assert_reference_counts(rig: Rig) {
    flush(&rig.volume);
    fill(&rig.volume, 30..40, 200);
    assert_content(&rig.volume, 20, 1);
    drop(rig.volume);
    rig.disks.assert_clean("another reference to a block that was overwritten");
}

/// What is trimmed is free, all of it.
pub fn trimmed_space_comes_back(options: &OpenOptions) {
    let disks = full(16, options);
    let volume = disks.open(options).unwrap();
    for round in 1..4 {
        trim(&volume, 0, 16);
        let status = volume.status();
        let used = (status.data_used_blocks, status.logical_used_blocks);
        assert_eq!(used, (0, 0), "blocks in use when everything is trimmed");
        (0..16).for_each(|lbn| write(&volume, lbn, 1 + round * 16 + lbn));
    }
    volume.close().unwrap();
    disks.assert_clean("written and trimmed");
}

/// A trim that is not durable is undone by a power cut, so what it freed is not overwritten before.
pub fn a_freed_block_is_not_reused_before_its_commit(options: &OpenOptions) {
    let disks = full(16, options);
    let volume = disks.open(options).unwrap();
    trim(&volume, 0, 1);
    write(&volume, 20, 100);
    // Everything that was written is kept on the data device, nothing on the other.
    let after = reopened(&disks.crash(|device, _, _| device == 0), options);
    let found =
        read(&after, 0).unwrap_or_else(|error| panic!("LBN 0: expected what was flushed, found {error}"));
    assert!(
        found == block(1, 4096) || found == block(0, 4096),
        "LBN 0: old or trimmed, found another content"
    );
}

/// Freed blocks that only wait for a commit are found before anybody is told that there is no space.
pub fn space_that_waits_for_a_commit_is_found(options: &OpenOptions) {
    let disks = full(16, options);
    let volume = disks.open(options).unwrap();
    for round in 0..3 {
        trim(&volume, 0, 16);
        for lbn in 0..16 {
            let written = try_write(&volume, lbn, 100 + round * 16 + lbn, false);
            assert_eq!(written, Ok(()), "a write where all is trimmed");
        }
    }
}

/// What was admitted for writes that fail is given back: a hundred of them leave room for the next.
pub fn failed_writes_leave_room_for_the_next(options: &OpenOptions) {
    let disks = Disks::new(300 * 4096, 8 << 20);
    disks.format(&FormatOptions { log_blocks: Some(16), ..format_options(256 * 4096) });
    let volume = disks.open(options).unwrap();
    for n in 0..100 {
        disks.data.fail_nth(IoKind::Write, 0);
        assert_eq!(
            try_write(&volume, 0, n + 1, false),
            Err(RequestError::Io),
            "a write whose data write failed"
        );
    }
    write(&volume, 0, 200);
    assert_content(&volume, 0, 200);
}

/// The log frees a block and takes it into use again: after its replay the block is in use.
pub fn a_block_that_the_log_reused_is_not_given_out(options: &OpenOptions) {
    let disks = Disks::new(17 * 4096, 8 << 20);
    disks.format(&format_options(64 * 4096));
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    trim(&volume, 0, 1);
    flush(&volume);
    // The lowest free block, which is the one that was just freed.
    write(&volume, 20, 100);
    flush(&volume);
    let volume = reopened(&disks.lose_everything_unflushed(), options);
    write(&volume, 21, 101);
    volume.checkpoint().unwrap();
    fill(&volume, 30..40, 200);
    assert_content(&volume, 20, 100);
}

/// A reader is slow: what it found is there until it has it, though trimmed, committed and wanted by others
/// meanwhile.
pub fn a_reader_in_flight_keeps_its_blocks(options: &OpenOptions) {
    let rig = Rig::open(full(16, options), options).unwrap();
    let volume = &*rig.volume;
    let reader = || assert_content(volume, 0, 1);
    while_held(&rig.data, IoKind::Read, reader, || {
        trim(volume, 0, 1);
        flush(volume);
        write(volume, 20, 100);
    });
    assert_content(volume, 20, 100);
}

/// A block whose discard is under way is not given out: the discard would zero what is written there. Who
/// needs just that block waits.
pub fn a_discard_under_way_zeroes_nothing_new(options: &OpenOptions) {
    let options = OpenOptions { discard: true, ..options.clone() };
    let rig = Rig::open(full(16, &options), &options).unwrap();
    let volume = &*rig.volume;
    trim(volume, 0, 1);
    let written = while_held(&rig.data, IoKind::Discard, || flush(volume), || write(volume, 20, 100));
    assert_content(volume, 20, 100);
    assert!(!written, "written while the block was being discarded");
    trim(volume, 20, 1);
    write(volume, 21, 101);
    assert_content(volume, 21, 101);
}

/// All blocks but one are in use, and that one is being written, in place of another that will be free then:
/// the next write waits for it.
pub fn a_write_waits_for_what_a_write_in_flight_will_free(options: &OpenOptions) {
    let disks = Disks::new(18 * 4096, 8 << 20);
    disks.format(&format_options(16 * 4096));
    let rig = Rig::open(disks, options).unwrap();
    let volume = &*rig.volume;
    (0..16).for_each(|lbn| write(volume, lbn, lbn + 1));
    let second = || {
        let written = try_write(volume, 1, 101, false);
        assert_eq!(written, Ok(()), "an overwrite while another one is about to free a block");
    };
    let at_once = while_held(&rig.data, IoKind::Write, || write(volume, 0, 100), second);
    assert!(!at_once, "the second write had no block to go to");
    assert_content(volume, 0, 100);
    assert_content(volume, 1, 101);
}

/// A trim is under way in one part of its range: a write to another part does not wait for it.
pub fn a_large_trim_holds_up_no_write_to_another_part(options: &OpenOptions) {
    let disks = Disks::new(4106 * 512, 8 << 20);
    disks.format(&FormatOptions { block_size: 512, ..format_options(4096 * 512) });
    let volume = disks.open(options).unwrap();
    let data: Vec<u8> = (0..4096).flat_map(|n| block(1 + n, 512)).collect();
    assert_eq!(run(&volume, Op::Write { offset: 0, data: &data, fua: false }), Ok(()));
    volume.close().unwrap();
    // Opened anew, with nothing in the cache: the trim reads nodes, which is the moment.
    let rig = Rig::open(disks, options).unwrap();
    let volume = &*rig.volume;
    let ended =
        while_held(&rig.metadata, IoKind::Read, || trim(volume, 0, 4096), || write(volume, 4000, 5000));
    assert!(ended, "a write waited for the whole of a trim");
    (0..4096).filter(|lbn| *lbn != 4000).for_each(|lbn| assert_content(volume, lbn, 0));
    // It came before the trim or after it.
    let found = read(volume, 4000).unwrap();
    assert!(found == block(0, 512) || found == block(5000, 512), "LBN 4000: trimmed or written");
    drop(rig.volume);
    rig.disks.assert_clean("a write beside a trim");
}

/// One request changes more than the log ring holds: it waits for commits and checkpoints on the way, and
/// succeeds.
pub fn a_request_larger_than_the_log_ring_succeeds(options: &OpenOptions) {
    let blocks = 1200;
    let disks = Disks::new((blocks + 8) * 4096, 8 << 20);
    disks.format(&FormatOptions { log_blocks: Some(16), ..format_options(blocks * 4096) });
    let volume = disks.open(options).unwrap();
    for round in 0..2 {
        let data: Vec<u8> = (0..blocks).flat_map(|n| block(1 + round * blocks + n, 4096)).collect();
        let written = run(&volume, Op::Write { offset: 0, data: &data, fua: true });
        assert_eq!(written, Ok(()), "a request larger than the ring: {:?}", volume.status().failure);
    }
    let after = reopened(&disks.lose_everything_unflushed(), options);
    (0..blocks).for_each(|lbn| assert_content(&after, lbn, 1 + blocks + lbn));
}

/// Data and metadata are sparse files on one file system, which becomes full of data. A checkpoint finds room
/// for what it writes all the same, and what is trimmed makes room for more.
pub fn a_full_file_system_below_both_devices_stops_nothing(options: &OpenOptions) {
    let disks = Disks::new(4000 * 4096, 16 << 20);
    let file_system = SimFileSystem::new(1600 * 4096);
    disks.data.put_on(&file_system);
    disks.metadata.put_on(&file_system);
    disks.format(&FormatOptions { log_blocks: Some(64), ..format_options(4000 * 4096) });
    let volume = disks.open(options).unwrap();
    let mut content = 1;
    for round in 0..4 {
        let mut written = 0;
        while written < 4000 && try_write(&volume, written * 7 % 4000, content, written % 50 == 0).is_ok() {
            (written, content) = (written + 1, content + 1);
        }
        let failure = || volume.status().failure;
        assert!(!volume.is_read_only(), "round {round}: stopped on a full file system: {:?}", failure());
        assert!(written > 100, "round {round}: no room for {written} blocks");
        trim(&volume, 0, 4000);
        flush(&volume);
        let checkpoint = volume.checkpoint();
        assert!(checkpoint.is_ok(), "round {round}: stopped on a full file system: {checkpoint:?}");
    }
    volume.close().unwrap();
    disks.assert_clean("a full file system below both devices");
}

/// The metadata device fills up: writes are told that there is no space, and the volume goes on.
pub fn a_full_metadata_device_is_no_space_and_no_failure(options: &OpenOptions) {
    let options = &OpenOptions { runs: RunPolicy::Never, ..options.clone() };
    let lbns = 400_000;
    let disks = Disks::new((lbns + 50) * 512, 4 << 20);
    disks.format(&FormatOptions { log_blocks: Some(64), block_size: 512, ..format_options(lbns * 512) });
    let volume = disks.open(options).unwrap();
    // Far apart, so that each takes leaves of its own.
    let mut refused = 0;
    for n in 0..4000 {
        let lbn = n * 7919 % lbns;
        match try_write(&volume, lbn, n + 1, false) {
            Ok(()) => {}
            Err(RequestError::NoSpace) if refused < 3 => refused += 1,
            Err(RequestError::NoSpace) => break,
            Err(error) => {
                panic!("write {n}: expected no space, found {error}: {:?}", volume.status().failure)
            }
        }
    }
    assert!(refused > 0, "the metadata device never filled up");
    let checkpoint = volume.checkpoint();
    assert!(checkpoint.is_ok(), "a checkpoint of a full metadata device: {checkpoint:?}");
}
