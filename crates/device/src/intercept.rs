//! A device that shows each call to a function before it goes on to the device below: for tests and
//! benchmarks that count calls, delay them, hold them, let them fail, or say that they are done when they are
//! not.
//!
//! ```text
//!   caller ── read, write, read_batch, write_batch, flush, discard ──► the function ── Call::pass ──► device below
//!          ── everything else ────────────────────────────────────────────────────────────────────► device below
//! ```
//!
//! - A call that the function does not pass on does not reach the device below.
//! - What the function returns is how the call ends: `Err` for each of its operations, `Ok` for what it was
//!   below (success, if it was not passed on).
//! - No lock is held over the function: calls meet in it as they do in a device.

use crate::{BlockDevice, IoKind, ReadOp, WriteOp};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What an [`InterceptDevice`] does with a call.
type Act = dyn Fn(&mut Call<'_, '_>) -> io::Result<()> + Send + Sync;

/// A device whose calls a function sees first. See the module.
///
/// ```
/// use dedup_device::{BlockDevice, InterceptDevice, IoKind, MemDevice};
/// use std::{io, sync::Arc};
///
/// let below = Arc::new(MemDevice::new(1 << 20));
/// let disk = InterceptDevice::new(below, |call| {
///     if call.kind() == IoKind::Flush {
///         return Err(io::Error::other("the cable is loose"));
///     }
///     call.pass();
///     Ok(())
/// });
/// disk.write(0, &[1; 512])?;
/// assert!(disk.flush().is_err());
/// # Ok::<(), io::Error>(())
/// ```
pub struct InterceptDevice {
    below: Arc<dyn BlockDevice>,
    act: Box<Act>,
    /// Each operation of a batch is a call of its own.
    one_by_one: bool,
}

/// A call on its way: one operation or a batch of one kind.
#[derive(Debug)]
pub struct Call<'a, 'b> {
    below: &'a dyn BlockDevice,
    what: What<'a, 'b>,
}

#[derive(Debug)]
enum What<'a, 'b> {
    Read(&'a mut [ReadOp<'b>]),
    Write(&'a mut [WriteOp<'b>]),
    Flush(io::Result<()>),
    Discard { offset: u64, len: u64, result: io::Result<()> },
}

impl Call<'_, '_> {
    /// Which kind.
    pub fn kind(&self) -> IoKind {
        match self.what {
            What::Read(_) => IoKind::Read,
            What::Write(_) => IoKind::Write,
            What::Flush(_) => IoKind::Flush,
            What::Discard { .. } => IoKind::Discard,
        }
    }

    /// First byte of each operation; of a flush, 0.
    pub fn offsets(&self) -> Vec<u64> {
        match &self.what {
            What::Read(ops) => ops.iter().map(|op| op.offset).collect(),
            What::Write(ops) => ops.iter().map(|op| op.offset).collect(),
            What::Flush(_) => vec![0],
            What::Discard { offset, .. } => vec![*offset],
        }
    }

    /// The bytes of a write, or those that a read has found once it was [passed](Self::pass) on; buffers in
    /// order.
    pub fn bufs(&self) -> Vec<&[u8]> {
        match &self.what {
            What::Read(ops) => ops.iter().flat_map(|op| op.bufs.iter().map(|buf| &**buf)).collect(),
            What::Write(ops) => ops.iter().flat_map(|op| op.bufs.iter().copied()).collect(),
            What::Flush(_) | What::Discard { .. } => Vec::new(),
        }
    }

    /// Hands the call to the device below, which sets the result of each operation.
    pub fn pass(&mut self) {
        match &mut self.what {
            What::Read(ops) => self.below.read_batch(ops),
            What::Write(ops) => self.below.write_batch(ops),
            What::Flush(result) => *result = self.below.flush(),
            What::Discard { offset, len, result } => *result = self.below.discard(*offset, *len),
        }
    }
}

impl InterceptDevice {
    /// `below`, whose calls `act` sees first. A batch is one call.
    pub fn new(
        below: Arc<dyn BlockDevice>,
        act: impl Fn(&mut Call<'_, '_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { below, act: Box::new(act), one_by_one: false }
    }

    /// The same, where each operation of a batch is a call of its own, in their order.
    #[must_use]
    pub fn one_by_one(self) -> Self {
        Self { one_by_one: true, ..self }
    }

    fn read_call(&self, ops: &mut [ReadOp<'_>]) {
        // What is not passed on has succeeded, unless the function says otherwise.
        ops.iter_mut().for_each(|op| op.result = Ok(()));
        let mut call = Call { below: &*self.below, what: What::Read(ops) };
        if let Err(error) = (self.act)(&mut call) {
            fail(ops.iter_mut().map(|op| &mut op.result), error);
        }
    }

    fn write_call(&self, ops: &mut [WriteOp<'_>]) {
        ops.iter_mut().for_each(|op| op.result = Ok(()));
        let mut call = Call { below: &*self.below, what: What::Write(ops) };
        if let Err(error) = (self.act)(&mut call) {
            fail(ops.iter_mut().map(|op| &mut op.result), error);
        }
    }
}

/// Every one of `results` is `error`; the first as it came, the others as copies, since it has no `Clone`.
fn fail<'r>(mut results: impl Iterator<Item = &'r mut io::Result<()>>, error: io::Error) {
    let first = results.next();
    results.for_each(|result| *result = Err(io::Error::new(error.kind(), error.to_string())));
    if let Some(result) = first {
        *result = Err(error);
    }
}

impl fmt::Debug for InterceptDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterceptDevice").field("below", &self.below).finish_non_exhaustive()
    }
}

impl BlockDevice for InterceptDevice {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn io_alignment(&self) -> usize {
        self.below.io_alignment()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut ops = [ReadOp::new(offset, vec![buf])];
        self.read_call(&mut ops);
        let [op] = ops;
        op.result
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut ops = [WriteOp::new(offset, vec![buf])];
        self.write_call(&mut ops);
        let [op] = ops;
        op.result
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        match self.one_by_one {
            true => ops.iter_mut().for_each(|op| self.read_call(std::slice::from_mut(op))),
            false => self.read_call(ops),
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        match self.one_by_one {
            true => ops.iter_mut().for_each(|op| self.write_call(std::slice::from_mut(op))),
            false => self.write_call(ops),
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut call = Call { below: &*self.below, what: What::Flush(Ok(())) };
        (self.act)(&mut call)?;
        let What::Flush(result) = call.what else { return Ok(()) };
        result
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut call = Call { below: &*self.below, what: What::Discard { offset, len, result: Ok(()) } };
        (self.act)(&mut call)?;
        let What::Discard { result, .. } = call.what else { return Ok(()) };
        result
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.reserve(offset, len)
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.preallocate(offset, len)
    }

    fn allocated(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.below.allocated(range)
    }

    fn room_below(&self) -> Option<u64> {
        self.below.room_below()
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        self.below.bypass_cache()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemDevice;
    use std::sync::Mutex;

    type Seen = Arc<Mutex<Vec<(IoKind, Vec<u64>)>>>;

    fn recorded(one_by_one: bool) -> (Arc<MemDevice>, InterceptDevice, Seen) {
        let (below, seen) = (Arc::new(MemDevice::new(4096)), Seen::default());
        let record = Arc::clone(&seen);
        let device = InterceptDevice::new(below.clone(), move |call| {
            record.lock().unwrap().push((call.kind(), call.offsets()));
            call.pass();
            match call.bufs().iter().any(|buf| buf.contains(&9)) {
                true => Err(io::Error::other("nines")),
                false => Ok(()),
            }
        });
        (below, if one_by_one { device.one_by_one() } else { device }, seen)
    }

    #[test]
    fn a_batch_is_one_call_or_one_for_each_operation_and_an_error_is_of_the_whole_call() {
        for one_by_one in [false, true] {
            let (below, device, seen) = recorded(one_by_one);
            let mut ops = [WriteOp::new(0, vec![&[1; 8]]), WriteOp::new(64, vec![&[2; 4], &[9; 4]])];
            device.write_batch(&mut ops);
            assert_eq!(ops.map(|op| op.result.is_ok()), [one_by_one, false]);
            let (mut first, mut second) = ([0; 8], [0; 8]);
            below.read(64, &mut first).unwrap();
            assert_eq!(first, [2, 2, 2, 2, 9, 9, 9, 9], "it was passed on");
            let mut ops = [ReadOp::new(0, vec![&mut first]), ReadOp::new(64, vec![&mut second])];
            device.read_batch(&mut ops);
            assert_eq!(ops.map(|op| op.result.is_ok()), [one_by_one, false]);
            let each = |kind| {
                if one_by_one { vec![(kind, vec![0]), (kind, vec![64])] } else { vec![(kind, vec![0, 64])] }
            };
            assert_eq!(*seen.lock().unwrap(), [each(IoKind::Write), each(IoKind::Read)].concat());
        }
    }

    #[test]
    fn an_operation_that_fails_below_fails_and_its_neighbours_do_not() {
        let (_, device, _) = recorded(false);
        let mut ops = [WriteOp::new(0, vec![&[1; 8]]), WriteOp::new(4096, vec![&[1; 8]])];
        device.write_batch(&mut ops);
        assert_eq!(ops.map(|op| op.result.is_ok()), [true, false]);
        assert!(device.discard(4096, 8).is_err());
        assert!(device.read(4096, &mut [0; 8]).is_err());
    }

    #[test]
    fn what_is_not_passed_on_changes_nothing_below_and_ends_as_the_function_says() {
        let below = Arc::new(MemDevice::new(4096));
        let device = InterceptDevice::new(below.clone(), |call| match call.kind() {
            IoKind::Flush | IoKind::Discard => Err(io::Error::other("no")),
            IoKind::Read | IoKind::Write => Ok(()),
        });
        device.write(0, &[1; 8]).unwrap();
        let mut bytes = [7; 8];
        below.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 8]);
        assert_eq!(device.flush().unwrap_err().to_string(), "no");
        assert_eq!(device.discard(0, 8).unwrap_err().to_string(), "no");
    }
}
