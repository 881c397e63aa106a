//! A split-block Bloom filter as Apache Parquet specifies it, after Putze, Sanders and Singler, "Cache-,
//! Hash- and Space-Efficient Bloom Filters" (2007): a hash picks one block of 256 bits and sets one bit in
//! each of its eight words. At 10 bits a key about one unknown key in a hundred passes. Keys that were put in
//! always pass.

/// Bits for each key.
const BITS_PER_KEY: u64 = 10;
/// Bits of a block: a register of most machines, half a cache line.
const BLOCK_BITS: u64 = 256;
/// Odd multipliers, one for each word of a block, as Parquet has them.
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// See the module. Without blocks everything passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bloom {
    blocks: Vec<[u32; 8]>,
}

impl Bloom {
    /// A filter for so many keys in at most `bytes_max` bytes. Its memory is taken only as it is touched.
    pub(crate) fn new(keys: u64, bytes_max: u64) -> Self {
        let blocks = (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS).min(bytes_max / (BLOCK_BITS / 8));
        Self { blocks: vec![[0; 8]; blocks.min(u64::from(u32::MAX)) as usize] }
    }

    /// Whether it has no memory.
    pub(crate) fn is_absent(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether a key with this hash may have been put in.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        let Some(block) = self.blocks.get(self.block_of(hash)) else { return true };
        block.iter().zip(bits(hash)).all(|(word, bit)| word & bit != 0)
    }

    /// Puts in a key with this hash.
    pub(crate) fn add(&mut self, hash: u64) {
        let at = self.block_of(hash);
        if let Some(block) = self.blocks.get_mut(at) {
            block.iter_mut().zip(bits(hash)).for_each(|(word, bit)| *word |= bit);
        }
    }

    /// Takes everything out.
    pub(crate) fn clear(&mut self) {
        self.blocks.fill([0; 8]);
    }

    fn block_of(&self, hash: u64) -> usize {
        // Below the length, since the high half is below 2^32.
        (((hash >> 32) * self.blocks.len() as u64) >> 32) as usize
    }
}

/// The bit of a hash in each word of its block.
fn bits(hash: u64) -> [u32; 8] {
    SALT.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

/// A hash of a number: the finalizer of splitmix64 (Steele, Lea and Flood, 2014).
pub(crate) fn hash(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_passes_and_of_the_rest_one_in_fifty_at_most() {
        const KEYS: u64 = 100_000;
        let mut bloom = Bloom::new(KEYS, u64::MAX / 8);
        (0..KEYS).for_each(|n| bloom.add(hash(n)));
        assert!((0..KEYS).all(|n| bloom.may_hold(hash(n))));
        let passed = (KEYS..2 * KEYS).filter(|n| bloom.may_hold(hash(*n))).count() as u64;
        assert!(passed * 50 < KEYS, "{passed} of {KEYS} passed");
    }

    #[test]
    fn without_memory_everything_passes() {
        let mut none = Bloom::new(1000, 0);
        none.add(7);
        assert!(none.is_absent() && none.may_hold(5));
        assert!(Bloom::new(0, u64::MAX).may_hold(5));
    }
}
