//! Tells the maintenance threads that there may be something to do.
//!
//! Invariants: a signal that was raised is taken once, by a thread that looks for it, however the two meet;
//! after [`Wakeup::stop`] every thread is told to stop. Signals do not add up: what is to be done is found by
//! looking, so one is enough for all raised before it is taken.

use crate::{Condvar, Mutex};

/// What there may be to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// For the thread that commits.
    Commit,
    /// For the thread that checkpoints and collects.
    Work,
    /// For the thread that discards.
    Discard,
}

/// Signals, and who waits for them.
#[derive(Debug, Default)]
pub struct Wakeup {
    signals: Mutex<Signals>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Signals {
    commit: bool,
    work: bool,
    discard: bool,
    stop: bool,
}

impl Signals {
    fn of(&mut self, signal: Signal) -> &mut bool {
        match signal {
            Signal::Commit => &mut self.commit,
            Signal::Work => &mut self.work,
            Signal::Discard => &mut self.discard,
        }
    }
}

impl Wakeup {
    /// Raises a signal.
    pub fn raise(&self, signal: Signal) {
        *self.signals.lock().of(signal) = true;
        self.changed.notify_all();
    }

    /// Waits for a signal and takes it; `false` to stop.
    pub fn wait(&self, signal: Signal) -> bool {
        let mut signals = self.signals.lock();
        loop {
            if signals.stop {
                return false;
            }
            if std::mem::take(signals.of(signal)) {
                return true;
            }
            signals = self.changed.wait(signals);
        }
    }

    /// Whether nobody has taken a signal yet.
    #[cfg(all(test, feature = "loom"))]
    pub fn is_raised(&self, signal: Signal) -> bool {
        *self.signals.lock().of(signal)
    }

    /// Tells all threads to stop, now and from now on.
    pub fn stop(&self) {
        self.signals.lock().stop = true;
        self.changed.notify_all();
    }

    /// Whether they are to stop.
    pub fn is_stopping(&self) -> bool {
        self.signals.lock().stop
    }
}
