//! The locks of this crate with a clock beside each, for a build that measures what callers cannot do at the
//! same time. Only with the feature `lock-times`, which costs two readings of the clock each time a lock is
//! taken.
//!
//! A lock is known by the type that it guards. Held is: from having it to giving it back, waits on a
//! condition left out. Holds above [`HOLD_MAX`] are not counted: the thread was preempted, or waited for a
//! device under a lock that is made for that.

use crate::POISONED;
use std::any::type_name;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Far above what is done under a lock that callers share, and below what the scheduler takes a core away
/// for.
const HOLD_MAX: Duration = Duration::from_millis(1);
/// All locks that there have been, by what they guard.
static ALL: std::sync::Mutex<Vec<&'static Times>> = std::sync::Mutex::new(Vec::new());

/// How often and how long locks of one kind were held since the program began.
#[derive(Clone, Copy, Debug)]
pub struct LockTime {
    /// The type that they guard.
    pub name: &'static str,
    /// Times that one was taken.
    pub holds: u64,
    /// All of these together.
    pub held: Duration,
}

/// All kinds of locks.
#[doc(hidden)]
pub fn lock_times() -> Vec<LockTime> {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let time = |times: &&Times| LockTime {
        name: times.name,
        holds: times.holds.load(Ordering::Relaxed),
        held: Duration::from_nanos(times.nanos.load(Ordering::Relaxed)),
    };
    all.iter().map(time).collect()
}

#[derive(Debug)]
struct Times {
    name: &'static str,
    holds: AtomicU64,
    nanos: AtomicU64,
}

impl Times {
    /// Those of locks that guard a `T`; they stay for good, and there are some twenty.
    fn of<T>() -> &'static Self {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let name = type_name::<T>();
        if let Some(known) = all.iter().find(|times| times.name == name) {
            return known;
        }
        let times = Self { name, holds: AtomicU64::new(0), nanos: AtomicU64::new(0) };
        let times: &'static Self = Box::leak(Box::new(times));
        all.push(times);
        times
    }

    fn count(&self, since: Instant) {
        let held = since.elapsed();
        if held <= HOLD_MAX {
            self.holds.fetch_add(1, Ordering::Relaxed);
            self.nanos.fetch_add(held.as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

/// As it is without the feature.
#[derive(Debug)]
pub struct Mutex<T> {
    inner: std::sync::Mutex<T>,
    times: &'static Times,
}

impl<T> Mutex<T> {
    /// Guards `value`.
    pub fn new(value: T) -> Self {
        Self { inner: std::sync::Mutex::new(value), times: Times::of::<T>() }
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// If a thread panicked while holding it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard::new(self.inner.lock().expect(POISONED), self.times)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Counts when it is dropped.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    /// There until it is dropped or waits.
    inner: Option<std::sync::MutexGuard<'a, T>>,
    times: &'static Times,
    since: Instant,
}

impl<'a, T> MutexGuard<'a, T> {
    fn new(inner: std::sync::MutexGuard<'a, T>, times: &'static Times) -> Self {
        Self { inner: Some(inner), times, since: Instant::now() }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("a guard in use has not waited")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("a guard in use has not waited")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.inner.is_some() {
            self.times.count(self.since);
        }
    }
}

/// A condition variable to go with [`Mutex`].
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// Lets go of the lock until it is notified, or at any time.
    ///
    /// # Panics
    /// If a thread panicked while holding the lock.
    pub fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let times = guard.times;
        times.count(guard.since);
        let inner = guard.inner.take().expect("a guard in use has not waited");
        MutexGuard::new(self.0.wait(inner).expect(POISONED), times)
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
