//! The medium of a simulated device, its volatile cache, and what a power cut leaves of both.
//!
//! ```text
//!   base    what is certainly on the medium
//!   log     what came after, in order:   Durable   a flush has covered it; kept here only behind a lost one
//!                                        Volatile  completed, waits for a flush
//!                                        Failed    reported as an error, may be there in part until the next flush
//!                                        Dropped   was volatile when a flush failed: no later flush saves it
//!   cached  what reads return
//!
//!   crash:  base, then for each entry of the log, in order, all its sectors if Durable, else the chosen ones
//! ```
//!
//! Invariants: `cached` is `base` with every entry but the failed ones applied in order (until the cache is
//! bypassed, which forgets the dropped ones). A log of durable entries only is empty: they are in `base`.

use crate::SparseImage;
use std::io;
use std::sync::Arc;

/// Bytes that a medium writes as a whole or not at all: the logical sector of most disks, and the least that
/// any promises.
pub const SECTOR_SIZE: usize = 512;

/// How far an entry of the log is on its way to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Durable,
    Volatile,
    Failed,
    Dropped,
}

/// What an entry does to the medium.
#[derive(Clone, Debug)]
enum Change {
    Write(Arc<[u8]>),
    /// Reads as zeros where it took effect.
    Discard(u64),
}

impl Change {
    fn len(&self) -> u64 {
        match self {
            Self::Write(data) => data.len() as u64,
            Self::Discard(len) => *len,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    offset: u64,
    change: Change,
    fate: Fate,
}

impl Entry {
    fn sectors(&self) -> usize {
        (self.change.len() / SECTOR_SIZE as u64) as usize
    }

    fn apply(&self, image: &mut SparseImage) -> io::Result<()> {
        match &self.change {
            Change::Write(data) => image.write(self.offset, data),
            Change::Discard(len) => image.zero(self.offset, *len),
        }
    }

    fn apply_sector(&self, image: &mut SparseImage, sector: usize) -> io::Result<()> {
        let start = sector * SECTOR_SIZE;
        let offset = self.offset + start as u64;
        match &self.change {
            Change::Write(data) => image.write(offset, &data[start..start + SECTOR_SIZE]),
            Change::Discard(_) => image.zero(offset, SECTOR_SIZE as u64),
        }
    }
}

/// A write or discard that a power cut may still undo, in whole or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingWrite {
    /// Byte offset on the device.
    pub offset: u64,
    /// Its length in sectors of [`SECTOR_SIZE`] bytes.
    pub sectors: usize,
    /// Whether it is a discard, whose sectors read as zeros where it took effect.
    pub is_discard: bool,
}

/// Medium and cache.
#[derive(Debug)]
pub(super) struct Medium {
    base: SparseImage,
    cached: SparseImage,
    log: Vec<Entry>,
}

impl Medium {
    pub(super) fn new(image: SparseImage) -> Self {
        Self { base: image.clone(), cached: image, log: Vec::new() }
    }

    /// What reads return.
    pub(super) fn cached(&self) -> &SparseImage {
        &self.cached
    }

    /// Takes a write (sector-aligned, inside the device); a failed one is seen by crashes only.
    pub(super) fn write(&mut self, offset: u64, data: Arc<[u8]>, failed: bool) -> io::Result<()> {
        self.push(offset, Change::Write(data), failed)
    }

    /// Takes a discard, as [`Self::write`] does a write.
    pub(super) fn discard(&mut self, offset: u64, len: u64, failed: bool) -> io::Result<()> {
        self.push(offset, Change::Discard(len), failed)
    }

    fn push(&mut self, offset: u64, change: Change, failed: bool) -> io::Result<()> {
        let fate = if failed { Fate::Failed } else { Fate::Volatile };
        let entry = Entry { offset, change, fate };
        if !failed {
            entry.apply(&mut self.cached)?;
        }
        self.log.push(entry);
        Ok(())
    }

    /// Makes every volatile entry durable. Failed ones turn out not to have happened.
    pub(super) fn flush(&mut self) {
        self.log.retain(|e| e.fate != Fate::Failed);
        for entry in &mut self.log {
            if entry.fate == Fate::Volatile {
                entry.fate = Fate::Durable;
            }
        }
        self.settle();
    }

    /// A flush that failed: what it should have made durable can be read on, and no later flush will save it.
    pub(super) fn fail_flush(&mut self) {
        for entry in &mut self.log {
            if entry.fate == Fate::Volatile {
                entry.fate = Fate::Dropped;
            }
        }
    }

    /// Reads the medium instead of the cache: whatever a failed flush dropped is gone, the rest is written
    /// back first.
    pub(super) fn bypass(&mut self) -> io::Result<()> {
        if self.log.iter().any(|e| e.fate == Fate::Dropped) {
            self.log.retain(|e| e.fate != Fate::Dropped);
            self.cached = self.base.clone();
            for entry in self.log.iter().filter(|e| e.fate != Fate::Failed) {
                entry.apply(&mut self.cached)?;
            }
            self.settle();
        }
        Ok(())
    }

    /// The entries that a crash decides about, in order.
    pub(super) fn pending(&self) -> impl Iterator<Item = PendingWrite> {
        self.log.iter().filter(|e| e.fate != Fate::Durable).map(|e| PendingWrite {
            offset: e.offset,
            sectors: e.sectors(),
            is_discard: matches!(e.change, Change::Discard(_)),
        })
    }

    /// The medium after a power cut that kept the chosen sectors of the chosen pending entries.
    pub(super) fn crash(&self, mut keep: impl FnMut(usize, usize) -> bool) -> io::Result<SparseImage> {
        let mut image = self.base.clone();
        let mut pending = 0;
        for entry in &self.log {
            if entry.fate == Fate::Durable {
                entry.apply(&mut image)?;
                continue;
            }
            for sector in 0..entry.sectors() {
                if keep(pending, sector) {
                    entry.apply_sector(&mut image, sector)?;
                }
            }
            pending += 1;
        }
        Ok(image)
    }

    /// Moves a log without doubtful entries into the base.
    fn settle(&mut self) {
        if self.log.iter().all(|e| e.fate == Fate::Durable) {
            self.base = self.cached.clone();
            self.log.clear();
        }
    }
}
