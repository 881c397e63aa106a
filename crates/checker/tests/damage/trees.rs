//! Damaged nodes and wrong totals, in every tree.

use crate::support::*;
use crate::*;

#[test]
fn a_flipped_bit_in_any_tree_is_named_with_block_tree_and_field() {
    let cases: [(Pick, &str, Kind); 6] = [
        (mappings, "mapping tree", Kind::TreeNode),
        (digests, "digest tree", Kind::TreeNode),
        (counts, "reference count tree", Kind::TreeNode),
        (overflow, "overflow tree", Kind::TreeNode),
        (hints, "index", Kind::HintNode),
        (metamap, "metadata map", Kind::TreeNode),
    ];
    for (pick, tree, kind) in cases {
        let image = sample();
        // One leaf for everything, so that no older tree shares it.
        image.edit_superblock(|_| ());
        let at = image.root_block(pick);
        image.flip(at, 100, 4);
        let problems = image.problems();
        assert_eq!(problems.len(), 1, "{tree}: {problems:?}");
        assert_eq!((problems[0].kind, &*problems[0].field), (kind, "checksum"));
        assert_eq!(problems[0].place, format!("metadata block {at} ({tree}, level 0)"));
    }
}

#[test]
fn an_intact_block_of_another_version_is_told_from_a_damaged_one() {
    let image = sample();
    image.edit_superblock(|sb| {
        let node = mappings(sb).node.unwrap();
        mappings(sb).node = Some(BlockRef { crc: node.crc ^ 1, ..node });
    });
    assert_eq!(image.problems()[0].field, "checksum named by the parent");
}

#[test]
fn a_wrong_total_of_entries_is_found_in_every_tree() {
    let cases: [(Pick, Kind, &str); 5] = [
        (mappings, Kind::TreeNode, "used"),
        (digests, Kind::TreeNode, "used"),
        (counts, Kind::TreeNode, "used"),
        (overflow, Kind::TreeTotal, "entries"),
        (hints, Kind::HintEntry, "entries"),
    ];
    for (pick, kind, field) in cases {
        let image = sample();
        image.edit_superblock(|sb| pick(sb).entries += 1);
        let problems = image.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!((problems[0].kind, &*problems[0].field), (kind, field));
    }
}

#[test]
fn one_damaged_leaf_of_many_hides_nothing_else() {
    let disks = Disks::formatted(2000);
    let volume = disks.open(0);
    (0..2000).for_each(|lbn| write(&volume, lbn, 1 + lbn));
    volume.close().unwrap();
    let image = disks.image();
    image.edit_superblock(|_| ());
    // The second child of the mapping tree, and the third of the digest tree: block numbers in entries of 16
    // bytes.
    let child = |pick: Pick, i: usize| {
        let payload = image.block(image.root_block(pick)).payload;
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(&payload[i * 16..][..6]);
        MetaBlock(u64::from_le_bytes(wide))
    };
    let damaged = [child(mappings, 1), child(digests, 2)];
    damaged.iter().for_each(|at| image.flip(*at, 500, 0x80));
    let problems = image.problems();
    let places: Vec<_> = problems.iter().map(|f| (f.kind, f.place.clone())).collect();
    assert_eq!(
        places,
        [
            (Kind::TreeNode, format!("metadata block {} (mapping tree, level 0)", damaged[0])),
            (Kind::TreeNode, format!("metadata block {} (digest tree, level 0)", damaged[1])),
        ]
    );
    assert_eq!(image.check().summary.mapped, 2000 - 338);
}

#[test]
fn a_damaged_block_of_the_older_superblock_alone_is_a_warning() {
    let disks = Disks::formatted(LBNS);
    let volume = disks.open(0);
    write(&volume, 1, 1);
    volume.checkpoint().unwrap();
    write(&volume, 2, 2);
    volume.checkpoint().unwrap();
    let image = disks.image();
    let survey = dedup_meta::load_superblocks(&*image.metadata);
    let older = survey.older(survey.newest(None).unwrap()).unwrap().clone();
    let at = older.volumes[0].mapping.base.node.unwrap().block;
    assert_ne!(at, image.root_block(mappings));
    image.flip(at, 200, 1);
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].kind, &*problems[0].field), (Kind::OlderTree, "checksum"));
}
