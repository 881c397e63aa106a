//! Content that is not what was written.

use crate::support::*;
use crate::*;

fn damage(image: &Image, pbn: u64) {
    image.data.write(pbn * BLOCK_SIZE as u64 + 17, b"damage").unwrap();
}

#[test]
fn a_changed_byte_of_any_block_in_use_is_found_and_one_in_a_free_block_is_not() {
    let image = sample();
    let pbn = pbn_of(&image, 42);
    damage(&image, pbn);
    damage(&image, image.superblock().data_blocks - 1);
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].kind, &*problems[0].field), (Kind::DataMismatch, "digest"));
    assert_eq!(problems[0].place, format!("PBN {pbn}"));
    let options = CheckOptions::default();
    let report = check(Some(&*image.data), image.metadata.clone(), &options, &mut |_| ()).unwrap();
    assert!(report.is_clean(), "data is read on request only");
}

#[test]
fn content_that_only_the_log_knows_is_compared_too() {
    let image = sample_with_log();
    let before = image.check();
    let used = before.summary.data_checked;
    // LBN 0's new block is the one allocated last: the first behind those of the checkpoint.
    let superblock = image.superblock();
    let leaf = image.block(image.root_block(counts));
    let new = (1..superblock.data_blocks).find(|pbn| {
        let image = image.clone();
        damage(&image, *pbn);
        get_count(&leaf.payload, *pbn) == 0 && !image.problems().is_empty()
    });
    assert!(new.is_some(), "none of the {used} blocks was allocated by the log");
}

#[test]
fn a_damaged_block_that_is_marked_is_known_and_a_mark_alone_is_no_error() {
    use dedup_volume::{Op, OpenOptions, Request, Volume};
    let image = sample();
    let pbn = pbn_of(&image, 42);
    damage(&image, pbn);
    let options = OpenOptions { background: false, digest_threads: 1, ..Default::default() };
    let volume = Volume::open(image.data.clone(), image.metadata.clone(), &options).unwrap();
    let mut buf = vec![0; BLOCK_SIZE];
    let op = Op::Read { offset: 42 * BLOCK_SIZE as u64, buf: &mut buf };
    volume.execute(vec![Request { tag: 0, op }], &mut |_, result| assert!(result.is_err()));
    flush(&volume);
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].kind, Kind::DataKnownBad);
    volume.close().unwrap();
    assert_eq!(image.problems()[0].kind, Kind::DataKnownBad);
    let report =
        check(Some(&*image.data), image.metadata.clone(), &CheckOptions::default(), &mut |_| ()).unwrap();
    assert!(report.is_clean() && report.has(Kind::BadBlock), "{report}");
    assert_eq!(report.summary.bad_blocks, 1);
}

#[test]
fn a_wrong_checksum_beside_a_mapping_is_found() {
    let image = sample();
    let pbn = pbn_of(&image, 42);
    remap(&image, 42, |mapping| mapping.crc ^= 1);
    let problems = image.problems();
    assert_eq!((problems[0].kind, &*problems[0].field), (Kind::DataMismatch, "crc"));
    assert_eq!(problems[0].place, format!("PBN {pbn}"));

    let image = sample();
    remap(&image, 3, |mapping| mapping.crc ^= 1);
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].kind, &*problems[0].place), (Kind::MappingChecksum, "LBN 3"));
}

#[test]
fn a_bad_sector_costs_one_block_and_not_its_neighbours() {
    use dedup_device::{IoKind, SimDevice};
    let image = sample();
    let pbn = pbn_of(&image, 42);
    let disk = SimDevice::from_image(image.data.image());
    let at = pbn * BLOCK_SIZE as u64;
    disk.fail_region(IoKind::Read, at..at + 1);
    let report = check(Some(&disk), image.metadata.clone(), &CheckOptions::tiny(), &mut |_| ()).unwrap();
    assert_eq!(report.findings.len(), 1, "{report}");
    let finding = &report.findings[0];
    assert_eq!((finding.kind, finding.place.clone()), (Kind::DataUnreadable, format!("PBN {pbn}")));
}
