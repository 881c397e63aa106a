//! The data label and the superblock copies.

use crate::support::*;
use crate::*;

#[test]
fn a_damaged_label_is_named_and_the_metadata_is_checked_all_the_same() {
    let image = sample();
    image.data.write(40, &[0xff]).unwrap();
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].kind, &*problems[0].place), (Kind::DataLabel, "data label"));
    assert_eq!(image.check().summary.mapped, 60);
}

#[test]
fn a_label_of_another_device_size_or_pool_is_a_wrong_pair() {
    let image = sample();
    let label = Label::read(&*image.data).unwrap();
    for (changed, field) in [
        (Label { data_device: uuid::Uuid::from_u128(9), ..label }, "data device uuid"),
        (Label { size: label.size - 512, ..label }, "size"),
        (Label { block_size: 4096, ..label }, "block size"),
        (Label { pool: uuid::Uuid::from_u128(9), ..label }, "pool"),
    ] {
        changed.write(&*image.data).unwrap();
        let problems = image.problems();
        assert_eq!(problems.len(), 1, "{field}: {problems:?}");
        assert_eq!((problems[0].kind, &*problems[0].field), (Kind::Pairing, field));
    }
}

#[test]
fn a_data_device_cut_short_is_named_with_both_sizes() {
    let image = sample();
    let small = MemDevice::new(image.data.size() / 2);
    let mut label = vec![0; 4096];
    image.data.read(0, &mut label).unwrap();
    small.write(0, &label).unwrap();
    let report = check(Some(&small), image.metadata.clone(), &CheckOptions::default(), &mut |_| ()).unwrap();
    let finding = &report.findings[0];
    assert_eq!((finding.kind, &*finding.found), (Kind::DeviceSize, "32768"));
}

#[test]
fn the_newest_superblock_damaged_in_its_slot_is_a_warning_and_any_other_torn_copy_is_not() {
    let image = sample();
    let superblock = image.superblock();
    let (newest, other) = (superblock.txid, TxId(superblock.txid.0 + 1));
    let layout = superblock.layout;
    for (at, problem) in [
        (layout.slot(newest), true),
        (layout.slot(other), false),
        (layout.spare(newest), false),
        (layout.spare(other), false),
    ] {
        let image = image.clone();
        image.flip(at, 3000, 1);
        let report = image.check();
        let finding = report.findings.iter().find(|f| f.place.starts_with(&format!("metadata block {at} ")));
        let finding = finding.unwrap_or_else(|| panic!("nothing said of {at}"));
        assert_eq!(finding.field, "checksum");
        assert_eq!(finding.kind, if problem { Kind::SuperblockCopy } else { Kind::SuperblockTorn });
        assert_eq!(report.is_clean(), !problem, "{at}: {report}");
    }
}

#[test]
fn a_spare_that_was_durable_before_the_newest_superblock_must_not_be_torn() {
    // Two checkpoints of one opening: the second one's flush covered the first one's spare.
    let disks = Disks::formatted(LBNS);
    let volume = disks.open(0);
    write(&volume, 1, 1);
    volume.checkpoint().unwrap();
    write(&volume, 2, 2);
    volume.checkpoint().unwrap();
    let image = disks.image();
    let superblock = image.superblock();
    image.flip(superblock.layout.spare(TxId(superblock.txid.0 - 1)), 3000, 1);
    assert_eq!(image.problems()[0].kind, Kind::SuperblockCopy);
}

#[test]
fn an_erased_slot_is_not_taken_for_a_young_volume() {
    let image = sample();
    let superblock = image.superblock();
    let at = superblock.layout.slot(TxId(superblock.txid.0 + 1));
    image.put(at, &dedup_meta::Block::zeroed());
    let problems = image.problems();
    assert_eq!((problems[0].kind, &*problems[0].field), (Kind::SuperblockCopy, "magic"));
}

#[test]
fn two_blank_devices_hold_no_volume() {
    let blank = || Arc::new(MemDevice::new(5 << 20));
    let result = check(Some(&*blank()), blank(), &CheckOptions::default(), &mut |_| ());
    assert!(matches!(result, Err(CheckError::NoVolume(_))));
}

#[test]
fn totals_of_the_superblock_are_recounted() {
    let image = sample();
    image.edit_superblock(|sb| sb.data_used += 1);
    image.assert_only(Kind::SpaceTotal, "superblock", "data_used", "49", "50");
    let image = sample();
    image.edit_superblock(|sb| sb.mapped -= 1);
    image.assert_only(Kind::SpaceTotal, "superblock", "mapped", "60", "59");
}

#[test]
fn two_copies_of_one_superblock_that_differ_are_found_with_the_field() {
    let image = sample();
    let superblock = image.superblock();
    let changed = dedup_meta::Superblock { epoch: dedup_meta::Epoch(1 << 40), ..superblock.clone() };
    let store = dedup_meta::Store::new(image.metadata.clone(), superblock.pool, 64);
    dedup_meta::write_spare(&store, &changed).unwrap();
    let problems = image.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].kind, &*problems[0].field), (Kind::SuperblockCopy, "epoch"));
    assert!(
        problems[0]
            .place
            .starts_with(&format!("metadata block {} ", superblock.layout.spare(superblock.txid)))
    );
}

/// A metadata device was larger once; when it was formatted anew over a part of itself, a crash left a copy
/// at its old end.
#[test]
fn a_superblock_where_the_layout_has_none_is_told_and_no_problem() {
    let image = sample();
    let superblock = image.superblock();
    let mut bytes = vec![0; image.metadata.size() as usize];
    image.metadata.read(0, &mut bytes).unwrap();
    let metadata = Arc::new(MemDevice::new(image.metadata.size() + (1 << 20)));
    metadata.write(0, &bytes).unwrap();
    let layout = Layout::new(metadata.size() / META_BLOCK_SIZE as u64, superblock.layout.log.blocks).unwrap();
    let old = Superblock { layout, txid: TxId(superblock.txid.0 - 2), ..superblock.clone() };
    let store = Store::new(metadata.clone(), superblock.pool, 64);
    dedup_meta::write_spare(&store, &old).unwrap();
    let larger = Image { data: image.data.clone(), metadata };
    let report = larger.check();
    assert!(larger.problems().is_empty(), "{report}");
    let place = format!("metadata block {}", layout.spare(old.txid));
    assert!(report.findings.iter().any(|f| f.kind == Kind::SuperblockNote && f.place == place), "{report}");
}
