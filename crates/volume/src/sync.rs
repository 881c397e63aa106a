//! The synchronisation primitives of this crate, behind one door, so that a model checker's can stand in for
//! them.
//!
//! A lock whose holder panicked is never entered again: what it guards may be half changed, and a volume that
//! goes on with half-changed counts would lose data later. The panic spreads to every thread that asks, and
//! the log on disk still tells the truth.

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::{Condvar as StdCondvar, Mutex as StdMutex, MutexGuard};
pub(crate) use std::thread;

/// A mutex without poisoning results.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(StdMutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(StdMutex::new(value))
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// If a thread panicked while holding it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a thread panicked while it changed the volume's state; the volume has stopped")
    }
}

/// A condition variable to go with [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(StdCondvar);

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0
            .wait(guard)
            .expect("a thread panicked while it changed the volume's state; the volume has stopped")
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}
