//! One node of a B-tree: its layout, its validity, its entries.
//!
//! ```text
//!  header (32 B): type, level, entries, block, birth, first = 0
//!  payload (4064 B), C = 4064 / (key size + data size):
//!  | key 0 | key 1 | ... | key C-1 | data 0 | data 1 | ... | data C-1 | 0 |
//! ```
//!
//! `data` is the value in a leaf and a child reference (block 6 B, CRC 4 B) in an internal node, whose key is
//! the lowest key below that child. The keys stand together so that a binary search touches few cache lines,
//! and the data start at a place that does not depend on the count.
//!
//! **Invariants**, all in [`Rule::check`]: 0 < entries <= C, keys strictly rise, the first key equals the key
//! in the parent and the last is below the parent's next key, no child is block 0, unused bytes are zero,
//! level <= MAX_LEVEL.

use super::{Key, Value};
use crate::bytes::LIMIT_48;
use crate::rule::{Rule, check_unused, fault};
use dedup_meta::{Block, BlockFault, BlockRef, BlockType, MetaBlock, PAYLOAD_SIZE, TxId, field};
use std::marker::PhantomData;

/// Highest level of a root. Levels 0 to 9 hold 2^48 entries even if all nodes are a quarter full of 14-byte
/// keys (42 children each); the rest is for wider keys.
pub const MAX_LEVEL: u8 = 16;

/// The entries of a node, read in place. `D` is `V` in a leaf and [`BlockRef`] above.
pub(super) struct Node<'a, K, D> {
    block: &'a Block,
    types: PhantomData<(K, D)>,
}

impl<'a, K: Key, D: Value> Node<'a, K, D> {
    /// Most entries that fit.
    pub(super) const CAPACITY: usize = {
        let capacity = PAYLOAD_SIZE / (K::SIZE + D::SIZE);
        assert!(capacity >= 4 && capacity <= u16::MAX as usize, "a node must hold at least four entries");
        capacity
    };
    /// Where the data start.
    const DATA: usize = Self::CAPACITY * K::SIZE;

    pub(super) fn new(block: &'a Block) -> Self {
        Self { block, types: PhantomData }
    }

    /// Entries, as the header says, though never more than fit.
    pub(super) fn len(&self) -> usize {
        usize::from(self.block.header.entries.get()).min(Self::CAPACITY)
    }

    pub(super) fn key(&self, i: usize) -> K {
        K::decode(&self.block.payload[i * K::SIZE..][..K::SIZE])
    }

    pub(super) fn data(&self, i: usize) -> D {
        D::decode(&self.block.payload[Self::DATA + i * D::SIZE..][..D::SIZE])
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (K, D)> + use<'_, 'a, K, D> {
        (0..self.len()).map(|i| (self.key(i), self.data(i)))
    }

    /// How many keys, from the first on, satisfy `pred`, which must hold for a prefix of them.
    pub(super) fn partition_point(&self, pred: impl Fn(K) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if pred(self.key(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// A node of these entries, at most `CAPACITY`, that has no place yet.
    pub(super) fn build(kind: BlockType, level: u8, entries: &[(K, D)]) -> Box<Block> {
        debug_assert!(entries.len() <= Self::CAPACITY);
        let mut block = Block::new(kind, level, MetaBlock(0), TxId(0));
        block.header.entries = (entries.len() as u16).into();
        for (i, (key, data)) in entries.iter().enumerate() {
            key.encode(&mut block.payload[i * K::SIZE..][..K::SIZE]);
            data.encode(&mut block.payload[Self::DATA + i * D::SIZE..][..D::SIZE]);
        }
        block
    }

    /// The O(1) part: count, first and last key.
    fn check_ends(&self, low: Option<K>, high: Option<K>) -> Result<(), BlockFault> {
        let found = usize::from(self.block.header.entries.get());
        if found == 0 || found > Self::CAPACITY {
            return Err(fault("entries", format!("1 to {}", Self::CAPACITY), found));
        }
        let (first, last) = (self.key(0), self.key(found - 1));
        if low.is_some_and(|low| low != first) {
            return Err(fault("first key", format!("the parent's {}", hex(low)), hex(Some(first))));
        }
        if high.is_some_and(|high| high <= last) {
            return Err(fault("last key", format!("below the parent's {}", hex(high)), hex(Some(last))));
        }
        Ok(())
    }

    /// The O(n) part, once `check_ends` has passed.
    fn check_entries(&self) -> Result<(), BlockFault> {
        let count = self.len();
        for i in 1..count {
            let (before, key) = (self.key(i - 1), self.key(i));
            if before >= key {
                return Err(fault("key", format!("above {}", hex(Some(before))), hex(Some(key))));
            }
        }
        (0..count).try_for_each(|i| self.data(i).check())?;
        check_unused(&self.block.payload[count * K::SIZE..Self::DATA])?;
        check_unused(&self.block.payload[Self::DATA + count * D::SIZE..])
    }
}

/// A node, if there is one, and its rule.
pub(super) type Top<K, V> = Option<(BlockRef, KeyRule<K, V>)>;

/// What a node must be, by its place: its level and its keys' range.
pub(super) struct KeyRule<K, V> {
    kind: BlockType,
    level: u8,
    low: Option<K>,
    high: Option<K>,
    value: PhantomData<V>,
}

impl<K: Key, V: Value> KeyRule<K, V> {
    /// The rule for a node of which only the level is known, as for a root.
    pub(super) fn new(kind: BlockType, level: u8) -> Self {
        Self { kind, level, low: None, high: None, value: PhantomData }
    }

    /// This rule for a node whose first key must be `low`.
    pub(super) fn with_low(self, low: K) -> Self {
        Self { low: Some(low), ..self }
    }

    /// The rule for the `i`-th child of a node under this rule.
    pub(super) fn child(&self, node: &Node<'_, K, BlockRef>, i: usize) -> Self {
        let high = if i + 1 < node.len() { Some(node.key(i + 1)) } else { self.high };
        Self { low: Some(node.key(i)), high, ..Self::new(self.kind, self.level.saturating_sub(1)) }
    }
}

impl<K: Key, V: Value> Rule for KeyRule<K, V> {
    fn kind(&self) -> BlockType {
        self.kind
    }

    fn level(&self) -> u8 {
        self.level
    }

    fn anywhere(&self) -> Self {
        Self::new(self.kind, self.level)
    }

    fn check_place(&self, block: &Block) -> Result<(), BlockFault> {
        field("type", self.kind as u8, block.header.block_type)?;
        field("level", self.level, block.header.level)?;
        if self.level == 0 {
            Node::<K, V>::new(block).check_ends(self.low, self.high)
        } else {
            Node::<K, BlockRef>::new(block).check_ends(self.low, self.high)
        }
    }

    fn check(&self, block: &Block) -> Result<(), BlockFault> {
        self.check_place(block)?;
        if self.level > MAX_LEVEL {
            return Err(fault("level", format!("at most {MAX_LEVEL}"), self.level));
        }
        if block.header.block.get() >= LIMIT_48 {
            return Err(fault("block number", "below 2^48", block.header.block.get()));
        }
        field("first index", 0, block.header.first.get())?;
        if self.level == 0 {
            Node::<K, V>::new(block).check_entries()
        } else {
            Node::<K, BlockRef>::new(block).check_entries()
        }
    }

    fn children(&self, block: &Block) -> Vec<(BlockRef, Self)> {
        if self.level == 0 {
            return Vec::new();
        }
        let node = Node::<K, BlockRef>::new(block);
        (0..node.len()).map(|i| (node.data(i), self.child(&node, i))).collect()
    }
}

/// A key's bytes for an error's text.
fn hex<K: Key>(key: Option<K>) -> String {
    let mut bytes = vec![0; K::SIZE];
    key.iter().for_each(|key| key.encode(&mut bytes));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
