//! Locks on ranges of LBNs.

#![allow(clippy::single_range_in_vec_init, reason = "a batch of one range")]

use super::explore;
use crate::{Arc, Mutex, RangeLocks, thread};
use std::ops::Range;

/// Red with: `lock` does not add to `held`; the drop of a guard does not notify (deadlock); `is_free` looks
/// only at the first range.
#[test]
fn ranges_that_touch_exclude_each_other_and_everybody_gets_a_turn() {
    explore(|| {
        let shared = Arc::new((RangeLocks::default(), Mutex::new([false; 4])));
        let client = |shared: &(RangeLocks<usize>, Mutex<[bool; 4]>), lbns: [usize; 2]| {
            let (locks, busy) = shared;
            let ranges = lbns.map(|lbn| lbn..lbn + 1).into();
            let guard = locks.lock(ranges);
            for lbn in lbns {
                assert!(!std::mem::replace(&mut busy.lock()[lbn], true), "two holders of one LBN");
            }
            lbns.iter().for_each(|lbn| busy.lock()[*lbn] = false);
            drop(guard);
        };
        // In a circle: each shares one LBN with either of the others.
        let others: Vec<_> = [[1, 2], [0, 2]]
            .map(|lbns| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || client(&shared, lbns))
            })
            .into();
        client(&shared, [0, 1]);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// Red with: `lock` passes `0` instead of its place to `is_free` after a wait.
#[test]
fn a_small_range_does_not_overtake_a_large_one_that_waits_for_it() {
    explore(|| {
        let shared = Arc::new((RangeLocks::default(), Mutex::new(Vec::new())));
        let held = shared.0.lock(vec![5..6]);
        let spawn = |lbns: Range<u64>| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let guard = shared.0.lock([lbns.clone()].into());
                shared.1.lock().push(lbns);
                drop(guard);
            })
        };
        let large = spawn(0..100);
        while shared.0.waiting() == 0 {
            thread::yield_now();
        }
        let small = spawn(5..6);
        drop(held);
        large.join().unwrap();
        small.join().unwrap();
        assert_eq!(*shared.1.lock(), [0..100, 5..6]);
    });
}
