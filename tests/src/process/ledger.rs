//! Of each block, what it may hold. Kept in the test's own process, which outlives the server.
//!
//! ```text
//!   versions of a block:   v0 ─── v1 ─── v2 ─── v3         in the order in which they were asked for, one at a time
//!                          ^ known durable      ^ last asked for
//!                                 ^ last answered: what a read must return, and what the next FLUSH makes durable
//! ```
//!
//! After a kill a block holds the last version answered or a later one, after a power cut the last one known durable or any later one, *whole*. Invariant: a block has one request under way
//! at most, so its versions have an order.

use std::ops::Range;

/// Sectors of 512 bytes in a block of 4 KiB.
pub const SECTORS: usize = 8;
/// Bytes of a sector.
const SECTOR: usize = 512;

/// What a block holds: of each sector the number of its content, 0 for zeros.
pub type Block = [u32; SECTORS];

/// One block's versions.
#[derive(Clone, Debug)]
struct History {
    /// From the one known durable on.
    versions: Vec<Block>,
    /// Place in `versions` of the last one answered.
    answered: usize,
    /// How many versions were forgotten, because a later one is durable.
    forgotten: usize,
    busy: bool,
}

/// All blocks.
#[derive(Clone, Debug)]
pub struct Ledger {
    blocks: Vec<History>,
}

/// What a FLUSH, sent now, will make durable.
#[derive(Debug)]
pub struct Snapshot(Vec<usize>);

impl Ledger {
    /// A volume of zeros.
    pub fn new(blocks: usize) -> Self {
        let zeros = History { versions: vec![[0; SECTORS]], answered: 0, forgotten: 0, busy: false };
        Self { blocks: vec![zeros; blocks] }
    }

    /// Blocks in it.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Whether none of these blocks has a request under way.
    pub fn is_idle(&self, blocks: Range<usize>) -> bool {
        self.blocks[blocks].iter().all(|history| !history.busy)
    }

    /// A read of these blocks is under way.
    pub fn begin_read(&mut self, blocks: Range<usize>) {
        self.blocks[blocks].iter_mut().for_each(|history| history.busy = true);
    }

    /// The read was answered.
    pub fn end_read(&mut self, blocks: Range<usize>) {
        self.blocks[blocks].iter_mut().for_each(|history| history.busy = false);
    }

    /// A change of a block is under way.
    pub fn begin_change(&mut self, block: usize, change: impl FnOnce(&mut Block)) {
        let history = &mut self.blocks[block];
        let mut next = history.versions[history.versions.len() - 1];
        change(&mut next);
        history.versions.push(next);
        history.busy = true;
    }

    /// The change was answered, and is durable if it was asked to be.
    pub fn end_change(&mut self, block: usize, durable: bool) {
        let history = &mut self.blocks[block];
        history.busy = false;
        history.answered = history.versions.len() - 1;
        if durable {
            history.forget(history.forgotten + history.answered);
        }
    }

    /// The change was refused: the block is as it was, or as it was to be. Nobody touches it until the volume is read back.
    pub fn end_refused(&mut self, block: usize) {
        self.blocks[block].busy = true;
    }

    /// What a FLUSH covers that is sent now.
    pub fn begin_flush(&self) -> Snapshot {
        Snapshot(self.blocks.iter().map(|history| history.forgotten + history.answered).collect())
    }

    /// The FLUSH was answered.
    pub fn end_flush(&mut self, flushed: &Snapshot) {
        self.blocks.iter_mut().zip(&flushed.0).for_each(|(history, version)| history.forget(*version));
    }

    /// Everything that was answered is durable: the server ended in good order.
    pub fn all_durable(&mut self) {
        let flushed = self.begin_flush();
        self.end_flush(&flushed);
    }

    /// What a read must return now.
    pub fn current(&self, block: usize) -> &Block {
        let history = &self.blocks[block];
        &history.versions[history.answered]
    }

    /// Takes over what a block holds after the server has died, if it may.
    pub fn recover(&mut self, block: usize, bytes: &[u8]) -> Result<(), String> {
        let history = &mut self.blocks[block];
        let found = history.versions.iter().rev().find(|version| bytes_of(*version) == bytes).copied();
        let Some(found) = found else {
            return Err(format!(
                "block {block} holds none of the {} versions from the last durable one on: {:?}; its bytes begin with {:02x?}",
                history.versions.len(),
                history.versions,
                &bytes[..16.min(bytes.len())]
            ));
        };
        *history = History { versions: vec![found], answered: 0, forgotten: 0, busy: false };
        Ok(())
    }
}

impl History {
    /// Version `durable`, counted from the first one ever, is known durable.
    fn forget(&mut self, durable: usize) {
        let gone = durable.saturating_sub(self.forgotten);
        self.versions.drain(..gone);
        self.answered -= gone;
        self.forgotten += gone;
    }
}

/// The bytes of some sectors of a block: content `n` differs from sector to sector and is the same in every block.
pub(super) fn bytes_of<'a>(sectors: impl IntoIterator<Item = &'a u32>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTORS * SECTOR);
    for content in sectors {
        bytes.extend(crate::block(u64::from(*content), SECTOR));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three versions of one block; the second is durable.
    fn three_versions() -> Ledger {
        let mut ledger = Ledger::new(1);
        for (content, durable) in [(1, false), (2, true)] {
            ledger.begin_change(0, |block| block.fill(content));
            ledger.end_change(0, durable);
        }
        ledger.begin_change(0, |block| block[..4].fill(3));
        ledger
    }

    #[test]
    fn the_durable_version_and_each_later_one_may_be_there() {
        for found in [[2; SECTORS], [3, 3, 3, 3, 2, 2, 2, 2]] {
            three_versions().recover(0, &bytes_of(&found)).unwrap();
        }
    }

    #[test]
    fn an_older_version_and_a_torn_one_may_not() {
        for found in [[0; SECTORS], [1; SECTORS], [3, 2, 2, 2, 2, 2, 2, 2], [3; SECTORS]] {
            assert!(three_versions().recover(0, &bytes_of(&found)).is_err(), "{found:?}");
        }
    }

    #[test]
    fn a_flush_covers_what_was_answered_when_it_was_sent() {
        let mut ledger = Ledger::new(1);
        ledger.begin_change(0, |block| block.fill(1));
        ledger.end_change(0, false);
        let flushed = ledger.begin_flush();
        ledger.begin_change(0, |block| block.fill(2));
        ledger.end_change(0, false);
        ledger.end_flush(&flushed);
        assert!(ledger.clone().recover(0, &bytes_of(&[0; SECTORS])).is_err());
        ledger.clone().recover(0, &bytes_of(&[1; SECTORS])).unwrap();
        ledger.recover(0, &bytes_of(&[2; SECTORS])).unwrap();
    }
}
