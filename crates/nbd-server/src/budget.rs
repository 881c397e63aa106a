//! Memory for payloads: one budget for all connections.
//!
//! What a thread needs for small requests it always has, so a connection goes on whatever others do. What is
//! above that it *leases* before it takes it, and whoever finds no room waits, first come, first served,
//! holding nothing: so every request finds room in the end, if those that hold some let go of it. A client
//! that takes no replies, or stops in the middle of a request, does not; when others wait for memory, such a
//! connection is ended (see [`Budget::is_too_slow`]).
//!
//! Invariant: what is leased for longer than a batch (a thread's own memory, and what it keeps from batch to
//! batch) is never more than half, so the other half comes free whatever clients do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes a second that a client has to move for its memory to be left to it when others wait: a tenth of what
/// a slow network does.
const RATE_MIN: u64 = 1 << 20;

/// The budget of a server.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    /// How long a client may move nothing although others wait.
    stall_time: Duration,
    /// What is leased, for those who only want to know whether it is much.
    leased: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    leased: usize,
    /// Who waits, in order of arrival.
    waiting: VecDeque<u64>,
    tickets: u64,
}

/// Bytes of a budget; given back on drop.
#[derive(Debug)]
pub(crate) struct Lease {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Of so many bytes.
    pub(crate) fn new(bytes_max: usize, stall_time: Duration) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { bytes_max, stall_time, leased: AtomicUsize::new(0), state, changed })
    }

    /// How long a client may move nothing although others wait.
    pub(crate) fn stall_time(&self) -> Duration {
        self.stall_time
    }

    /// A lease of nothing.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        Lease { budget: Arc::clone(self), bytes: 0 }
    }

    /// Whether others wait for the memory of a client that was waited for so long while it moved so many
    /// bytes.
    pub(crate) fn is_too_slow(&self, waited: Duration, bytes: u64) -> bool {
        let allowed =
            self.stall_time.saturating_add(Duration::from_millis(bytes.saturating_mul(1000) / RATE_MIN));
        waited >= allowed && self.is_short()
    }

    /// Whether somebody waits for memory.
    fn is_short(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Whether more than half is leased: then nobody keeps what it does not need now, so that at least the
    /// other half goes to whoever does.
    pub(crate) fn is_scarce(&self) -> bool {
        self.leased.load(Ordering::Relaxed) > self.kept_max()
    }

    /// What may be leased for longer than a batch.
    fn kept_max(&self) -> usize {
        self.bytes_max / 2
    }

    /// `state.leased` has changed.
    fn publish(&self, state: &State) {
        self.leased.store(state.leased, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in its critical sections can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Bytes leased.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Leases `bytes` in place of what was leased before, which must be nothing, and waits until it can have
    /// them.
    pub(crate) fn take(&mut self, bytes: usize) {
        debug_assert_eq!(self.bytes, 0, "who waits holds nothing");
        // More than there is would be waited for without end; the builder sees to it that no request needs so
        // much.
        let bytes = bytes.min(self.budget.bytes_max);
        let mut state = self.budget.lock();
        let ticket = state.tickets;
        state.tickets += 1;
        state.waiting.push_back(ticket);
        while state.waiting.front() != Some(&ticket) || state.leased + bytes > self.budget.bytes_max {
            state = self.budget.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.pop_front();
        state.leased += bytes;
        self.budget.publish(&state);
        let others_wait = !state.waiting.is_empty();
        drop(state);
        self.bytes = bytes;
        if others_wait {
            self.budget.changed.notify_all();
        }
    }

    /// Leases up to `bytes` all together, if they are there and nobody waits for any.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        self.try_grow_within(self.budget.bytes_max, bytes)
    }

    /// The same for what is to be kept for longer than a batch, so that less than half remains leased.
    pub(crate) fn try_grow_to_keep(&mut self, bytes: usize) -> bool {
        self.try_grow_within(self.budget.kept_max(), bytes)
    }

    fn try_grow_within(&mut self, limit: usize, bytes: usize) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        let more = bytes - self.bytes;
        let mut state = self.budget.lock();
        let fits = state.waiting.is_empty() && state.leased + more <= limit;
        if fits {
            state.leased += more;
            self.budget.publish(&state);
            self.bytes += more;
        }
        fits
    }

    /// Gives back what is above so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        if self.bytes <= bytes {
            return;
        }
        let mut state = self.budget.lock();
        state.leased -= self.bytes - bytes;
        self.bytes = bytes;
        self.budget.publish(&state);
        let wanted = !state.waiting.is_empty();
        drop(state);
        if wanted {
            self.budget.changed.notify_all();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn until(mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < PATIENCE);
            thread::yield_now();
        }
    }

    #[test]
    fn who_waits_for_much_is_not_overtaken_by_those_who_want_little() {
        let budget = Budget::new(100, PATIENCE);
        let mut first = budget.lease();
        first.take(60);
        let mut little = budget.lease();
        assert!(little.try_grow(10));
        let (done, is_done) = channel();
        let later_done = done.clone();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut much = budget.lease();
                much.take(90);
                done.send(much.bytes()).unwrap();
            });
            until(|| budget.is_short());
            assert!(!little.try_grow(20), "there is room, and somebody who was there before");
            assert!(little.try_grow(10), "what it has it keeps");
            scope.spawn(|| {
                let mut later = budget.lease();
                later.take(20);
                later_done.send(later.bytes()).unwrap();
            });
            until(|| budget.lock().waiting.len() == 2);
            drop(first);
            assert_eq!([(); 2].map(|()| is_done.recv_timeout(PATIENCE).unwrap()), [90, 20]);
        });
        assert!(!budget.is_short());
        assert_eq!(budget.lock().leased, 10);
        little.shrink_to(5);
        little.shrink_to(7);
        assert_eq!(budget.lock().leased, 5);
        drop(little);
        assert_eq!(budget.lock().leased, 0);
    }

    /// What comes free may be enough for several. Each is told by the one before it: nothing else is given
    /// back.
    #[test]
    fn all_who_find_room_in_what_comes_free_at_once_are_served() {
        // In which order they wake up is chance.
        for _ in 0..40 {
            let budget = Budget::new(100, PATIENCE);
            let mut first = budget.lease();
            first.take(100);
            let (done, is_done) = channel();
            thread::scope(|scope| {
                for _ in 0..3 {
                    let (budget, done) = (&budget, done.clone());
                    scope.spawn(move || {
                        let mut lease = budget.lease();
                        lease.take(30);
                        done.send(lease).unwrap();
                    });
                }
                until(|| budget.lock().waiting.len() == 3);
                drop(first);
                let leases: Vec<Lease> =
                    (0..3).map_while(|_| is_done.recv_timeout(Duration::from_secs(5)).ok()).collect();
                assert_eq!(leases.len(), 3);
            });
        }
    }

    #[test]
    fn what_is_kept_for_long_leaves_half_of_it_to_others() {
        let budget = Budget::new(100, PATIENCE);
        let (mut kept, mut more, mut others) = (budget.lease(), budget.lease(), budget.lease());
        assert!(kept.try_grow_to_keep(50) && !more.try_grow_to_keep(1));
        assert!(!budget.is_scarce() && others.try_grow(50) && budget.is_scarce());
        kept.shrink_to(20);
        assert!(!more.try_grow_to_keep(1), "the rest of half is leased otherwise");
        others.shrink_to(0);
        assert!(more.try_grow_to_keep(30));
    }

    #[test]
    fn all_who_wait_get_their_turn() {
        let budget = Budget::new(10, PATIENCE);
        thread::scope(|scope| {
            for i in 0..8usize {
                let budget = &budget;
                scope.spawn(move || {
                    for _ in 0..100 {
                        budget.lease().take(3 + i);
                    }
                });
            }
        });
        assert_eq!(budget.lock().leased, 0);
    }
}
