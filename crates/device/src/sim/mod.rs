//! A disk with a volatile cache, a power cord and faults on order.
//!
//! [`SimDevice`] is what a test of crash consistency runs on. It behaves like a disk that keeps no more
//! promises than it must: a completed write is seen by every read and may vanish, whole or by sectors, until
//! a flush; a flush covers what was answered before it began, and nothing that comes meanwhile; a failed
//! flush leaves its writes readable and lost. On order it breaks those that a disk should keep as well: it
//! loses writes, puts them elsewhere, returns old bytes, lets bits rot, runs full. The parts are [`faults`]
//! (what goes wrong, and when), [`medium`] (what is durable, what is cached, and what a crash leaves),
//! [`capacity`] (a full file system).
//!
//! Invariant: the same calls in the same order give the same device; what looks like chance comes from a seed
//! in the order. Calls from several threads are taken one operation at a time, so their order is the test's
//! to fix: with [`SimDevice::set_reorder`] within a batch, with [`SimDevice::on_operation`] between threads.
//! There is no lock held while that hook runs.
//!
//! Not modelled: a clock (latency is whatever the hook lets happen meanwhile), reads that return what was
//! never written there or elsewhere, and failures that depend on temperature, neighbours or wear.

mod capacity;
mod faults;
mod medium;
mod seed;

pub use capacity::SimFileSystem;
pub use faults::{IoKind, SimError, SimFault, When};
pub use medium::{PendingWrite, SECTOR_SIZE};

use crate::block_device::check_range;
use crate::mem::read_op;
use crate::{BlockDevice, ReadOp, SparseImage, WriteOp};
use capacity::Capacity;
use faults::{Faults, Verdict};
use medium::{Arrival, Call, Medium, Moment};
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

/// Questions to the file system below, answered in whatever way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimQuestions {
    /// For space: calls of [`BlockDevice::preallocate`].
    pub preallocations: u64,
    /// For what has space: calls of [`BlockDevice::allocated`].
    pub searches: u64,
}

/// Called around operations, see [`SimDevice::on_operation`].
type Hook = Arc<dyn Fn() + Send + Sync>;

/// A simulated disk of fixed size, zeros at first. Offsets and lengths are multiples of [`SECTOR_SIZE`].
pub struct SimDevice {
    size: u64,
    state: Mutex<State>,
}

struct State {
    medium: Medium,
    faults: Faults,
    capacity: Option<Capacity>,
    counters: SimCounters,
    questions: SimQuestions,
    refuses_bypass: bool,
    /// A seed, and the batches that it has ordered so far.
    reorder: Option<(u64, u64)>,
    hook: Option<Hook>,
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
            capacity: None,
            counters: SimCounters::default(),
            questions: SimQuestions::default(),
            refuses_bypass: false,
            reorder: None,
            hook: None,
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

    /// What a power cut could undo: the writes and discards since the last flush, in order, failed ones and
    /// those cut off by the power included, those that a fault has lost already not.
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

    /// How often it was asked for space, or for what has space.
    pub fn questions(&self) -> SimQuestions {
        self.lock().questions
    }

    /// Events begun so far: writes, flushes and discards, failed ones included. A test that ran a program
    /// once knows from this how many points it can cut the power at.
    pub fn events(&self) -> u64 {
        self.lock().faults.events()
    }

    /// Operations of a kind begun so far, failed ones included, each of a batch counted by itself. From this
    /// a test knows how many there are to fail.
    pub fn operations(&self, kind: IoKind) -> u64 {
        self.lock().faults.begun(kind)
    }

    /// Remembers from now on which operations are begun, for [`Self::trace`].
    pub fn keep_trace(&self) {
        self.lock().faults.keep_trace();
    }

    /// The operations begun since [`Self::keep_trace`], in order, with the bytes that they touch: what a
    /// fault can be ordered for.
    pub fn trace(&self) -> Vec<(IoKind, Range<u64>)> {
        self.lock().faults.trace().to_vec()
    }

    /// Cuts the power after `n` more events. The next event fails, and if it is a write, a crash may keep any
    /// part of it and of the writes behind it in its batch. From then on every call fails and nothing reaches
    /// the medium.
    pub fn set_cut_after(&self, n: u64) {
        self.lock().faults.cut_after(n);
    }

    /// Has something go wrong, until [`Self::clear_faults`] or, with [`When::Nth`], once.
    pub fn inject(&self, when: When, fault: SimFault) {
        self.lock().faults.add(when, fault);
    }

    /// Makes the `n`-th operation of a kind from now on (0: the next) fail, once: [`SimFault::Fail`].
    pub fn fail_nth(&self, kind: IoKind, n: u64) {
        self.inject(When::Nth(n), SimFault::Fail(kind));
    }

    /// Makes every operation of a kind that touches `range` (bytes) fail, until [`Self::clear_faults`].
    pub fn fail_region(&self, kind: IoKind, range: Range<u64>) {
        self.inject(When::Touching(range), SimFault::Fail(kind));
    }

    /// Leaves room for `bytes` more than what the device holds now. Further writes to new places fail like
    /// [`SimFault::FullWrite`]; places that are written already can be written again, and a discard makes
    /// room.
    pub fn set_capacity_left(&self, bytes: u64) {
        self.put_on(&SimFileSystem::new(bytes));
    }

    /// Makes the device a sparse file on `file_system`, which other devices may be on, too: what it holds now
    /// has space, everything else is a hole. It knows its holes, and can
    /// [`preallocate`](BlockDevice::preallocate) them.
    pub fn put_on(&self, file_system: &SimFileSystem) {
        let mut state = self.lock();
        let taken = state.medium.cached().stored_pages().collect();
        state.capacity = Some(Capacity::new(taken, file_system.clone()));
    }

    /// Takes back all faults that were ordered, a full device included. A power cut and what has rotted stay.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.capacity = None;
    }

    /// Bit rot: inverts the bits of `mask` in the bytes from `offset`, on the medium and in the cache alike.
    /// Fails if that is beyond the end.
    pub fn rot(&self, offset: u64, mask: &[u8]) -> io::Result<()> {
        check_range(self.size, 1, offset, mask.len() as u64)?;
        self.lock().medium.rot(offset, mask)
    }

    /// Remembers from now on what each change replaces, for [`SimFault::StaleRead`].
    pub fn keep_history(&self) {
        self.lock().medium.keep_history();
    }

    /// Makes the operations of each batch take effect in an order of their own, which the seed chooses.
    pub fn set_reorder(&self, seed: u64) {
        self.lock().reorder = Some((seed, 0));
    }

    /// Calls `hook` before and after each operation (those of a batch singly, and calls that fail without
    /// reaching the device too), with no lock held: what other threads do there happens while the operation
    /// is under way.
    pub fn on_operation(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.lock().hook = Some(Arc::new(hook));
    }

    /// Makes [`BlockDevice::bypass_cache`] answer `false` from now on, as a file system without direct I/O
    /// does.
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

    /// Runs one operation between two calls of the hook.
    fn operate<T>(&self, operation: impl FnOnce(&mut State) -> T) -> T {
        let hook = self.lock().hook.clone();
        let around = || hook.iter().for_each(|hook| hook());
        around();
        let result = operation(&mut self.lock());
        around();
        result
    }

    /// The order in which a batch takes effect.
    fn order(&self, count: usize) -> Vec<usize> {
        let mut state = self.lock();
        let Some((seed, batch)) = &mut state.reorder else { return (0..count).collect() };
        *batch += 1;
        seed::permutation(seed::mix(*seed, *batch), count)
    }
}

impl State {
    fn read(&mut self, op: &mut ReadOp<'_>) -> io::Result<()> {
        let len = op.byte_count();
        let range = op.offset..op.offset + len;
        match self.faults.begin(IoKind::Read, range) {
            Verdict::Proceed => read_op(self.medium.cached(), op)?,
            Verdict::Stale { age, from, to } => read_op(&self.medium.stale(from..to, age)?, op)?,
            verdict => return Err(refusal(IoKind::Read, verdict)),
        }
        self.counters.reads += 1;
        self.counters.bytes_read += len;
        Ok(())
    }

    /// `in_flight`: the power failed while this write was under way, so a crash may find parts of it.
    fn write(&mut self, op: &WriteOp<'_>, size: u64, call: Call, in_flight: &mut bool) -> io::Result<()> {
        let data: Arc<[u8]> = op.bufs.concat().into();
        let len = data.len() as u64;
        let range = op.offset..op.offset + len;
        let mut verdict = self.faults.begin(IoKind::Write, range.clone());
        if verdict == Verdict::Proceed && self.capacity.as_mut().is_some_and(|c| !c.take(range)) {
            verdict = Verdict::Fault(SimFault::FullWrite);
        }
        *in_flight |= verdict == Verdict::Cut;
        let medium = &mut self.medium;
        match verdict {
            Verdict::Proceed => medium.write(op.offset, data, Arrival::Cached, call)?,
            Verdict::Fault(SimFault::LostWrite { cached }) => {
                if cached {
                    medium.write(op.offset, data, Arrival::Lost, call)?;
                }
            }
            Verdict::Fault(SimFault::MisdirectedWrite { to, cached }) => {
                if check_range(size, SECTOR_SIZE, to, len).is_ok() {
                    medium.write(to, Arc::clone(&data), Arrival::Cached, call)?;
                }
                if cached {
                    medium.write(op.offset, data, Arrival::Lost, call)?;
                }
            }
            Verdict::Fault(SimFault::TornWrite { seed }) => {
                medium.write_torn(op.offset, data, seed, call)?;
                return Err(refusal(IoKind::Write, verdict));
            }
            Verdict::Fault(_) | Verdict::Stale { .. } | Verdict::Cut | Verdict::Dead => {
                if verdict != Verdict::Dead || *in_flight {
                    medium.write(op.offset, data, Arrival::Failed, call)?;
                }
                return Err(refusal(IoKind::Write, verdict));
            }
        }
        self.counters.writes += 1;
        self.counters.bytes_written += len;
        Ok(())
    }

    fn flush(&mut self, began: Moment) -> io::Result<()> {
        let verdict = self.faults.begin(IoKind::Flush, 0..0);
        match verdict {
            Verdict::Proceed => self.medium.flush(began),
            Verdict::Fault(SimFault::LostFlush) => {}
            Verdict::Fault(fault) => {
                match fault {
                    SimFault::TornFlush { seed } => self.medium.tear_flush(seed, began),
                    _ => self.medium.fail_flush(),
                }
                return Err(refusal(IoKind::Flush, verdict));
            }
            Verdict::Stale { .. } | Verdict::Cut | Verdict::Dead => {
                return Err(refusal(IoKind::Flush, verdict));
            }
        }
        self.counters.flushes += 1;
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64, call: Call) -> io::Result<()> {
        let verdict = self.faults.begin(IoKind::Discard, offset..offset + len);
        if verdict != Verdict::Proceed {
            if verdict != Verdict::Dead {
                self.medium.discard(offset, len, Arrival::Failed, call)?;
            }
            return Err(refusal(IoKind::Discard, verdict));
        }
        self.medium.discard(offset, len, Arrival::Cached, call)?;
        if let Some(capacity) = &mut self.capacity {
            capacity.give_back(offset..offset + len);
        }
        self.counters.discards += 1;
        Ok(())
    }
}

impl std::fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("SimDevice")
            .field("size", &self.size)
            .field("pending", &state.medium.pending().count())
            .field("faults", &state.faults)
            .finish_non_exhaustive()
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
        for place in self.order(ops.len()) {
            let op = &mut ops[place];
            op.result =
                self.operate(|state| self.check(op.offset, op.byte_count()).and_then(|()| state.read(op)));
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        let mut in_flight = false;
        let call = self.lock().medium.begin();
        for place in self.order(ops.len()) {
            let op = &mut ops[place];
            op.result = self.operate(|state| {
                self.check(op.offset, op.byte_count())
                    .and_then(|()| state.write(op, self.size, call, &mut in_flight))
            });
        }
        self.lock().medium.end(call);
    }

    fn flush(&self) -> io::Result<()> {
        let began = self.lock().medium.tick();
        self.operate(|state| state.flush(began))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let call = self.lock().medium.begin();
        let result =
            self.operate(|state| self.check(offset, len).and_then(|()| state.discard(offset, len, call)));
        self.lock().medium.end(call);
        result
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        let mut state = self.lock();
        state.questions.preallocations += 1;
        let has_room = state.capacity.as_mut().is_none_or(|capacity| capacity.take(offset..offset + len));
        if has_room { Ok(()) } else { Err(SimError::Full.into()) }
    }

    fn allocated(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let mut state = self.lock();
        state.questions.searches += 1;
        match &state.capacity {
            Some(capacity) => Ok(capacity.allocated(range)),
            None => Ok(Some(range)),
        }
    }

    fn room_below(&self) -> Option<u64> {
        self.lock().capacity.as_ref().map(Capacity::free)
    }

    /// Reads come from the medium from now on: what did not get there is gone.
    fn bypass_cache(&self) -> io::Result<bool> {
        let mut state = self.lock();
        if !state.faults.has_power() {
            return Err(SimError::PowerOff.into());
        }
        if state.refuses_bypass {
            return Ok(false);
        }
        state.medium.bypass()?;
        Ok(true)
    }
}

/// The error of an operation that does not succeed.
fn refusal(kind: IoKind, verdict: Verdict) -> io::Error {
    let error = match verdict {
        Verdict::Cut | Verdict::Dead => SimError::PowerOff,
        Verdict::Fault(SimFault::FullWrite) => SimError::Full,
        Verdict::Fault(_) | Verdict::Stale { .. } | Verdict::Proceed => SimError::Injected(kind),
    };
    error.into()
}
