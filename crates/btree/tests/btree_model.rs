//! The B-tree against the standard library's map: contents, cost, leaks.
//!
//! - `model`: random batches, several rounds, real node capacity
//! - shapes that random batches seldom reach: growth by one batch, collapse, merging
//! - reading: ranges, many keys at once, what a batch reads

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_btree::BTree;
use dedup_meta::{BlockType, MetaError, Root};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use support::{Memory, Survey};

type Key = [u8; 14];
const SET: BTree<Key, ()> = BTree::new(BlockType::Hint);
const MAP: BTree<u64, u64> = BTree::new(BlockType::Overflow);

fn key(number: u64) -> Key {
    let mut key = [0; 14];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

fn survey(memory: &Memory, root: &Root) -> Survey {
    let mut survey = Survey::default();
    MAP.walk(memory, root, &mut survey);
    survey
}

fn assert_is(memory: &Memory, root: &Root, model: &BTreeMap<u64, u64>) {
    let all: Result<Vec<_>, _> = MAP.range(memory, root, ..).collect();
    assert!(all.unwrap().into_iter().eq(model.iter().map(|(k, v)| (*k, *v))));
    assert_eq!(root.entries, model.len() as u64);
    let survey = survey(memory, root);
    assert!(survey.errors.is_empty(), "{:?}", survey.errors);
    assert_eq!(survey.blocks, memory.in_use(), "a block leaked or is missing");
}

fn step(
    memory: &mut Memory,
    root: &mut Root,
    model: &mut BTreeMap<u64, u64>,
    batch: &BTreeMap<u64, Option<u64>>,
) {
    let changes: Vec<_> = batch.iter().map(|(k, v)| (*k, *v)).collect();
    let bound = BTree::<u64, u64>::worst_case_blocks(changes.len() as u64, root);
    memory.reset();
    *root = MAP.apply(memory, root, &changes).unwrap();
    assert!(memory.allocated <= bound, "{} blocks allocated, bound {bound}", memory.allocated);
    assert_eq!(memory.writes, memory.allocated);
    for (k, v) in changes {
        match v {
            Some(v) => drop(model.insert(k, v)),
            None => drop(model.remove(&k)),
        }
    }
    assert_is(memory, root, model);
}

/// A batch: runs of neighbouring keys, each put or removed, some keys far apart.
fn batch() -> impl Strategy<Value = BTreeMap<u64, Option<u64>>> {
    let run =
        (0u64..40_000, 1u64..3000, 1u64..40, prop_oneof![2 => Just(true), 3 => Just(false)], any::<u64>());
    prop::collection::vec(run, 1..6).prop_map(|runs| {
        let mut batch = BTreeMap::new();
        for (start, count, stride, put, value) in runs {
            batch.extend((0..count).map(|i| (start + i * stride, put.then_some(value ^ i))));
        }
        batch
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn batches_leave_what_a_map_would_hold_within_the_bound_and_without_leaks(
        batches in prop::collection::vec(batch(), 1..8), small in prop::collection::vec(0u64..40_000, 1..40),
    ) {
        let (mut memory, mut root, mut model) = (Memory::new(), Root::EMPTY, BTreeMap::new());
        for batch in &batches {
            step(&mut memory, &mut root, &mut model, batch);
        }
        for k in small {
            let value = (!model.contains_key(&k)).then_some(k);
            step(&mut memory, &mut root, &mut model, &BTreeMap::from([(k, value)]));
        }
        let all = model.keys().map(|k| (*k, None)).collect();
        step(&mut memory, &mut root, &mut model, &all);
        prop_assert_eq!(root, Root::EMPTY);
    }

    #[test]
    fn ranges_and_lookups_find_what_a_map_finds(
        keys in prop::collection::btree_set(0u64..30_000, 0..4000),
        ranges in prop::collection::btree_set(0u64..30_000, 0..60),
    ) {
        let mut memory = Memory::new();
        let root = MAP.bulk_build(&mut memory, keys.iter().map(|k| (*k, k + 1))).unwrap();
        let bounds: Vec<_> = ranges.iter().copied().collect();
        let pairs: Vec<_> = bounds.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let mut found = Vec::new();
        MAP.range_many(&memory, &root, &pairs, |i, k, v| found.push((i, k, v))).unwrap();
        let expected: Vec<_> = pairs.iter().enumerate()
            .flat_map(|(i, (from, to))| keys.range(from..=to).map(move |k| (i, *k, k + 1))).collect();
        prop_assert_eq!(&found, &expected);
        for limit in [0, 1, 7, 400] {
            let mut first = Vec::new();
            MAP.first_many(&memory, &root, &pairs, limit, |i, k, v| first.push((i, k, v))).unwrap();
            let parts = expected.chunk_by(|a, b| a.0 == b.0);
            let expected: Vec<_> = parts.flat_map(|part| part.iter().take(limit)).copied().collect();
            prop_assert_eq!(first, expected);
        }
        for (from, to) in pairs {
            let got: Vec<_> = MAP.range(&memory, &root, from..to).map(|entry| entry.unwrap().0).collect();
            prop_assert!(got.iter().eq(keys.range(from..to)));
            for bounds in [(Excluded(from), Included(to)), (Excluded(from), Unbounded), (Unbounded, Included(to))] {
                let got: Vec<_> = MAP.range(&memory, &root, bounds).map(|entry| entry.unwrap().0).collect();
                prop_assert!(got.iter().eq(keys.range(bounds)), "{:?}", bounds);
            }
        }
        for k in bounds {
            prop_assert_eq!(MAP.lookup(&memory, &root, &k).unwrap(), keys.contains(&k).then_some(k + 1));
        }
    }

    #[test]
    fn the_bound_holds_for_batches_that_empty_and_fill_leaves(seed in any::<u64>(), rounds in 1usize..6) {
        let (mut memory, mut model) = (Memory::new(), BTreeMap::new());
        model.extend((0..60_000).map(|k| (k * 4, 1)));
        let mut root = MAP.bulk_build(&mut memory, model.clone()).unwrap();
        let mut state = seed | 1;
        for _ in 0..rounds {
            let mut batch = BTreeMap::new();
            for leaf in 0..240 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let first = leaf * 254 * 4;
                match (state >> 33) % 5 {
                    0 => batch.extend((0..250).map(|i| (first + i * 4, None))),
                    1 => batch.extend((0..254).map(|i| (first + i * 4, None))),
                    2 => batch.extend([(first + 1, Some(2))]),
                    3 => batch.extend((0..700).map(|i| (first + i, Some(3)))),
                    _ => {}
                }
            }
            step(&mut memory, &mut root, &mut model, &batch);
        }
    }
}

#[test]
fn a_leaf_of_hints_holds_290() {
    assert_eq!(BTree::<Key, ()>::LEAF_CAPACITY, 290);
    let mut memory = Memory::new();
    let root = SET.bulk_build(&mut memory, (0..290).map(|i| (key(i), ()))).unwrap();
    assert_eq!((root.level, memory.in_use().len()), (0, 1));
    let root = SET.insert(&mut memory, &root, key(290), ()).unwrap();
    assert_eq!((root.level, memory.in_use().len(), root.entries), (1, 3, 291));
}

#[test]
fn one_batch_grows_an_empty_tree_by_several_levels_and_one_takes_it_down() {
    let mut memory = Memory::new();
    let changes: Vec<_> = (0..200_000).map(|i| (key(i), Some(()))).collect();
    let bound = BTree::<Key, ()>::worst_case_blocks(200_000, &Root::EMPTY);
    let root = SET.apply(&mut memory, &Root::EMPTY, &changes).unwrap();
    assert_eq!((root.level, root.entries), (2, 200_000));
    assert!(memory.allocated <= bound && bound < 2 * memory.allocated, "{} {bound}", memory.allocated);
    let changes: Vec<_> = (1..200_000).map(|i| (key(i), None)).collect();
    let root = SET.apply(&mut memory, &root, &changes).unwrap();
    assert_eq!((root.level, root.entries, memory.in_use().len()), (0, 1, 1));
    assert_eq!(SET.remove(&mut memory, &root, key(0)).unwrap(), Root::EMPTY);
    assert!(memory.in_use().is_empty());
}

#[test]
fn a_change_that_changes_nothing_writes_nothing() {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (0..5000).map(|k| (k * 2, k))).unwrap();
    memory.reset();
    let same = MAP.apply(&mut memory, &root, &[(11, None), (20, Some(10)), (99_999, None)]).unwrap();
    assert_eq!((same, memory.writes, memory.freed), (root, 0, 0));
}

#[test]
fn a_batch_reads_each_touched_node_once_and_shares_the_rest() {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (0..254 * 100).map(|k| (k, k))).unwrap();
    memory.reset();
    let changes: Vec<_> = [3, 4, 50].map(|leaf| (leaf * 254 + 7, Some(0))).to_vec();
    MAP.apply(&mut memory, &root, &changes).unwrap();
    assert_eq!((memory.reads.get(), memory.writes, memory.freed), (4, 4, 4));
    assert_eq!(memory.prefetched.get(), 3);
}

#[test]
fn many_keys_read_each_node_once() {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (0..254 * 300).map(|k| (k, k))).unwrap();
    memory.reset();
    let keys: Vec<_> = (0..254 * 300).step_by(5).collect();
    let mut found = Vec::new();
    MAP.lookup_many(&memory, &root, &keys, |k, _| found.push(k)).unwrap();
    assert_eq!(found, keys);
    assert_eq!(memory.reads.get(), 300 + 2 + 1);
}

#[test]
fn a_short_range_reads_no_leaf_ahead_and_a_long_one_many() {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (0..254 * 200).map(|k| (k, k))).unwrap();
    memory.reset();
    assert_eq!(MAP.range(&memory, &root, 1000..1003).count(), 3);
    assert_eq!((memory.reads.get(), memory.prefetched.get()), (2, 0));
    assert_eq!(MAP.range(&memory, &root, ..).count(), 254 * 200);
    assert!(memory.prefetched.get() >= 198);
}

#[test]
fn small_neighbours_are_merged() {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (0..254 * 40).map(|k| (k, k))).unwrap();
    let removed: Vec<_> = (0..254 * 40).filter(|k| k % 254 >= 20).map(|k| (k, None)).collect();
    let root = MAP.apply(&mut memory, &root, &removed).unwrap();
    assert!(memory.in_use().len() <= 1 + 800 / 63 + 1, "{}", memory.in_use().len());
    assert_eq!(root.entries, 800);
}

#[test]
fn unsorted_input_is_an_error() {
    let mut memory = Memory::new();
    for keys in [[1, 3, 2], [1, 2, 2]] {
        let error = MAP.bulk_build(&mut memory, keys.map(|k| (k, 0))).unwrap_err();
        assert!(matches!(error, MetaError::Unsorted { position: 2, .. }));
        let error = MAP.apply(&mut memory, &Root::EMPTY, &keys.map(|k| (k, Some(0)))).unwrap_err();
        assert!(matches!(error, MetaError::Unsorted { position: 2, .. }));
        assert!(MAP.lookup_many(&memory, &Root::EMPTY, &keys, |_, _| {}).is_err());
    }
}

#[test]
fn built_trees_are_packed_at_every_size() {
    for count in [0u64, 1, 253, 254, 255, 254 * 225, 254 * 225 + 1, 254 * 226 + 1] {
        let mut memory = Memory::new();
        let root = MAP.bulk_build(&mut memory, (0..count).map(|k| (k, k))).unwrap();
        assert_is(&memory, &root, &(0..count).map(|k| (k, k)).collect());
        let leaves = survey(&memory, &root).by_level.get(&0).map_or(0, Vec::len);
        assert_eq!(leaves as u64, count.div_ceil(254));
    }
    assert_eq!(BTree::<u64, u64>::FANOUT, 225);
}

#[test]
fn an_old_root_stays_readable_until_its_blocks_are_reused() {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (0..10_000).map(|k| (k, k))).unwrap();
    let before: BTreeSet<_> = memory.in_use();
    MAP.insert(&mut memory, &root, 5, 99).unwrap();
    let shared = memory.in_use().intersection(&before).count();
    assert_eq!(shared, before.len() - 2, "only the path is copied");
}
