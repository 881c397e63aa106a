//! Blocks in flight: claims on digests, and on blocks being healed.

use super::{explore, finds};
use crate::{Arc, Claims, Mutex, thread};
use std::mem::ManuallyDrop;

/// What the state's lock guards, reduced to one content.
#[derive(Default)]
struct Stored {
    stored: bool,
    /// Writes under way.
    writing: u32,
    writes: u32,
    failures_left: u32,
}

struct Volume {
    claims: Claims<u8>,
    state: Mutex<Stored>,
}

impl Volume {
    fn new(failures_left: u32) -> Arc<Self> {
        let state = Mutex::new(Stored { failures_left, ..Stored::default() });
        Arc::new(Self { claims: Claims::default(), state })
    }

    /// Writes the content: `false` if the device refused. `claimed` is what the planted mistake leaves out.
    fn write(&self, claimed: bool) -> bool {
        loop {
            let mut held = self.claims.hold();
            {
                let mut state = self.state.lock();
                if state.stored {
                    return true;
                }
                if held.claim(7) || !claimed {
                    state.writing += 1;
                    assert_eq!(state.writing, 1, "two first writers of one content");
                } else {
                    drop(state);
                    self.claims.wait(&7);
                    continue;
                }
            }
            // Here the data goes to the device, without the lock.
            let mut state = self.state.lock();
            state.writing -= 1;
            state.writes += 1;
            if state.failures_left > 0 {
                state.failures_left -= 1;
                return false;
            }
            state.stored = true;
            drop(state);
            return true;
        }
    }
}

fn three_writers(failures: u32, claimed: bool) {
    let volume = Volume::new(failures);
    let others: Vec<_> = (0..2)
        .map(|_| {
            let volume = Arc::clone(&volume);
            thread::spawn(move || volume.write(claimed))
        })
        .collect();
    let mut written = u32::from(volume.write(claimed));
    written += others.into_iter().map(|other| u32::from(other.join().unwrap())).sum::<u32>();
    let state = volume.state.lock();
    assert_eq!(written, 3 - failures, "only the writers whose own write failed are told so");
    assert_eq!(state.writes, 1 + failures, "one write for each failure, and one that succeeds");
    assert!(state.stored && !volume.claims.contains(&7));
}

/// Red with: the drop of claims does not notify (deadlock), or notifies only if `waiters` was above 0 before
/// the lock was taken.
#[test]
fn one_thread_at_a_time_writes_a_content_first() {
    explore(|| three_writers(0, true));
}

/// Red with: the drop of claims keeps a key.
#[test]
fn a_duplicate_that_waits_becomes_the_writer_if_the_first_write_fails() {
    explore(|| three_writers(1, true));
    explore(|| three_writers(2, true));
}

#[test]
fn a_writer_without_a_claim_is_found() {
    finds(|| three_writers(0, false));
}

/// Two writers of two contents, each beginning with the other's second. `lets_go`: whoever has to wait first
/// releases what it holds, as the engine does.
fn two_contents(lets_go: bool) {
    let claims = Arc::new(Claims::default());
    let both = move |claims: &Claims<u8>, keys: [u8; 2]| {
        let mut todo = keys.to_vec();
        while !todo.is_empty() {
            // Not dropped when loom unwinds out of the deadlock that is to be found.
            let mut held = ManuallyDrop::new(claims.hold());
            let mut busy = None;
            todo.retain(|key| {
                let claimed = held.claim(*key);
                if !claimed {
                    busy = Some(*key);
                }
                !claimed
            });
            thread::yield_now();
            if !lets_go {
                busy.iter().for_each(|key| claims.wait(key));
            }
            drop(ManuallyDrop::into_inner(held));
            busy.iter().for_each(|key| claims.wait(key));
        }
    };
    let other = {
        let (claims, both) = (Arc::clone(&claims), both);
        thread::spawn(move || both(&claims, [2, 1]))
    };
    both(&claims, [1, 2]);
    other.join().unwrap();
}

#[test]
fn nobody_waits_in_a_circle() {
    explore(|| two_contents(true));
}

#[test]
fn waiting_with_claims_in_hand_is_found() {
    finds(|| two_contents(false));
}
