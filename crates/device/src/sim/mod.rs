//! A disk with a volatile cache, a power cord and faults on order.
//!
//! [`SimDevice`] is what a test of crash consistency runs on. It behaves like a disk that keeps no more
//! promises than it must: a completed write is seen by every read and may vanish, whole or by sectors, until
//! a flush; a failed flush leaves its writes readable and lost. The parts are [`faults`] (what fails, and
//! when) and [`medium`] (what is durable, what is cached, and what a crash leaves).
//!
//! Invariant: the same calls in the same order give the same device. Calls from several threads are taken one at a
//! time, so their order is the test's to fix.
//!
//! Not modelled: time, queues, and media that change what no one wrote.

mod faults;
mod medium;

pub use faults::{IoKind, SimError};
pub use medium::{PendingWrite, SECTOR_SIZE};

use crate::block_device::check_range;
use crate::mem::read_op;
use crate::{BlockDevice, ReadOp, SparseImage, WriteOp};
use faults::{Faults, Verdict};
use medium::Medium;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Operations that succeeded, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounters {
    /// Reads, each of a batch counted by itself.
    pub reads: u64,
    /// Writes, each of a batch counted by itself.
    pub writes: u64,
    /// Bytes of those reads.
    pub bytes_read: u64,
    /// Bytes of those writes.
    pub bytes_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
}

/// A simulated disk of fixed size, zeros at first. Offsets and lengths are multiples of [`SECTOR_SIZE`].
#[derive(Debug)]
pub struct SimDevice {
    size: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    medium: Medium,
    faults: Faults,
    counters: SimCounters,
    refuses_bypass: bool,
}

impl SimDevice {
    /// A disk of `size` zero bytes; a size that is no multiple of [`SECTOR_SIZE`] is rounded down.
    pub fn new(size: u64) -> Self {
        Self::from_image(SparseImage::new(size - size % SECTOR_SIZE as u64))
    }

    /// A disk with the content of `image`, all of it durable, without faults.
    pub fn from_image(image: SparseImage) -> Self {
        let size = image.size() - image.size() % SECTOR_SIZE as u64;
        let state = State {
            medium: Medium::new(image),
            faults: Faults::default(),
            counters: SimCounters::default(),
            refuses_bypass: false,
        };
        Self { size, state: Mutex::new(state) }
    }

    /// The disk that is there after a power cut at this moment: everything that a flush covered, and of the
    /// rest what `keep(write, sector)` chooses, by an index into [`Self::pending`] and a sector of that
    /// write. It is asked in order, and a sector kept of a later write replaces that of an earlier one. This
    /// disk goes on unchanged.
    pub fn crash(&self, keep: impl FnMut(usize, usize) -> bool) -> Self {
        // Every entry was checked against the size before it was taken, so applying it again cannot fail.
        Self::from_image(self.lock().medium.crash(keep).expect("entries of the log lie inside the device"))
    }

    /// What a power cut could undo: the writes and discards since the last flush, in order, failed ones and those
    /// cut off by the power included.
    pub fn pending(&self) -> Vec<PendingWrite> {
        self.lock().medium.pending().collect()
    }

    /// A snapshot of what reads return.
    pub fn image(&self) -> SparseImage {
        self.lock().medium.cached().clone()
    }

    /// Operations that succeeded so far.
    pub fn counters(&self) -> SimCounters {
        self.lock().counters
    }

    /// Events begun so far: writes, flushes and discards, failed ones included. A test that ran a program
    /// once knows from this how many points it can cut the power at.
    pub fn events(&self) -> u64 {
        self.lock().faults.events()
    }

    /// Cuts the power after `n` more events. The next event fails, and if it is a write, a crash may keep any
    /// part of it and of the writes behind it in its batch. From then on every call fails and nothing reaches
    /// the medium.
    pub fn set_cut_after(&self, n: u64) {
        self.lock().faults.cut_after(n);
    }

    /// Makes the `n`-th operation of a kind from now on (0: the next) fail, once. A failed write may be on
    /// the medium in part if the power is cut before the next flush; a failed flush loses what it should have
    /// made durable, though reads go on to return it.
    pub fn fail_nth(&self, kind: IoKind, n: u64) {
        self.lock().faults.fail_nth(kind, n);
    }

    /// Makes every operation of a kind that touches `range` (bytes) fail, until [`Self::clear_faults`].
    pub fn fail_region(&self, kind: IoKind, range: Range<u64>) {
        self.lock().faults.fail_region(kind, range);
    }

    /// Takes back all injected failures. A power cut stays.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Makes [`BlockDevice::bypass_cache`] answer `false` from now on, as a file system without direct I/O does.
    pub fn refuse_bypass(&self) {
        self.lock().refuses_bypass = true;
    }

    // Holds across a panic of a test's thread: the state is consistent between operations, and a crash can
    // still be taken.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size, SECTOR_SIZE, offset, len)
    }
}

impl State {
    fn read(&mut self, op: &mut ReadOp<'_>) -> io::Result<()> {
        let len = op.byte_count();
        permit(self.faults.begin(IoKind::Read, op.offset..op.offset + len))?;
        read_op(self.medium.cached(), op)?;
        self.counters.reads += 1;
        self.counters.bytes_read += len;
        Ok(())
    }

    /// `in_flight`: the power failed while this write was under way, so a crash may find parts of it.
    fn write(&mut self, op: &WriteOp<'_>, in_flight: &mut bool) -> io::Result<()> {
        let data: Arc<[u8]> = op.bufs.concat().into();
        let len = data.len() as u64;
        let verdict = self.faults.begin(IoKind::Write, op.offset..op.offset + len);
        *in_flight |= verdict == Verdict::Fail(SimError::PowerOff);
        let failed = verdict != Verdict::Proceed;
        if verdict != Verdict::Dead || *in_flight {
            self.medium.write(op.offset, data, failed)?;
        }
        permit(verdict)?;
        self.counters.writes += 1;
        self.counters.bytes_written += len;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let verdict = self.faults.begin(IoKind::Flush, 0..0);
        match verdict {
            Verdict::Proceed => self.medium.flush(),
            Verdict::Fail(SimError::Injected(_)) => self.medium.fail_flush(),
            Verdict::Fail(SimError::PowerOff) | Verdict::Dead => {}
        }
        permit(verdict)?;
        self.counters.flushes += 1;
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let verdict = self.faults.begin(IoKind::Discard, offset..offset + len);
        if verdict != Verdict::Dead {
            self.medium.discard(offset, len, verdict != Verdict::Proceed)?;
        }
        permit(verdict)?;
        self.counters.discards += 1;
        Ok(())
    }
}

impl BlockDevice for SimDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn io_alignment(&self) -> usize {
        SECTOR_SIZE
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut ops = [ReadOp::new(offset, vec![buf])];
        self.read_batch(&mut ops);
        let [op] = ops;
        op.result
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut ops = [WriteOp::new(offset, vec![buf])];
        self.write_batch(&mut ops);
        let [op] = ops;
        op.result
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        let mut state = self.lock();
        for op in ops {
            op.result = self.check(op.offset, op.byte_count()).and_then(|()| state.read(op));
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        let mut state = self.lock();
        let mut in_flight = false;
        for op in ops {
            op.result = self.check(op.offset, op.byte_count()).and_then(|()| state.write(op, &mut in_flight));
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.lock().flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        self.lock().discard(offset, len)
    }

    /// Reads come from the medium from now on: what a failed flush dropped is gone.
    fn bypass_cache(&self) -> io::Result<bool> {
        let mut state = self.lock();
        permit(state.faults.power())?;
        if state.refuses_bypass {
            return Ok(false);
        }
        state.medium.bypass()?;
        Ok(true)
    }
}

fn permit(verdict: Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Proceed => Ok(()),
        Verdict::Fail(error) => Err(error.into()),
        Verdict::Dead => Err(SimError::PowerOff.into()),
    }
}
