//! Large requests of one connection: few at a time.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Large requests that a connection may have in memory at once, so that many threads do not mean much memory.
const LARGE_MAX: usize = 2;

/// Requests with more payload than a batch of several may have, either way, wait for each other here.
#[derive(Debug, Default)]
pub(crate) struct LargeTurns {
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// The right to hold a large request; given back on drop.
#[derive(Debug)]
pub(crate) struct LargeTurn(Arc<LargeTurns>);

impl LargeTurns {
    /// Waits for a turn. Who holds one needs nothing but the export and the client to be done with it.
    pub(crate) fn take(turns: &Arc<Self>) -> LargeTurn {
        // Nothing in its critical sections can panic half-way.
        let taken = turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = turns.given_back.wait_while(taken, |taken| *taken == LARGE_MAX);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        LargeTurn(Arc::clone(turns))
    }
}

impl Drop for LargeTurn {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.given_back.notify_one();
    }
}
