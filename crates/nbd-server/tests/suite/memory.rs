//! Exports to serve in tests.

use dedup_nbd_server::Export;
use dedup_volume::{Op, Request, RequestError};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Plain memory.
pub(crate) struct Memory {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) read_only: bool,
}

impl Memory {
    pub(crate) fn new(size: usize) -> Self {
        Self { bytes: Mutex::new(vec![0; size]), read_only: false }
    }

    fn run(&self, op: &mut Op<'_>) {
        let mut bytes = self.bytes.lock().unwrap();
        let range = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
        match op {
            Op::Read { offset, buf } => buf.copy_from_slice(&bytes[range(*offset, buf.len() as u64)]),
            Op::Write { offset, data, .. } => bytes[range(*offset, data.len() as u64)].copy_from_slice(data),
            Op::Flush => {}
            Op::Trim { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => {
                bytes[range(*offset, *len)].fill(0)
            }
        }
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
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        for mut request in batch.into_iter().rev() {
            self.run(&mut request.op);
            done(request, Ok(()));
        }
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
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        batch.into_iter().for_each(|request| done(request, Err(self.0)));
    }
}

/// Memory whose flushes wait until they are let go; panics on a trim.
pub(crate) struct Gated {
    pub(crate) memory: Memory,
    gate: Mutex<Receiver<()>>,
}

impl Gated {
    pub(crate) fn new(size: usize) -> (Self, Sender<()>) {
        let (open, gate) = channel();
        (Self { memory: Memory::new(size), gate: Mutex::new(gate) }, open)
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
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        assert!(!batch.iter().any(|request| matches!(request.op, Op::Trim { .. })), "panics as asked");
        if batch.iter().any(|request| matches!(request.op, Op::Flush)) {
            self.gate.lock().unwrap().recv().unwrap();
        }
        self.memory.execute(batch, done);
    }
}
