//! How large a volume's parts are: what `format` computes when it is not told.

use crate::error::VolumeError;
use dedup_btree::LeafCodec;
use dedup_meta::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, MAX_LOG_BLOCKS, META_BLOCK_SIZE, MIN_METADATA_BLOCKS};
use dedup_schema::{CountLeaf, DigestLeaf, MAX_BLOCKS, MappingLeaf};

/// Data blocks per log ring block: below 1 % of the data.
const DATA_BLOCKS_PER_LOG_BLOCK: u64 = 128;
/// The same for small volumes, up to [`LOG_BLOCKS_SMALL`]: what a ring is for, a useful number of operations
/// before a commit or a checkpoint is due, does not depend on the volume's size.
const DATA_BLOCKS_PER_LOG_BLOCK_SMALL: u64 = 32;
/// 64 MiB: a quarter of it has room for 2,000 commits of a block each, data included.
const LOG_BLOCKS_SMALL: u64 = 16 << 10;
/// The smallest ring: 1 MiB, in which a batch of 32 requests is still admitted at once.
const LOG_BLOCKS_MIN: u64 = 256;
/// The largest, 2 GiB (256 GiB of 4 KiB blocks and more): a delta of 128 k operations needs only a quarter of
/// it even if every operation is committed alone, and an open reads it in about a second.
const LOG_BLOCKS_MAX: u64 = MAX_LOG_BLOCKS;
/// Entries of a hint leaf at worst: half of 290, as splits leave them.
const HINTS_PER_LEAF_MIN: u64 = 145;
/// Entries of an overflow leaf at worst: half of 290.
const OVERFLOWS_PER_LEAF_MIN: u64 = 145;
/// Free metadata blocks beyond the live ones that even a small volume has: 128 MiB, sparse in a file. The
/// reserve for a delta is its worst case, about four blocks an operation; with a tenth of this a 1 GiB volume
/// made 27 checkpoints where it now makes 4.
const SLACK_BLOCKS_MIN: u64 = 32 << 10;

/// Whether a block size is one that the format allows.
pub fn check_block_size(block_size: u32) -> Result<(), VolumeError> {
    if block_size.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) {
        return Ok(());
    }
    Err(VolumeError::Parameter {
        parameter: "block size",
        expected: format!("a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX} bytes"),
        found: block_size.to_string(),
    })
}

/// Logical blocks of a device of `logical_size` bytes.
pub fn logical_blocks(logical_size: u64, block_size: u32) -> Result<u64, VolumeError> {
    let blocks = logical_size / u64::from(block_size);
    let wrong = |expected| {
        let found = format!("{logical_size} bytes");
        Err(VolumeError::Parameter { parameter: "logical size", expected, found })
    };
    if blocks >= MAX_BLOCKS {
        return wrong(fewer_blocks(block_size));
    }
    if blocks == 0 || !logical_size.is_multiple_of(u64::from(block_size)) {
        return wrong(format!("a multiple of the block size ({block_size} bytes), at least one block"));
    }
    Ok(blocks)
}

/// Whether a data device of `data_size` bytes can be asked for.
pub fn check_data_size(data_size: u64, block_size: u32) -> Result<(), VolumeError> {
    if data_size / u64::from(block_size) < MAX_BLOCKS {
        return Ok(());
    }
    let (expected, found) = (fewer_blocks(block_size), format!("{data_size} bytes"));
    Err(VolumeError::Parameter { parameter: "data size", expected, found })
}

fn fewer_blocks(block_size: u32) -> String {
    let size_max = (MAX_BLOCKS - 1) * u64::from(block_size);
    format!("fewer than 2^48 blocks: at most {size_max} bytes in blocks of {block_size}")
}

/// Blocks of the log ring for a data device of `data_blocks`.
pub fn log_blocks(data_blocks: u64) -> u64 {
    let small = (data_blocks / DATA_BLOCKS_PER_LOG_BLOCK_SMALL).min(LOG_BLOCKS_SMALL);
    (data_blocks / DATA_BLOCKS_PER_LOG_BLOCK).max(small).clamp(LOG_BLOCKS_MIN, LOG_BLOCKS_MAX)
}

/// Bytes of metadata device that a volume needs when it is full and every block of it has been written in
/// random order: the trees at their largest, half as much again for the generations that copy-on-write keeps,
/// the log, and some slack.
pub fn metadata_size(logical_blocks: u64, data_blocks: u64) -> u64 {
    let with_index = |leaves: u64| leaves + leaves / 200 + 4;
    let live = with_index(logical_blocks.div_ceil(MappingLeaf::PER_LEAF))
        + with_index(data_blocks.div_ceil(DigestLeaf::PER_LEAF))
        + with_index(data_blocks.div_ceil(CountLeaf::PER_LEAF))
        + with_index((data_blocks + data_blocks / 4).div_ceil(HINTS_PER_LEAF_MIN))
        + with_index((logical_blocks / 3).min(data_blocks).div_ceil(OVERFLOWS_PER_LEAF_MIN));
    let slack = (live / 2).max(SLACK_BLOCKS_MIN);
    let blocks = live + slack + log_blocks(data_blocks);
    let map = blocks.div_ceil(CountLeaf::PER_LEAF) * 4;
    (blocks + map).max(MIN_METADATA_BLOCKS) * META_BLOCK_SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of exactly 2^48 blocks was refused with "up to 2^48 blocks", and a data size beyond by what
    /// the metadata would take.
    #[test]
    fn a_size_of_too_many_blocks_is_told_the_largest_that_is_not() {
        let max = ((1u64 << 48) - 1) * 4096;
        assert_eq!(logical_blocks(max, 4096).unwrap(), (1 << 48) - 1);
        check_data_size(max, 4096).unwrap();
        for error in [logical_blocks(1 << 60, 4096).unwrap_err(), check_data_size(1 << 63, 4096).unwrap_err()]
        {
            let error = error.to_string();
            assert!(error.contains("fewer than 2^48 blocks") && error.contains(&max.to_string()), "{error}");
        }
        for odd in [0, 4095, 4097] {
            assert!(
                logical_blocks(odd, 4096).unwrap_err().to_string().contains("a multiple of the block size")
            );
        }
    }

    #[test]
    fn metadata_takes_a_few_percent_of_the_data() {
        let tib = (1u64 << 40) / 4096;
        let size = metadata_size(tib, tib);
        assert!(size < (1 << 40) / 20, "{size} bytes for a TiB");
        assert!(size > (1 << 40) / 100, "{size} bytes cannot hold 46 bytes for each block");
    }
}
