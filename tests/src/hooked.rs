//! A disk on which a test can act at a moment of its choice: right before the n-th call of a kind, or instead
//! of it.
//!
//! What the test does then runs in the thread that called the device. The volume holds no lock over I/O, so
//! it may use the volume; only what waits for the interrupted request itself needs a thread of its own, see
//! [`while_held`]. Nothing sleeps, so each run meets the same moment.

use super::{Disks, OpenOptions, Volume, VolumeError};
use dedup_device::{BlockDevice, InterceptDevice, IoKind, SimDevice};
use std::io;
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
    device: Arc<InterceptDevice>,
    hooks: Arc<Mutex<Vec<Hook>>>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.device.fmt(f)
    }
}

impl Hooked {
    /// A disk without hooks.
    pub fn new(inner: Arc<SimDevice>) -> Arc<Self> {
        let hooks: Arc<Mutex<Vec<Hook>>> = Arc::default();
        let due = Arc::clone(&hooks);
        let device = InterceptDevice::new(inner, move |call| {
            if let Some(error) = meet(&due, call.kind(), &call.offsets()) {
                return Err(error);
            }
            call.pass();
            Ok(())
        });
        Arc::new(Self { device: Arc::new(device), hooks })
    }

    /// What a volume opens.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        self.device.clone()
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

    /// Instead of the `n`-th call of a kind from now on, does `act` and fails with what it returns.
    pub fn instead(&self, kind: IoKind, n: u64, act: impl FnOnce() -> io::Error + Send + 'static) {
        let act: Act = Box::new(|| Some(act()));
        self.hooks.lock().unwrap().push(Hook { kind, left: n, at: |_| true, act });
    }

    /// The `n`-th call of a kind from now on fails and never reaches the disk, as if the process had been
    /// killed before it.
    pub fn refuse(&self, kind: IoKind, n: u64) {
        self.instead(kind, n, || io::Error::other("killed"));
    }

    /// What has not come yet will not come.
    pub fn forget_hooks(&self) {
        self.hooks.lock().unwrap().clear();
    }
}

/// Takes what is due at this call off the hooks and does it, when they are unlocked again.
fn meet(hooks: &Mutex<Vec<Hook>>, kind: IoKind, offsets: &[u64]) -> Option<io::Error> {
    let due = {
        let mut hooks = hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = None;
        for (place, hook) in hooks.iter_mut().enumerate() {
            if hook.kind == kind && offsets.iter().any(|offset| (hook.at)(*offset)) {
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
        let volume = Arc::new(Volume::open(data.device(), metadata.device(), options)?);
        Ok(Self { disks, data, metadata, volume })
    }
}

/// Holds `first` at its next call of a kind on `device`, runs `second` meanwhile, and lets `first` go on once
/// `second` has ended or has waited long enough. Says whether `second` ended while `first` was held.
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

/// Runs `test` in a thread of its own; a panic there is one here, and so is no end within `limit`: a deadlock
/// fails its test and holds nobody else up.
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
