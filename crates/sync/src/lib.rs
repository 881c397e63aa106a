//! What the threads of an open volume wait for, each kind of wait as a type of its own.
//!
//! | type | who waits, and for what |
//! |---|---|
//! | [`Turns`] | everybody for work that one does for all: commits, checkpoints |
//! | [`Line`] | first come, first served, for what is scarce: log, metadata, free blocks |
//! | [`Claims`] | whoever has the same content for the first block of it to be written |
//! | [`RangeLocks`] | operations on one block for each other |
//! | [`Pins`] | whoever would reuse a block for readers that may still reach it |
//! | [`Barrier`] | flushes of one device for each other |
//! | [`Wakeup`] | background threads for something to do |
//!
//! [`Layers`] is what a lookup and a checkpoint meet in. There is no I/O in this crate, and no clock; it
//! knows nothing of blocks, trees or a log. Each type is explored by `loom` in every interleaving of two or
//! three threads (`loom_models`).
//!
//! Below them are the primitives, behind one door, so that a model checker's can stand in for them: `loom`'s
//! in unit tests with the feature `loom`, `shuttle`'s with the feature `shuttle` (the whole engine on a
//! schedule that a seed fixes), else the standard library's.
//!
//! A lock whose holder panicked is never entered again: what it guards may be half changed, and a volume that
//! goes on with half-changed counts would lose data later. The panic spreads to every thread that asks, and
//! the log on disk still tells the truth.
//!
//! ```
//! use dedup_sync::Turns;
//!
//! // Two operations were published; who needs the second to be durable makes both durable in one turn.
//! let commits = Turns::new(0);
//! let turn = commits.reach(2).unwrap().expect("nobody else leads");
//! turn.done(2).unwrap();
//! assert!(commits.reach(1).unwrap().is_none(), "covered by the same turn");
//! ```

mod barrier;
mod claims;
mod layers;
mod line;
#[cfg(feature = "lock-times")]
mod lock_times;
#[cfg(all(test, feature = "loom"))]
mod loom_models;
mod pins;
mod ranges;
mod turns;
mod wakeup;

pub use barrier::{Barrier, FlushError};
pub use claims::{Claims, Held, View};
pub use layers::Layers;
pub use line::{Line, Place};
#[cfg(feature = "lock-times")]
pub use lock_times::{LockTime, lock_times};
pub use pins::{DataPin, Pin, Pins};
pub use ranges::{RangeGuard, RangeLocks};
pub use turns::{Ended, Turn, Turns};
pub use wakeup::{Signal, Wakeup};

#[cfg(all(test, feature = "loom"))]
use loom::sync;
#[cfg(all(feature = "shuttle", not(all(test, feature = "loom"))))]
use shuttle::sync;
#[cfg(not(any(feature = "shuttle", all(test, feature = "loom"))))]
use std::sync;

#[cfg(all(test, feature = "loom"))]
pub use loom::thread;
#[cfg(all(feature = "shuttle", not(all(test, feature = "loom"))))]
pub use shuttle::thread;
#[cfg(not(any(feature = "shuttle", all(test, feature = "loom"))))]
pub use std::thread;

// Nothing waits for a count of references, so the standard library's does everywhere.
#[cfg(feature = "lock-times")]
pub use lock_times::{Condvar, Mutex, MutexGuard};
#[cfg(not(feature = "lock-times"))]
pub use plain::{Condvar, Mutex};
pub use std::sync::Arc;
#[cfg(not(feature = "lock-times"))]
pub use sync::MutexGuard;
pub use sync::atomic::{AtomicU64, AtomicUsize};

/// What whoever meets a poisoned lock dies with.
pub const POISONED: &str = "a thread panicked while it changed the volume's state; the volume has stopped";

/// The locks as they are, unless a build measures them.
#[cfg(not(feature = "lock-times"))]
mod plain {
    use super::{MutexGuard, POISONED, sync};

    /// A mutex without poisoning results.
    #[derive(Debug)]
    pub struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// Guards `value`.
        pub fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        /// Waits for the lock.
        ///
        /// # Panics
        /// If a thread panicked while holding it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
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
    pub struct Condvar(sync::Condvar);

    impl Condvar {
        /// Lets go of the lock until it is notified, or at any time.
        ///
        /// # Panics
        /// If a thread panicked while holding the lock.
        pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).expect(POISONED)
        }

        /// Wakes all who wait.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl Default for Condvar {
        fn default() -> Self {
            Self(sync::Condvar::new())
        }
    }
}
