//! Waiting in line for something that is scarce: who comes first is served first, and tries again whenever
//! something was given back. Operations wait so for what others were admitted for, writes for free data
//! blocks.
//!
//! ```text
//!   nobody in line ──> try ──(there is enough)──────────────────────────────────────────> go on
//!   else, or short ──> join ──> wait to be first ──> try ──(enough)──> leave, go on        │
//!                                        ▲            └─(short)──> wait for a change ─┐
//!                                        └────────────────────────────────────────────┘
//! ```
//!
//! What is scarce is guarded by locks of its own, of which this type knows nothing.
//!
//! Invariants:
//! - Only the first in line tries, so what is given back while somebody waits is not taken by who comes
//!   later.
//! - A change that comes after the first in line began its try wakes it. It holds as long as whatever makes a
//!   try succeed happens under a lock that the try takes, and [`Line::changed`] is called after it. There is
//!   no I/O here.
//!
//! Hardly ever does anybody wait, and things are given back with every request, so who is in line is counted
//! and nobody is woken in vain. That misses none: either the change came first and the try saw it, or the
//! try's lock has carried the count over.

use crate::{AtomicUsize, Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// A line.
#[derive(Debug, Default)]
pub struct Line {
    inner: Mutex<Inner>,
    /// For the first in line.
    changed: Condvar,
    /// For all others.
    moved: Condvar,
    /// How many are in line. Changed only under the lock.
    standing: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    /// Who is in line, in order of arrival.
    tickets: VecDeque<u64>,
    next: u64,
    /// Changes told so far.
    changes: u64,
}

/// Somebody who may have to wait: not in line at first. Leaves the line on drop.
#[derive(Debug)]
pub struct Place<'a> {
    line: &'a Line,
    ticket: Option<u64>,
    /// The changes before the try under way.
    seen: u64,
}

impl Line {
    /// For an operation that begins.
    pub fn place(&self) -> Place<'_> {
        Place { line: self, ticket: None, seen: 0 }
    }

    /// Something was given back, or there is another reason to try again.
    pub fn changed(&self) {
        if self.standing.load(Ordering::Relaxed) > 0 {
            self.inner.lock().changes += 1;
            self.changed.notify_all();
        }
    }

    /// How many are in line.
    #[cfg(all(test, feature = "loom"))]
    pub fn standing(&self) -> usize {
        self.standing.load(Ordering::Relaxed)
    }
}

impl Place<'_> {
    /// Returns when it is the caller's turn to try: at once if nobody is in line.
    pub fn advance(&mut self) {
        if self.ticket.is_none() && self.line.standing.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.join();
        let mut inner = self.line.inner.lock();
        while inner.tickets.front() != self.ticket.as_ref() {
            inner = self.line.moved.wait(inner);
        }
        self.seen = inner.changes;
    }

    /// Whether it is the caller's turn to try, without waiting.
    pub fn is_first(&self) -> bool {
        match self.ticket {
            Some(_) => self.line.inner.lock().tickets.front() == self.ticket.as_ref(),
            None => self.line.standing.load(Ordering::Relaxed) == 0,
        }
    }

    /// Gets in line; `true` unless the caller stood there already.
    pub fn join(&mut self) -> bool {
        if self.ticket.is_some() {
            return false;
        }
        let mut inner = self.line.inner.lock();
        let ticket = inner.next;
        inner.next += 1;
        inner.tickets.push_back(ticket);
        self.ticket = Some(ticket);
        self.line.standing.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Waits until there was a change since the caller's try began. To be called by the first in line.
    pub fn wait(&mut self) {
        let mut inner = self.line.inner.lock();
        while inner.changes == self.seen {
            inner = self.line.changed.wait(inner);
        }
    }

    /// Changes told so far: for tests of who tells them.
    pub fn changes(&self) -> u64 {
        self.line.inner.lock().changes
    }

    /// Gets out of the line, served or not.
    pub fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut inner = self.line.inner.lock();
        inner.tickets.retain(|other| *other != ticket);
        self.line.standing.fetch_sub(1, Ordering::Relaxed);
        let others = !inner.tickets.is_empty();
        drop(inner);
        if others {
            self.line.moved.notify_all();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;
    use std::thread;

    /// Runs `wait` in a thread of its own, and `end` when that has had every chance to return too early. It
    /// must not have.
    fn returns_only_after(wait: impl FnOnce() + Send, end: impl FnOnce()) {
        let is_due = AtomicBool::new(false);
        let (begins, has_begun) = channel();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                begins.send(()).expect("somebody listens");
                wait();
                is_due.load(Ordering::SeqCst)
            });
            has_begun.recv().expect("it begins");
            (0..1000).for_each(|_| thread::yield_now());
            is_due.store(true, Ordering::SeqCst);
            end();
            assert!(waiter.join().expect("no panic"), "it did not wait");
        });
    }

    /// A try costs a look at what is scarce, and perhaps I/O: who finds nothing sleeps.
    #[test]
    fn the_first_in_line_sleeps_until_something_changes() {
        let line = Line::default();
        let mut first = line.place();
        first.join();
        // Told before the try began: no reason for another one.
        line.changed();
        first.advance();
        returns_only_after(|| first.wait(), || line.changed());
    }

    #[test]
    fn who_comes_while_somebody_stands_in_line_is_not_first_and_waits_for_its_turn() {
        let line = Line::default();
        let (mut first, mut second) = (line.place(), line.place());
        assert!(first.is_first() && second.is_first(), "nobody waits");
        first.join();
        assert!(first.is_first() && !second.is_first());
        returns_only_after(|| second.advance(), || first.leave());
    }

    /// Each of those behind comes forward in its turn; who has left already, and says so again, takes nobody
    /// with it.
    #[test]
    fn who_leaves_lets_the_next_one_come_forward_and_leaving_twice_is_leaving_once() {
        let line = Line::default();
        let mut places: Vec<Place<'_>> = (0..4).map(|_| line.place()).collect();
        places.iter_mut().for_each(|place| assert!(place.join() && !place.join()));
        let mut first = places.remove(0);
        let (served, is_served) = channel();
        thread::scope(|scope| {
            for (i, mut place) in places.into_iter().enumerate() {
                let served = served.clone();
                scope.spawn(move || {
                    place.advance();
                    served.send(i).expect("somebody listens");
                });
            }
            first.leave();
            first.leave();
            assert_eq!([(); 3].map(|()| is_served.recv().expect("three are served")), [0, 1, 2]);
        });
        assert!(line.place().is_first(), "nobody is left");
    }
}
