//! The volume as its users see it: the four write cases, what is freed, what survives, what is refused.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_tests::*;
use dedup_volume::{FormatOptions, Op, OpenOptions, RequestError};

#[test]
fn the_four_write_cases_are_told_apart_and_counted() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&options()).unwrap();
    write(&volume, 0, 1); // new content, new LBN
    write(&volume, 1, 1); // known content, new LBN
    write(&volume, 0, 2); // new content, mapped LBN
    write(&volume, 1, 2); // known content, mapped LBN: the block of content 1 loses its last reference
    write(&volume, 2, 0); // zeros, new LBN
    write(&volume, 0, 0); // zeros, mapped LBN
    let status = volume.status();
    let c = status.counters;
    assert_eq!((c.writes, c.uniqwrites, c.dupwrites, c.zerowrites), (6, 2, 2, 2));
    assert_eq!((c.newwrites, c.overwrites), (3, 3));
    assert_eq!((status.data_used_blocks, status.logical_used_blocks), (1, 1));
    assert_content(&volume, 0, 0);
    assert_content(&volume, 1, 2);
    assert_content(&volume, 2, 0);
    assert_content(&volume, 63, 0);
}

#[test]
fn a_second_copy_costs_no_data_write_before_and_after_a_checkpoint_and_a_reopen() {
    let disks = formatted(256, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..64).for_each(|lbn| write(&volume, lbn, lbn + 1));
    let written = disks.data.counters().writes;
    (0..64).for_each(|lbn| write(&volume, 64 + lbn, lbn + 1));
    volume.checkpoint().unwrap();
    (0..64).for_each(|lbn| write(&volume, 128 + lbn, lbn + 1));
    volume.close().unwrap();
    let volume = disks.open(&options()).unwrap();
    (0..64).for_each(|lbn| write(&volume, 192 + lbn, lbn + 1));
    assert_eq!(disks.data.counters().writes, written);
    assert_eq!(volume.status().data_used_blocks, 64);
    (0..256).for_each(|lbn| assert_content(&volume, lbn, lbn % 64 + 1));
}

#[test]
fn freed_blocks_are_used_again_without_any_collection() {
    let disks = formatted(32, 4096);
    let volume = disks.open(&options()).unwrap();
    for round in 0..20 {
        (0..32).for_each(|lbn| write(&volume, lbn, 1 + round * 32 + lbn));
    }
    (0..32).for_each(|lbn| assert_content(&volume, lbn, 1 + 19 * 32 + lbn));
    assert_eq!(volume.status().data_used_blocks, 32);
}

#[test]
fn a_full_data_device_says_no_space_and_everything_else_goes_on() {
    let disks = Disks::new(17 * 4096, 8 << 20);
    disks.format(&format_options(64 * 4096));
    let volume = disks.open(&options()).unwrap();
    (0..16).for_each(|lbn| write(&volume, lbn, lbn + 1));
    assert_eq!(try_write(&volume, 20, 100, false), Err(RequestError::NoSpace));
    write(&volume, 21, 5); // a duplicate
    write(&volume, 22, 0);
    assert_content(&volume, 3, 4);
    assert_content(&volume, 20, 0);
    flush(&volume);
    trim(&volume, 0, 2);
    write(&volume, 20, 100);
    write(&volume, 23, 101);
    assert_eq!(try_write(&volume, 24, 102, false), Err(RequestError::NoSpace));
    assert_content(&volume, 20, 100);
}

#[test]
fn partial_writes_keep_the_rest_of_their_block_at_every_block_size() {
    for block_size in [512u32, 1024, 4096, 65536, 1 << 20] {
        let disks = formatted(8, block_size);
        let volume = disks.open(&options()).unwrap();
        let size = u64::from(block_size);
        let mut model = vec![0u8; 8 * block_size as usize];
        for (i, (offset, len)) in [
            (size / 2, size),
            (3, 5),
            (size - 1, 2),
            (2 * size, size / 2),
            (size + 7, 3 * size),
            (8 * size - 9, 9),
        ]
        .iter()
        .enumerate()
        {
            let data = vec![i as u8 + 1; *len as usize];
            run(&volume, Op::Write { offset: *offset, data: &data, fua: false }).unwrap();
            model[*offset as usize..(offset + len) as usize].copy_from_slice(&data);
        }
        let mut buf = vec![0; model.len()];
        run(&volume, Op::Read { offset: 0, buf: &mut buf }).unwrap();
        assert!(buf == model, "block size {block_size}");
        let mut part = vec![0; 10];
        run(&volume, Op::Read { offset: size - 3, buf: &mut part }).unwrap();
        assert_eq!(part, model[block_size as usize - 3..][..10]);
    }
}

#[test]
fn trimming_an_empty_terabyte_reads_and_writes_nothing() {
    let disks = Disks::new(1 << 20, 64 << 20);
    disks.format(&format_options(1 << 40));
    let volume = disks.open(&options()).unwrap();
    let before = disks.metadata.counters();
    run(&volume, Op::Trim { offset: 0, len: 1 << 40, fua: true }).unwrap();
    assert_eq!(disks.metadata.counters(), before);
    write(&volume, (1 << 28) - 1, 7);
    run(&volume, Op::Trim { offset: 0, len: 1 << 40, fua: true }).unwrap();
    assert_eq!(volume.status().data_used_blocks, 0);
}

#[test]
fn what_was_flushed_survives_a_power_cut_and_counters_with_it() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..10).for_each(|lbn| write(&volume, lbn, lbn % 5 + 1));
    flush(&volume);
    let counters = volume.status().counters;
    write(&volume, 11, 99);
    drop(volume);
    let disks = disks.lose_everything_unflushed();
    let volume = disks.open(&options()).unwrap();
    (0..10).for_each(|lbn| assert_content(&volume, lbn, lbn % 5 + 1));
    assert_content(&volume, 11, 0);
    assert_eq!(volume.status().counters, counters);
}

#[test]
fn fua_and_flushrq_are_durable_when_answered() {
    let disks = formatted(64, 4096);
    let volume = disks.open(&OpenOptions { flushrq: Some(3), ..options() }).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    let volume_after = disks.lose_everything_unflushed().open(&options()).unwrap();
    assert_content(&volume_after, 0, 1);
    (1..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
    write(&volume, 4, 5);
    let volume_after = disks.lose_everything_unflushed().open(&options()).unwrap();
    (0..4).for_each(|lbn| assert_content(&volume_after, lbn, lbn + 1));
    assert_content(&volume_after, 4, 0);
}

#[test]
fn requests_beyond_the_end_are_refused() {
    let disks = formatted(8, 4096);
    let volume = disks.open(&options()).unwrap();
    let data = [1; 4096];
    assert_eq!(
        run(&volume, Op::Write { offset: 7 * 4096 + 1, data: &data, fua: false }),
        Err(RequestError::OutOfRange)
    );
    assert_eq!(
        run(&volume, Op::Trim { offset: u64::MAX, len: 2, fua: false }),
        Err(RequestError::OutOfRange)
    );
    let mut buf = [0; 1];
    assert_eq!(run(&volume, Op::Read { offset: 8 * 4096, buf: &mut buf }), Err(RequestError::OutOfRange));
    run(&volume, Op::Write { offset: 8 * 4096, data: &[], fua: true }).unwrap();
}

/// However much is mapped, a record unmaps a bounded part of it: what one is charged for, and the time for
/// which the state is locked, do not grow with the request.
#[test]
fn a_trim_of_many_mapped_blocks_is_done_a_thousand_at_a_time() {
    const BLOCKS: u64 = 8192;
    let disks = Disks::new((BLOCKS + 10) * 512, 128 << 20);
    let options_of =
        FormatOptions { block_size: 512, log_blocks: Some(16 << 10), ..format_options(BLOCKS * 512) };
    disks.format(&options_of);
    let volume = disks.open(&OpenOptions { delta_max: 100_000, ..options() }).unwrap();
    let data: Vec<u8> = (0..BLOCKS).flat_map(|_| block(1, 512)).collect();
    assert_eq!(run(&volume, Op::Write { offset: 0, data: &data, fua: false }), Ok(()));
    let before = volume.status().commit.published;
    trim(&volume, 0, BLOCKS);
    assert_eq!(volume.status().commit.published - before, BLOCKS / 1024);
    assert_eq!(volume.status().logical_used_blocks, 0);
}
