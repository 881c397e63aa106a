//! A disk on which a test can act at a moment of its choice: right before the n-th call of a kind, or instead of it.
//!
//! What the test does then runs in the thread that called the device. The volume holds no lock over I/O, so it may use the volume; only
//! what waits for the interrupted request itself needs a thread of its own, see [`while_held`]. Nothing sleeps, so
//! each run meets the same moment.

use super::{Disks, OpenOptions, Volume, VolumeError};
use dedup_device::{BlockDevice, IoKind, ReadOp, SimDevice, WriteOp};
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a held request stays held for somebody who seems to wait for it.
const PATIENCE: Duration = Duration::from_millis(100);
/// A test that has not ended by then hangs: some hundred times what the slowest takes.
pub const WATCHDOG: Duration = Duration::from_secs(30);

type Act = Box<dyn FnOnce() -> Option<io::Error> + Send>;

/// A call that has not come yet, and what happens then.
struct Hook {
    kind: IoKind,
    /// Calls of the kind that touch the place and pass by.
    left: u64,
    /// Offsets of the operations that count.
    at: fn(u64) -> bool,
    act: Act,
}

/// See the module.
pub struct Hooked {
    inner: Arc<SimDevice>,
    hooks: Mutex<Vec<Hook>>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Hooked {
    /// A disk without hooks.
    pub fn new(inner: Arc<SimDevice>) -> Arc<Self> {
        Arc::new(Self { inner, hooks: Mutex::new(Vec::new()) })
    }

    /// Before the `n`-th call of a kind from now on (0: the next), does `act`. A batch is one call.
    pub fn before(&self, kind: IoKind, n: u64, act: impl FnOnce() + Send + 'static) {
        self.before_at(kind, n, |_| true, act);
    }

    /// The same, for calls with an operation at an offset that `at` accepts.
    pub fn before_at(&self, kind: IoKind, n: u64, at: fn(u64) -> bool, act: impl FnOnce() + Send + 'static) {
        let act: Act = Box::new(|| {
            act();
            None
        });
        self.hooks.lock().unwrap().push(Hook { kind, left: n, at, act });
    }

    /// The `n`-th call of a kind from now on fails and never reaches the disk, as if the process had been killed before it.
    pub fn refuse(&self, kind: IoKind, n: u64) {
        let act: Act = Box::new(|| Some(io::Error::other("killed")));
        self.hooks.lock().unwrap().push(Hook { kind, left: n, at: |_| true, act });
    }

    /// What has not come yet will not come.
    pub fn forget_hooks(&self) {
        self.hooks.lock().unwrap().clear();
    }

    fn meet(&self, kind: IoKind, offsets: impl Iterator<Item = u64> + Clone) -> Option<io::Error> {
        let due = {
            let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            let mut due = None;
            for (place, hook) in hooks.iter_mut().enumerate() {
                if hook.kind == kind && offsets.clone().any(hook.at) {
                    match hook.left {
                        0 => due = due.or(Some(place)),
                        _ => hook.left -= 1,
                    }
                }
            }
            due.map(|place| hooks.remove(place))
        };
        due.and_then(|hook| (hook.act)())
    }
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

impl BlockDevice for Hooked {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn io_alignment(&self) -> usize {
        self.inner.io_alignment()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.meet(IoKind::Read, std::iter::once(offset)) {
            Some(error) => Err(error),
            None => self.inner.read(offset, buf),
        }
    }
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.meet(IoKind::Write, std::iter::once(offset)) {
            Some(error) => Err(error),
            None => self.inner.write(offset, buf),
        }
    }
    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        match self.meet(IoKind::Read, ops.iter().map(|op| op.offset)) {
            Some(error) => ops.iter_mut().for_each(|op| op.result = Err(copy(&error))),
            None => self.inner.read_batch(ops),
        }
    }
    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        match self.meet(IoKind::Write, ops.iter().map(|op| op.offset)) {
            Some(error) => ops.iter_mut().for_each(|op| op.result = Err(copy(&error))),
            None => self.inner.write_batch(ops),
        }
    }
    fn flush(&self) -> io::Result<()> {
        match self.meet(IoKind::Flush, std::iter::once(0)) {
            Some(error) => Err(error),
            None => self.inner.flush(),
        }
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.meet(IoKind::Discard, std::iter::once(offset)) {
            Some(error) => Err(error),
            None => self.inner.discard(offset, len),
        }
    }
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.preallocate(offset, len)
    }
    fn allocated(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.inner.allocated(range)
    }
    fn room_below(&self) -> Option<u64> {
        self.inner.room_below()
    }
    fn bypass_cache(&self) -> io::Result<bool> {
        self.inner.bypass_cache()
    }
}

/// An open volume on disks with hooks.
#[derive(Debug)]
pub struct Rig {
    /// The disks below the hooks.
    pub disks: Disks,
    /// Blocks and label.
    pub data: Arc<Hooked>,
    /// Everything else.
    pub metadata: Arc<Hooked>,
    /// Shared with what the hooks do.
    pub volume: Arc<Volume>,
}

impl Rig {
    /// Opens what is on these disks.
    pub fn open(disks: Disks, options: &OpenOptions) -> Result<Self, VolumeError> {
        let (data, metadata) = (Hooked::new(disks.data.clone()), Hooked::new(disks.metadata.clone()));
        let volume = Arc::new(Volume::open(data.clone(), metadata.clone(), options)?);
        Ok(Self { disks, data, metadata, volume })
    }
}

/// Holds `first` at its next call of a kind on `device`, runs `second` meanwhile, and lets `first` go on once `second` has ended or
/// has waited long enough. Says whether `second` ended while `first` was held.
pub fn while_held(
    device: &Hooked,
    kind: IoKind,
    first: impl FnOnce() + Send,
    second: impl FnOnce() + Send,
) -> bool {
    let (arrived_tx, arrived) = channel::<()>();
    let (go, go_rx) = channel::<()>();
    device.before(kind, 0, move || {
        let _ = arrived_tx.send(());
        // An error means that the test has failed already and lets everything go.
        let _ = go_rx.recv();
    });
    thread::scope(|scope| {
        let first = scope.spawn(first);
        arrived.recv_timeout(WATCHDOG).expect("the first request comes to the device");
        let (ended_tx, ended) = channel::<()>();
        let second = scope.spawn(move || {
            let _ended = ended_tx;
            second();
        });
        // The sender is dropped when the thread ends, in whatever way.
        let waits = ended.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        drop(go);
        for thread in [first.join(), second.join()] {
            thread.unwrap_or_else(|panic| resume_unwind(panic));
        }
        !waits
    })
}

/// Runs `test` in a thread of its own; a panic there is one here, and so is no end within `limit`: a deadlock fails its test and
/// holds nobody else up.
pub fn watched(limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (ended_tx, ended) = channel::<()>();
    let running = thread::spawn(move || {
        let _ended = ended_tx;
        test();
    });
    let hangs = ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
    assert!(!hangs, "no end within {limit:?}: somebody waits for nobody");
    running.join().unwrap_or_else(|panic| resume_unwind(panic));
}
