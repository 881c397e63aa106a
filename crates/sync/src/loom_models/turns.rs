//! Group commit and the leadership of checkpoints.

use super::{explore, finds};
use crate::{Arc, Ended, Mutex, Turn, Turns, thread};

/// A log and a device, as small as they get.
struct Log {
    turns: Turns,
    /// The last published operation.
    published: Mutex<u64>,
    /// The last one that the device holds.
    durable: Mutex<u64>,
    fails: bool,
    early: bool,
}

impl Log {
    fn new(fails: bool, early: bool) -> Arc<Self> {
        let (published, durable) = (Mutex::new(0), Mutex::new(0));
        Arc::new(Self { turns: Turns::new(0), published, durable, fails, early })
    }

    /// Publishes an operation and commits it.
    fn write(&self) -> Result<(), Ended> {
        let seq = {
            let mut published = self.published.lock();
            *published += 1;
            *published
        };
        if let Some(turn) = self.turns.reach(seq)? {
            let cut = *self.published.lock();
            if self.fails {
                return Err(Ended);
            }
            if self.early {
                turn.done(cut)?;
                *self.durable.lock() = cut;
            } else {
                *self.durable.lock() = cut;
                turn.done(cut)?;
            }
        }
        assert!(*self.durable.lock() >= seq, "acknowledged before it was durable");
        Ok(())
    }
}

/// Red with: `reach` compares with `begun`; `done` does not notify (deadlock), or leaves `taken` set.
fn three_writers(early: bool) {
    let log = Log::new(false, early);
    let others: Vec<_> = (0..2)
        .map(|_| {
            let log = Arc::clone(&log);
            thread::spawn(move || log.write())
        })
        .collect();
    assert_eq!(log.write(), Ok(()));
    others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Ok(())));
}

#[test]
fn nobody_is_told_before_the_operation_is_durable_and_everybody_is_told() {
    explore(|| three_writers(false));
}

#[test]
fn a_leader_that_tells_before_the_flush_is_found() {
    finds(|| three_writers(true));
}

/// Red with: the drop of a turn does not end them (deadlock: `taken` stays), or `end` does not notify.
#[test]
fn after_a_failure_everybody_gets_an_error_and_nothing_is_acknowledged() {
    explore(|| {
        let log = Log::new(true, false);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let log = Arc::clone(&log);
                thread::spawn(move || log.write())
            })
            .collect();
        assert_eq!(log.write(), Err(Ended));
        others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Err(Ended)));
        assert_eq!(log.turns.reached(), 0);
        assert!(log.turns.take().is_err());
    });
}

/// Something else fails while a commit runs: whoever is answered after that is told of it.
/// Red with: `done` does not look at `ended`.
#[test]
fn a_turn_that_was_ended_meanwhile_acknowledges_nothing() {
    explore(|| {
        let (log, ended) = (Log::new(false, false), Arc::new(Mutex::new(false)));
        let writer = {
            let (log, ended) = (Arc::clone(&log), Arc::clone(&ended));
            thread::spawn(move || {
                let before = *ended.lock();
                match log.turns.reach(1) {
                    Ok(Some(turn)) => {
                        assert!(!before, "a turn was given after the end");
                        let before = *ended.lock();
                        assert!(turn.done(1).is_err() || !before, "done although it was ended before");
                    }
                    Ok(None) => panic!("nobody else did it"),
                    Err(Ended) => {}
                }
            })
        };
        let waiter = {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                if let Ok(Some(turn)) = log.turns.reach(1) {
                    drop(turn)
                }
            })
        };
        log.turns.end();
        *ended.lock() = true;
        writer.join().unwrap();
        waiter.join().unwrap();
        assert!(log.turns.reach(2).is_err());
    });
}

/// A checkpoint covers what was published before it was asked for.
/// Red with: `next` wants `begun` instead of `begun + 1`.
#[test]
fn a_checkpoint_that_began_earlier_is_not_enough() {
    explore(|| {
        let work = Arc::new((Turns::new(0), Mutex::new(0u64), Mutex::new(0u64)));
        let client = |work: &(Turns, Mutex<u64>, Mutex<u64>), bit: u64| {
            let (turns, published, covered) = work;
            *published.lock() |= bit;
            if let Some(turn) = turns.next().unwrap() {
                let seen = *published.lock();
                *covered.lock() |= seen;
                let number = turn.number();
                turn.done(number).unwrap();
            }
            assert!(*covered.lock() & bit != 0, "the checkpoint began before the write");
        };
        let others: Vec<_> = [1, 2]
            .map(|bit| {
                let work = Arc::clone(&work);
                thread::spawn(move || client(&work, bit))
            })
            .into();
        client(&work, 4);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// Who waits for room finds it after some step of the turn that makes it, and takes the turn when there is
/// none. Red with: `step` of a turn, or `done`, does not count or does not notify (deadlock); the steps are
/// asked for after the look.
fn who_waits_for_room(asks_first: bool) {
    let shared = Arc::new((Turns::new(0), Mutex::new(0u32)));
    let makes = |shared: &(Turns, Mutex<u32>), turn: Turn<'_>| {
        for _ in 0..2 {
            *shared.1.lock() += 1;
            turn.step();
        }
        let number = turn.number();
        turn.done(number).unwrap();
    };
    let turn = shared.0.take().unwrap();
    let waiter = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (turns, room) = &*shared;
            loop {
                let asked = turns.steps();
                if *room.lock() >= 2 {
                    break;
                }
                let seen = if asks_first { asked } else { turns.steps() };
                let turn = turns.step(seen).unwrap();
                assert!(turn.is_none(), "there was room before the turn was free");
            }
        })
    };
    makes(&shared, turn);
    waiter.join().unwrap();
}

#[test]
fn who_waits_for_a_step_of_a_turn_misses_none() {
    explore(|| who_waits_for_room(true));
}

#[test]
fn asking_for_the_steps_after_the_look_is_found() {
    finds(|| who_waits_for_room(false));
}
