//! The other places in which a thread waits: in line for what is scarce, the maintenance threads, flushes of
//! one device.

use super::{explore, finds};
use crate::{Arc, Barrier, Line, Mutex, Signal, Wakeup, thread};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// Three operations that each need all of what two can have. `under_the_lock`: what was taken is back before
/// anyone is told.
fn three_admissions(under_the_lock: bool) {
    let shared = Arc::new((Line::default(), Mutex::new(2u32)));
    let client = move |shared: &(Line, Mutex<u32>)| {
        let (line, free) = shared;
        let mut place = line.place();
        loop {
            place.advance();
            if std::mem::take(&mut *free.lock()) == 2 {
                break;
            }
            if !place.join() {
                place.wait();
            }
        }
        place.leave();
        if under_the_lock {
            *free.lock() = 2;
            line.changed();
        } else {
            line.changed();
            *free.lock() = 2;
        }
    };
    let others: Vec<_> = (0..2)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || client(&shared))
        })
        .collect();
    client(&shared);
    others.into_iter().for_each(|other| other.join().unwrap());
    assert_eq!(*shared.1.lock(), 2);
}

/// Red with: `changed` or `leave` does not notify (deadlock); `advance` does not note the changes; `join`
/// does not count.
#[test]
fn who_waits_for_what_others_were_admitted_for_gets_it() {
    explore(|| three_admissions(true));
}

/// Two writers and a store with one block to spare: each needs a block before it frees the one that it
/// replaces. `in_line`: who is short is the only one to take what comes free.
fn two_overwrites_of_a_full_store(in_line: bool) {
    /// Free blocks, and blocks reserved by writes.
    struct Store {
        free: u32,
        reserved: u32,
    }
    let shared = Arc::new((Line::default(), Mutex::new(Store { free: 1, reserved: 0 })));
    let client = move |shared: &(Line, Mutex<Store>), mut was_short: bool| {
        let (line, store) = shared;
        for _ in 0..2 {
            let (mut place, mut promised) = (line.place(), false);
            loop {
                let taken = {
                    let mut store = store.lock();
                    let is_turn = place.is_first() || !in_line;
                    let may = !std::mem::take(&mut was_short) && store.free > 0 && is_turn;
                    assert!(may || !promised, "taken by somebody who was not first in line");
                    store.free -= u32::from(may);
                    store.reserved += u32::from(may);
                    may
                };
                if taken {
                    place.leave();
                    break;
                }
                place.join();
                place.advance();
                let (free, reserved) = {
                    let store = store.lock();
                    (store.free, store.reserved)
                };
                assert!(free + reserved > 0, "refused although nothing is lost");
                promised = free > 0;
                if !promised {
                    place.wait();
                }
            }
            {
                let mut store = store.lock();
                (store.free, store.reserved) = (store.free + 1, store.reserved - 1);
            }
            line.changed();
        }
    };
    let other = {
        let shared = Arc::clone(&shared);
        // It found nothing a moment ago.
        thread::spawn(move || client(&shared, true))
    };
    client(&shared, false);
    other.join().unwrap();
    let store = shared.1.lock();
    assert_eq!((store.free, store.reserved), (1, 0));
    assert_eq!(shared.0.standing(), 0);
}

/// Red with: `changed` or `leave` does not notify, `wait` does not look whether there was a change already
/// (deadlock).
#[test]
fn who_needs_a_block_to_free_one_waits_for_others_and_nobody_is_overtaken_or_refused() {
    explore(|| two_overwrites_of_a_full_store(true));
}

#[test]
fn taking_out_of_turn_is_found() {
    finds(|| two_overwrites_of_a_full_store(false));
}

#[test]
fn giving_back_after_having_told_is_found() {
    finds(|| three_admissions(false));
}

/// Red with: `raise` does not notify (deadlock), `wait` takes both signals.
#[test]
fn a_signal_is_taken_by_the_thread_that_it_is_for_and_a_stop_by_both() {
    explore(|| {
        let wakeup = Arc::new(Wakeup::default());
        let workers: Vec<_> = [Signal::Commit, Signal::Work]
            .map(|signal| {
                let wakeup = Arc::clone(&wakeup);
                thread::spawn(move || {
                    assert!(wakeup.wait(signal), "stopped before the signal");
                    wakeup.raise(signal);
                    // Its own signal or the stop, whichever comes first.
                    while wakeup.wait(signal) {}
                })
            })
            .into();
        wakeup.raise(Signal::Work);
        wakeup.raise(Signal::Commit);
        // Both are at work once their signals are gone.
        while wakeup.is_raised(Signal::Work) || wakeup.is_raised(Signal::Commit) {
            thread::yield_now();
        }
        wakeup.stop();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert!(wakeup.is_stopping());
    });
}

/// Red with: `run` lets go of the lock before it flushes; it calls `failed` after it has let go of the lock.
#[test]
fn flushes_of_one_device_follow_each_other_and_none_follows_a_failure() {
    explore(|| {
        let shared =
            Arc::new((Barrier::default(), AtomicBool::new(false), AtomicU32::new(0), AtomicBool::new(false)));
        let client = |shared: &(Barrier, AtomicBool, AtomicU32, AtomicBool)| {
            let (barrier, busy, tried, ended) = shared;
            let flush = || {
                assert!(!busy.swap(true, SeqCst), "two flushes side by side");
                thread::yield_now();
                busy.store(false, SeqCst);
                match tried.fetch_add(1, SeqCst) {
                    0 => Ok(()),
                    1 => Err("no answer"),
                    _ => panic!("tried again after a failure"),
                }
            };
            let result = barrier.run(flush, || ended.store(true, SeqCst));
            assert!(result.is_ok() || ended.load(SeqCst), "a failure is known and commits go on");
            u32::from(result.is_ok())
        };
        let others: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || client(&shared))
            })
            .collect();
        let mut succeeded = client(&shared);
        succeeded += others.into_iter().map(|other| other.join().unwrap()).sum::<u32>();
        assert_eq!((succeeded, shared.2.load(SeqCst)), (1, 2));
    });
}
