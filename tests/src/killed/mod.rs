//! Processes that die while a volume is open: the devices keep all that was written, flushed or not, and so
//! does the journal of acknowledged operations; or the power is cut, and takes the journal along.
//!
//! ```text
//!   life ── kill ── life ── kill ── life ── power cut ── open
//!     │               └ opened: everything acknowledged is there, each block whole
//!     └ events: writes and flushes of both devices, writes of the journal, each before and after; a kill is at one of them
//! ```
//!
//! One client, one request after the other: so what must be found is known, but for the request under way.

mod memory;
mod mortal;

pub use memory::{Death, Files, Memory};
pub use mortal::mortal;

use crate::ledger::Ledger;
use crate::rng::Rng;
use crate::{Disks, block, format_options, options, read, run as request};
use dedup_volume::{FormatOptions, Op, OpenOptions, RequestError, RunPolicy, Volume, VolumeError};
use std::sync::Arc;

/// Logical blocks.
const LBNS: u64 = 12;
/// Bytes in a block.
const BLOCK: u64 = 512;

/// A volume of a seed, and what has to be on it.
#[derive(Debug)]
pub struct World {
    disks: Disks,
    journal: Memory,
    options: OpenOptions,
    /// What each LBN may hold: one content, or two while a request is under way. What was answered outlives
    /// the process, and so counts as durable here.
    ledger: Ledger<u64>,
    boot: u128,
    ids: u128,
    /// The last content that was never written before.
    unique: u64,
}

/// What a seed did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Lives that ended by a kill.
    pub kills: u64,
    /// Events of the first life.
    pub events: u64,
}

/// Runs a seed whose first life is killed at event `kill`.
///
/// # Panics
/// If anything acknowledged is missing after it; the message begins with `story`.
pub fn run(seed: u64, kill: u64, adjust: impl FnOnce(&mut OpenOptions)) -> Seen {
    let mut rng = Rng::new(seed);
    let mut world = World::new(&mut rng, adjust);
    let mut seen = Seen::default();
    let mut endings = Rng::new(seed ^ kill << 20);
    for life in 0..3 {
        let story = format!("seed {seed}, kill at {kill}, life {life}");
        // The later ones often die in the open, where what was acknowledged is taken in.
        let at = if life == 0 { kill } else { endings.below(60) };
        let death = Death::at(at);
        world.live(&mut rng, &death, &story);
        if life == 0 {
            seen.events = death.events();
        }
        seen.kills += u64::from(death.is_over());
    }
    world.end(&mut endings, &format!("seed {seed}, kill at {kill}, in the end"));
    seen
}

impl World {
    fn new(rng: &mut Rng, adjust: impl FnOnce(&mut OpenOptions)) -> Self {
        // Data blocks hardly suffice in one of three; the log ring and the deltas are as small as they may be
        // in half of them.
        let blocks = LBNS + [3, 8, 40][rng.below(3) as usize];
        let disks = Disks::new((blocks * BLOCK).max(16 << 10), 4 << 20);
        let log_blocks = Some([16, 24, 64][rng.below(3) as usize]);
        let block_size = BLOCK as u32;
        disks.format(&FormatOptions { log_blocks, block_size, ..format_options(LBNS * BLOCK) });
        let mut options = OpenOptions {
            flushrq: Some([0, 0, 0, 3][rng.below(4) as usize]),
            delta_max: [4, 16, 200][rng.below(3) as usize],
            log_data: [0, 2 * BLOCK][rng.below(2) as usize],
            discard: rng.below(3) == 0,
            verify_match: Some(rng.below(4) == 0),
            runs: if rng.below(2) == 0 { RunPolicy::Always } else { RunPolicy::ByCost },
            ..options()
        };
        adjust(&mut options);
        Self {
            disks,
            journal: Memory::new("the device"),
            options,
            ledger: Ledger::new(LBNS as usize, 0),
            boot: 1,
            ids: 0,
            unique: 100,
        }
    }

    fn open(&mut self, death: &Arc<Death>) -> Result<Volume, VolumeError> {
        self.ids += 1;
        let journal = Some(self.journal.options(self.boot, self.ids));
        let [data, metadata] = [&self.disks.data, &self.disks.metadata].map(|disk| mortal(disk, death));
        Volume::open(data, metadata, &OpenOptions { journal, ..self.options.clone() })
    }

    /// One process, from its open to its death, or to where it leaves the volume as it is.
    fn live(&mut self, rng: &mut Rng, death: &Arc<Death>, story: &str) {
        self.journal.dies(death);
        match self.open(death) {
            Err(_) if death.is_over() => {}
            Err(error) => panic!("{story}: the volume does not open: {error}"),
            Ok(volume) => {
                if self.look(&volume, death, story) {
                    let steps = 5 + rng.below(40);
                    for step in 0..steps {
                        if !self.step(&volume, rng, death, &format!("{story}, step {step}")) {
                            break;
                        }
                    }
                    if !death.is_over() && rng.below(4) == 0 {
                        let closed = volume.close();
                        assert!(closed.is_ok() || death.is_over(), "{story}: close: {closed:?}");
                    }
                }
            }
        }
        self.journal.dies(&Death::at(u64::MAX));
    }

    /// Everything is as it must be; `false` if the process died over it.
    fn look(&mut self, volume: &Volume, death: &Death, story: &str) -> bool {
        for lbn in 0..LBNS {
            let bytes = match read(volume, lbn) {
                Ok(bytes) => bytes,
                Err(_) if death.is_over() => return false,
                Err(error) => panic!("{story}: LBN {lbn}: {error}"),
            };
            let found = self.ledger.recover(lbn as usize, |content| block(*content, BLOCK as usize) == bytes);
            found.unwrap_or_else(|why| panic!("{story}: {why}"));
        }
        self.count(volume, story);
        true
    }

    /// What can be counted agrees.
    fn count(&self, volume: &Volume, story: &str) {
        let status = volume.status();
        let mut contents: Vec<u64> =
            (0..LBNS as usize).map(|lbn| *self.ledger.current(lbn)).filter(|c| *c != 0).collect();
        assert_eq!(status.logical_used_blocks, contents.len() as u64, "{story}");
        contents.sort_unstable();
        contents.dedup();
        assert_eq!(status.data_used_blocks, contents.len() as u64, "{story}");
        let c = status.counters;
        assert_eq!(c.writes, c.uniqwrites + c.dupwrites + c.zerowrites, "{story}: {c:?}");
        assert_eq!(c.writes, c.newwrites + c.overwrites, "{story}: {c:?}");
    }

    /// One request; `false` if the process died over it.
    fn step(&mut self, volume: &Volume, rng: &mut Rng, death: &Death, story: &str) -> bool {
        let first = rng.below(LBNS);
        let blocks = 1 + rng.below((LBNS - first).min(4));
        let (offset, len, fua) = (first * BLOCK, blocks * BLOCK, rng.below(6) == 0);
        let zeros = vec![0; blocks as usize];
        let result = match rng.below(20) {
            0..11 => {
                let contents: Vec<u64> = (0..blocks).map(|_| self.content(rng)).collect();
                let data: Vec<u8> = contents.iter().flat_map(|c| block(*c, BLOCK as usize)).collect();
                self.change(first, &contents, || request(volume, Op::Write { offset, data: &data, fua }))
            }
            11..13 => self.change(first, &zeros, || request(volume, Op::Trim { offset, len, fua })),
            13..15 => self.change(first, &zeros, || request(volume, Op::WriteZeroes { offset, len, fua })),
            15..17 => request(volume, Op::Flush),
            17 => volume.checkpoint().map_err(|error| error.for_client()),
            18 => {
                volume.gc_start();
                volume.collect_some().map(|_| ()).map_err(|error| error.for_client())
            }
            _ => return self.look(volume, death, story),
        };
        match result {
            Ok(()) => true,
            Err(_) if death.is_over() => false,
            Err(RequestError::NoSpace) => self.look(volume, death, story),
            Err(error) => panic!("{story}: {error}"),
        }
    }

    /// One that several blocks have, or one that none has.
    fn content(&mut self, rng: &mut Rng) -> u64 {
        if rng.below(2) == 0 {
            return rng.below(5);
        }
        self.unique += 1;
        self.unique
    }

    /// Blocks from `first` on may hold `contents` while `request` runs, and do once it was answered well.
    fn change(
        &mut self,
        first: u64,
        contents: &[u64],
        request: impl FnOnce() -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let changes = || (first as usize..).zip(contents);
        changes().for_each(|(lbn, content)| self.ledger.begin_change(lbn, |now| *now = *content));
        request()?;
        changes().for_each(|(lbn, _)| self.ledger.end_change(lbn, true));
        Ok(())
    }

    /// The last process opens the volume, which then loses its power, and with it the journal.
    fn end(&mut self, rng: &mut Rng, story: &str) {
        let alive = Death::at(u64::MAX);
        let volume = self.open(&alive).unwrap_or_else(|error| panic!("{story}: {error}"));
        self.look(&volume, &alive, story);
        drop(volume);
        let keep_in_4 = rng.below(5);
        let salt = rng.below(1 << 30);
        self.disks = self.disks.crash(|device, write, _| {
            Rng::new(salt ^ (device as u64) << 50 ^ (write as u64) << 20).below(4) < keep_in_4
        });
        self.journal.restore(Files::new());
        self.boot += 1;
        let volume = self.open(&alive).unwrap_or_else(|error| panic!("{story}, after a power cut: {error}"));
        self.look(&volume, &alive, &format!("{story}, after a power cut"));
        volume.close().unwrap_or_else(|error| panic!("{story}: close: {error}"));
        self.disks.assert_clean(story);
        assert!(self.journal.files().is_empty(), "{story}: the journal of a closed volume stays");
    }
}
