//! Waiting until something can be had: who comes tries, and tries again whenever somebody has given something
//! back. Operations wait so for what others were admitted for (see [`crate::admission`]).
//!
//! Invariant: who is refused when everything is back tries again. It holds as long as whatever makes a try
//! succeed happens under the lock, and [`Turnstile::given_back`] is called after it. There is no I/O here.
//!
//! Hardly ever does anybody wait, and things are given back with every write, so who waits is counted and nobody is woken in vain. Giving
//! back misses none: either it came first and the try saw it, or the lock has carried the count over.

use crate::sync::{AtomicUsize, Condvar, Mutex};
use std::sync::atomic::Ordering;

/// Who waits for something that the lock guards.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    changed: Condvar,
    /// Changed only under the lock.
    waiting: AtomicUsize,
}

impl Turnstile {
    /// Calls `attempt` under the lock until it returns something: at once, and after each time that something was given back.
    pub(crate) fn pass<T, R>(&self, lock: &Mutex<T>, mut attempt: impl FnMut(&mut T) -> Option<R>) -> R {
        let mut guard = lock.lock();
        loop {
            if let Some(result) = attempt(&mut guard) {
                return result;
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            guard = self.changed.wait(guard);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Something was given back, or there is another reason to try again.
    pub(crate) fn given_back(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.changed.notify_all();
        }
    }
}
