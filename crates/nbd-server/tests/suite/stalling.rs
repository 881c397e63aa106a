//! A volume to serve, on a data device that stalls: one of its calls waits until it is let go, and all others
//! pass.

use crate::fixture::PATIENCE;
use dedup_device::{BlockDevice, InterceptDevice, IoKind, MemDevice};
use dedup_nbd_server::Export;
use dedup_volume::{FormatOptions, OpenOptions, Request, RequestError, Volume, Wanted, format};
use std::sync::{Arc, Condvar, Mutex};
use uuid::Uuid;

/// What the device does.
#[derive(Debug, Default)]
pub(crate) struct Stalling {
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

/// A volume of so many logical bytes on such a device.
pub(crate) struct Stalled(Arc<Volume>);

impl Stalled {
    pub(crate) fn new(size: u64) -> (Self, Arc<Stalling>) {
        Self::on(2 * size, size)
    }

    /// The same with so many bytes of data device.
    pub(crate) fn on(data_size: u64, size: u64) -> (Self, Arc<Stalling>) {
        let stalling = Arc::new(Stalling::default());
        let calls = Arc::clone(&stalling);
        let data = InterceptDevice::new(Arc::new(MemDevice::new(data_size)), move |call| {
            if call.kind() != IoKind::Discard {
                calls.call();
            }
            call.pass();
            Ok(())
        });
        let data: Arc<dyn BlockDevice> = Arc::new(data);
        let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
        let options = FormatOptions::new(size, Uuid::from_u128(1), Uuid::from_u128(2));
        format(&*data, &metadata, &options).unwrap();
        let options = OpenOptions { background: false, log_data: 0, ..OpenOptions::default() };
        let volume = Volume::open(data, metadata, &options).unwrap();
        (Self(Arc::new(volume)), stalling)
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
