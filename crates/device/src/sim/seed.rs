//! Choices that look like chance and are arithmetic: the same seed chooses the same.

/// A number from a seed and a place, with every bit depending on all of both (the finaliser of splitmix64).
pub(super) fn mix(seed: u64, place: u64) -> u64 {
    let mut x = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Whether a seed chooses a sector of a write.
pub(super) fn chooses(seed: u64, write: usize, sector: usize) -> bool {
    mix(mix(seed, write as u64), sector as u64) & 1 == 1
}

/// The numbers below `count` in an order that the seed chooses.
pub(super) fn permutation(seed: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, (mix(seed, last as u64) % (last as u64 + 1)) as usize);
    }
    order
}
