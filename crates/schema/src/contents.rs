//! Data in the log, read: the content of blocks that a commit carried beside its records.
//!
//! A commit group begins with content, piece by piece; the allocation of the block comes later in the same
//! group. What a block of the accepted log was last allocated with, if it is in use at the end, belongs at
//! its place.
//!
//! Why a replay may write it there: a block that is in use at the end of the accepted log has not been taken
//! for other content since its last allocation, since what frees it is durable before it is taken anew (I2),
//! and an allocation without content ends what the log knew of the block. So nothing is overwritten but the
//! same bytes.

use crate::ids::Pbn;
use dedup_meta::Epoch;
use std::collections::BTreeMap;

/// The content that a log carries, while it is replayed and after.
#[derive(Debug, Default)]
pub struct Contents {
    /// The epoch and the commit group that `pending` belongs to.
    group: (Epoch, u64),
    /// Content whose allocation has not come yet.
    pending: BTreeMap<u64, Vec<u8>>,
    /// Content of allocated blocks.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Contents {
    /// The next log block belongs to this commit group of this epoch (groups are counted anew after a
    /// checkpoint). Content of an earlier one that no allocation came for was torn off.
    pub fn begin_block(&mut self, epoch: Epoch, group: u64) {
        let group = (epoch, group);
        if group != self.group {
            self.group = group;
            self.pending.clear();
        }
    }

    /// A piece of a block's content, of whose `block_size` bytes it must be the next. The error says what is
    /// wrong with it.
    pub fn piece(&mut self, pbn: Pbn, offset: u32, bytes: &[u8], block_size: u64) -> Result<(), String> {
        let content = self.pending.entry(pbn.0).or_default();
        let offset = offset as usize;
        if content.len() != offset {
            return Err(format!("content of block {pbn}: expected offset {}, found {offset}", content.len()));
        }
        if (offset + bytes.len()) as u64 > block_size {
            let end = offset + bytes.len();
            return Err(format!("content of block {pbn}: expected up to {block_size} bytes, found {end}"));
        }
        content.extend_from_slice(bytes);
        Ok(())
    }

    /// The block is allocated, with the content that came before in the group, or with what is on the device.
    pub fn allocate(&mut self, pbn: Pbn, block_size: u64) -> Result<(), String> {
        match self.pending.remove(&pbn.0) {
            None => self.blocks.remove(&pbn.0),
            Some(content) if content.len() as u64 == block_size => self.blocks.insert(pbn.0, content),
            Some(content) => {
                return Err(format!(
                    "content of block {pbn}: expected {block_size} bytes, found {}",
                    content.len()
                ));
            }
        };
        Ok(())
    }

    /// Forgets the content of blocks that are allocated, for those whom it does not concern.
    pub fn forget_allocated(&mut self) {
        self.blocks.clear();
    }

    /// Blocks whose last allocation came with content, and that content. Those that are in use in the end are
    /// to be written.
    pub fn allocated(self) -> BTreeMap<u64, Vec<u8>> {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_without_content_ends_what_the_log_knew_of_the_block() {
        let mut contents = Contents::default();
        contents.begin_block(Epoch(1), 1);
        contents.piece(Pbn(5), 0, &[1; 512], 512).unwrap();
        contents.allocate(Pbn(5), 512).unwrap();
        contents.begin_block(Epoch(1), 2);
        contents.allocate(Pbn(5), 512).unwrap();
        assert!(contents.allocated().is_empty());
    }

    /// An open after a checkpoint finds an empty log and counts groups from 0 again. The way back to the
    /// older superblock replays both.
    #[test]
    fn content_of_a_torn_group_is_not_taken_for_that_of_a_later_epochs_group_of_the_same_number() {
        let mut contents = Contents::default();
        contents.begin_block(Epoch(1), 0);
        contents.piece(Pbn(5), 0, &[1; 512], 512).unwrap();
        contents.begin_block(Epoch(3), 0);
        contents.allocate(Pbn(5), 512).unwrap();
        assert!(contents.allocated().is_empty());
    }

    #[test]
    fn content_of_a_torn_group_is_not_taken_for_that_of_a_later_one() {
        let mut contents = Contents::default();
        contents.begin_block(Epoch(1), 1);
        contents.piece(Pbn(5), 0, &[1; 512], 512).unwrap();
        contents.begin_block(Epoch(1), 2);
        contents.allocate(Pbn(5), 512).unwrap();
        assert!(contents.allocated().is_empty());
    }

    #[test]
    fn pieces_that_leave_a_gap_stick_out_or_stop_short_are_refused() {
        let mut contents = Contents::default();
        contents.begin_block(Epoch(1), 1);
        contents.piece(Pbn(5), 0, &[1; 256], 512).unwrap();
        contents.piece(Pbn(5), 257, &[1; 16], 512).unwrap_err();
        contents.piece(Pbn(5), 256, &[1; 257], 512).unwrap_err();
        contents.allocate(Pbn(5), 512).unwrap_err();
    }
}
