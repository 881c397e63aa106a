//! A client that keeps many requests under way, records what was asked for and answered, and knows what must
//! be there.
//!
//! Reads are checked at once. A request touches only blocks that have none under way, so that versions have
//! an order; different blocks are written in any order the server likes.

use crate::ledger::{Ledger, Snapshot};
use crate::rng::Rng;
use anyhow::{Result, anyhow, bail, ensure};
use dedup_nbd_server::test_client::{Client, Command};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// Sectors of 512 bytes in a block of 4 KiB.
pub const SECTORS: usize = 8;
/// What a block holds: of each sector the number of its content, 0 for zeros.
pub type Block = [u32; SECTORS];

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Requests under way at once.
const DEPTH: usize = 32;
/// Few, so that duplicates are frequent, and more than there are blocks in a batch.
const CONTENTS: u64 = 400;
/// Longest request, in sectors.
const SECTORS_MAX: u64 = 32;
/// Blocks that are read back in one request.
const BLOCKS_READ: usize = 64;

/// When the writer stops.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many answers.
    Answers(u64),
    /// After so many answers that needed a commit: FLUSH, FUA.
    Commits(u64),
}

/// What a writer did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests answered.
    pub answers: u64,
    /// Of these, such that needed a commit: FLUSH, FUA.
    pub commits: u64,
    /// Of these, refused for lack of space.
    pub refused: u64,
    /// Blocks read back and found as they may be.
    pub verified: u64,
    /// The longest that an answer took.
    pub slowest: Duration,
}

/// A request under way.
#[derive(Debug)]
enum Pending {
    Read(Range<usize>, Range<u64>),
    Change(Range<usize>, bool),
    Flush(Snapshot),
}

/// What outlives the server.
#[derive(Debug)]
pub struct Writer {
    /// What each block may hold.
    pub ledger: Ledger<Block>,
    /// What was done so far.
    pub tally: Tally,
    rng: Rng,
    cookie: u64,
    pending: HashMap<u64, (Pending, Instant)>,
    /// Whether ENOSPC is an answer.
    may_be_full: bool,
}

const ENOSPC: u32 = 28;

impl Writer {
    /// A writer of the first `blocks` blocks of a fresh volume.
    pub fn new(blocks: usize, seed: u64) -> Self {
        Self {
            ledger: Ledger::new(blocks, [0; SECTORS]),
            tally: Tally::default(),
            rng: Rng::new(seed),
            cookie: 0,
            pending: HashMap::new(),
            may_be_full: false,
        }
    }

    /// From now on a write may be refused because the device is full.
    pub fn may_be_full(&mut self) {
        self.may_be_full = true;
    }

    /// Sends requests and takes answers until the limit is reached, or no block is left that may be asked
    /// for; requests stay under way.
    pub fn write(&mut self, client: &mut Client, limit: Limit) -> Result<()> {
        let start = self.tally;
        let reached = |tally: &Tally| match limit {
            Limit::Answers(n) => tally.answers - start.answers >= n,
            Limit::Commits(n) => tally.commits - start.commits >= n,
        };
        while !reached(&self.tally) {
            while self.pending.len() < DEPTH {
                let Some((command, pending)) = self.next() else { break };
                self.cookie += 1;
                // Entered before it is sent: what the kernel took of it may take effect, even if the call
                // fails.
                self.pending.insert(self.cookie, (pending, Instant::now()));
                client.submit(self.cookie, &command)?;
            }
            // Every block has been refused, and waits to be read back: there is nothing to ask for, and no
            // answer to wait for.
            if self.pending.is_empty() {
                break;
            }
            self.take(client)?;
        }
        Ok(())
    }

    /// Takes the answers to all that is under way; `false` if the connection ended before.
    pub fn drain(&mut self, client: &mut Client) -> Result<bool> {
        while !self.pending.is_empty() {
            match self.take(client) {
                Ok(()) => {}
                Err(error) if error.is::<std::io::Error>() => {
                    self.pending.clear();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads all blocks back from a server that was started again: each must hold something that it may.
    pub fn verify(&mut self, socket: &Path) -> Result<()> {
        // What was under way when the server went will not be answered any more.
        self.pending.clear();
        let mut client = Client::connect(socket)?;
        let block = SECTORS as u64 * SECTOR;
        let count = self.ledger.block_count();
        for start in (0..count).step_by(BLOCKS_READ) {
            let blocks = start..count.min(start + BLOCKS_READ);
            let command =
                Command::Read { offset: start as u64 * block, len: (blocks.len() as u64 * block) as u32 };
            let bytes = match client.run(&command)? {
                Ok(bytes) => bytes,
                Err(error) => bail!("blocks {blocks:?} cannot be read: errno {error}"),
            };
            for (block, bytes) in blocks.zip(bytes.chunks(block as usize)) {
                let found = self.ledger.recover(block, |version| bytes_of(version) == bytes);
                found.map_err(|why| anyhow!("{why}; its bytes begin with {:02x?}", &bytes[..16]))?;
                self.tally.verified += 1;
            }
        }
        Ok(())
    }

    /// The next request, if blocks for it are idle.
    fn next(&mut self) -> Option<(Command, Pending)> {
        let kind = self.rng.below(100);
        if kind < 5 {
            return Some((Command::Flush, Pending::Flush(self.ledger.begin_flush())));
        }
        let sectors = self.place()?;
        let (offset, len) = (sectors.start * SECTOR, ((sectors.end - sectors.start) * SECTOR) as u32);
        let blocks = (sectors.start as usize / SECTORS)..(sectors.end as usize).div_ceil(SECTORS);
        let fua = self.rng.below(40) == 0;
        let command = match kind {
            5..15 => {
                self.ledger.begin_read(blocks.clone());
                return Some((Command::Read { offset, len }, Pending::Read(blocks, sectors)));
            }
            15..20 => Command::Trim { offset, len, fua },
            20..25 => Command::Zero { offset, len, fua },
            _ => Command::Write { offset, data: Vec::new(), fua },
        };
        Some((self.change(command, &blocks, &sectors), Pending::Change(blocks, fua)))
    }

    /// Enters a change in the ledger, and makes a write's bytes.
    fn change(&mut self, mut command: Command, blocks: &Range<usize>, sectors: &Range<u64>) -> Command {
        for block in blocks.clone() {
            let start = (block * SECTORS) as u64;
            let part = sectors.start.max(start) - start..sectors.end.min(start + SECTORS as u64) - start;
            let part = part.start as usize..part.end as usize;
            match &mut command {
                Command::Write { data, .. } => {
                    let content = 1 + self.rng.below(CONTENTS) as u32;
                    self.ledger.begin_change(block, |now| now[part.clone()].fill(content));
                    data.extend(bytes_of(&vec![content; part.len()]));
                }
                // Of a trim too: what it covers of a block in part is zeroed.
                _ => self.ledger.begin_change(block, |now| now[part].fill(0)),
            }
        }
        command
    }

    /// Consecutive sectors whose blocks are idle. Half of them are whole blocks.
    fn place(&mut self) -> Option<Range<u64>> {
        let (block, count) = (SECTORS as u64, (self.ledger.block_count() * SECTORS) as u64);
        (0..20).find_map(|_| {
            let whole = self.rng.below(2) == 0;
            let unit = if whole { block } else { 1 };
            let start = self.rng.below(count / unit) * unit;
            let len = (1 + self.rng.below(SECTORS_MAX / unit)) * unit;
            let sectors = start..(start + len).min(count);
            let blocks = (start as usize / SECTORS)..(sectors.end as usize).div_ceil(SECTORS);
            self.ledger.is_idle(blocks).then_some(sectors)
        })
    }

    /// Takes one answer.
    fn take(&mut self, client: &mut Client) -> Result<()> {
        let reply = client.receive()?;
        let Some((pending, sent)) = self.pending.remove(&reply.cookie) else {
            bail!("an answer to nothing that is under way: {}", reply.cookie);
        };
        self.tally.slowest = self.tally.slowest.max(sent.elapsed());
        self.tally.answers += 1;
        if let (Pending::Change(blocks, _), ENOSPC, true) = (&pending, reply.error, self.may_be_full) {
            // Each block is old or new: which, tells the next read. Until then both are versions.
            self.tally.refused += 1;
            blocks.clone().for_each(|block| self.ledger.end_refused(block));
            return Ok(());
        }
        ensure!(reply.error == 0, "{pending:?}: errno {}", reply.error);
        match pending {
            Pending::Read(blocks, sectors) => {
                let expected: Vec<u32> =
                    blocks.clone().flat_map(|block| *self.ledger.current(block)).collect();
                let first = sectors.start as usize % SECTORS;
                let len = (sectors.end - sectors.start) as usize;
                let as_written = reply.data == bytes_of(&expected[first..first + len]);
                ensure!(
                    as_written,
                    "a read of sectors {sectors:?} returned other bytes than the last ones written"
                );
                self.tally.verified += blocks.len() as u64;
                self.ledger.end_read(blocks);
            }
            Pending::Change(blocks, fua) => {
                self.tally.commits += u64::from(fua);
                blocks.for_each(|block| self.ledger.end_change(block, fua));
            }
            Pending::Flush(snapshot) => {
                self.tally.commits += 1;
                self.ledger.end_flush(&snapshot);
            }
        }
        Ok(())
    }
}

/// The bytes of some sectors of a block: content `n` differs from sector to sector and is the same in every
/// block.
fn bytes_of<'a>(sectors: impl IntoIterator<Item = &'a u32>) -> Vec<u8> {
    sectors.into_iter().flat_map(|content| crate::block(u64::from(*content), SECTOR as usize)).collect()
}
