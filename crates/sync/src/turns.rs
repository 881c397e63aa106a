//! Turns: work that one thread does for all who wait for it. Commits and checkpoints each have one.
//!
//! ```text
//!   who needs position P:   reached >= P ──────────────> goes on
//!                           nobody has the turn ───────> takes it, does the work, says how far that reached
//!                           somebody has ──────────────> waits, then looks again
//! ```
//!
//! Invariants:
//! - One thread has the turn at a time.
//! - Nobody is told that a position is reached before a turn that reached it has ended well.
//! - A turn that does not end well, also by a panic, is the last one: whoever waits or comes later gets
//!   [`Ended`].
//! - Who needs no position, only that a turn gets further, misses no step of it that came after the look at
//!   [`Turns::steps`].
//!
//! What is done in a turn, and what a position means, is the caller's; there is no I/O here.

use crate::{Condvar, Mutex};

/// The turns of one kind of work.
#[derive(Debug)]
pub struct Turns {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug)]
struct Progress {
    /// Everything up to here is done.
    reached: u64,
    /// Turns taken so far.
    begun: u64,
    /// Steps made in all turns; the end of one is a step, too.
    steps: u64,
    taken: bool,
    ended: bool,
}

/// There are no more turns: one of them failed, or [`Turns::end`] was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

/// The turn. Dropped without [`Turn::done`] it has failed.
#[derive(Debug)]
#[must_use = "a turn that is dropped has failed"]
pub struct Turn<'a> {
    turns: &'a Turns,
    /// How many turns there have been, this one included.
    number: u64,
    is_done: bool,
}

impl Turns {
    /// Turns that go on from `reached`.
    pub fn new(reached: u64) -> Self {
        Self {
            progress: Mutex::new(Progress { reached, begun: 0, steps: 0, taken: false, ended: false }),
            changed: Condvar::default(),
        }
    }

    /// How far the work is done.
    pub fn reached(&self) -> u64 {
        self.progress.lock().reached
    }

    /// No more turns: whoever waits gets an error. A turn that is under way counts as failed.
    pub fn end(&self) {
        self.progress.lock().ended = true;
        self.changed.notify_all();
    }

    /// `None` once `position` is reached, the turn if it is the caller's to get there.
    pub fn reach(&self, position: u64) -> Result<Option<Turn<'_>>, Ended> {
        self.wait(|_| move |progress| progress.reached >= position)
    }

    /// `None` once a turn that began after the call has ended, the turn if it is the caller's. For work whose
    /// positions are the numbers of its turns.
    pub fn next(&self) -> Result<Option<Turn<'_>>, Ended> {
        self.wait(|now| {
            let wanted = now.begun + 1;
            move |progress| progress.reached >= wanted
        })
    }

    /// The turn, whatever is reached.
    pub fn take(&self) -> Result<Turn<'_>, Ended> {
        loop {
            if let Some(turn) = self.wait(|_| |_| false)? {
                return Ok(turn);
            }
        }
    }

    /// Steps made so far, for [`Self::step`]. To be asked before the caller looks at what a step changes.
    pub fn steps(&self) -> u64 {
        self.progress.lock().steps
    }

    /// `None` once there were more steps than the `seen` ones, the turn if there were not and nobody has it.
    pub fn step(&self, seen: u64) -> Result<Option<Turn<'_>>, Ended> {
        self.wait(|_| move |progress| progress.steps > seen)
    }

    /// `goal`: what the caller needs, as of the call.
    fn wait<G: Fn(&Progress) -> bool>(
        &self,
        goal: impl FnOnce(&Progress) -> G,
    ) -> Result<Option<Turn<'_>>, Ended> {
        let mut progress = self.progress.lock();
        let is_there = goal(&progress);
        loop {
            if progress.ended {
                return Err(Ended);
            }
            if is_there(&progress) {
                return Ok(None);
            }
            if !progress.taken {
                progress.taken = true;
                progress.begun += 1;
                return Ok(Some(Turn { turns: self, number: progress.begun, is_done: false }));
            }
            progress = self.changed.wait(progress);
        }
    }
}

impl Turn<'_> {
    /// Which turn this is: 1 for the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// It is a step further: wakes who waits for one.
    pub fn step(&self) {
        self.turns.progress.lock().steps += 1;
        self.turns.changed.notify_all();
    }

    /// Everything up to `reached` is done: wakes all who waited for it. An error if the turns were ended
    /// while this one was under way; then nobody is told that it got anywhere.
    pub fn done(mut self, reached: u64) -> Result<(), Ended> {
        let mut progress = self.turns.progress.lock();
        if progress.ended {
            return Err(Ended);
        }
        progress.reached = reached;
        progress.steps += 1;
        progress.taken = false;
        drop(progress);
        self.turns.changed.notify_all();
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.turns.end();
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use std::thread;

    /// A commit whose thread panicked left the others waiting for ever: nobody took the lead from it.
    #[test]
    fn a_panic_in_a_turn_wakes_who_waits_with_an_error() {
        let (turns, waiting) = (Turns::new(0), std::sync::Barrier::new(2));
        thread::scope(|scope| {
            let turn = turns.take().unwrap();
            let waiter = scope.spawn(|| {
                waiting.wait();
                turns.reach(5).map(|turn| turn.is_some())
            });
            let waiting = &waiting;
            let leader = scope.spawn(move || {
                let _turn = turn;
                waiting.wait();
                std::panic::resume_unwind(Box::new("as a bug would"));
            });
            assert!(leader.join().is_err());
            assert_eq!(waiter.join().unwrap(), Err(Ended));
        });
        assert!(turns.take().is_err());
        assert_eq!(turns.reached(), 0);
    }

    #[test]
    fn what_is_reached_needs_no_turn_and_more_does() {
        let turns = Turns::new(3);
        assert!(turns.reach(3).unwrap().is_none());
        let turn = turns.reach(4).unwrap().unwrap();
        turn.done(7).unwrap();
        assert!(turns.reach(7).unwrap().is_none());
    }

    #[test]
    fn a_turn_that_began_before_the_call_is_not_enough() {
        let turns = Turns::new(0);
        for number in 1..4 {
            let turn = turns.next().unwrap().expect("the one before ended before this call");
            assert_eq!(turn.number(), number);
            turn.done(number).unwrap();
        }
    }
}
