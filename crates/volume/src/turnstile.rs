//! Waiting until something can be had: who comes tries, and tries again whenever somebody has given something
//! back. Operations wait so for what others were admitted for (see [`crate::admission`]).
//!
//! Invariant: who is refused when everything is back tries again. It holds as long as whatever makes a try
//! succeed happens under the lock, and [`Turnstile::given_back`] is called after it. There is no I/O here.

use crate::sync::{Condvar, Mutex};

/// Who waits for something that the lock guards.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    changed: Condvar,
}

impl Turnstile {
    /// Calls `attempt` under the lock until it returns something: at once, and after each time that something was given back.
    pub(crate) fn pass<T, R>(&self, lock: &Mutex<T>, mut attempt: impl FnMut(&mut T) -> Option<R>) -> R {
        let mut guard = lock.lock();
        loop {
            if let Some(result) = attempt(&mut guard) {
                return result;
            }
            guard = self.changed.wait(guard);
        }
    }

    /// Something was given back, or there is another reason to try again.
    pub(crate) fn given_back(&self) {
        self.changed.notify_all();
    }
}
