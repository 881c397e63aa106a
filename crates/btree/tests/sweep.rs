//! A sweep shows what a walk shows, leaves in the same order, whatever is damaged and whoever does the
//! reading.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_btree::{
    ArrayTree, BTree, Bytes, Descend, Job, Reader, Slot, Spawn, Sweep, Visit, Visitor, Window,
};
use dedup_device::{BlockDevice, MemDevice};
use dedup_meta::{BlockRef, BlockType, META_BLOCK_SIZE, MetaBlock, Root, Store};
use std::sync::{Arc, Mutex};
use support::Memory;
use uuid::Uuid;
use zerocopy::IntoBytes;

const MAP: BTree<u64, u64> = BTree::new(BlockType::Overflow);
const ARRAY: ArrayTree<Bytes<12>> = ArrayTree::new(BlockType::Mapping);
/// Small enough that the trees here are many windows.
const WINDOW: Window = Window { nodes: 16, windows: 3 };

/// Everything that a visitor is told: (block, level, intact) of each node, and of each reference its parent.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    leaves: Vec<(u64, bool)>,
    above: Vec<(u64, u8, bool)>,
    references: Vec<(u64, u8, Option<u64>)>,
    /// Nodes that are not to be read.
    refused: Option<u64>,
    stop_at: Option<u64>,
}

impl Told {
    /// Without the order of what is read ahead.
    fn sorted(mut self) -> Self {
        self.above.sort_unstable();
        self.references.sort_unstable();
        self
    }
}

impl Visitor for Told {
    fn reference(&mut self, at: BlockRef, level: u8, parent: Option<MetaBlock>) -> bool {
        self.references.push((at.block.0, level, parent.map(|parent| parent.0)));
        self.refused != Some(at.block.0)
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        let at = visit.at.block.0;
        match visit.level {
            0 => self.leaves.push((at, visit.node.is_ok())),
            level => self.above.push((at, level, visit.node.is_ok())),
        }
        if self.stop_at == Some(at) { Descend::Stop } else { Descend::Yes }
    }
}

fn map() -> (Memory, Root) {
    let mut memory = Memory::new();
    let root = MAP.bulk_build(&mut memory, (1..254 * 500).map(|k| (k * 10, k))).unwrap();
    // Some leaves elsewhere, so that the order of the keys is not that of the device.
    let changes: Vec<_> = (0..254 * 500).step_by(900).map(|k| (k * 10 + 5, Some(k))).collect();
    let root = MAP.apply(&mut memory, &root, &changes).unwrap();
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

/// Jobs that are done at once, and by threads that overtake each other.
fn readers(memory: &Memory) -> [Reader; 2] {
    let blocks = memory.in_use();
    let device = MemDevice::new((blocks.last().unwrap() + 1) * META_BLOCK_SIZE as u64);
    for at in blocks {
        device.write(at * META_BLOCK_SIZE as u64, memory.block(MetaBlock(at)).as_bytes()).unwrap();
    }
    let store = Arc::new(Store::new(Arc::new(device), Uuid::from_u128(7), 64));
    let held: Mutex<Option<Job>> = Mutex::default();
    let overtaking = move |job: Job| {
        // The first of two jobs is begun after the second.
        match held.lock().unwrap().replace(job) {
            None => {}
            Some(earlier) => _ = std::thread::spawn(earlier),
        }
        let mut held = held.lock().unwrap();
        if let Some(job) = held.take() {
            std::thread::spawn(job);
        }
    };
    let at_once: Spawn = Arc::new(|job: Job| job());
    [Reader::new(store.clone(), at_once), Reader::new(store, Arc::new(overtaking))]
}

fn swept(mut sweep: Box<dyn Sweep>, mut told: Told) -> Told {
    while sweep.step(&mut told) {}
    assert!(!sweep.step(&mut told), "it stays at its end");
    told
}

#[track_caller]
fn assert_same(memory: &Memory, root: &Root, is_map: bool, told: impl Fn() -> Told) {
    let mut walked = told();
    match is_map {
        true => MAP.walk(memory, root, &mut walked),
        false => ARRAY.walk(memory, root, &mut walked),
    }
    let walked = walked.sorted();
    for reader in readers(memory) {
        let sweep =
            if is_map { MAP.sweep(&reader, WINDOW, root) } else { ARRAY.sweep(&reader, WINDOW, root) };
        assert_eq!(swept(sweep, told()).sorted(), walked);
    }
}

#[test]
fn a_sweep_shows_every_node_once_and_leaves_from_left_to_right() {
    let (memory, root) = map();
    assert_same(&memory, &root, true, Told::default);
    let (memory, root) = array();
    assert_same(&memory, &root, false, Told::default);
    assert_same(&memory, &Root::EMPTY, false, Told::default);
}

#[test]
fn damage_on_any_level_and_a_reference_that_is_refused_hide_what_is_below_and_nothing_else() {
    let (memory, root) = map();
    let mut all = Told::default();
    MAP.walk(&memory, &root, &mut all);
    let parents: Vec<u64> =
        all.above.iter().filter(|(_, level, _)| *level == 1).map(|(at, ..)| *at).collect();
    let leaf = all.leaves[all.leaves.len() / 2].0;
    for lost in [leaf, parents[1], parents[0], root.node.unwrap().block.0] {
        let mut memory = memory.clone();
        memory.lose(MetaBlock(lost));
        assert_same(&memory, &root, true, Told::default);
        assert_same(&memory, &root, true, || Told { refused: Some(leaf), ..Told::default() });
    }
    let too_high = Root { level: 99, ..root };
    assert_same(&memory, &too_high, true, Told::default);
}

#[test]
fn a_sweep_that_is_stopped_shows_no_more_leaves() {
    let (memory, root) = map();
    let mut all = Told::default();
    MAP.walk(&memory, &root, &mut all);
    for place in [0, 20, all.leaves.len() - 1] {
        let stop_at = Some(all.leaves[place].0);
        for reader in readers(&memory) {
            let told = swept(MAP.sweep(&reader, WINDOW, &root), Told { stop_at, ..Told::default() });
            assert_eq!(told.leaves, all.leaves[..=place]);
        }
    }
}
