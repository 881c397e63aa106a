//! Nodes that are intact as blocks but wrong as nodes: sealed with a right checksum, so only the trees can
//! see it.
//!
//! Each field of each node of a three-level tree is changed, and the parents above are re-sealed to name the
//! changed block. Every way to read the whole tree must end with an error; none may panic or run on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_btree::{ArrayTree, BTree, Bytes, Slot};
use dedup_meta::{Block, BlockRef, BlockType, MetaBlock, Root};
use support::{Memory, Survey};

const MAP: BTree<u64, u64> = BTree::new(BlockType::Overflow);
const ARRAY: ArrayTree<Bytes<12>> = ArrayTree::new(BlockType::Mapping);

/// Bytes of a B-tree's entries: where the keys stand in internal nodes, where their child references.
const KEY: usize = 8;
const REFS: usize = 225 * KEY;
const VALUES: usize = 254 * KEY;

fn map() -> (Memory, Root) {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (1..254 * 226 + 100).map(|k| (k * 10, k))).unwrap();
    assert_eq!(root.level, 2);
    (memory, root)
}

fn array() -> (Memory, Root) {
    let mut memory = Memory::new();
    let changes: Vec<_> = (0..338 * 600).step_by(3).map(|i| (i, Slot([7; 12]))).collect();
    let root = ARRAY.apply(&mut memory, &Root::EMPTY, &changes, &mut |_, _, _| {}).unwrap();
    assert_eq!(root.level, 2);
    (memory, root)
}

/// The first nodes on levels 2, 1 and 0, and where in its parent each one's reference stands.
fn spine(memory: &Memory, root: &Root, ref_at: usize) -> [MetaBlock; 3] {
    let child = |at: MetaBlock| {
        let mut number = [0; 8];
        number[..6].copy_from_slice(&memory.block(at).payload[ref_at..][..6]);
        MetaBlock(u64::from_le_bytes(number))
    };
    let top = root.node.unwrap().block;
    [top, child(top), child(child(top))]
}

/// Tampers with node `depth` of the spine and lets its ancestors name the new version.
fn tamper(
    memory: &mut Memory,
    root: &mut Root,
    ref_at: usize,
    depth: usize,
    change: impl FnOnce(&mut Block),
) {
    let spine = spine(memory, root, ref_at);
    let mut at = memory.tamper(spine[depth], change);
    for parent in spine[..depth].iter().rev() {
        at = memory
            .tamper(*parent, |block| block.payload[ref_at + 6..][..4].copy_from_slice(&at.crc.to_le_bytes()));
    }
    root.node = Some(at);
}

/// Whether a walk, a scan and an edit all see it, none of them panicking.
fn map_sees_damage(memory: &mut Memory, root: &Root) -> bool {
    let mut survey = Survey::default();
    MAP.walk(memory, root, &mut survey);
    let scan = MAP.range(memory, root, ..).any(|entry| entry.is_err());
    let lookups: Vec<_> = (0..254 * 230).map(|k| k * 10).collect();
    let lookup = MAP.lookup_many(memory, root, &lookups, |_, _| {}).is_err();
    let changes: Vec<_> = lookups.iter().map(|k| (*k, (k % 30 > 0).then_some(5))).collect();
    let apply = MAP.apply(memory, root, &changes).is_err();
    assert_eq!((scan, lookup), (!survey.errors.is_empty(), !survey.errors.is_empty()), "{:?}", survey.errors);
    assert_eq!(apply, scan);
    scan
}

fn array_sees_damage(memory: &mut Memory, root: &Root) -> bool {
    let mut survey = Survey::default();
    ARRAY.walk(memory, root, &mut survey);
    let scan = ARRAY.scan(memory, root, 0..1 << 48).any(|entry| entry.is_err());
    let indices: Vec<_> = (0..338 * 254 * 3).step_by(7).collect();
    let get = ARRAY.get_many(memory, root, &indices, |_, _| {}).is_err();
    let apply = ARRAY
        .apply(memory, root, &[(0, Slot([9; 12])), (338 * 599, Slot([9; 12]))], &mut |_, _, _| {})
        .is_err();
    assert_eq!((scan, get, apply), (!survey.errors.is_empty(), scan, scan));
    scan
}

type Change = (&'static str, &'static [usize], fn(&mut Block));

#[test]
fn each_field_of_a_btree_node_is_checked() {
    let changes: &[Change] = &[
        ("type", &[0, 1, 2], |b| b.header.block_type = BlockType::Hint as u8),
        ("level up", &[0, 1, 2], |b| b.header.level += 1),
        ("level far", &[0, 1, 2], |b| b.header.level = 255),
        ("block number", &[0, 1, 2], |b| b.header.block = 1000.into()),
        ("first index", &[0, 1, 2], |b| b.header.first = 1.into()),
        ("no entries", &[0, 1, 2], |b| b.header.entries = 0.into()),
        ("an entry more", &[0, 1, 2], |b| b.header.entries = (b.header.entries.get() + 1).into()),
        ("an entry less", &[0, 1, 2], |b| b.header.entries = (b.header.entries.get() - 1).into()),
        ("entries without end", &[0, 1, 2], |b| b.header.entries = u16::MAX.into()),
        ("first key lower", &[1, 2], |b| b.payload[0] -= 1),
        ("first key higher", &[1, 2], |b| b.payload[0] += 1),
        ("keys out of order", &[1, 2], |b| b.payload[KEY + 7] = 0xff),
        ("equal keys", &[0, 1, 2], |b| b.payload.copy_within(0..KEY, KEY)),
        ("a leaf's last key beyond its range", &[2], |b| b.payload[VALUES - 1] = 1),
        ("a separator changed", &[0, 1], |b| b.payload[KEY] ^= 1),
        ("child 0", &[0, 1], |b| b.payload[REFS..][..6].fill(0)),
        ("another child", &[0, 1], |b| b.payload.copy_within(REFS + 10..REFS + 20, REFS)),
        ("child crc", &[0, 1], |b| b.payload[REFS + 6] ^= 1),
        ("unused key", &[0], |b| b.payload[REFS - 1] = 1),
        ("tail", &[0, 1], |b| b.payload[4063] = 1),
    ];
    for (name, depths, change) in changes {
        for depth in *depths {
            let (mut memory, mut root) = map();
            tamper(&mut memory, &mut root, REFS, *depth, change);
            assert!(map_sees_damage(&mut memory, &root), "{name} at depth {depth} passed");
        }
    }
    let (mut memory, root) = map();
    assert!(!map_sees_damage(&mut memory, &root), "an intact tree is intact");
}

#[test]
fn each_field_of_an_array_node_is_checked() {
    let changes: &[Change] = &[
        ("type", &[0, 1, 2], |b| b.header.block_type = BlockType::Digest as u8),
        ("level up", &[0, 1, 2], |b| b.header.level += 1),
        ("block number", &[0, 1, 2], |b| b.header.block = 1000.into()),
        ("first index", &[0, 1, 2], |b| b.header.first = 338.into()),
        ("entries", &[0, 1, 2], |b| b.header.entries = (b.header.entries.get() + 1).into()),
        ("no entries", &[0, 1, 2], |b| b.header.entries = 0.into()),
        ("a value cleared", &[2], |b| b.payload[..12].fill(0)),
        ("tail", &[2], |b| b.payload[4063] = 1),
        ("child 0 of a used entry", &[0, 1], |b| b.payload[..6].fill(0)),
        ("child dropped", &[0, 1], |b| b.payload[..16].fill(0)),
        ("child crc", &[0, 1], |b| b.payload[6] ^= 1),
        ("used one more", &[0, 1], |b| b.payload[10] += 1),
        ("used none", &[0, 1], |b| b.payload[10..16].fill(0)),
        ("used beyond all", &[0, 1], |b| b.payload[15] = 0xff),
        ("another child", &[0, 1], |b| b.payload.copy_within(16..32, 0)),
        ("rest of an absent entry", &[0], |b| b.payload[4063] = 1),
    ];
    for (name, depths, change) in changes {
        for depth in *depths {
            let (mut memory, mut root) = array();
            tamper(&mut memory, &mut root, 0, *depth, change);
            assert!(array_sees_damage(&mut memory, &root), "{name} at depth {depth} passed");
        }
    }
    let (mut memory, root) = array();
    assert!(!array_sees_damage(&mut memory, &root), "an intact tree is intact");
}

#[test]
fn a_cached_node_reached_from_a_wrong_place_is_an_error() {
    let (mut memory, mut root) = map();
    tamper(&mut memory, &mut root, REFS, 1, |b| b.payload.copy_within(REFS + 10..REFS + 20, REFS));
    memory.all_cached = true;
    assert!(MAP.lookup(&memory, &root, &10).is_err());
    assert!(MAP.apply(&mut memory, &root, &[(10, None)]).is_err());
    let (mut memory, mut root) = array();
    tamper(&mut memory, &mut root, 0, 1, |b| b.payload.copy_within(16..32, 0));
    memory.all_cached = true;
    assert!(ARRAY.get(&memory, &root, 0).is_err());
    assert!(ARRAY.apply(&mut memory, &root, &[(0, Slot([9; 12]))], &mut |_, _, _| {}).is_err());
}

#[test]
fn a_batch_does_not_carry_on_a_wrong_sum_of_a_cached_index_node() {
    let (mut memory, mut root) = array();
    tamper(&mut memory, &mut root, 0, 1, |b| b.payload[16 + 10] += 1);
    memory.all_cached = true;
    assert!(ARRAY.apply(&mut memory, &root, &[(0, Slot([9; 12]))], &mut |_, _, _| {}).is_err());
}

#[test]
fn a_root_with_an_impossible_level_or_count_is_an_error() {
    for level in [1, 3, 16, 17, 255] {
        let (mut memory, root) = map();
        assert!(map_sees_damage(&mut memory, &Root { level, ..root }), "level {level}");
        let (mut memory, root) = array();
        assert!(array_sees_damage(&mut memory, &Root { level, ..root }), "level {level}");
    }
    for entries in [0, 1, u64::MAX] {
        let (mut memory, root) = array();
        let mut survey = Survey::default();
        ARRAY.walk(&memory, &Root { entries, ..root }, &mut survey);
        assert_eq!(survey.errors.len(), 1);
        let root = Root { entries, ..root };
        assert!(ARRAY.apply(&mut memory, &root, &[(0, Slot([1; 12]))], &mut |_, _, _| {}).is_err());
    }
}

#[test]
fn pointers_in_a_circle_end_with_an_error() {
    for target in [0, 1] {
        let (mut memory, mut root) = map();
        let nodes = spine(&memory, &root, REFS);
        let up = nodes[target];
        tamper(&mut memory, &mut root, REFS, 1, |b| {
            b.payload[REFS..][..6].copy_from_slice(&up.0.to_le_bytes()[..6])
        });
        assert!(map_sees_damage(&mut memory, &root));
        let (mut memory, mut root) = array();
        let up = spine(&memory, &root, 0)[target];
        tamper(&mut memory, &mut root, 0, 1, |b| b.payload[..6].copy_from_slice(&up.0.to_le_bytes()[..6]));
        assert!(array_sees_damage(&mut memory, &root));
    }
}

#[test]
fn a_walk_goes_on_beside_damage_and_reports_each_once() {
    let (mut memory, root) = map();
    let mut whole = Survey::default();
    MAP.walk(&memory, &root, &mut whole);
    let leaves = &whole.by_level[&0];
    let inner: BlockRef = whole.by_level[&1][1];
    memory.lose(leaves[3].block);
    memory.lose(leaves[100].block);
    let mut survey = Survey::default();
    MAP.walk(&memory, &root, &mut survey);
    assert_eq!(
        survey.errors.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [leaves[3].block, leaves[100].block]
    );
    assert_eq!(survey.blocks.len(), whole.blocks.len() - 2);
    let (mut entries, mut errors) = (0, 0);
    MAP.walk_entries(&memory, &root, |entry| if entry.is_ok() { entries += 1 } else { errors += 1 });
    assert_eq!((entries, errors), (root.entries - 2 * 254, 2));
    memory.lose(inner.block);
    let mut survey = Survey::default();
    MAP.walk(&memory, &root, &mut survey);
    assert_eq!(survey.errors.len(), 3, "what is below a damaged node is not seen");
}

#[test]
fn a_walk_that_only_counts_references_reads_no_leaves() {
    let (memory, root) = array();
    memory.reads.set(0);
    let mut survey = Survey { above: Some(0), ..Survey::default() };
    ARRAY.walk(&memory, &root, &mut survey);
    assert_eq!((survey.by_level[&0].len(), memory.reads.get()), (600, 4));
    let (mut entries, mut errors) = (0, 0);
    ARRAY.walk_entries(&memory, &root, |entry| if entry.is_ok() { entries += 1 } else { errors += 1 });
    assert_eq!((entries, errors), (root.entries, 0));
}

#[test]
fn a_block_with_two_parents_is_met_twice() {
    let (mut memory, mut root) = array();
    tamper(&mut memory, &mut root, 0, 1, |b| b.payload.copy_within(16..32, 0));
    let mut survey = Survey::default();
    ARRAY.walk(&memory, &root, &mut survey);
    let met = &survey.by_level[&0];
    assert_eq!(met[0], met[1]);
    assert_eq!(survey.errors.len(), 1, "valid in one of the places only");
}

/// The superblock's figure was right when it was written; one that is not must not wrap around to an enormous
/// one.
#[test]
fn a_tree_with_more_entries_than_its_root_says_cannot_be_emptied() {
    let (mut memory, root) = map();
    let root = Root { entries: 1, ..root };
    MAP.apply(&mut memory, &root, &[(10, None), (20, None)]).unwrap_err();
}
