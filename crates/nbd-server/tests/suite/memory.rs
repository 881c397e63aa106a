//! Exports to serve in tests.

use crate::fixture::PATIENCE;
use dedup_nbd_server::{BASE_ALLOCATION, Export, Extent, STATE_HOLE, STATE_ZERO};
use dedup_volume::{Op, Request, RequestError, Wanted};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// A metadata context in which bytes are alike in pairs: as many extents as can be.
pub(crate) const PAIRS: &str = "test:pairs";

/// Plain memory, which takes sectors of 512 zeros for holes.
pub(crate) struct Memory {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) read_only: bool,
}

impl Memory {
    pub(crate) fn new(size: usize) -> Self {
        Self { bytes: Mutex::new(vec![0; size]), read_only: false }
    }

    /// All else waits meanwhile, so a change that is still wanted is done before anybody else's.
    fn run(&self, wanted: Wanted<'_>, op: &mut Op<'_>) -> Result<(), RequestError> {
        let mut bytes = self.bytes.lock().unwrap();
        if !matches!(op, Op::Read { .. } | Op::Flush) && !wanted() {
            return Err(RequestError::Abandoned);
        }
        let range = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
        match op {
            Op::Read { offset, buf } => buf.copy_from_slice(&bytes[range(*offset, buf.len() as u64)]),
            Op::Write { offset, data, .. } => bytes[range(*offset, data.len() as u64)].copy_from_slice(data),
            Op::Flush => {}
            Op::Trim { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => {
                bytes[range(*offset, *len)].fill(0)
            }
        }
        Ok(())
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Completes in reverse order, which a client must bear.
    fn execute<'a>(
        &self,
        wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        for mut request in batch.into_iter().rev() {
            let result = self.run(wanted, &mut request.op);
            done(request, result);
        }
    }

    fn contexts(&self) -> &'static [&'static str] {
        &[BASE_ALLOCATION, PAIRS]
    }

    fn extents(
        &self,
        context: &str,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        if context == PAIRS {
            // One more than is allowed, and longer than was asked for: the server has to cut.
            let pairs = (0..len / 2 + 2).take(extents_max + 1);
            return Ok(pairs.map(|i| Extent { len: 2, status: (i % 2) as u32 }).collect());
        }
        let bytes = self.bytes.lock().unwrap();
        let hole = |at: u64| bytes[at as usize / 512 * 512..].iter().take(512).all(|byte| *byte == 0);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < offset + len {
            let end = (offset + len).min((at / 512 + 1) * 512);
            let status = if hole(at) { STATE_HOLE | STATE_ZERO } else { 0 };
            match extents.last_mut() {
                Some(last) if last.status == status => last.len += end - at,
                _ => extents.push(Extent { len: end - at, status }),
            }
            at = end;
        }
        extents.truncate(extents_max);
        Ok(extents)
    }
}

/// Fails everything with one error.
pub(crate) struct Failing(pub(crate) RequestError);

impl Export for Failing {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn block_size(&self) -> u32 {
        64 << 10
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn execute<'a>(
        &self,
        _wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        batch.into_iter().for_each(|request| done(request, Err(self.0)));
    }

    fn contexts(&self) -> &'static [&'static str] {
        &[BASE_ALLOCATION]
    }

    fn extents(
        &self,
        _context: &str,
        _offset: u64,
        _len: u64,
        _extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        Err(self.0)
    }

    fn cache(&self, _offset: u64, _len: u64) -> Result<(), RequestError> {
        Err(self.0)
    }
}

/// Memory some of whose requests wait until they are let go, one batch at a time; panics on a trim.
pub(crate) struct Gated {
    pub(crate) memory: Memory,
    is_slow: fn(&Op<'_>) -> bool,
    gate: Mutex<Receiver<()>>,
    /// Batches that have come to the gate.
    pub(crate) arrived: Arc<AtomicUsize>,
}

impl Gated {
    /// With slow flushes.
    pub(crate) fn new(size: usize) -> (Self, Sender<()>) {
        Self::slow_at(|op| matches!(op, Op::Flush), size)
    }

    pub(crate) fn slow_at(is_slow: fn(&Op<'_>) -> bool, size: usize) -> (Self, Sender<()>) {
        let (open, gate) = channel();
        (Self { memory: Memory::new(size), is_slow, gate: Mutex::new(gate), arrived: Arc::default() }, open)
    }
}

impl Export for Gated {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn block_size(&self) -> u32 {
        4096
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn execute<'a>(
        &self,
        wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        assert!(!batch.iter().any(|request| matches!(request.op, Op::Trim { .. })), "panics as asked");
        if batch.iter().any(|request| (self.is_slow)(&request.op)) {
            self.arrived.fetch_add(1, Ordering::SeqCst);
            // With a limit, so that a test that fails does not wait for ever for the server to end.
            self.gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        self.memory.execute(wanted, batch, done);
    }
}
