//! Fingerprints of blocks: the digest that finds duplicates, the CRC that reads are verified with.
//!
//! Computed before any lock is taken, in parallel where a batch is large enough to pay for it.

use dedup_schema::{Digest, DigestAlgorithm};
use rayon::prelude::*;

/// What is known of a block's content before anything is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fingerprint {
    /// All zeros: takes no space.
    Zero,
    /// Anything else.
    Content {
        /// CRC32C of the block.
        crc: u32,
        /// Its digest.
        digest: Digest,
    },
}

/// Batches below this are fingerprinted by the calling thread. Front ends call from several threads, which
/// keeps the cores busy; a pool's workers spin a while before they sleep, and for batches of 128 KiB that
/// took half of all CPU time.
const PARALLEL_BYTES_MIN: usize = 512 << 10;

/// Computes fingerprints, over several cores when a batch is worth it.
#[derive(Debug)]
pub(crate) struct Fingerprinter {
    algorithm: DigestAlgorithm,
    /// `None` with a single thread.
    pool: Option<rayon::ThreadPool>,
}

impl Fingerprinter {
    /// One that uses `threads` threads (the caller's among them when it is 1).
    pub(crate) fn new(
        algorithm: DigestAlgorithm,
        threads: usize,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = match threads {
            0 | 1 => None,
            n => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(n)
                    .thread_name(|i| format!("digest-{i}"))
                    .build()?,
            ),
        };
        Ok(Self { algorithm, pool })
    }

    /// The fingerprint of each block, in order.
    pub(crate) fn batch(&self, blocks: &[&[u8]]) -> Vec<Fingerprint> {
        let bytes: usize = blocks.iter().map(|b| b.len()).sum();
        match &self.pool {
            Some(pool) if blocks.len() > 1 && bytes >= PARALLEL_BYTES_MIN => {
                pool.install(|| blocks.par_iter().with_min_len(2).map(|b| self.one(b)).collect())
            }
            _ => blocks.iter().map(|b| self.one(b)).collect(),
        }
    }

    fn one(&self, block: &[u8]) -> Fingerprint {
        if is_zero(block) {
            return Fingerprint::Zero;
        }
        Fingerprint::Content { crc: crc32c::crc32c(block), digest: self.algorithm.digest(block) }
    }
}

/// Whether all bytes are zero; a wide comparison that stops at the first 64 bytes that are not.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    let (chunks, rest) = block.as_chunks::<64>();
    chunks.iter().all(|c| *c == [0; 64]) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_what_single_blocks_give_on_any_number_of_threads() {
        let data: Vec<Vec<u8>> = (0..64u8).map(|i| vec![i; 16384]).collect();
        let blocks: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let serial = Fingerprinter::new(DigestAlgorithm::Sha256, 1).unwrap().batch(&blocks);
        assert_eq!(serial[0], Fingerprint::Zero);
        assert_eq!(serial, Fingerprinter::new(DigestAlgorithm::Sha256, 3).unwrap().batch(&blocks));
    }

    #[test]
    fn one_set_bit_anywhere_makes_a_block_not_zero() {
        for at in [0, 63, 64, 511, 512, 4095] {
            let mut block = vec![0; 4096];
            assert!(is_zero(&block));
            block[at] = 1;
            assert!(!is_zero(&block), "byte {at}");
        }
    }
}
