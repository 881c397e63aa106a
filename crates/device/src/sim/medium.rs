//! The medium of a simulated device, its volatile cache, and what a power cut leaves of both.
//!
//! ```text
//!   base    what is certainly on the medium
//!   log     what came after, in order:   Durable   a flush has covered it; kept here behind one that it has not
//!                                        Volatile  completed, waits for a flush
//!                                        Failed    reported as an error, may be there in part until the next flush
//!                                        Dropped   was volatile when a flush failed: no later flush saves it
//!                                        Lost      acknowledged, and not on its way to the medium at all
//!   cached  what reads return
//!
//!   crash:  base, then for each entry of the log, in order, all its sectors if Durable, none if Lost, else the chosen ones
//! ```
//!
//! Invariants: `cached` is `base` with every entry but the failed ones applied in order (until the cache is
//! bypassed, which forgets the dropped and the lost ones). A log does not begin with a durable entry: that is
//! in `base`.
//!
//! A flush covers what had been answered when it began, and not a sector more: a disk may take its snapshot
//! then. So each entry has a moment at which it was answered, and a flush one at which it began.

use super::seed::chooses;
use crate::SparseImage;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that a medium writes as a whole or not at all: the logical sector of most disks, and the least that
/// any promises.
pub const SECTOR_SIZE: usize = 512;

/// A call that changes something, from its beginning to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call(u64);

/// Moments rise with every call that begins or is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

/// How far an entry of the log is on its way to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Durable,
    Volatile,
    Failed,
    Dropped,
    Lost,
}

/// What an entry does to the medium.
#[derive(Clone, Debug)]
enum Change {
    Write(Arc<[u8]>),
    /// Reads as zeros where it took effect.
    Discard(u64),
    /// Inverts the bits that are set.
    Flip(Arc<[u8]>),
}

impl Change {
    fn len(&self) -> u64 {
        match self {
            Self::Write(data) | Self::Flip(data) => data.len() as u64,
            Self::Discard(len) => *len,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    offset: u64,
    change: Change,
    fate: Fate,
    /// The call that it belongs to, as long as that is not answered.
    call: Option<Call>,
    /// The moment of the answer.
    answered: Moment,
}

impl Entry {
    /// Whether a flush that began then covers it.
    fn is_covered(&self, began: Moment) -> bool {
        self.fate == Fate::Volatile && self.call.is_none() && self.answered < began
    }

    fn sectors(&self) -> usize {
        (self.change.len() / SECTOR_SIZE as u64) as usize
    }

    fn apply(&self, image: &mut SparseImage) -> io::Result<()> {
        match &self.change {
            Change::Write(data) => image.write(self.offset, data),
            Change::Discard(len) => image.zero(self.offset, *len),
            Change::Flip(mask) => {
                let mut bytes = vec![0; mask.len()];
                image.read(self.offset, &mut bytes)?;
                bytes.iter_mut().zip(&**mask).for_each(|(byte, bits)| *byte ^= bits);
                image.write(self.offset, &bytes)
            }
        }
    }

    /// Some sectors of it, as an entry of its own.
    fn part(&self, sectors: Range<usize>, fate: Fate) -> Self {
        let bytes = sectors.start * SECTOR_SIZE..sectors.end * SECTOR_SIZE;
        let offset = self.offset + bytes.start as u64;
        let change = match &self.change {
            Change::Write(data) => Change::Write(data[bytes].into()),
            Change::Discard(_) => Change::Discard(bytes.len() as u64),
            Change::Flip(mask) => Change::Flip(mask[bytes].into()),
        };
        Self { offset, change, fate, call: self.call, answered: self.answered }
    }

    /// Applies the sectors that are kept, neighbours together.
    fn apply_kept(&self, image: &mut SparseImage, mut keep: impl FnMut(usize) -> bool) -> io::Result<()> {
        let kept: Vec<bool> = (0..self.sectors()).map(&mut keep).collect();
        if kept.iter().all(|k| *k) {
            return self.apply(image);
        }
        for (start, run) in runs(&kept).filter(|(start, _)| kept[*start]) {
            self.part(start..start + run, self.fate).apply(image)?;
        }
        Ok(())
    }
}

/// Runs of equal values: (first, length).
fn runs(values: &[bool]) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    values.chunk_by(|a, b| a == b).map(move |run| {
        let first = start;
        start += run.len();
        (first, run.len())
    })
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

/// What a change replaced.
#[derive(Debug)]
struct Version {
    range: Range<u64>,
    before: SparseImage,
}

/// How a write or discard arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// In the cache, for the next flush to make durable.
    Cached,
    /// As an error: seen by crashes only.
    Failed,
    /// In the cache only: acknowledged, and lost.
    Lost,
}

/// Medium and cache.
#[derive(Debug)]
pub(super) struct Medium {
    base: SparseImage,
    cached: SparseImage,
    log: Vec<Entry>,
    history: Option<Vec<Version>>,
    now: Moment,
}

impl Medium {
    pub(super) fn new(image: SparseImage) -> Self {
        Self { base: image.clone(), cached: image, log: Vec::new(), history: None, now: Moment::default() }
    }

    /// The next moment.
    pub(super) fn tick(&mut self) -> Moment {
        self.now.0 += 1;
        self.now
    }

    /// A call begins that will change something.
    pub(super) fn begin(&mut self) -> Call {
        Call(self.tick().0)
    }

    /// It is answered: a flush that begins from now on covers what it did.
    pub(super) fn end(&mut self, call: Call) {
        let now = self.tick();
        for entry in self.log.iter_mut().filter(|entry| entry.call == Some(call)) {
            (entry.call, entry.answered) = (None, now);
        }
    }

    /// What reads return.
    pub(super) fn cached(&self) -> &SparseImage {
        &self.cached
    }

    /// Remembers what each change replaces, from now on.
    pub(super) fn keep_history(&mut self) {
        self.history.get_or_insert_default();
    }

    /// What reads of `range` would return if of the changes to each sector the last `age` had not been.
    pub(super) fn stale(&self, range: Range<u64>, age: usize) -> io::Result<SparseImage> {
        let mut image = self.cached.clone();
        let history = self.history.as_deref().unwrap_or_default();
        let mut bytes = [0; SECTOR_SIZE];
        let sector = SECTOR_SIZE as u64;
        for offset in (range.start / sector * sector..range.end).step_by(SECTOR_SIZE) {
            let changes = || history.iter().rev().filter(|v| v.range.contains(&offset));
            let Some(version) = changes().take(age).last() else { continue };
            version.before.read(offset, &mut bytes)?;
            image.write(offset, &bytes)?;
        }
        Ok(image)
    }

    /// Takes a write (sector-aligned, inside the device).
    pub(super) fn write(
        &mut self,
        offset: u64,
        data: Arc<[u8]>,
        arrival: Arrival,
        call: Call,
    ) -> io::Result<()> {
        self.push(offset, Change::Write(data), arrival, call)
    }

    /// Takes a discard, as [`Self::write`] does a write.
    pub(super) fn discard(&mut self, offset: u64, len: u64, arrival: Arrival, call: Call) -> io::Result<()> {
        self.push(offset, Change::Discard(len), arrival, call)
    }

    /// Takes the sectors of a write that the seed chooses.
    pub(super) fn write_torn(
        &mut self,
        offset: u64,
        data: Arc<[u8]>,
        seed: u64,
        call: Call,
    ) -> io::Result<()> {
        let (fate, answered) = (Fate::Volatile, Moment::default());
        let whole = Entry { offset, change: Change::Write(data), fate, call: Some(call), answered };
        let kept: Vec<bool> = (0..whole.sectors()).map(|sector| chooses(seed, 0, sector)).collect();
        for (start, run) in runs(&kept).filter(|(start, _)| kept[*start]) {
            let part = whole.part(start..start + run, Fate::Volatile);
            self.push(part.offset, part.change, Arrival::Cached, call)?;
        }
        Ok(())
    }

    /// Inverts the bits of `mask`, on the medium and in the cache alike.
    pub(super) fn rot(&mut self, offset: u64, mask: &[u8]) -> io::Result<()> {
        let (change, answered) = (Change::Flip(mask.into()), self.now);
        self.take(Entry { offset, change, fate: Fate::Durable, call: None, answered })?;
        self.settle();
        Ok(())
    }

    fn push(&mut self, offset: u64, change: Change, arrival: Arrival, call: Call) -> io::Result<()> {
        let fate = match arrival {
            Arrival::Cached => Fate::Volatile,
            Arrival::Failed => Fate::Failed,
            Arrival::Lost => Fate::Lost,
        };
        self.take(Entry { offset, change, fate, call: Some(call), answered: Moment::default() })
    }

    fn take(&mut self, entry: Entry) -> io::Result<()> {
        if entry.fate != Fate::Failed {
            if let Some(history) = &mut self.history {
                let range = entry.offset..entry.offset + entry.change.len();
                history.push(Version { range, before: self.cached.clone() });
            }
            entry.apply(&mut self.cached)?;
        }
        self.log.push(entry);
        Ok(())
    }

    /// Makes every volatile entry durable that had been answered when the flush began. Failed ones turn out
    /// not to have happened.
    pub(super) fn flush(&mut self, began: Moment) {
        self.log.retain(|e| e.fate != Fate::Failed || e.call.is_some() || e.answered > began);
        for entry in self.log.iter_mut().filter(|entry| entry.is_covered(began)) {
            entry.fate = Fate::Durable;
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

    /// A flush that failed and saved the sectors that the seed chooses.
    pub(super) fn tear_flush(&mut self, seed: u64, began: Moment) {
        let log = std::mem::take(&mut self.log);
        for (write, entry) in log.into_iter().enumerate() {
            if !entry.is_covered(began) {
                self.log.push(entry);
                continue;
            }
            let kept: Vec<bool> = (0..entry.sectors()).map(|sector| chooses(seed, write, sector)).collect();
            self.log.extend(runs(&kept).map(|(start, run)| {
                entry.part(start..start + run, if kept[start] { Fate::Durable } else { Fate::Lost })
            }));
        }
    }

    /// Reads the medium instead of the cache: whatever did not get there is gone, the rest is written back
    /// first.
    pub(super) fn bypass(&mut self) -> io::Result<()> {
        let gone = |entry: &Entry| matches!(entry.fate, Fate::Dropped | Fate::Lost);
        if self.log.iter().any(gone) {
            self.log.retain(|e| !gone(e));
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
        self.log.iter().filter(|e| !matches!(e.fate, Fate::Durable | Fate::Lost)).map(|e| PendingWrite {
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
            match entry.fate {
                Fate::Durable => entry.apply(&mut image)?,
                Fate::Lost => {}
                Fate::Volatile | Fate::Failed | Fate::Dropped => {
                    entry.apply_kept(&mut image, |sector| keep(pending, sector))?;
                    pending += 1;
                }
            }
        }
        Ok(image)
    }

    /// Moves what is durable at the front of the log into the base.
    fn settle(&mut self) {
        let durable = self.log.iter().take_while(|e| e.fate == Fate::Durable).count();
        if durable == self.log.len() {
            self.base = self.cached.clone();
            self.log.clear();
            return;
        }
        for entry in self.log.drain(..durable) {
            // It was applied to the cache, which has the same size.
            entry.apply(&mut self.base).expect("entries of the log lie inside the device");
        }
    }
}
