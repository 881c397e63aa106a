//! Nodes of an array tree: the index node's layout, what each level covers, and the validity of both kinds of
//! node.
//!
//! ```text
//!  header (32 B): type, level, entries, block, birth, first = first index covered
//!  index node's payload (4064 B), 254 entries of 16 B, entry i for the child covering first + i * span(level - 1):
//!  | child block 6 B | child CRC 4 B | used 6 B | ...        all zero: no child, all values below are default
//!  leaf's payload (4064 B): the codec's
//! ```
//!
//! `span(0)` is the codec's `PER_LEAF`, `span(l)` is 254 times `span(l - 1)`. `used` counts the values below
//! that are not default. `entries` is the number of children of an index node, and `used` of a leaf.
//!
//! **Invariants**, all in [`Rule::check`]: `first` is the place's; no node is empty; a child has a block and
//! 0 < used <= span; an absent one is all zero; the children's `used` add up to the parent's figure; a leaf's
//! `used` is what its codec counts and what its parent says.

use super::LeafCodec;
use crate::bytes::{LIMIT_48, REF_SIZE, block_ref, put_block_ref, put_u48, u48};
use crate::rule::{Rule, check_unused, fault};
use dedup_meta::{Block, BlockFault, BlockRef, BlockType, MetaBlock, PAYLOAD_SIZE, TxId, field};
use std::marker::PhantomData;

/// Children of an index node: as many 16-byte entries as a payload holds.
pub const FANOUT: usize = PAYLOAD_SIZE / ENTRY;
/// Bytes of an entry.
const ENTRY: usize = 16;

const _: () = assert!(FANOUT == 254 && FANOUT * ENTRY == PAYLOAD_SIZE);

/// A child as its parent knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) at: BlockRef,
    /// Values below it that are not default.
    pub(super) used: u64,
}

/// Child `i` of an index node's payload.
pub(super) fn child(payload: &[u8], i: usize) -> Option<Child> {
    let entry = &payload[i * ENTRY..][..ENTRY];
    let at = block_ref(entry);
    (at.block.0 != 0).then(|| Child { at, used: u48(&entry[REF_SIZE..]) })
}

/// Puts child `i` into an index node's payload.
pub(super) fn set_child(payload: &mut [u8], i: usize, child: Option<Child>) {
    let entry = &mut payload[i * ENTRY..][..ENTRY];
    entry.fill(0);
    if let Some(child) = child {
        put_block_ref(entry, child.at);
        put_u48(&mut entry[REF_SIZE..], child.used);
    }
}

/// The children that an index node has, by number.
pub(super) fn children(payload: &[u8]) -> impl Iterator<Item = (usize, Child)> + '_ {
    (0..FANOUT).filter_map(|i| child(payload, i).map(|child| (i, child)))
}

/// Indices that a node on `level` covers; saturates.
pub(super) const fn span<L: LeafCodec>(level: u8) -> u64 {
    const { assert!(L::PER_LEAF > 0 && L::PER_LEAF <= u16::MAX as u64, "a leaf's count has 16 bits") };
    L::PER_LEAF.saturating_mul((FANOUT as u64).saturating_pow(level as u32))
}

/// The lowest level whose node covers `indices` indices from 0 on.
pub(super) const fn level_for<L: LeafCodec>(indices: u64) -> u8 {
    let mut level = 0;
    while span::<L>(level) < indices {
        level += 1;
    }
    level
}

/// What a node must be, by its place.
pub(super) struct ArrayRule<L> {
    kind: BlockType,
    level: u8,
    /// First index covered, unless unknown.
    first: Option<u64>,
    /// The parent's figure, unless unknown.
    used: Option<u64>,
    codec: PhantomData<L>,
}

impl<L: LeafCodec> ArrayRule<L> {
    pub(super) fn new(kind: BlockType, level: u8, first: u64, used: u64) -> Self {
        Self { kind, level, first: Some(first), used: Some(used), codec: PhantomData }
    }

    /// The first index that this node covers (0 if unknown).
    pub(super) fn first(&self) -> u64 {
        self.first.unwrap_or(0)
    }

    /// The rule for child `i`, which the parent describes as `child`.
    pub(super) fn child(&self, i: usize, child: Child) -> Self {
        let level = self.level.saturating_sub(1);
        Self {
            first: self.first.map(|first| first.saturating_add((i as u64).saturating_mul(span::<L>(level)))),
            ..Self::new(self.kind, level, 0, child.used)
        }
    }

    /// An empty node for this place.
    pub(super) fn blank(&self) -> Box<Block> {
        let mut block = Block::new(self.kind, self.level, MetaBlock(0), TxId(0));
        block.header.first = self.first().into();
        block
    }

    fn check_used(&self, found: u64) -> Result<(), BlockFault> {
        self.used.map_or(Ok(()), |expected| field("used", expected, found))
    }

    fn check_index(&self, block: &Block) -> Result<(), BlockFault> {
        let limit = span::<L>(self.level.saturating_sub(1)).min(LIMIT_48 - 1);
        let (mut present, mut sum) = (0_u16, 0_u64);
        for (i, entry) in block.payload.chunks_exact(ENTRY).enumerate() {
            let Some(child) = child(&block.payload, i) else {
                check_unused(entry)?;
                continue;
            };
            if child.used == 0 || child.used > limit {
                return Err(fault("child's used", format!("1 to {limit}"), child.used));
            }
            present += 1;
            sum = sum.saturating_add(child.used);
        }
        field("entries", present, block.header.entries.get())?;
        self.check_used(sum)
    }
}

impl<L: LeafCodec> Rule for ArrayRule<L> {
    fn kind(&self) -> BlockType {
        self.kind
    }

    fn level(&self) -> u8 {
        self.level
    }

    fn anywhere(&self) -> Self {
        Self { first: None, used: None, ..Self::new(self.kind, self.level, 0, 0) }
    }

    fn check_place(&self, block: &Block) -> Result<(), BlockFault> {
        field("type", self.kind as u8, block.header.block_type)?;
        field("level", self.level, block.header.level)?;
        self.first.map_or(Ok(()), |first| field("first index", first, block.header.first.get()))?;
        let entries = block.header.entries.get();
        if entries == 0 {
            return Err(fault("entries", "at least 1", 0));
        }
        if self.level == 0 { self.check_used(entries.into()) } else { Ok(()) }
    }

    fn check(&self, block: &Block) -> Result<(), BlockFault> {
        self.check_place(block)?;
        if block.header.block.get() >= LIMIT_48 {
            return Err(fault("block number", "below 2^48", block.header.block.get()));
        }
        let first = block.header.first.get();
        if !first.is_multiple_of(span::<L>(self.level)) {
            return Err(fault("first index", format!("a multiple of {}", span::<L>(self.level)), first));
        }
        if self.level > 0 {
            return self.check_index(block);
        }
        L::check(&block.payload)?;
        field("entries", L::used(&block.payload), block.header.entries.get().into())
    }

    fn children(&self, block: &Block) -> Vec<(BlockRef, Self)> {
        if self.level == 0 {
            return Vec::new();
        }
        children(&block.payload).map(|(i, child)| (child.at, self.child(i, child))).collect()
    }
}
