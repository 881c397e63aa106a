//! Data in memory: what was read once is not read again, under whatever LBN, and nothing is served that the
//! device should not have.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind};
use dedup_tests::*;
use dedup_volume::{CheckOnRead, Op, OpenOptions, RequestError, Volume};

fn with_cache(bytes: u64) -> OpenOptions {
    OpenOptions { data_cache_bytes: bytes, ..options() }
}

fn reads(disks: &Disks) -> u64 {
    disks.data.operations(IoKind::Read)
}

/// Content 1 at LBNs 0 and 1.
fn shared(options: &OpenOptions) -> (Disks, Volume) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    write(&volume, 1, 1);
    flush(&volume);
    (disks, volume)
}

#[test]
fn a_block_that_many_share_is_read_once() {
    for check_on_read in [CheckOnRead::Crc, CheckOnRead::Digest, CheckOnRead::Off] {
        let (disks, volume) = shared(&OpenOptions { check_on_read, ..with_cache(1 << 20) });
        let before = reads(&disks);
        assert_content(&volume, 0, 1);
        assert_eq!(reads(&disks) - before, 1);
        assert_content(&volume, 1, 1);
        let mut part = [0; 100];
        run(&volume, Op::Read { offset: 4096 + 50, buf: &mut part }).unwrap();
        assert_eq!(part, block(1, 4096)[50..150]);
        assert_eq!(
            reads(&disks) - before,
            1,
            "reads of the data device for three of one block, {check_on_read:?}"
        );
        let cache = volume.status().data_cache;
        assert_eq!((cache.hits, cache.misses, cache.used), (2, 1, 4096));
    }
}

#[test]
fn a_part_that_is_read_keeps_the_whole_block() {
    let (disks, volume) = shared(&with_cache(1 << 20));
    let mut part = [0; 100];
    run(&volume, Op::Read { offset: 50, buf: &mut part }).unwrap();
    let before = reads(&disks);
    assert_content(&volume, 1, 1);
    assert_eq!(reads(&disks), before);
}

#[test]
fn without_memory_for_it_every_read_asks_the_device() {
    let (disks, volume) = shared(&options());
    let before = reads(&disks);
    (0..3).for_each(|_| assert_content(&volume, 0, 1));
    assert_eq!(reads(&disks) - before, 3);
}

#[test]
fn it_holds_no_more_than_it_may() {
    let disks = formatted(256, 4096);
    let volume = disks.open(&with_cache(64 * 4096)).unwrap();
    (0..256).for_each(|lbn| write(&volume, lbn, lbn + 1));
    for _ in 0..2 {
        (0..256).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
    }
    let cache = volume.status().data_cache;
    assert!(cache.used <= cache.size && cache.size == 64 * 4096, "{cache:?}");
    assert!(cache.used >= 32 * 4096, "{cache:?}");
}

/// A block of the data device rots. Whoever reads it gets an error, the second time too: what failed is not
/// kept.
#[test]
fn damaged_content_is_not_kept() {
    let (disks, volume) = shared(&with_cache(1 << 20));
    let place = (1..64).map(|pbn| pbn * 4096).find(|offset| {
        let mut found = vec![0; 4096];
        disks.data.read(*offset, &mut found).unwrap();
        found == block(1, 4096)
    });
    disks.data.write(place.unwrap(), &[0xff; 512]).unwrap();
    for lbn in [0, 1, 0] {
        assert_eq!(read(&volume, lbn), Err(RequestError::Io));
    }
    assert_eq!(volume.status().data_cache.used, 0);
    write(&volume, 5, 1);
    assert_content(&volume, 0, 1);
}

/// The LBN is written anew: the mapping leads to another block, whatever is in memory for the one before.
#[test]
fn an_overwritten_block_reads_as_it_was_written() {
    let (_disks, volume) = shared(&with_cache(1 << 20));
    assert_content(&volume, 0, 1);
    write(&volume, 0, 2);
    assert_content(&volume, 0, 2);
    assert_content(&volume, 1, 1);
    trim(&volume, 1, 1);
    assert_content(&volume, 1, 0);
}
