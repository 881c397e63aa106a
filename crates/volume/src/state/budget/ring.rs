//! The log ring's part of the budget: which of its blocks are in use, and what for.
//!
//! ```text
//!   needed ───────> sealed ──────────> next ─────────────────> needed, one lap later
//!   of the older    since the last     admitted, unlogged,
//!   superblock      delta was sealed   and a margin
//! ```

/// Log blocks in use beyond which no commit puts data into the log: 256 MiB, which an open after a crash has
/// to keep in memory and to write to its place.
pub(super) const CONTENT_BLOCKS_MAX: u64 = 64 << 10;
/// Log blocks kept free so that the last commit before a checkpoint always fits.
pub(super) const MARGIN_BLOCKS: u64 = 2;

/// Blocks of the ring, by the numbers that they have along the log.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(super) blocks: u64,
    /// The next one to be written.
    pub(super) next: u64,
    /// The first that a replay may need.
    pub(super) needed: u64,
    /// The next one when the last delta was sealed.
    pub(super) sealed: u64,
    /// The log has data in it since then.
    pub(super) has_content: bool,
}

impl Ring {
    /// A ring of `blocks`, of which those from `needed` up to before `next` are in use, and those before
    /// `sealed` are part of the trees.
    pub(crate) fn new(blocks: u64, needed: u64, sealed: u64, next: u64) -> Self {
        Self { blocks, next, needed, sealed, has_content: false }
    }

    /// Blocks of the ring.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Log blocks that a replay may need.
    pub(crate) fn used(&self) -> u64 {
        self.next - self.needed
    }

    /// Whether so many blocks more fit.
    pub(super) fn fits(&self, blocks: u64) -> bool {
        self.used() + blocks + MARGIN_BLOCKS <= self.blocks
    }

    /// Whether `blocks` more than the `records` need may be taken for data: a quarter of the ring stays free,
    /// and what an open reads into memory stays small.
    pub(super) fn has_room_for_content(&self, records: u64, blocks: u64) -> bool {
        let max = (self.blocks / 4 * 3).min(CONTENT_BLOCKS_MAX);
        blocks == 0 || self.used() + records + MARGIN_BLOCKS + blocks <= max
    }

    /// A commit writes `blocks`, of which some may carry data.
    pub(super) fn wrote(&mut self, blocks: u64, with_content: bool) {
        self.next += blocks;
        self.has_content |= with_content;
    }

    /// The log up to here will be part of the trees.
    pub(super) fn seal(&mut self) {
        (self.sealed, self.has_content) = (self.next, false);
    }

    /// The log is needed from here on.
    pub(super) fn release(&mut self, needed: u64) {
        self.needed = needed;
    }

    /// Whether so many records yet to be written take half of what is free.
    pub(super) fn wants_commit(&self, unlogged: u64) -> bool {
        unlogged > self.blocks.saturating_sub(self.used()) / 2
    }

    /// Whether the log since the last checkpoint is a quarter of the ring, or free ring space is below a
    /// quarter (R7).
    pub(super) fn wants_checkpoint(&self) -> bool {
        let quarter = self.blocks / 4;
        let due = if self.has_content { quarter.min(CONTENT_BLOCKS_MAX / 4) } else { quarter };
        self.next - self.sealed >= due || self.used() > self.blocks / 4 * 3
    }
}
