//! A set and a map with runs against the standard library's: contents whatever was made a run, absorbed,
//! amended, merged in part or dropped; cost, leaks, damage.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_btree::{BTree, KeySet, Metered, RunMap};
use dedup_meta::{BlockType, MetaError, NodeSink, Root, RunSet};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use support::{Memory, Survey};

type Key = [u8; 14];
const SET: KeySet<Key> = KeySet::new(BlockType::Hint);
const TREE: BTree<Key, ()> = BTree::new(BlockType::Hint);

fn key(number: u64) -> Key {
    let mut key = [0; 14];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

/// A set, what it should hold, and how far its merge has come.
#[derive(Default)]
struct Scene {
    memory: Memory,
    set: Option<RunSet>,
    model: BTreeSet<Key>,
    merging: Option<(usize, Option<Key>)>,
}

impl Scene {
    fn set(&self) -> RunSet {
        self.set.clone().unwrap_or(RunSet::EMPTY)
    }

    fn apply_to_model(&mut self, changes: &[(Key, Option<()>)]) {
        for (key, change) in changes {
            match change {
                Some(()) => self.model.insert(*key),
                None => self.model.remove(key),
            };
        }
    }

    /// A new run, which takes in up to `absorbed` runs that no merge has begun on.
    fn push(&mut self, absorbed: usize, changes: &[(Key, Option<()>)]) {
        let (source, set) = (self.memory.clone(), self.set());
        let merging = self.merging.map_or(0, |(runs, _)| runs);
        let runs = KeySet::<Key>::runs(&set);
        let absorbed = absorbed.min(runs - merging).max((runs + 1).saturating_sub(KeySet::<Key>::RUNS_MAX));
        let taken: u64 = (runs - absorbed..runs).map(|i| KeySet::<Key>::run_entries(&set, i)).sum();
        self.memory.reset();
        let set = SET.push_run(&source, &mut self.memory, &set, absorbed, changes).unwrap();
        let bound = KeySet::<Key>::run_blocks(taken + changes.len() as u64);
        assert!(self.memory.allocated <= bound, "{} blocks allocated, bound {bound}", self.memory.allocated);
        self.set = Some(set);
        self.apply_to_model(changes);
    }

    /// Changes to the newest run, unless a merge has begun on it.
    fn amend(&mut self, changes: &[(Key, Option<()>)]) {
        let set = self.set();
        if KeySet::<Key>::runs(&set) <= self.merging.map_or(0, |(runs, _)| runs) {
            return;
        }
        self.memory.reset();
        let bound = KeySet::<Key>::amend_blocks(changes.len() as u64, &set);
        self.set = Some(SET.amend(&mut self.memory, &set, changes).unwrap());
        assert!(self.memory.allocated <= bound, "{} blocks allocated, bound {bound}", self.memory.allocated);
        self.apply_to_model(changes);
    }

    /// A slice of a merge of the `oldest` runs, or of the one that has begun.
    fn merge(&mut self, oldest: usize, limit: usize) {
        let (source, set) = (self.memory.clone(), self.set());
        let oldest = oldest.clamp(1, KeySet::<Key>::runs(&set).max(1));
        let (runs, from) = self.merging.unwrap_or((oldest, None));
        if KeySet::<Key>::runs(&set) == 0 {
            return;
        }
        let mut sink = Metered::new(&mut self.memory);
        let bound = BTree::<Key, ()>::worst_case_blocks(limit as u64, &set.base);
        let (mut set, next) = SET.merge(&source, &mut sink, &set, runs, from, limit).unwrap();
        assert!(sink.allocated() <= bound, "{} blocks allocated, bound {bound}", sink.allocated());
        self.merging = next.map(|next| (runs, Some(next)));
        if next.is_none() {
            set = SET.drop_oldest(&source, &mut self.memory, &set, runs).unwrap();
        }
        self.set = Some(set);
    }

    fn assert_whole(&self) {
        let (memory, set) = (&self.memory, self.set());
        let all: Vec<Key> = SET.range(memory, &set, key(0)).collect::<Result<_, _>>().unwrap();
        assert!(all.iter().eq(&self.model), "{} keys, expected {}", all.len(), self.model.len());
        let half: Vec<Key> = SET.range(memory, &set, key(100)).collect::<Result<_, _>>().unwrap();
        assert!(half.iter().eq(self.model.range(key(100)..)));
        let ranges: Vec<(Key, Key)> = (0..30).map(|i| (key(10 * i), key(10 * i + 6))).collect();
        let mut found = BTreeSet::new();
        SET.range_many(memory, &set, &ranges, usize::MAX, |range, key| {
            assert!(ranges[range].0 <= key && key <= ranges[range].1);
            assert!(found.insert(key), "shown twice");
        })
        .unwrap();
        let expected = self.model.iter().filter(|k| ranges.iter().any(|(from, to)| from <= *k && *k <= to));
        assert!(found.iter().eq(expected));
        let mut survey = Survey::default();
        KeySet::<Key>::trees(&set).for_each(|root| TREE.walk(memory, root, &mut survey));
        assert!(survey.errors.is_empty(), "{:?}", survey.errors);
        assert_eq!(survey.blocks, memory.in_use(), "a block leaked or is missing");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push {
        absorbed: usize,
        changes: BTreeMap<u64, bool>,
    },
    Amend {
        changes: BTreeMap<u64, bool>,
    },
    Merge {
        oldest: usize,
        limit: usize,
    },
    /// The process that merged is gone: the next one begins anew.
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = || prop::collection::btree_map(0..300_u64, any::<bool>(), 1..60);
    prop_oneof![
        4 => (0..4_usize, changes()).prop_map(|(absorbed, changes)| Step::Push { absorbed, changes }),
        1 => changes().prop_map(|changes| Step::Amend { changes }),
        4 => (1..5_usize, 1..80_usize).prop_map(|(oldest, limit)| Step::Merge { oldest, limit }),
        1 => Just(Step::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_set_holds_what_was_put_in_last_whatever_is_a_run_or_merged_in_part(steps in prop::collection::vec(step(), 1..24)) {
        let mut scene = Scene::default();
        let keyed = |changes: BTreeMap<u64, bool>| -> Vec<_> {
            changes.into_iter().map(|(k, add)| (key(k), add.then_some(()))).collect()
        };
        for step in steps {
            match step {
                Step::Push { absorbed, changes } => {
                    // Where all runs are under a merge, there is no place for another.
                    let full = scene.merging.is_some_and(|(runs, _)| runs == KeySet::<Key>::RUNS_MAX);
                    if !full {
                        scene.push(absorbed, &keyed(changes));
                    }
                }
                Step::Amend { changes } => scene.amend(&keyed(changes)),
                Step::Merge { oldest, limit } => scene.merge(oldest, limit),
                Step::Forget => scene.merging = None,
            }
            scene.assert_whole();
        }
    }
}

/// Keys spread evenly, in the order of their numbers.
fn spread(numbers: impl Iterator<Item = u64>) -> Vec<(Key, Option<()>)> {
    let keys: BTreeSet<u64> = numbers.map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    keys.into_iter().map(|n| (key(n), Some(()))).collect()
}

#[test]
fn scattered_keys_cost_a_tenth_as_runs_that_are_merged_together() {
    let stored = 300_000;
    let base = |memory: &mut Memory| {
        TREE.bulk_build(memory, spread(0..stored).into_iter().map(|(key, _)| (key, ()))).unwrap()
    };
    let batch = |i: u64| spread(stored + i * 1000..stored + (i + 1) * 1000);

    let mut direct = Memory::new();
    let mut root = base(&mut direct);
    direct.reset();
    (0..32).for_each(|i| root = TREE.apply(&mut direct, &root, &batch(i)).unwrap());

    let mut scene = Scene::default();
    scene.set = Some(RunSet { base: base(&mut scene.memory), runs: Vec::new() });
    let mut written = 0;
    for i in 0..32 {
        scene.push(usize::from(i % 8 > 0), &batch(i));
        written += scene.memory.allocated;
    }
    scene.memory.reset();
    scene.merge(4, usize::MAX);
    written += scene.memory.allocated;
    assert!(KeySet::<Key>::runs(&scene.set()) == 0 && scene.set().base.entries == root.entries);
    assert!(written * 10 < direct.writes, "{written} blocks, without runs {}", direct.writes);
}

#[test]
fn a_damaged_run_is_an_error_of_all_that_needs_it() {
    let mut scene = Scene::default();
    scene.push(0, &spread(0..1000));
    scene.push(0, &spread(1000..2000));
    let set = scene.set();
    scene.memory.lose(set.runs[0].node.unwrap().block);
    let damaged = |result: Result<(), MetaError>| {
        assert!(matches!(result, Err(MetaError::Damaged { kind: BlockType::Hint, .. })), "{result:?}");
    };
    let source = scene.memory.clone();
    let sink: &mut dyn NodeSink = &mut scene.memory;
    damaged(SET.range_many(&source, &set, &[(key(0), key(u64::MAX))], usize::MAX, |_, _| ()));
    damaged(SET.range(&source, &set, key(0)).try_for_each(|entry| entry.map(drop)));
    damaged(SET.merge(&source, sink, &set, 1, None, 10).map(drop));
    damaged(SET.push_run(&source, sink, &set, 2, &spread(5..6)).map(drop));
    damaged(SET.drop_oldest(&source, sink, &set, 1).map(drop));
}

const MAP: RunMap<u64, u64> = RunMap::new(BlockType::MappingRun);

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn runs_of_a_map_say_what_came_last_whatever_was_absorbed_amended_or_dropped(
        steps in prop::collection::vec((0..4_u8, 0..4_usize, prop::collection::btree_map(0..300_u64, any::<u64>(), 1..60)), 1..20)
    ) {
        let mut memory = Memory::default();
        let mut runs: Vec<Root> = Vec::new();
        // What each run says, oldest first.
        let mut model: Vec<BTreeMap<u64, u64>> = Vec::new();
        for (step, count, changes) in steps {
            let (source, list) = (memory.clone(), changes.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
            let count = count.min(runs.len());
            memory.reset();
            match step {
                0 | 1 => {
                    let absorbed = count.max((runs.len() + 1).saturating_sub(RunMap::<u64, u64>::RUNS_MAX));
                    let taken: u64 = runs[runs.len() - absorbed..].iter().map(|root| root.entries).sum();
                    runs = MAP.push(&source, &mut memory, &runs, absorbed, &list).unwrap();
                    let bound = RunMap::<u64, u64>::run_blocks(taken + list.len() as u64);
                    prop_assert!(memory.allocated <= bound, "{} blocks, bound {}", memory.allocated, bound);
                    let mut run = BTreeMap::new();
                    model.split_off(model.len() - absorbed).into_iter().for_each(|older| run.extend(older));
                    run.extend(changes);
                    model.push(run);
                }
                2 => {
                    runs = MAP.amend(&mut memory, &runs, &list).unwrap();
                    model.last_mut().into_iter().for_each(|newest| newest.extend(&changes));
                }
                _ => {
                    runs = MAP.drop_oldest(&source, &mut memory, &runs, count).unwrap();
                    model.drain(..count);
                }
            }
            let mut whole = BTreeMap::new();
            model.iter().for_each(|run| whole.extend(run.clone()));
            let found: Vec<(u64, u64)> = MAP.range(&memory, &runs, 50..250).collect::<Result<_, _>>().unwrap();
            prop_assert!(found.into_iter().eq(whole.range(50..250).map(|(k, v)| (*k, *v))));
            let keys: Vec<u64> = (0..300).step_by(3).collect();
            let mut said = BTreeMap::new();
            MAP.lookup_many(&memory, &runs, &keys, |_, key| key % 2 == 0, |place, value| {
                assert_eq!(said.insert(keys[place], value), None, "said twice");
            }).unwrap();
            prop_assert!(said.into_iter().eq(whole.into_iter().filter(|(key, _)| key % 6 == 0)));
            let entries: Vec<u64> = runs.iter().map(|root| root.entries).collect();
            prop_assert!(entries.into_iter().eq(model.iter().map(|run| run.len() as u64)));
            let mut survey = Survey::default();
            runs.iter().for_each(|root| MAP.tree().walk(&memory, root, &mut survey));
            prop_assert!(survey.errors.is_empty(), "{:?}", survey.errors);
            prop_assert_eq!(&survey.blocks, &memory.in_use(), "a block leaked or is missing");
        }
    }
}
