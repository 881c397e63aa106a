//! Data in the log: a commit of few blocks carries their content and so needs one flush instead of two.
//!
//! ```text
//!  large commit    data ─> flush data ─> records ─> flush metadata
//!  small commit    data (unflushed)      content + records ─> flush metadata
//!                                        └ one group; content first, so that no record is there without it
//!  replay          what a block of the accepted log was last allocated with, if it is in use at the end, is written to its place
//! ```
//!
//! The data is written to its place either way, before the records are made, so reads and duplicates see no difference; it is only
//! not flushed. It becomes durable there with the next large commit or checkpoint, and the log is not released before (R2, R3). The
//! idea is that of the small synchronous writes in the ZFS intent log.
//!
//! Why replay may write: a block that is in use at the end of the accepted log has not been taken for other content since its
//! last allocation, since what frees it is durable before it is taken anew (I2), and an allocation without content ends what the log
//! knew of the block. So nothing is overwritten but the same bytes.

use crate::ids::Pbn;
use crate::record::Record;
use dedup_meta::{Epoch, LOG_PAYLOAD_SIZE};
use std::collections::BTreeMap;

/// Bytes of a content record's own.
const OVERHEAD: usize = Record::CONTENT_OVERHEAD;

/// What was written to the data device and not flushed.
#[derive(Debug)]
pub(crate) struct Unflushed {
    /// Anything at all, in this commit or in earlier ones whose content is in the log.
    dirty: bool,
    /// Some of it is in the log.
    in_log: bool,
    /// `payloads` have all that was written since the last commit.
    complete: bool,
    /// Content records, as log blocks will hold them.
    payloads: Vec<Vec<u8>>,
    /// Bytes of content in them.
    bytes: usize,
    /// No more than this.
    limit: usize,
}

impl Unflushed {
    /// Nothing written yet. Commits of up to `limit` bytes of new content go to the log.
    pub(crate) fn new(limit: usize) -> Self {
        Self { dirty: false, in_log: false, complete: true, payloads: Vec::new(), bytes: 0, limit }
    }

    /// Whether any commit may carry data in the log.
    pub(crate) fn goes_to_the_log(&self) -> bool {
        self.limit > 0
    }

    /// A block was written for the first time with this content.
    pub(crate) fn wrote(&mut self, pbn: Pbn, content: &[u8]) {
        self.dirty = true;
        if !self.complete || self.bytes + content.len() > self.limit {
            return self.give_up();
        }
        self.bytes += content.len();
        let (mut offset, mut rest) = (0, content);
        while !rest.is_empty() {
            let room = self.payloads.last().map_or(0, |payload| LOG_PAYLOAD_SIZE - payload.len());
            // A record for a handful of bytes is not worth its head.
            if room <= 2 * OVERHEAD {
                self.payloads.push(Vec::with_capacity(LOG_PAYLOAD_SIZE));
                continue;
            }
            let (now, later) = rest.split_at(rest.len().min(room - OVERHEAD));
            if let Some(payload) = self.payloads.last_mut() {
                Record::Content { pbn, offset, bytes: now }.encode(payload);
            }
            (offset, rest) = (offset + now.len() as u32, later);
        }
    }

    /// Something was written that the log cannot carry: a block healed in place, or what the log that was replayed carried before.
    pub(crate) fn wrote_more(&mut self) {
        self.dirty = true;
        self.give_up();
    }

    /// Whether the log has data that is not flushed.
    pub(crate) fn is_in_log(&self) -> bool {
        self.in_log
    }

    fn give_up(&mut self) {
        self.complete = false;
        self.payloads = Vec::new();
    }

    /// Log blocks that the content would take, if a commit now can do without a flush of the data device.
    pub(crate) fn log_blocks(&self) -> Option<u64> {
        self.complete.then_some(self.payloads.len() as u64)
    }

    /// A commit takes the content. The data device stays unflushed.
    pub(crate) fn take_content(&mut self) -> Vec<Vec<u8>> {
        self.bytes = 0;
        self.in_log |= !self.payloads.is_empty();
        std::mem::take(&mut self.payloads)
    }

    /// A commit flushes the data device, if that is needed: whether it is.
    pub(crate) fn take_dirty(&mut self) -> bool {
        let dirty = self.dirty;
        *self = Self::new(self.limit);
        dirty
    }
}

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
    /// The next log block belongs to this commit group of this epoch (groups are counted anew after a checkpoint). Content of an earlier one
    /// that no allocation came for was torn off.
    pub fn begin_block(&mut self, epoch: Epoch, group: u64) {
        let group = (epoch, group);
        if group != self.group {
            self.group = group;
            self.pending.clear();
        }
    }

    /// A piece of a block's content, of whose `block_size` bytes it must be the next. The error says what is wrong with it.
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

    /// Blocks whose last allocation came with content, and that content. Those that are in use in the end are to be written.
    pub fn allocated(self) -> BTreeMap<u64, Vec<u8>> {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_back(payloads: &[Vec<u8>], block_size: u64) -> Contents {
        let mut contents = Contents::default();
        for payload in payloads {
            contents.begin_block(Epoch(1), 1);
            let mut bytes = payload.as_slice();
            while !bytes.is_empty() {
                let Record::Content { pbn, offset, bytes } = Record::decode(&mut bytes).unwrap() else {
                    panic!("only content was written");
                };
                contents.piece(pbn, offset, bytes, block_size).unwrap();
            }
        }
        contents
    }

    proptest! {
        #[test]
        fn content_of_any_block_size_comes_back_from_log_blocks_that_it_fits(
            log2 in 9u32..15,
            seeds in proptest::collection::vec(any::<u8>(), 1..20),
        ) {
            let size = 1usize << log2;
            let mut unflushed = Unflushed::new(1 << 20);
            let blocks: Vec<Vec<u8>> =
                seeds.iter().map(|seed| (0..size).map(|i| (i % 251) as u8 ^ seed).collect()).collect();
            for (i, block) in blocks.iter().enumerate() {
                unflushed.wrote(Pbn(i as u64 + 1), block);
            }
            let payloads = unflushed.take_content();
            prop_assert!(payloads.iter().all(|payload| (1..=LOG_PAYLOAD_SIZE).contains(&payload.len())));
            let mut contents = read_back(&payloads, size as u64);
            for pbn in 1..=blocks.len() as u64 {
                contents.allocate(Pbn(pbn), size as u64).unwrap();
            }
            let found: Vec<Vec<u8>> = contents.allocated().into_values().collect();
            prop_assert_eq!(found, blocks);
        }
    }

    #[test]
    fn one_byte_over_the_limit_and_the_data_device_is_flushed() {
        let mut unflushed = Unflushed::new(1024);
        unflushed.wrote(Pbn(1), &[1; 1024]);
        assert_eq!(unflushed.log_blocks(), Some(1));
        unflushed.wrote(Pbn(2), &[2; 512]);
        assert_eq!(unflushed.log_blocks(), None);
        assert!(unflushed.take_dirty());
        assert_eq!(unflushed.log_blocks(), Some(0));
        assert!(!unflushed.take_dirty());
    }

    #[test]
    fn what_a_commit_took_into_the_log_still_waits_for_a_flush() {
        let mut unflushed = Unflushed::new(1024);
        unflushed.wrote(Pbn(1), &[1; 512]);
        assert_eq!(unflushed.take_content().len(), 1);
        assert_eq!(unflushed.log_blocks(), Some(0));
        assert!(unflushed.take_dirty());
    }

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

    /// An open after a checkpoint finds an empty log and counts groups from 0 again. The way back to the older superblock replays both.
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
