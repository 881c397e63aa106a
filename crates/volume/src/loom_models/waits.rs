//! The other places in which a thread waits: admission, the maintenance threads, flushes of one device.

use super::{explore, finds};
use crate::barrier::Barrier;
use crate::error::VolumeError;
use crate::sync::{Arc, Mutex, thread};
use crate::turnstile::Turnstile;
use crate::wakeup::{Signal, Wakeup};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// Three operations that each need all of what two can have. `under_the_lock`: what was taken is back before anyone is told.
fn three_admissions(under_the_lock: bool) {
    let shared = Arc::new((Turnstile::default(), Mutex::new(2u32)));
    let client = move |shared: &(Turnstile, Mutex<u32>)| {
        let (turnstile, free) = shared;
        turnstile.pass(free, |free| (*free == 2).then(|| *free = 0));
        if under_the_lock {
            *free.lock() += 1;
            *free.lock() += 1;
            turnstile.given_back();
        } else {
            turnstile.given_back();
            *free.lock() += 2;
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

/// Red with: `given_back` does not notify (deadlock); `pass` gives up the lock before it waits.
#[test]
fn who_waits_for_what_others_were_admitted_for_gets_it() {
    explore(|| three_admissions(true));
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
                    1 => Err(VolumeError::Closed),
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
