//! Where the fixed things are on a metadata device of a given size.

use super::{BlockFault, ensure};
use crate::{LogGeometry, MetaBlock, TxId, field};

/// Blocks between the two slots, and between the two spares: 1 MiB.
const COPY_DISTANCE: u64 = 256;
/// First block of the log ring: the one after the second slot.
const LOG_START: u64 = COPY_DISTANCE + 1;

/// Blocks that the log ring has at least: a quarter of it must still hold a commit of a few blocks.
pub const MIN_LOG_BLOCKS: u64 = 16;
/// Blocks that a metadata device has at least (4 MiB): the slots and the spares reach 1 MiB into it from both
/// ends, and what is left for the log and for three generations of even a small volume's trees should not be
/// less than that.
pub const MIN_METADATA_BLOCKS: u64 = 4 * COPY_DISTANCE;

/// Blocks that the log ring has at most: 2 GiB, which an open may have to read as a whole.
pub const MAX_LOG_BLOCKS: u64 = 512 << 10;
/// Blocks that a metadata device has at most: 16 TiB, enough for 400 TiB of unique 4 KiB blocks. Its map
/// takes 1.5 GiB of memory.
pub const MAX_METADATA_BLOCKS: u64 = 1 << 32;

/// Places on the metadata device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of the device that belong to the pool.
    pub metadata_blocks: u64,
    /// The log's ring.
    pub log: LogGeometry,
}

impl Layout {
    /// The layout of a device of `metadata_blocks` blocks with a ring of `log_blocks`. Fails if they do not
    /// fit.
    pub fn new(metadata_blocks: u64, log_blocks: u64) -> Result<Self, BlockFault> {
        let layout =
            Self { metadata_blocks, log: LogGeometry { start: MetaBlock(LOG_START), blocks: log_blocks } };
        layout.validate()?;
        Ok(layout)
    }

    /// The slot of a transaction's superblock.
    pub fn slot(&self, txid: TxId) -> MetaBlock {
        MetaBlock(txid.0 % 2 * COPY_DISTANCE)
    }

    /// The spare copy of a transaction's superblock.
    pub fn spare(&self, txid: TxId) -> MetaBlock {
        MetaBlock(self.metadata_blocks - 1 - txid.0 % 2 * COPY_DISTANCE)
    }

    /// All blocks that are never tree nodes, ascending: slots, log, spares.
    pub fn reserved(&self) -> impl Iterator<Item = MetaBlock> + use<> {
        let Self { metadata_blocks: end, log } = *self;
        let slots = [0, COPY_DISTANCE];
        let spares = [end - 1 - COPY_DISTANCE, end - 1];
        slots.into_iter().chain(log.start.0..log.start.0 + log.blocks).chain(spares).map(MetaBlock)
    }

    /// Whether [`Layout::reserved`] has this block.
    pub fn is_reserved(&self, block: MetaBlock) -> bool {
        let copies = [TxId(0), TxId(1)].map(|t| [self.slot(t), self.spare(t)]);
        copies.as_flattened().contains(&block)
            || (self.log.start.0..self.log.start.0 + self.log.blocks).contains(&block.0)
    }

    /// Where copies stand on a device of `blocks` blocks, slots first; fewer on one that is too small.
    pub(super) fn copies(blocks: u64) -> impl Iterator<Item = MetaBlock> {
        let ends = [1, 1 + COPY_DISTANCE].map(|back| blocks.checked_sub(back));
        let copies = [Some(0), Some(COPY_DISTANCE)].into_iter().chain(ends).flatten();
        copies.filter(move |&at| at < blocks).map(MetaBlock)
    }

    pub(super) fn validate(&self) -> Result<(), BlockFault> {
        let blocks = self.metadata_blocks;
        let blocks_ok = (MIN_METADATA_BLOCKS..=MAX_METADATA_BLOCKS).contains(&blocks);
        ensure("metadata_blocks", blocks_ok, &format!("{MIN_METADATA_BLOCKS} to 2^32"), blocks)?;
        field("log_start", LOG_START, self.log.start.0)?;
        let room = (blocks - LOG_START - COPY_DISTANCE - 1).min(MAX_LOG_BLOCKS);
        let log_ok = (MIN_LOG_BLOCKS..=room).contains(&self.log.blocks);
        ensure("log_blocks", log_ok, &format!("{MIN_LOG_BLOCKS} to {room}"), self.log.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_blocks_are_distinct_ascending_and_told_apart_from_nodes() {
        for (blocks, log) in [(1024, 16), (1024, 510), (100_000, 4096)] {
            let layout = Layout::new(blocks, log).unwrap();
            let reserved: Vec<_> = layout.reserved().collect();
            assert!(reserved.is_sorted_by(|a, b| a < b));
            assert_eq!(reserved.len() as u64, log + 4);
            let found: Vec<_> = (0..blocks).map(MetaBlock).filter(|&b| layout.is_reserved(b)).collect();
            assert_eq!(found, reserved);
            assert!(
                [0, 1]
                    .map(TxId)
                    .iter()
                    .all(|&t| layout.is_reserved(layout.slot(t)) && layout.is_reserved(layout.spare(t)))
            );
            assert_eq!(Layout::copies(blocks).count(), 4);
        }
    }

    #[test]
    fn a_layout_that_does_not_fit_is_refused() {
        for (blocks, log) in [
            (1023, 16),
            (1024, 511),
            (1024, 15),
            (u64::MAX, 16),
            (MAX_METADATA_BLOCKS + 1, 16),
            (0, 0),
            (1 << 20, u64::MAX),
            (1 << 27, MAX_LOG_BLOCKS + 1),
        ] {
            assert!(Layout::new(blocks, log).is_err(), "{blocks} {log}");
        }
    }
}
