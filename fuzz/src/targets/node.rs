//! Any bytes as the nodes of a tree, with right checksums from the leaves up to the root: every way to read
//! the tree ends, in an entry or an error and never in a panic, and they agree with each other; a tree that
//! is whole can be changed and stays whole.
//!
//! ```text
//!  input:  tree 1 | root level 1 | root entries 8 (0: as the root node says) | 4 keys, 16 each
//!          | for each node: length 2 | bytes after the checksum
//! ```
//!
//! Node i stands in block i + 1, and node 0 is the root. A child reference to a later node gets that node's
//! checksum; one to an earlier node cannot have it, as on a real device.

use crate::{Input, seal};
use dedup_btree::{ArrayTree, BTree, Descend, FANOUT, Key, LeafCodec, Value, Visit, Visitor};
use dedup_device::MemDevice;
use dedup_meta::{
    Block, BlockRef, BlockType, META_BLOCK_SIZE, MetaBlock, MetaError, Root, Store, Transaction, TxId,
};
use dedup_schema::{
    BAD, COUNTS, Count, DIGESTS, HINTS, HintKey, MAPPING_RUNS, MAPPINGS, META_MAP, Mapping, OVERFLOW,
};
use dedup_spacemap::SpaceMap;
use dedup_volume::{Digest, Lbn, Pbn};
use std::fmt::Debug;
use std::sync::Arc;

/// Nodes of an input; the others are not looked at.
const NODES_MAX: usize = 8;
/// Blocks of the device: room for the nodes and for what a change writes.
const BLOCKS: u64 = 64;
/// Bytes of a child reference: block number, checksum.
const REF_SIZE: usize = 10;
/// Bytes of an array index node's entry: reference, values in use.
const ARRAY_ENTRY_SIZE: usize = 16;
/// Bytes of each key in the input; longer than any key.
const KEY_SIZE: usize = 16;

/// What was made of an input.
struct Tree<'a> {
    store: Store,
    root: Root,
    keys: [&'a [u8]; 4],
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let value = Mapping { pbn: Pbn(1), crc: 2, flags: 0 };
    match input.u8() % 8 {
        0 => array(MAPPINGS, BlockType::Mapping, value, input),
        1 => array(DIGESTS, BlockType::Digest, Digest([3; 32]), input),
        2 => array(COUNTS, BlockType::RefCount, 2, input),
        3 => array(META_MAP, BlockType::MetaMap, 1, input),
        4 => btree(OVERFLOW, BlockType::Overflow, Count(7), input),
        5 => btree::<HintKey, ()>(HINTS, BlockType::Hint, (), input),
        6 => btree::<Pbn, ()>(BAD, BlockType::Bad, (), input),
        _ => btree::<Lbn, Mapping>(*MAPPING_RUNS.tree(), BlockType::MappingRun, value, input),
    }
}

/// Makes the tree. `child` says where in an index node's payload reference i stands, if there is one.
fn make<'a>(
    mut input: Input<'a>,
    kind: BlockType,
    child: impl Fn(usize) -> usize,
    children: usize,
    entries: impl Fn(&Block) -> u64,
) -> Tree<'a> {
    let device = Arc::new(MemDevice::new(BLOCKS * META_BLOCK_SIZE as u64));
    let level = input.u8();
    let asked = input.u64();
    let keys = std::array::from_fn(|_| input.bytes(KEY_SIZE));
    let mut nodes: Vec<Box<Block>> = Vec::new();
    while nodes.len() < NODES_MAX && !input.is_empty() {
        let len = usize::from(input.u16());
        nodes.push(seal::block(kind, MetaBlock(nodes.len() as u64 + 1), input.bytes(len)));
    }
    if let Some(root) = nodes.first_mut() {
        root.header.level = level;
    }
    let mut crcs = vec![0; nodes.len()];
    for i in (0..nodes.len()).rev() {
        if nodes[i].header.level > 0 {
            (0..children).for_each(|number| name_child(&mut nodes[i], i, child(number), &crcs));
        }
        crcs[i] = nodes[i].seal(seal::POOL);
        seal::put(&device, &nodes[i]);
    }
    let root = match nodes.first() {
        None => Root::EMPTY,
        Some(node) => Root {
            node: Some(BlockRef { block: MetaBlock(1), crc: crcs[0] }),
            level,
            entries: if asked == 0 { entries(node) } else { asked },
        },
    };
    Tree { store: Store::new(device, seal::POOL, 64), root, keys }
}

/// Puts the checksum of the node that the reference at `at` names behind it, if that is a later node than
/// number `parent`.
fn name_child(parent_node: &mut Block, parent: usize, at: usize, crcs: &[u32]) {
    let mut number = [0; 8];
    number[..6].copy_from_slice(&parent_node.payload[at..][..6]);
    let named = u64::from_le_bytes(number);
    if (parent as u64 + 2..=crcs.len() as u64).contains(&named) {
        let crc = crcs[named as usize - 1];
        parent_node.payload[at + 6..][..4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Counts nodes and errors.
#[derive(Default)]
struct Seen {
    nodes: u64,
    errors: u64,
}

impl Visitor for Seen {
    fn node(&mut self, visit: Visit<'_>) -> Descend {
        match visit.node {
            Ok(_) => self.nodes += 1,
            Err(_) => self.errors += 1,
        }
        Descend::Yes
    }
}

fn array<L: LeafCodec>(tree: ArrayTree<L>, kind: BlockType, value: L::Value, input: Input<'_>)
where
    L::Value: Debug,
{
    let used = |node: &Block| match node.header.level {
        0 => u64::from(node.header.entries.get()),
        _ => (0..FANOUT)
            .fold(0_u64, |sum, i| sum.wrapping_add(u48(&node.payload[i * ARRAY_ENTRY_SIZE + REF_SIZE..]))),
    };
    let Tree { store, root, keys } = make(input, kind, |i| i * ARRAY_ENTRY_SIZE, FANOUT, used);
    let mut indices = keys.map(|key| u48(&padded(key)));
    indices.sort_unstable();

    let mut seen = Seen::default();
    tree.walk(&store, &root, &mut seen);
    let (mut walked, mut errors) = (Vec::new(), 0);
    tree.walk_entries(&store, &root, |entry| entry.map_or_else(|_| errors += 1, |entry| walked.push(entry)));
    assert_eq!(errors, seen.errors);
    assert!(walked.is_sorted_by(|a, b| a.0 < b.0));
    let scanned: Result<Vec<_>, MetaError> = tree.scan(&store, &root, 0..1 << 48).collect();
    let mut found = Vec::new();
    let got = tree.get_many(&store, &root, &indices, |index, value| found.push((index, value)));
    for index in indices {
        let _ = tree.leaf(&store, &root, index / L::PER_LEAF);
        let _ = tree.children(&store, &root, index / (L::PER_LEAF * FANOUT as u64));
        let _ = tree.scan(&store, &root, index..index.saturating_add(1000)).take_while(Result::is_ok).count();
    }
    if errors > 0 {
        assert!(scanned.is_err());
    } else {
        assert_eq!(scanned.expect("no node is damaged"), walked);
        got.expect("no node is damaged");
        for (index, value) in found {
            let expected = walked
                .binary_search_by_key(&index, |entry| entry.0)
                .map_or(L::Value::default(), |i| walked[i].1);
            assert_eq!(value, expected, "at {index}");
        }
    }
    let mut changes: Vec<(u64, L::Value)> = indices.iter().map(|index| (*index, value)).collect();
    changes.dedup_by_key(|change| change.0);
    if changes.len() > 2 {
        changes[1].1 = L::Value::default();
    }
    let changed = change(&store, |transaction| tree.apply(transaction, &root, &changes, &mut |_, _, _| {}));
    if let (0, Ok(root)) = (errors, &changed) {
        tree.walk_entries(&store, root, |entry| assert!(entry.is_ok(), "a whole tree stays whole"));
        changes
            .iter()
            .for_each(|(index, value)| assert_eq!(tree.get(&store, root, *index).expect("whole"), *value));
    }
    assert!(errors > 0 || changed.is_ok(), "{changed:?}");
}

fn btree<K: Key + Debug, V: Value + Debug>(tree: BTree<K, V>, kind: BlockType, value: V, input: Input<'_>) {
    let fanout = BTree::<K, V>::FANOUT;
    // Nothing but the entries themselves says how many there are.
    let any = |_: &Block| 1 << 20;
    let Tree { store, root, keys } = make(input, kind, |i| fanout * K::SIZE + i * REF_SIZE, fanout, any);
    let mut keys = keys.map(|key| K::decode(&padded(key)[..K::SIZE])).to_vec();
    keys.sort_unstable();
    keys.dedup();

    let mut seen = Seen::default();
    tree.walk(&store, &root, &mut seen);
    let (mut walked, mut errors) = (Vec::new(), 0);
    tree.walk_entries(&store, &root, |entry| entry.map_or_else(|_| errors += 1, |entry| walked.push(entry)));
    assert_eq!(errors, seen.errors);
    assert!(walked.is_sorted_by(|a, b| a.0 < b.0));
    let scanned: Result<Vec<_>, MetaError> = tree.range(&store, &root, ..).collect();
    let mut found = Vec::new();
    let got = tree.lookup_many(&store, &root, &keys, |key, value| found.push((key, value)));
    if let [first, .., last] = keys[..] {
        let _ = tree.range(&store, &root, first..=last).take_while(Result::is_ok).count();
        let _ = tree.range_many(&store, &root, &[(first, last)], |_, _, _| {});
    }
    if errors > 0 {
        assert!(scanned.is_err());
    } else {
        assert_eq!(scanned.expect("no node is damaged"), walked);
        got.expect("no node is damaged");
        let expected: Vec<_> = walked.iter().filter(|entry| keys.contains(&entry.0)).copied().collect();
        assert_eq!(found, expected);
    }
    let changes: Vec<_> = keys.iter().enumerate().map(|(i, key)| (*key, (i != 1).then_some(value))).collect();
    let changed = change(&store, |transaction| tree.apply(transaction, &root, &changes));
    if let (0, Ok(root)) = (errors, &changed) {
        tree.walk_entries(&store, root, |entry| assert!(entry.is_ok(), "a whole tree stays whole"));
        changes
            .iter()
            .for_each(|(key, value)| assert_eq!(tree.lookup(&store, root, key).expect("whole"), *value));
    }
    // A root may name fewer entries than there are; then removing more is refused.
    assert!(errors > 0 || changed.is_ok() || root.entries < 4, "{changed:?}");
}

/// Changes a tree in a transaction of its own.
fn change(
    store: &Store,
    apply: impl FnOnce(&mut Transaction<'_>) -> Result<Root, MetaError>,
) -> Result<Root, MetaError> {
    let mut map = SpaceMap::new(BLOCKS);
    (0..=NODES_MAX as u64).for_each(|block| map.set_count(block, 1));
    let mut transaction = Transaction::new(store, &mut map, TxId(9));
    let root = apply(&mut transaction)?;
    transaction.finish()?;
    Ok(root)
}

fn padded(bytes: &[u8]) -> [u8; KEY_SIZE] {
    let mut all = [0; KEY_SIZE];
    all[..bytes.len()].copy_from_slice(bytes);
    all
}

fn u48(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..6].copy_from_slice(&bytes[..6]);
    u64::from_le_bytes(all)
}
