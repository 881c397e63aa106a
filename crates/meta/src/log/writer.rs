//! Writing the log: operations collect in a [`LogBuilder`], a [`LogWriter`] chains its blocks into the ring.
//!
//! The builder is filled under the engine's lock and does nothing but copy bytes; the writer belongs to the
//! one leader of a commit and does the checksums and the I/O. The writer's order of calls in a commit:
//! `append`, the caller's flush, `mark_durable`; after a checkpoint, `release`.

use super::block::{LOG_PAYLOAD_SIZE, Stamp, encode};
use super::{COUNTERS, Counters, LogGeometry, LogPosition};
use crate::io::{RUN_BLOCKS, write_blocks};
use crate::{Block, Epoch, LogSeq, META_BLOCK_SIZE, MetaError};
use dedup_device::BlockDevice;
use uuid::Uuid;

/// Blocks sealed and sent in one batch: 4 MiB, four of the largest operations, which bounds the memory of an
/// append.
pub(super) const BATCH_BLOCKS: usize = 4 * RUN_BLOCKS;

/// The content of a log block to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingBlock {
    /// Records, at most [`LOG_PAYLOAD_SIZE`] bytes.
    pub payload: Vec<u8>,
    /// Operations in it; a block without any is one whose records are part of no operation.
    pub records: u16,
    /// Sequence number of the last operation, 0 without any.
    pub op_seq: u64,
    /// The counters as of that operation, 0 without any.
    pub counters: Counters,
}

/// Operations that wait for the next commit, packed into blocks.
#[derive(Debug, Default)]
pub struct LogBuilder {
    blocks: Vec<PendingBlock>,
    bytes: u64,
}

impl LogBuilder {
    /// One without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the records of one operation, which are never split over two blocks. `encode` appends their
    /// bytes to what it is given and leaves alone what is there.
    ///
    /// # Panics
    /// If they are longer than [`LOG_PAYLOAD_SIZE`]: no operation's are. If `op_seq` is not above that of the
    /// operation before: a replay would take one of them for done.
    pub fn push(&mut self, op_seq: u64, counters: &Counters, encode: impl FnOnce(&mut Vec<u8>)) {
        // It is filled bit by bit, and so has memory for all that it will take from the beginning.
        let new_block = |first: &[u8]| {
            let mut payload = Vec::with_capacity(META_BLOCK_SIZE);
            payload.extend_from_slice(first);
            PendingBlock { payload, records: 1, op_seq, counters: *counters }
        };
        let Some(last) = self.blocks.last_mut().filter(|block| block.records < u16::MAX) else {
            let mut block = new_block(&[]);
            encode(&mut block.payload);
            self.count(block.payload.len());
            self.blocks.push(block);
            return;
        };
        assert!(last.op_seq < op_seq, "operation {op_seq} is logged behind operation {}", last.op_seq);
        let start = last.payload.len();
        encode(&mut last.payload);
        let end = last.payload.len();
        if end > LOG_PAYLOAD_SIZE {
            let next = new_block(&last.payload[start..]);
            last.payload.truncate(start);
            self.blocks.push(next);
        } else {
            last.records += 1;
            (last.op_seq, last.counters) = (op_seq, *counters);
        }
        self.count(end - start);
    }

    fn count(&mut self, bytes: usize) {
        assert!(bytes <= LOG_PAYLOAD_SIZE, "an operation of {bytes} bytes");
        self.bytes += bytes as u64;
    }

    /// Takes out everything pushed so far, in order. No block is empty of operations.
    pub fn take(&mut self) -> Vec<PendingBlock> {
        self.bytes = 0;
        std::mem::take(&mut self.blocks)
    }

    /// The same behind `payloads`, records that are part of no operation. The last of them shares a block
    /// with the first operations, if these fit.
    ///
    /// # Panics
    /// If a payload is longer than [`LOG_PAYLOAD_SIZE`].
    pub fn take_behind(&mut self, mut payloads: Vec<Vec<u8>>) -> Vec<PendingBlock> {
        let mut blocks = self.take();
        let fits =
            |last: &mut Vec<u8>, first: &PendingBlock| last.len() + first.payload.len() <= LOG_PAYLOAD_SIZE;
        if let Some(first) = blocks.first_mut()
            && let Some(mut payload) = payloads.pop_if(|last| fits(last, first))
        {
            payload.append(&mut first.payload);
            first.payload = payload;
        }
        let without_operations = |payload: Vec<u8>| {
            assert!(payload.len() <= LOG_PAYLOAD_SIZE, "records of {} bytes", payload.len());
            PendingBlock { payload, records: 0, op_seq: 0, counters: [0; COUNTERS] }
        };
        blocks.splice(0..0, payloads.into_iter().map(without_operations));
        blocks
    }

    /// Bytes of records that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Log blocks that the next append would write.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

/// The end of the log, from which it grows.
#[derive(Debug)]
pub struct LogWriter {
    geometry: LogGeometry,
    pool: Uuid,
    epoch: Epoch,
    position: LogPosition,
    /// Every block below this is durable.
    durable: LogSeq,
    /// Every block below this may be overwritten.
    released: LogSeq,
    /// The next commit group.
    group: u64,
    /// The first failure, after which nothing is written.
    failure: Option<String>,
}

impl LogWriter {
    /// A writer of a new `epoch` that goes on at `position`, the end of the accepted log, all of which is
    /// durable. Blocks below `released` are needed by no superblock. `group` is the number of the first
    /// commit group.
    pub fn new(
        geometry: LogGeometry,
        pool: Uuid,
        epoch: Epoch,
        position: LogPosition,
        released: LogSeq,
        group: u64,
    ) -> Self {
        Self { geometry, pool, epoch, position, durable: position.next, released, group, failure: None }
    }

    /// Where the next block goes.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// Blocks that may be written before something is released.
    pub fn free_blocks(&self) -> u64 {
        self.geometry.blocks.saturating_sub(self.position.next.0.saturating_sub(self.released.0))
    }

    /// Writes `blocks` as one commit group and says where the log ends now. Not durable until a flush.
    /// Without room for all of them nothing is written ([`MetaError::LogFull`]); after a failed write the
    /// writer is dead.
    pub fn append(
        &mut self,
        device: &dyn BlockDevice,
        blocks: Vec<PendingBlock>,
    ) -> Result<LogPosition, MetaError> {
        if let Some(reason) = &self.failure {
            return Err(MetaError::Dead { reason: reason.clone() });
        }
        let (needed, free) = (blocks.len() as u64, self.free_blocks());
        if needed > free {
            return Err(MetaError::LogFull { needed, free, total: self.geometry.blocks });
        }
        let mut left = blocks.len();
        for batch in blocks.chunks(BATCH_BLOCKS) {
            left -= batch.len();
            let sealed = self.seal(batch, left == 0);
            if let Err(error) = write_blocks(device, sealed.iter().map(|block| &**block)) {
                self.failure = Some(format!("log: {error}"));
                return Err(error);
            }
        }
        if needed > 0 {
            self.group += 1;
        }
        Ok(self.position)
    }

    /// Says that a flush which began after the append that returned `end` has succeeded.
    ///
    /// # Panics
    /// If no append returned it yet: a false claim would later be taken for damage.
    pub fn mark_durable(&mut self, end: LogPosition) {
        assert!(end.next <= self.position.next, "durable beyond what was written");
        self.durable = self.durable.max(end.next);
    }

    /// Says that the older of the two valid superblocks replays from `older_superblock_next`: blocks below
    /// are free.
    ///
    /// # Panics
    /// If the log has not come that far: blocks would be overwritten that are needed.
    pub fn release(&mut self, older_superblock_next: LogSeq) {
        assert!(older_superblock_next <= self.position.next, "released beyond what was written");
        assert!(
            self.released <= self.durable && self.durable <= self.position.next,
            "released, durable, written"
        );
        self.released = self.released.max(older_superblock_next);
    }

    /// Seals a batch and moves the position past it.
    ///
    /// # Panics
    /// If a block of it would take the place of one that a superblock needs: `append` has looked for room,
    /// and this is the last moment before it would be lost.
    fn seal(&mut self, batch: &[PendingBlock], ends_group: bool) -> Vec<Box<Block>> {
        assert!(
            batch.len() as u64 <= self.free_blocks(),
            "{} log blocks, {} free",
            batch.len(),
            self.free_blocks()
        );
        let seal = |(i, content): (usize, &PendingBlock)| {
            let stamp = Stamp {
                position: self.position,
                place: self.geometry.place(self.position.next),
                epoch: self.epoch,
                durable: self.durable,
                group: self.group,
                group_end: ends_group && i + 1 == batch.len(),
            };
            let block = encode(content, &stamp, self.pool);
            self.position = LogPosition { next: self.position.next.next(), prev_crc: block.header.crc.get() };
            block
        };
        batch.iter().enumerate().map(seal).collect()
    }
}
