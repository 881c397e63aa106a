//! Data for the log: a commit of few blocks carries their content and so needs one flush instead of two.
//!
//! ```text
//!  large commit    data ─> flush data ─> records ─> flush metadata
//!  small commit    data (unflushed)      content + records ─> flush metadata
//!                                        └ one group; content first, so that no record is there without it
//!  replay          what a block of the accepted log was last allocated with, if it is in use at the end, is written to its place
//! ```
//!
//! The data is written to its place either way, before the records are made, so reads and duplicates see no
//! difference; it is only not flushed. It becomes durable there with the next large commit or checkpoint, and
//! the log is not released before (R2, R3). The idea is that of the small synchronous writes in the ZFS
//! intent log.

use dedup_meta::LOG_PAYLOAD_SIZE;
use dedup_schema::{Pbn, Record};

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

    /// Something was written that the log cannot carry: a block healed in place, or what the log that was
    /// replayed carried before.
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

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_meta::Epoch;
    use dedup_schema::Contents;
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
}
