//! The stream of keys: blocks that begin with their number, and their digests.

use dedup_volume::DigestAlgorithm;
use std::ops::Range;

/// The smallest block of a volume: the least that has to be hashed for a key.
pub(super) const BLOCK: usize = 512;

/// A key and its value.
#[cfg(feature = "peers")]
pub(super) type Item = ([u8; 32], u64);

/// A block that is the same for every number but for its first bytes, which are not zero.
#[derive(Clone, Debug)]
pub(super) struct Block([u8; BLOCK]);

impl Block {
    pub(super) fn new() -> Self {
        let mut bytes = [0; BLOCK];
        crate::peers::fill(&mut bytes, &mut 1);
        Self(bytes)
    }

    /// The block of this number.
    pub(super) fn of(&mut self, number: u64) -> &[u8; BLOCK] {
        self.0[..8].copy_from_slice(&number.to_le_bytes());
        &self.0
    }

    /// Its key.
    pub(super) fn key(&mut self, number: u64) -> [u8; 32] {
        DigestAlgorithm::Sha256.digest(self.of(number)).0
    }
}

/// Keys and values of these numbers, sorted by key.
#[cfg(feature = "peers")]
pub(super) fn items(numbers: Range<u64>) -> Vec<Item> {
    let mut block = Block::new();
    let mut items: Vec<Item> = numbers.map(|number| (block.key(number), number)).collect();
    items.sort_unstable();
    items
}

/// Writes the blocks of these numbers one behind the other.
pub(super) fn lay_out(numbers: Range<u64>, memory: &mut [u8]) {
    let mut block = Block::new();
    for (place, number) in memory.as_chunks_mut::<BLOCK>().0.iter_mut().zip(numbers) {
        place.copy_from_slice(block.of(number));
    }
}
