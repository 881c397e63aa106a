//! The array tree against the standard library's map: contents, cost, leaks, height.
//!
//! - random batches on three codecs: 12 bytes, 32 bytes, two bits
//! - whole leaves and their exact price
//! - reading: scans skip what is absent, batches read each node once

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_btree::{ArrayTree, Bytes, LeafCodec, Slot};
use dedup_meta::{BlockFault, BlockType, MetaError, PAYLOAD_SIZE, Root};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{Memory, Survey};

const MAPPING: ArrayTree<Bytes<12>> = ArrayTree::new(BlockType::Mapping);
const COUNTS: ArrayTree<TwoBits> = ArrayTree::new(BlockType::RefCount);

fn value(number: u64) -> Slot<12> {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Slot(bytes)
}

/// Reference counts of two bits.
struct TwoBits;

impl LeafCodec for TwoBits {
    type Value = u8;
    const PER_LEAF: u64 = 16256;

    fn get(payload: &[u8], slot: usize) -> u8 {
        payload[slot / 4] >> (slot % 4 * 2) & 3
    }

    fn set(payload: &mut [u8], slot: usize, value: u8) {
        payload[slot / 4] = payload[slot / 4] & !(3 << (slot % 4 * 2)) | value << (slot % 4 * 2);
    }

    fn used(payload: &[u8]) -> u32 {
        payload.iter().map(|byte| ((byte | byte >> 1) & 0x55).count_ones()).sum()
    }

    fn check(_payload: &[u8]) -> Result<(), BlockFault> {
        Ok(())
    }
}

fn assert_is(memory: &Memory, root: &Root, model: &BTreeMap<u64, u64>) {
    let all: Result<Vec<_>, _> = MAPPING.scan(memory, root, 0..u64::MAX).collect();
    assert!(all.unwrap().into_iter().eq(model.iter().map(|(i, v)| (*i, value(*v)))));
    assert_eq!(root.entries, model.len() as u64);
    let mut survey = Survey::default();
    MAPPING.walk(memory, root, &mut survey);
    assert!(survey.errors.is_empty(), "{:?}", survey.errors);
    assert_eq!(survey.blocks, memory.in_use(), "a block leaked or is missing");
    let last = model.last_key_value().map_or(0, |(i, _)| *i);
    let level = (0..).find(|level| 338 * 254_u64.pow(*level) > last).unwrap();
    assert_eq!(u32::from(root.level), level, "the lowest that reaches {last}");
}

const REACH: u64 = 1 << 40;

/// Batches of runs: indices near 0, in the millions, and far out; 0 clears.
fn batch() -> impl Strategy<Value = BTreeMap<u64, u64>> {
    let start = prop_oneof![4 => 0u64..2000, 3 => 0u64..3_000_000, 1 => 0..REACH - 100_000];
    let run = (start, 1u64..1500, 1u64..60, 0u64..3);
    prop::collection::vec(run, 0..5).prop_map(|runs| {
        let run = |(start, count, stride, v)| (0..count).map(move |i| (start + i * stride, v));
        runs.into_iter().flat_map(run).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn batches_leave_what_a_map_would_hold_within_the_bound_and_without_leaks(
        batches in prop::collection::vec(batch(), 1..8),
    ) {
        let (mut memory, mut root, mut model) = (Memory::new(), Root::EMPTY, BTreeMap::<u64, u64>::new());
        let mut rounds = batches.clone();
        rounds.extend(batches.iter().rev().map(|batch| batch.keys().map(|i| (*i, 0)).collect()));
        for batch in rounds {
            let changes: Vec<_> = batch.iter().map(|(i, v)| (*i, value(*v))).collect();
            let indices = changes.last().map_or(0, |c| c.0 + 1).max(model.last_key_value().map_or(0, |l| l.0 + 1));
            let bound = ArrayTree::<Bytes<12>>::worst_case_blocks(changes.len() as u64, indices);
            let mut replaced = BTreeMap::new();
            memory.reset();
            root = MAPPING
                .apply(&mut memory, &root, &changes, &mut |i, old, new| {
                    replaced.insert(i, (old, new));
                })
                .unwrap();
            prop_assert!(memory.allocated <= bound, "{} blocks, bound {}", memory.allocated, bound);
            let mut expected = BTreeMap::new();
            for (i, v) in batch {
                let old = if v == 0 { model.remove(&i) } else { model.insert(i, v) };
                expected.extend(old.map(|old| (i, (value(old), value(v)))));
            }
            prop_assert_eq!(replaced, expected);
            assert_is(&memory, &root, &model);
        }
        prop_assert_eq!(root, Root::EMPTY);
    }

    #[test]
    fn lookups_and_scans_find_what_a_map_finds(
        batch in batch(), probes in prop::collection::btree_set(0u64..4_000_000, 1..200), from in 0u64..100_000, len in 0u64..100_000,
    ) {
        let mut memory = Memory::new();
        let changes: Vec<_> = batch.iter().map(|(i, v)| (*i, value(*v))).collect();
        let root = MAPPING.apply(&mut memory, &Root::EMPTY, &changes, &mut |_, _, _| {}).unwrap();
        let probes: Vec<_> = probes.into_iter().chain([1 << 47, u64::MAX]).collect();
        let mut found = Vec::new();
        MAPPING.get_many(&memory, &root, &probes, |i, v| found.push((i, v))).unwrap();
        let expected: Vec<_> = probes.iter().map(|i| (*i, value(batch.get(i).copied().unwrap_or(0)))).collect();
        prop_assert_eq!(found, expected);
        let scanned: Vec<_> = MAPPING.scan(&memory, &root, from..from + len).map(|entry| entry.unwrap().0).collect();
        prop_assert!(scanned.iter().eq(batch.range(from..from + len).filter(|(_, v)| **v > 0).map(|(i, _)| i)));
    }

    #[test]
    fn whole_leaves_cost_exactly_what_was_foretold(
        rounds in prop::collection::vec(prop::collection::btree_map(
            prop_oneof![0u64..600, 0u64..200_000], 0u8..3, 0..40), 1..10),
    ) {
        let (mut memory, mut root, mut model) = (Memory::new(), Root::EMPTY, BTreeMap::new());
        for round in rounds {
            let payloads: Vec<_> = round.iter().map(|(n, fill)| (*n, [*fill; PAYLOAD_SIZE])).collect();
            let foretold: Vec<_> = round.iter().map(|(n, fill)| (*n, *fill > 0)).collect();
            memory.reset();
            let (blocks, freed) = COUNTS.put_leaves_cost(&memory, &root, &foretold).unwrap();
            prop_assert_eq!((memory.allocated, memory.freed), (0, 0));
            let before = memory.in_use().len() as u64;
            let leaves: Vec<_> = payloads.iter().map(|(n, payload)| (*n, payload)).collect();
            root = COUNTS.put_leaves(&mut memory, &root, &leaves).unwrap();
            prop_assert_eq!((blocks, &freed), (memory.allocated, &memory.freed_blocks));
            prop_assert_eq!(before + blocks - freed.len() as u64, memory.in_use().len() as u64);
            for (n, fill) in round {
                if fill == 0 { model.remove(&n) } else { model.insert(n, fill) };
            }
            let mut survey = Survey::default();
            COUNTS.walk(&memory, &root, &mut survey);
            prop_assert!(survey.errors.is_empty());
            prop_assert_eq!(survey.blocks, memory.in_use());
            for n in 0..20 {
                let leaf = COUNTS.leaf(&memory, &root, n).unwrap();
                prop_assert_eq!(leaf.map(|leaf| leaf.payload[17]), model.get(&n).copied());
            }
        }
    }
}

#[test]
fn an_empty_terabyte_costs_nothing() {
    let mut memory = Memory::new();
    let far = 1 << 28;
    let changes = [(3, value(1)), (far, value(2))];
    let root = MAPPING.apply(&mut memory, &Root::EMPTY, &changes, &mut |_, _, _| {}).unwrap();
    assert_eq!((root.level, memory.in_use().len()), (3, 1 + 2 + 2 + 2));
    memory.reset();
    let all: Vec<_> = MAPPING.scan(&memory, &root, 4..far + 1).map(Result::unwrap).collect();
    assert_eq!(all, [(far, value(2))]);
    assert_eq!(memory.reads.get(), 7, "the path to either end");
    memory.reset();
    assert_eq!(MAPPING.scan(&memory, &root, 400_000..far).count(), 0);
    assert_eq!(memory.reads.get(), 5, "the root and the path to either end, as far as there is one");
}

#[test]
fn the_figures_of_a_level_1_node_tell_where_there_is_room() {
    let mut memory = Memory::new();
    let root = COUNTS.apply(&mut memory, &Root::EMPTY, &[(0, 1), (5, 2)], &mut |_, _, _| {}).unwrap();
    assert_eq!(root.level, 0);
    assert_eq!(COUNTS.children(&memory, &root, 0).unwrap().unwrap()[..3], [2, 0, 0]);
    assert_eq!(COUNTS.children(&memory, &root, 1).unwrap(), None);
    let changes = [(16256 * 3, 1), (16256 * 254 * 2 + 1, 3)];
    let root = COUNTS.apply(&mut memory, &root, &changes, &mut |_, _, _| {}).unwrap();
    memory.reset();
    assert_eq!(COUNTS.children(&memory, &root, 0).unwrap().unwrap()[..5], [2, 0, 0, 1, 0]);
    assert_eq!(COUNTS.children(&memory, &root, 1).unwrap(), None);
    assert_eq!(COUNTS.children(&memory, &root, 2).unwrap().unwrap()[..2], [1, 0]);
    assert_eq!(COUNTS.children(&memory, &root, u64::MAX).unwrap(), None);
    assert_eq!(COUNTS.children(&memory, &Root::EMPTY, 0).unwrap(), None);
    assert_eq!(memory.reads.get(), 2 + 1 + 2, "no leaf is read");
}

#[test]
fn a_batch_reads_each_touched_node_once_and_a_change_to_the_same_writes_nothing() {
    let mut memory = Memory::new();
    let changes: Vec<_> = (0..338 * 600).map(|i| (i, value(i + 1))).collect();
    let root = MAPPING.apply(&mut memory, &Root::EMPTY, &changes, &mut |_, _, _| {}).unwrap();
    assert_eq!((root.level, memory.allocated), (2, 600 + 3 + 1));
    memory.reset();
    let mut replaced = 0;
    let same = MAPPING.apply(&mut memory, &root, &changes, &mut |_, _, _| replaced += 1).unwrap();
    assert_eq!((same, replaced, memory.reads.get(), memory.writes), (root, 338 * 600, 604, 0));
    memory.reset();
    let indices: Vec<_> = (0..338 * 600).collect();
    MAPPING.get_many(&memory, &root, &indices, |i, v| assert_eq!(v, value(i + 1))).unwrap();
    assert_eq!(memory.reads.get(), 604);
    memory.reset();
    let changes = [(338 * 300 + 1, value(7)), (338 * 301 + 1, value(7))];
    MAPPING.apply(&mut memory, &root, &changes, &mut |_, _, _| {}).unwrap();
    assert_eq!((memory.reads.get(), memory.writes, memory.freed), (4, 4, 4));
}

#[test]
fn input_out_of_order_or_beyond_48_bits_is_an_error() {
    let mut memory = Memory::new();
    let mut apply = |changes: &[_]| MAPPING.apply(&mut memory, &Root::EMPTY, changes, &mut |_, _, _| {});
    for changes in [[(2, value(1)), (1, value(1))], [(1, value(1)), (1, value(2))]] {
        assert!(matches!(apply(&changes), Err(MetaError::Unsorted { position: 1, .. })));
    }
    assert!(apply(&[(1 << 48, value(1))]).is_err());
    assert_eq!(apply(&[(1 << 48, value(0)), (u64::MAX, value(0))]).unwrap(), Root::EMPTY);
    let root = apply(&[((1 << 48) - 1, value(1))]).unwrap();
    assert_eq!((root.level, root.entries), (ArrayTree::<Bytes<12>>::MAX_LEVEL, 1));
    let full = [1; PAYLOAD_SIZE];
    assert!(COUNTS.put_leaves(&mut memory, &Root::EMPTY, &[(u64::MAX, &full)]).is_err());
}

#[test]
fn leaves_hold_as_many_values_as_the_format_says() {
    assert_eq!((Bytes::<12>::PER_LEAF, Bytes::<32>::PER_LEAF), (338, 127));
    let mut memory = Memory::new();
    let digests = ArrayTree::<Bytes<32>>::new(BlockType::Digest);
    let changes: Vec<_> = (0..128).map(|i| (i, Slot([i as u8 + 1; 32]))).collect();
    let root = digests.apply(&mut memory, &Root::EMPTY, &changes, &mut |_, _, _| {}).unwrap();
    assert_eq!((root.level, memory.in_use().len()), (1, 3));
    assert_eq!(digests.get(&memory, &root, 127).unwrap(), Slot([128; 32]));
}
