//! Random checkpoints of both maps against the standard library's: contents, blocks allocated, number of
//! runs, leaks.

use super::*;
use crate::trees::index::{self, Index};
use crate::trees::lbn_map::{self, LbnMap};
use dedup_btree::{Descend, KeySet, Visit, Visitor};
use dedup_meta::{Block, BlockFault, BlockRef, BlockType, MetaBlock, ShapeCheck, TxId};
use dedup_schema::{HINT_SET, HINTS, HintKey, Lbn, MAPPING_RUNS, MAPPINGS, Mapping, Pbn};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const LBNS: u64 = 200_000;

/// A metadata device in memory, whose blocks stay readable until the end of the transaction that frees them.
#[derive(Clone, Default)]
struct Memory {
    blocks: BTreeMap<u64, Arc<Block>>,
    last: u64,
    allocated: u64,
    freed: Vec<u64>,
}

impl NodeSource for Memory {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        _: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        let found = self.blocks.get(&at.block.0).cloned();
        found.filter(|block| block.header.crc.get() == at.crc).ok_or(MetaError::Damaged {
            block: at.block,
            kind,
            level,
            fault: BlockFault::Checksum { expected: at.crc, found: 0 },
        })
    }
}

impl NodeSink for Memory {
    fn birth(&self) -> TxId {
        TxId(1)
    }

    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        (self.last, self.allocated) = (self.last + 1, self.allocated + 1);
        Ok(MetaBlock(self.last))
    }

    fn write(&mut self, mut block: Box<Block>, shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        shape(&block).expect("a node that is written has its shape");
        block.header.block.set(self.last);
        let crc = block.seal(uuid::Uuid::from_u128(7));
        self.blocks.insert(self.last, Arc::from(block));
        Ok(BlockRef { block: MetaBlock(self.last), crc })
    }

    fn free(&mut self, block: MetaBlock) {
        self.freed.push(block.0);
    }
}

/// Notes all blocks of trees.
#[derive(Default)]
struct Reached(BTreeSet<u64>);

impl Visitor for Reached {
    fn reference(&mut self, at: BlockRef, _level: u8, _parent: Option<MetaBlock>) -> bool {
        self.0.insert(at.block.0)
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        visit.node.as_ref().expect("no node is damaged");
        Descend::Yes
    }
}

/// One transaction: what `change` makes of a set in at most `blocks`.
fn transaction(
    memory: &mut Memory,
    set: &mut RunSet,
    blocks: u64,
    change: impl FnOnce(&Memory, &mut Memory, &RunSet) -> RunSet,
) {
    let before = memory.clone();
    memory.allocated = 0;
    *set = change(&before, memory, set);
    assert!(memory.allocated <= blocks, "{} blocks allocated of {blocks}", memory.allocated);
    for block in std::mem::take(&mut memory.freed) {
        assert!(memory.blocks.remove(&block).is_some(), "block {block} is freed twice");
    }
}

#[derive(Clone, Debug)]
struct Checkpoint {
    /// Keys of changes, as parts of all there are; `false` where one goes.
    changes: BTreeMap<u16, bool>,
    /// How much of the keys' range they are scattered over.
    spread: u64,
    /// The volume was opened anew: nobody knows how far a merge has come.
    reopened: bool,
    /// Blocks lent for merges, because space is short.
    spare: u64,
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let changes = prop_oneof![
        5 => prop::collection::btree_map(any::<u16>(), any::<bool>(), 1..4),
        3 => prop::collection::btree_map(any::<u16>(), any::<bool>(), 20..200),
        2 => prop::collection::btree_map(any::<u16>(), any::<bool>(), 1000..3000),
    ];
    let spare = prop_oneof![5 => Just(0), 1 => 1..50_u64, 1 => Just(2000)];
    (changes, prop_oneof![Just(1_u64), Just(3)], prop::bool::weighted(0.2), spare)
        .prop_map(|(changes, spread, reopened, spare)| Checkpoint { changes, spread, reopened, spare })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn an_index_holds_what_came_last_in_the_blocks_foreseen_however_it_is_merged(
        checkpoints in prop::collection::vec(checkpoint(), 1..40), always in any::<bool>()
    ) {
        let policy = if always { RunPolicy::Always } else { RunPolicy::ByCost };
        let (mut memory, mut set, mut model) = (Memory::default(), RunSet::EMPTY, BTreeSet::new());
        let mut merging = None;
        for Checkpoint { changes, spread, reopened, .. } in checkpoints {
            let key = |k: u16| HintKey { prefix: u64::from(k) * spread, pbn: Pbn(1) };
            let changes: Vec<index::Change> = changes.into_iter().map(|(k, add)| (key(k), add.then_some(()))).collect();
            merging = merging.filter(|_| !reopened);
            let index = Index { policy };
            let plan = index.plan(&set, changes.len() as u64, changes.len().div_ceil(2) as u64, u64::MAX).unwrap();
            transaction(&mut memory, &mut set, plan.blocks, |source, sink, set| {
                apply(&index, source, sink, set, &changes, &mut merging, plan).unwrap()
            });
            for (key, change) in changes {
                if change.is_some() { model.insert(key) } else { model.remove(&key) };
            }
            prop_assert!(KeySet::<HintKey>::runs(&set) <= KeySet::<HintKey>::RUNS_MAX);
            let first = HintKey { prefix: 0, pbn: Pbn(0) };
            let found: Vec<HintKey> = HINT_SET.range(&memory, &set, first).collect::<Result<_, _>>().unwrap();
            prop_assert!(found.iter().eq(&model));
            let mut reached = Reached::default();
            KeySet::<HintKey>::trees(&set).for_each(|root| HINTS.walk(&memory, root, &mut reached));
            prop_assert!(reached.0.iter().eq(memory.blocks.keys()), "a block leaked");
        }
    }

    #[test]
    fn an_lbn_map_holds_what_came_last_in_the_blocks_foreseen_however_it_is_merged(
        checkpoints in prop::collection::vec(checkpoint(), 1..40), always in any::<bool>()
    ) {
        let policy = if always { RunPolicy::Always } else { RunPolicy::ByCost };
        let (mut memory, mut set, mut model) = (Memory::default(), RunSet::EMPTY, BTreeMap::new());
        let (mut merging, mut version) = (None, 0);
        for Checkpoint { changes, spread, reopened, spare } in checkpoints {
            let mut new = |is_mapped: bool| {
                version += 1;
                if is_mapped { Mapping { pbn: Pbn(version), crc: 9, flags: 0 } } else { Mapping::UNMAPPED }
            };
            let changes: Vec<lbn_map::Change> =
                changes.into_iter().map(|(k, add)| (Lbn(u64::from(k) * spread), new(add))).collect();
            merging = merging.filter(|_| !reopened);
            let map = LbnMap { lbns: LBNS, policy };
            let plan = map.plan(&set, &changes, changes.len() as u64, spare);
            transaction(&mut memory, &mut set, plan.blocks + spare, |source, sink, set| {
                apply(&map, source, sink, set, &changes, &mut merging, plan).unwrap()
            });
            model.extend(changes);
            prop_assert!(set.runs.len() <= dedup_meta::MAX_RUNS);
            prop_assert!(spare < 2000 || merging.is_none(), "with so much room a merge ends at once: {merging:?}");
            let mapped = || model.iter().filter(|(_, mapping)| mapping.is_mapped()).map(|(lbn, mapping)| (*lbn, *mapping));
            let scan: Vec<lbn_map::Change> =
                dedup_schema::scan_mappings(&memory, &set, Lbn(0)..Lbn(LBNS)).collect::<Result<_, _>>().unwrap();
            prop_assert!(scan.windows(2).all(|pair| pair[0].0 < pair[1].0));
            prop_assert!(scan.iter().copied().filter(|(_, mapping)| mapping.is_mapped()).eq(mapped()));
            let lbns: Vec<Lbn> = (0..LBNS).step_by(7).map(Lbn).collect();
            let found = lbn_map::get_many(&memory, &set, &Default::default(), &lbns).unwrap();
            let expected = lbns.iter().map(|lbn| model.get(lbn).copied().unwrap_or(Mapping::UNMAPPED));
            prop_assert!(found.into_iter().eq(expected));
            let mut reached = Reached::default();
            MAPPINGS.walk(&memory, &set.base, &mut reached);
            set.runs.iter().for_each(|run| MAPPING_RUNS.tree().walk(&memory, run, &mut reached));
            prop_assert!(reached.0.iter().eq(memory.blocks.keys()), "a block leaked");
        }
    }
}

/// An index was left with as many runs as it can have, and opened: all of them were taken for the merge that
/// began anew, so none was left to be joined and the next one had no place. The superblock could not be
/// written, and the volume stopped.
#[test]
fn a_map_opened_with_all_its_runs_takes_another() {
    let (mut memory, mut set) = (Memory::default(), RunSet::EMPTY);
    let entry = |k: u64, mapping: u64| (Lbn(k * 11), Mapping { pbn: Pbn(mapping), crc: 0, flags: 0 });
    for run in 0..dedup_meta::MAX_RUNS as u64 {
        let changes: Vec<_> = (0..2000).map(|k| entry(k, run + 1)).collect();
        let runs = MAPPING_RUNS.push(&memory.clone(), &mut memory, &set.runs, 0, &changes).unwrap();
        set = RunSet { base: set.base, runs };
    }
    for mapping in 100..110 {
        let changes = [entry(3, mapping)];
        let map = LbnMap { lbns: 22_000, policy: RunPolicy::ByCost };
        let plan = map.plan(&set, &changes, 1, 0);
        transaction(&mut memory, &mut set, plan.blocks, |source, sink, set| {
            apply(&map, source, sink, set, &changes, &mut None, plan).unwrap()
        });
        assert_eq!(
            lbn_map::get_many(&memory, &set, &Default::default(), &[Lbn(33), Lbn(44)]).unwrap(),
            [entry(3, mapping).1, entry(4, 16).1]
        );
        assert_eq!(set.runs.len(), dedup_meta::MAX_RUNS);
    }
}

/// Admitted beside a checkpoint that brings the fourteenth run: what the joins may take is half of a share
/// that counts changes to the youngest run, and nobody has reserved that.
#[test]
fn joins_take_no_more_than_was_reserved_before_the_youngest_run_came() {
    let (mut memory, mut before) = (Memory::default(), RunSet::EMPTY);
    let entry = |k: u64| (Lbn(k), Mapping { pbn: Pbn(1), crc: 0, flags: 0 });
    let map = LbnMap { lbns: 64 << 20, policy: RunPolicy::ByCost };
    let run = |memory: &mut Memory, set: &RunSet, class: u64, entries: u64| {
        let changes: Vec<_> = (0..entries).map(|k| entry(k * 16 + class)).collect();
        let runs = MAPPING_RUNS.push(&memory.clone(), memory, &set.runs, 0, &changes).unwrap();
        RunSet { base: set.base, runs }
    };
    for _ in 0..11 {
        before = run(&mut memory, &before, 0, 10);
    }
    before = run(&mut memory, &before, 1, 1_000_000);
    before = run(&mut memory, &before, 2, 280_000);
    // The frozen delta: too small for the run before it to be joined.
    let set = run(&mut memory, &before, 3, 58_000);
    let changes: Vec<_> = (0..14_500).map(|k| entry(k * 16 * 64 + 4)).collect();
    let reserved = map.worst_case(14_500, &before);
    let plan = map.plan(&set, &changes, 14_500, 0);
    memory.allocated = 0;
    apply(&map, &memory.clone(), &mut memory, &set, &changes, &mut None, plan).unwrap();
    assert!(memory.allocated <= reserved, "{} blocks allocated of {reserved}", memory.allocated);
}

/// An index that was found damaged is dropped by whoever looked something up; how far its merge had come is
/// still known to checkpoints.
#[test]
fn what_a_checkpoint_of_a_dropped_index_takes_can_be_told() {
    let index = Index { policy: RunPolicy::Always };
    let plan = index.plan(&RunSet::EMPTY, 10, 10, u64::MAX).unwrap();
    let merging = Merging { runs: 2, next: None };
    expected_nodes(&index, &RunSet::EMPTY, 10, Some(&merging), &plan);
}
