//! Data blocks for new content: from the open region of the data device, region after region.
//!
//! The policy is [`dedup_spacemap::Regions`]; this file gives it what it must know: the count pages of the
//! last checkpoint, and every block for which they are out of date (counted by a delta, reserved by a write
//! in flight, in quarantine, set aside, or about to be discarded).
//!
//! Lock order: the allocator's lock before the state's.

use crate::engine::discards::Discards;
use crate::engine::set_aside::{SetAside, Turn};
use dedup_schema::Pbn;
use dedup_spacemap::Regions;
use dedup_sync::{Condvar, Mutex};
use rustc_hash::FxHashSet;
use std::ops::Range;

/// The allocator of data blocks.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) allocator: Mutex<Allocator>,
    /// A discard has ended. Goes with `allocator`.
    pub(crate) discarded: Condvar,
    /// Bytes of the data device that were last preallocated.
    pub(crate) preallocated: Mutex<Range<u64>>,
}

/// What is free, and what only seems to be.
#[derive(Debug)]
pub(crate) struct Allocator {
    pub(crate) regions: Regions,
    /// Given out and not yet published.
    pub(crate) reserved: FxHashSet<Pbn>,
    pub(crate) set_aside: SetAside,
    pub(crate) discards: Discards,
    /// While the file system below is full: no free block has space of its own, by a search since which none
    /// came free.
    pub(crate) is_exhausted: bool,
}

impl Allocator {
    /// What may be given out changed otherwise than block by block.
    pub(crate) fn turn(&mut self, turn: Turn) {
        if turn != Turn::Same {
            self.regions.close();
            self.is_exhausted = false;
        }
    }

    pub(crate) fn taken(&self) -> Taken {
        Taken {
            reserved: self.reserved.len() as u64,
            set_aside: self.set_aside.len(),
            is_exhausted: self.is_exhausted,
        }
    }

    /// These may be given out.
    pub(crate) fn free(&mut self, pbns: impl IntoIterator<Item = u64>) {
        for pbn in pbns {
            self.regions.give_back(pbn);
            self.is_exhausted = false;
        }
    }

    /// Blocks that wait for their discards are free without. `false` if none waits.
    pub(crate) fn take_back_discards(&mut self) -> bool {
        let taken: Vec<Range<u64>> = self.discards.take_back().collect();
        let any = !taken.is_empty();
        self.free(taken.into_iter().flatten());
        any
    }
}

/// Blocks that are neither in use nor to be had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// By writes in flight.
    pub(crate) reserved: u64,
    /// For good, or for as long as the file system below is full.
    pub(crate) set_aside: u64,
    /// It is full, and no other block has space of its own: none is to be had, whatever the numbers say.
    pub(crate) is_exhausted: bool,
}

/// Where new blocks may lie while the file system below is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Places {
    /// Where there is space already.
    Backed,
    /// In a hole, to see whether there is room again.
    Probes,
}

impl Space {
    /// An allocator for a device of `blocks` blocks whose cursor stands at region `cursor`.
    pub(crate) fn new(blocks: u64, cursor: u64) -> Self {
        let allocator = Allocator {
            regions: Regions::new(blocks, cursor),
            reserved: FxHashSet::default(),
            set_aside: SetAside::default(),
            discards: Discards::default(),
            is_exhausted: false,
        };
        Self {
            allocator: Mutex::new(allocator),
            discarded: Condvar::default(),
            preallocated: Mutex::new(0..0),
        }
    }

    /// Where to go on after a reopen.
    pub(crate) fn cursor(&self) -> u64 {
        self.allocator.lock().regions.cursor()
    }

    /// What is taken of the free blocks, while it does not change.
    pub(crate) fn look<R>(&self, look: impl FnOnce(Taken) -> R) -> R {
        let allocator = self.allocator.lock();
        look(allocator.taken())
    }

    /// These blocks are published: counts protect them from now on.
    pub(crate) fn published(&self, pbns: impl IntoIterator<Item = Pbn>) {
        let mut allocator = self.allocator.lock();
        let mut has_room = false;
        for pbn in pbns {
            allocator.reserved.remove(&pbn);
            let turn = allocator.set_aside.written(pbn);
            allocator.turn(turn);
            has_room |= turn == Turn::Roomy;
        }
        drop(allocator);
        if has_room {
            *self.preallocated.lock() = 0..0;
            tracing::info!("the file system below the data device has room again");
        }
    }

    /// These blocks were not used after all.
    pub(crate) fn give_back(&self, pbns: impl IntoIterator<Item = Pbn>) {
        let mut allocator = self.allocator.lock();
        for pbn in pbns {
            allocator.reserved.remove(&pbn);
            allocator.set_aside.unused(pbn);
            allocator.free([pbn.0]);
        }
    }

    /// The write of this block failed: it is not given out any more.
    pub(crate) fn failed(&self, pbn: Pbn) {
        let mut allocator = self.allocator.lock();
        allocator.reserved.remove(&pbn);
        allocator.set_aside.failed(pbn);
    }

    /// The file system below had no room for these blocks. `true` if that is news.
    pub(crate) fn refused(&self, pbns: &[Pbn]) -> bool {
        let mut allocator = self.allocator.lock();
        pbns.iter().for_each(|pbn| {
            allocator.reserved.remove(pbn);
        });
        let turn = allocator.set_aside.refused(pbns);
        allocator.turn(turn);
        if turn == Turn::Full {
            // It would find no space.
            *self.preallocated.lock() = 0..u64::MAX;
        }
        turn == Turn::Full
    }

    /// Blocks set aside after failed writes, blocks that wait for their discards, and whether the file system
    /// below is full.
    pub(crate) fn status(&self) -> (u64, u64, bool) {
        let allocator = self.allocator.lock();
        let Allocator { set_aside, discards, .. } = &*allocator;
        (set_aside.len(), discards.blocks(), set_aside.is_full_below())
    }

    /// Whether the file system below is known to be full.
    pub(crate) fn is_full_below(&self) -> bool {
        self.allocator.lock().set_aside.is_full_below()
    }
}
