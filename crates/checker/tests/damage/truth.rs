//! Mappings, counts and digests that contradict each other.

use crate::support::*;
use crate::*;

#[test]
fn a_count_off_by_one_in_either_direction_is_named_with_both_numbers() {
    let image = sample();
    let (pair, single) = (pbn_of(&image, 20), pbn_of(&image, 21));
    image.edit(counts, |block, _| set_count(&mut block.payload, single, 2));
    image.assert_only(Kind::CountTooHigh, &format!("PBN {single}"), "reference count", "1", "2");

    let image = sample();
    remap(&image, 21, |mapping| mapping.pbn = Pbn(pair));
    let problems = image.problems();
    let told: Vec<_> = problems.iter().map(|f| (f.kind, f.place.clone(), &*f.expected, &*f.found)).collect();
    let expected = [
        (Kind::CountTooLow, format!("PBN {pair}"), "2", "1"),
        (Kind::CountTooHigh, format!("PBN {single}"), "0", "1"),
    ];
    assert!(expected.iter().all(|e| told.contains(e)), "{told:?}");
}

#[test]
fn a_mapping_to_a_free_block_is_found() {
    let image = sample();
    let free = image.superblock().data_blocks - 1;
    remap(&image, 90, |mapping| *mapping = Mapping { pbn: Pbn(free), crc: 7, flags: 0 });
    image.edit_superblock(|sb| (sb.mapped, sb.data_used) = (sb.mapped + 1, sb.data_used + 1));
    let problems = image.problems();
    let told: Vec<_> = problems.iter().map(|f| (f.kind, f.place.clone())).collect();
    let place = format!("PBN {free}");
    assert!(told.contains(&(Kind::CountTooLow, place.clone())), "{told:?}");
    assert!(told.contains(&(Kind::DigestMissing, place)), "{told:?}");
}

#[test]
fn a_count_without_any_leaf_of_the_count_tree_is_found() {
    let image = sample();
    image.edit_superblock(|sb| *counts(sb) = Root::EMPTY);
    let report = image.check();
    assert_eq!(report.counts[&Kind::CountTooLow], 49, "{report}");
}

#[test]
fn a_mapping_out_of_range_is_named_by_its_lbn() {
    let image = sample();
    let blocks = image.superblock().data_blocks;
    remap(&image, 13, |mapping| mapping.pbn = Pbn(blocks));
    let finding = image.problems().into_iter().find(|f| f.kind == Kind::MappingRange).unwrap();
    assert_eq!((&*finding.place, &*finding.field, finding.found), ("LBN 13", "pbn", blocks.to_string()));

    let image = sample();
    image.edit_superblock(|sb| sb.volumes[0].logical_blocks = 60);
    assert!(image.problems().is_empty());
    image.edit_superblock(|sb| (sb.volumes[0].logical_blocks, sb.mapped) = (59, 59));
    let told: Vec<_> = image.problems().into_iter().map(|f| (f.kind, f.place)).collect();
    assert!(told.contains(&(Kind::MappingRange, "LBN 59".into())), "{told:?}");
}

#[test]
fn flags_that_nobody_sets_are_found() {
    let image = sample();
    remap(&image, 13, |mapping| mapping.flags = 2);
    image.assert_only(Kind::MappingFlags, "LBN 13", "flags", "0", "2");
}

#[test]
fn the_overflow_tree_and_the_counts_must_agree() {
    let shared = pbn_of(&sample(), 0);
    let place = format!("PBN {shared}");
    // One too many in the overflow tree: values stand after 290 keys of 6 bytes.
    let value = |block: &dedup_meta::Block| (0..2).find(|i| pbn_key(block, *i) == shared).unwrap();
    let image = sample();
    image.edit(overflow, |block, _| {
        let at = 290 * 6 + value(block) * 8;
        block.payload[at] += 1;
    });
    image.assert_only(Kind::CountTooHigh, &place, "reference count", "10", "11");

    let image = sample();
    image.edit(overflow, |block, _| {
        let at = 290 * 6 + value(block) * 8;
        block.payload[at] = 2;
    });
    let kinds: Vec<_> = image.problems().into_iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::CountTooLow, Kind::Overflow]);

    let image = sample();
    image.edit(counts, |block, _| set_count(&mut block.payload, shared, 2));
    let kinds: Vec<_> = image.problems().into_iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::CountTooLow, Kind::Overflow]);

    let image = sample();
    image.edit_superblock(|sb| *overflow(sb) = Root::EMPTY);
    let problems = image.problems();
    let lost = problems.iter().filter(|f| f.kind == Kind::Overflow).count();
    assert_eq!(lost, 2, "{problems:?}");
}

fn pbn_key(block: &dedup_meta::Block, i: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..6].copy_from_slice(&block.payload[i * 6..][..6]);
    u64::from_le_bytes(wide)
}

#[test]
fn a_block_in_use_without_a_digest_is_found() {
    let image = sample();
    let pbn = pbn_of(&image, 30);
    image.edit(digests, |block, root| {
        block.payload[pbn as usize * 32..][..32].fill(0);
        root.entries -= 1;
        block.header.entries = (root.entries as u16).into();
    });
    image.assert_only(
        Kind::DigestMissing,
        &format!("PBN {pbn}"),
        "digest",
        "one",
        "none, at a reference count of 1",
    );
}

#[test]
fn a_digest_beyond_the_device_is_found() {
    let image = sample();
    // The leaf holds digests for PBN 0 to 126, all of which exist here but for 0.
    image.edit(digests, |block, root| {
        block.payload[0] = 1;
        root.entries += 1;
        block.header.entries = (root.entries as u16).into();
    });
    assert_eq!(image.problems()[0].kind, Kind::DigestRange);
}

#[test]
fn a_damaged_mapping_leaf_does_not_make_every_count_look_too_high() {
    let image = sample();
    image.edit_superblock(|_| ());
    image.flip(image.root_block(mappings), 99, 1);
    assert_eq!(image.problems().len(), 1);
}
