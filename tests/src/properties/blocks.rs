//! Each block of a request is whole, old or new; a block that is damaged, or could not be written, hurts
//! nobody else.

use super::*;
use crate::hooked::{Rig, while_held};
use dedup_device::IoKind;

/// What was never written, or was trimmed, reads as zeros, whatever was in the caller's buffer.
pub fn what_holds_nothing_reads_as_zeros(options: &OpenOptions) {
    let disks = formatted(8, 4096);
    let volume = disks.open(options).unwrap();
    assert_content(&volume, 5, 0);
    write(&volume, 5, 1);
    trim(&volume, 5, 1);
    assert_content(&volume, 5, 0);
}

/// A block is read, freed, and taken for other content that happens to have the same CRC, so that only
/// forgetting the old content tells.
pub fn content_in_memory_goes_when_its_block_is_taken_anew(options: &OpenOptions) {
    let options = OpenOptions { data_cache_bytes: 1 << 20, ..options.clone() };
    let disks = full(8, &options);
    let volume = disks.open(&options).unwrap();
    let before = read(&volume, 0).unwrap();
    let mut after = before.clone();
    // A multiple of the CRC's polynomial, the first bit of a byte being its lowest: adding it changes no CRC.
    (0..33).filter(|i| 0x1_1edc_6f41_u64 >> (32 - i) & 1 == 1).for_each(|i| after[i / 8] ^= 1 << (i % 8));
    assert_eq!(crc32c::crc32c(&before), crc32c::crc32c(&after));
    trim(&volume, 0, 1);
    flush(&volume);
    // No other block is free.
    run(&volume, Op::Write { offset: 0, data: &after, fua: true }).unwrap();
    assert!(read(&volume, 0).unwrap() == after, "a block taken anew reads as the content before");
}

/// What a range covers in part keeps its other bytes.
pub fn a_trim_leaves_partly_covered_blocks_alone_and_zeroing_does_not(options: &OpenOptions) {
    let disks = formatted(8, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    run(&volume, Op::Trim { offset: 100, len: 3 * 4096, fua: false }).unwrap();
    assert_content(&volume, 0, 1);
    assert_content(&volume, 1, 0);
    assert_content(&volume, 2, 0);
    assert_content(&volume, 3, 4);
    run(&volume, Op::WriteZeroes { offset: 4 * 4096 + 10, len: 2 * 4096, fua: false }).unwrap();
    let (four, six) = (read(&volume, 4).unwrap(), read(&volume, 6).unwrap());
    let (head, tail) = (four[..10] == block(5, 4096)[..10], six[10..] == block(7, 4096)[10..]);
    assert!(head && tail, "bytes beside a zeroed range are kept");
    let zeroed = four[10..].iter().chain(&six[..10]).all(|b| *b == 0);
    assert!(zeroed, "the zeroed part of a block reads as zeros");
    assert_content(&volume, 5, 0);
}

/// A read never returns other bytes than those written, and says so until a write with the same content has
/// mended the block.
pub fn damaged_content_is_an_error_marked_and_healed_by_a_duplicate(options: &OpenOptions) {
    for checkpoint in [false, true] {
        let disks = formatted(64, 4096);
        let volume = disks.open(options).unwrap();
        write(&volume, 0, 1);
        flush(&volume);
        damage_content(&disks, 1);
        assert_eq!(read(&volume, 0), Err(RequestError::Io), "a read of a damaged block");
        assert_eq!(volume.status().bad_blocks_now, 1);
        if checkpoint {
            volume.checkpoint().unwrap();
        }
        flush(&volume);
        drop(volume);
        let volume = disks.open(options).unwrap();
        assert_eq!(volume.status().bad_blocks_now, 1, "the mark survives a reopen");
        write(&volume, 5, 1);
        assert_content(&volume, 0, 1);
        assert_content(&volume, 5, 1);
        let status = volume.status();
        assert_eq!(
            (status.bad_blocks_now, status.data_used_blocks, status.counters.healed_blocks),
            (0, 1, 1)
        );
    }
}

/// A read meets damage; before that is recorded, the LBN is written anew: its new block is whole and stays
/// unmarked.
pub fn a_block_written_anew_is_not_marked_for_the_damage_of_the_one_before(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    write(&rig.volume, 0, 1);
    flush(&rig.volume);
    damage_content(&rig.disks, 1);
    let volume = rig.volume.clone();
    // The read that makes sure of the damage is the second.
    rig.data.before(IoKind::Read, 1, move || write(&volume, 0, 2));
    let _ = read(&rig.volume, 0);
    assert_content(&rig.volume, 0, 2);
    assert_eq!(rig.volume.status().bad_blocks_now, 0, "whole blocks marked damaged");
}

/// Two requests of one batch write the same block: one after the other, so that what the first mapped is
/// freed once.
pub fn two_writes_of_one_block_in_one_batch_are_one_after_the_other(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    write(&volume, 1, 1);
    let contents = [block(2, 4096), block(3, 4096)];
    let request =
        |n: usize| Request { tag: n as u64, op: Op::Write { offset: 0, data: &contents[n], fua: true } };
    volume.execute(vec![request(0), request(1)], &mut |_, result| result.unwrap());
    let found = read(&volume, 0).unwrap();
    assert!(contents.contains(&found), "LBN 0 holds one of the two contents");
    assert_content(&volume, 1, 1);
    drop(volume);
    disks.assert_clean("two writes of one block in one batch");
}

/// The block loses its last reference while a duplicate is healing it: it is free then, and nothing may be
/// mapped to it.
pub fn a_healed_block_that_lost_its_last_reference_is_not_mapped(options: &OpenOptions) {
    for checkpoint in [false, true] {
        let rig = Rig::open(full(16, options), options).unwrap();
        damage_content(&rig.disks, 1);
        assert_eq!(read(&rig.volume, 0), Err(RequestError::Io), "a read of a damaged block");
        make_one_go_round(&rig.volume);
        if checkpoint {
            rig.volume.checkpoint().unwrap();
        }
        let volume = rig.volume.clone();
        rig.data.before(IoKind::Write, 0, move || trim(&volume, 0, 1));
        write(&rig.volume, 20, 1);
        flush(&rig.volume);
        fill(&rig.volume, 30..40, 100);
        assert_content(&rig.volume, 20, 1);
        assert_content(&reopened(&rig.disks, options), 20, 1);
    }
}

/// A read meets a block that a duplicate is just healing: it waits, and returns what is whole then.
pub fn a_read_waits_for_the_healing_of_its_block(options: &OpenOptions) {
    let rig = Rig::open(formatted(8, 4096), options).unwrap();
    let volume = &*rig.volume;
    write(volume, 0, 1);
    damage_content(&rig.disks, 1);
    assert_eq!(read(volume, 0), Err(RequestError::Io), "a read of a damaged block");
    while_held(&rig.data, IoKind::Write, || write(volume, 1, 1), || assert_content(volume, 0, 1));
    assert_eq!(volume.status().bad_blocks_now, 0);
}

/// Two clients write two sectors of one block: both are there.
pub fn sector_writes_to_one_block_are_both_there(options: &OpenOptions) {
    let rig = Rig::open(formatted(8, 4096), options).unwrap();
    write(&rig.volume, 1, 5);
    let volume = &*rig.volume;
    let sector = |n: u64| {
        let data = [n as u8; 512];
        run(volume, Op::Write { offset: 4096 + n * 512, data: &data, fua: false }).unwrap();
    };
    while_held(&rig.data, IoKind::Read, || sector(1), || sector(2));
    let mut expected = block(5, 4096);
    expected[512..1024].fill(1);
    expected[1024..1536].fill(2);
    assert!(read(volume, 1).unwrap() == expected, "one of two sector writes to a block is lost");
}

/// A write that fails leaves what was there.
pub fn a_failed_overwrite_leaves_the_old_content(options: &OpenOptions) {
    let disks = formatted(8, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    disks.data.fail_nth(IoKind::Write, 0);
    assert_eq!(try_write(&volume, 0, 2, false), Err(RequestError::Io), "a write whose data write failed");
    assert_content(&volume, 0, 1);
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 1);
}

/// Of blocks that go out in one large write, only the one that cannot be written fails.
pub fn one_bad_sector_fails_only_its_own_request(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    disks.data.fail_region(IoKind::Write, 3 * 4096..4 * 4096);
    let contents: Vec<Vec<u8>> = (0..6).map(|n| block(n + 1, 4096)).collect();
    let batch = (0..6).map(|n| Request {
        tag: n,
        op: Op::Write { offset: n * 4096, data: &contents[n as usize], fua: false },
    });
    let mut failed = Vec::new();
    volume.execute(batch.collect(), &mut |request, result| {
        failed.extend(result.err().map(|error| (request.tag, error)));
    });
    assert_eq!(failed.len(), 1, "one bad sector fails one request, not {failed:?}");
    for lbn in (0..6).filter(|lbn| *lbn != failed[0].0) {
        assert_content(&volume, lbn, lbn + 1);
    }
}

/// A place that could not be written is set aside: the next write goes elsewhere.
pub fn a_block_that_could_not_be_written_is_not_used_again(options: &OpenOptions) {
    let disks = formatted(8, 4096);
    let volume = disks.open(options).unwrap();
    disks.data.fail_region(IoKind::Write, 4096..2 * 4096);
    let failed = (0..8).filter(|lbn| try_write(&volume, *lbn, lbn + 1, false).is_err()).count();
    assert_eq!(failed, 1, "requests that failed because of one bad block");
}

/// Part of a block is written, and the rest of it cannot be read: that is an error, and the block stays what
/// it is.
pub fn a_partial_write_to_a_damaged_block_is_an_error(options: &OpenOptions) {
    let disks = formatted(8, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    flush(&volume);
    damage_content(&disks, 1);
    let written = run(&volume, Op::Write { offset: 100, data: &[9; 100], fua: false });
    assert_eq!(written, Err(RequestError::Io), "a partial write to a damaged block");
    assert_eq!(read(&volume, 0), Err(RequestError::Io), "a read of it afterwards");
    write(&volume, 1, 1);
    assert_content(&volume, 0, 1);
}
