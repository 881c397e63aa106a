//! A volume to serve, on a data device that stalls: one of its calls waits until it is let go, and all others pass.

use crate::fixture::PATIENCE;
use dedup_device::{BlockDevice, MemDevice, ReadOp, WriteOp};
use dedup_nbd_server::Export;
use dedup_volume::{FormatOptions, OpenOptions, Request, RequestError, Volume, Wanted, format};
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use uuid::Uuid;

/// The device.
#[derive(Debug)]
pub(crate) struct Stalling {
    inner: MemDevice,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that pass before one stalls; `None`: all pass.
    left: Option<usize>,
    /// One is waiting.
    stalls: bool,
}

impl Stalling {
    /// The `n`-th call from now on stalls (0: the next).
    pub(crate) fn stall_at(&self, n: usize) {
        self.state.lock().unwrap().left = Some(n);
    }

    /// Whether a call has stalled.
    pub(crate) fn stalls(&self) -> bool {
        self.state.lock().unwrap().stalls
    }

    /// Lets it go, and stalls no more.
    pub(crate) fn let_go(&self) {
        *self.state.lock().unwrap() = State::default();
        self.changed.notify_all();
    }

    fn call(&self) {
        let mut state = self.state.lock().unwrap();
        match &mut state.left {
            None => return,
            Some(0) => {}
            Some(left) => return *left -= 1,
        }
        *state = State { left: None, stalls: true };
        // With a limit, so that a test that fails does not wait for ever for the server to end.
        drop(self.changed.wait_timeout_while(state, PATIENCE, |state| state.stalls).unwrap());
    }
}

impl BlockDevice for Stalling {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn io_alignment(&self) -> usize {
        self.inner.io_alignment()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.call();
        self.inner.read(offset, buf)
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.call();
        self.inner.write(offset, buf)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        self.call();
        self.inner.read_batch(ops);
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        self.call();
        self.inner.write_batch(ops);
    }

    fn flush(&self) -> io::Result<()> {
        self.call();
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        self.inner.bypass_cache()
    }
}

/// A volume of so many logical bytes on such a device.
pub(crate) struct Stalled(Arc<Volume>);

impl Stalled {
    pub(crate) fn new(size: u64) -> (Self, Arc<Stalling>) {
        Self::on(2 * size, size)
    }

    /// The same with so many bytes of data device.
    pub(crate) fn on(data_size: u64, size: u64) -> (Self, Arc<Stalling>) {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let data = Arc::new(Stalling { inner: MemDevice::new(data_size), state, changed });
        let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
        let options = FormatOptions::new(size, Uuid::from_u128(1), Uuid::from_u128(2));
        format(&*data, &metadata, &options).unwrap();
        let options = OpenOptions { background: false, log_data: 0, ..OpenOptions::default() };
        let volume = Volume::open(Arc::clone(&data) as Arc<dyn BlockDevice>, metadata, &options).unwrap();
        (Self(Arc::new(volume)), data)
    }
}

impl Export for Stalled {
    fn size(&self) -> u64 {
        self.0.logical_size()
    }

    fn block_size(&self) -> u32 {
        self.0.block_size()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn execute<'a>(
        &self,
        wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        self.0.execute_while(wanted, batch, done);
    }
}
