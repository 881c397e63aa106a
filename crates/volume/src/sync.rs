//! The synchronisation primitives of this crate, behind one door, so that a model checker's can stand in for
//! them: `loom`'s in unit tests with the feature `loom` (every interleaving of the small types), `shuttle`'s
//! with the feature `shuttle` (the whole engine on a schedule that a seed fixes), else the standard library's.
//!
//! A lock whose holder panicked is never entered again: what it guards may be half changed, and a volume that
//! goes on with half-changed counts would lose data later. The panic spreads to every thread that asks, and
//! the log on disk still tells the truth.

#[cfg(all(test, feature = "loom"))]
use loom::sync;
#[cfg(all(feature = "shuttle", not(all(test, feature = "loom"))))]
use shuttle::sync;
#[cfg(not(any(feature = "shuttle", all(test, feature = "loom"))))]
use std::sync;

#[cfg(all(test, feature = "loom"))]
pub(crate) use loom::thread;
#[cfg(all(feature = "shuttle", not(all(test, feature = "loom"))))]
pub(crate) use shuttle::thread;
#[cfg(not(any(feature = "shuttle", all(test, feature = "loom"))))]
pub(crate) use std::thread;

// Nothing waits for a count of references, so the standard library's does everywhere.
#[cfg(feature = "lock-times")]
pub(crate) use crate::lock_times::{Condvar, Mutex, MutexGuard};
#[cfg(not(feature = "lock-times"))]
pub(crate) use plain::{Condvar, Mutex};
pub(crate) use std::sync::Arc;
#[cfg(not(feature = "lock-times"))]
pub(crate) use sync::MutexGuard;
pub(crate) use sync::atomic::AtomicUsize;

/// What whoever meets a poisoned lock dies with.
pub(crate) const POISONED: &str =
    "a thread panicked while it changed the volume's state; the volume has stopped";

/// The locks as they are, unless a build measures them.
#[cfg(not(feature = "lock-times"))]
mod plain {
    use super::{MutexGuard, POISONED, sync};

    /// A mutex without poisoning results.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        /// Waits for the lock.
        ///
        /// # Panics
        /// If a thread panicked while holding it.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect(POISONED)
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    /// A condition variable to go with [`Mutex`].
    #[derive(Debug)]
    pub(crate) struct Condvar(sync::Condvar);

    impl Condvar {
        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).expect(POISONED)
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl Default for Condvar {
        fn default() -> Self {
            Self(sync::Condvar::new())
        }
    }
}
