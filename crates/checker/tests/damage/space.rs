//! The metadata map against what the trees reach.

use crate::support::*;
use crate::*;

/// A metadata block that nothing uses.
fn free_block(image: &Image) -> u64 {
    let map = image.block(image.root_block(metamap)).payload;
    (400..1000).find(|block| get_count(&map, *block) == 0).unwrap()
}

fn recount(block: &mut dedup_meta::Block, root: &mut Root) {
    root.entries = dedup_spacemap::page::used(&block.payload);
    block.header.entries = (root.entries as u16).into();
}

#[test]
fn a_leaked_metadata_block_is_found_unless_a_recount_is_due() {
    let image = sample();
    let leaked = free_block(&image);
    image.edit(metamap, |block, root| {
        set_count(&mut block.payload, leaked, 1);
        recount(block, root);
    });
    let place = format!("metadata block {leaked}");
    image.assert_only(Kind::MetadataLeak, &place, "count", "0, as nothing refers to it", "1");

    image.edit_superblock(|sb| sb.recount_needed = true);
    let report = image.check();
    assert!(report.is_clean() && report.has(Kind::MetadataRecount), "{report}");
}

#[test]
fn a_block_of_a_tree_that_the_map_calls_free_is_found() {
    for pick in [mappings as Pick, hints, metamap] {
        let image = sample();
        let at = image.root_block(pick);
        image.edit(metamap, |block, root| {
            set_count(&mut block.payload, at.0, 0);
            recount(block, root);
        });
        let place = format!("metadata block {at}");
        image.assert_only(Kind::MetadataFree, &place, "count", "1", "0, free to be overwritten");
    }
}

#[test]
fn the_places_of_superblocks_and_log_must_be_counted() {
    let image = sample();
    image.edit(metamap, |block, root| {
        set_count(&mut block.payload, 256, 0);
        set_count(&mut block.payload, 260, 2);
        recount(block, root);
    });
    let problems = image.problems();
    let told: Vec<_> = problems.iter().map(|f| (f.kind, &*f.place)).collect();
    assert_eq!(
        told,
        [(Kind::MetadataFree, "metadata block 256"), (Kind::MetadataCount, "metadata block 260")]
    );
}

/// A map that knows of more blocks than there are would hand them out; an open for writing has the trees tell
/// it anew.
#[test]
fn a_count_beyond_the_device_is_found_and_such_a_map_is_not_written_by() {
    let image = sample();
    let beyond = image.superblock().layout.metadata_blocks + 3;
    image.edit(metamap, |block, root| {
        set_count(&mut block.payload, beyond, 1);
        recount(block, root);
    });
    let place = format!("metadata block {beyond}");
    let problems = image.problems();
    assert!(problems.iter().any(|f| f.kind == Kind::MetadataCount && f.place == place), "{problems:?}");
    let volume = image.open().unwrap();
    volume.checkpoint().unwrap();
    volume.close().unwrap();
    let problems = image.problems();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn a_block_that_two_references_name_is_found_with_the_second_one() {
    let image = sample();
    image.edit_superblock(|sb| *bad(sb) = *overflow(sb));
    let finding = image.problems().into_iter().find(|f| f.kind == Kind::MetadataShared).unwrap();
    let at = image.root_block(overflow);
    assert_eq!(finding.place, format!("metadata block {at} (bad block tree, level 0)"));
    assert_eq!(finding.found, "2, again from the superblock");
}
