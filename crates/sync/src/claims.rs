//! Claims: what one thread is working on and others wait for. Digests whose first block is being written
//! (invariant I8), and damaged blocks that are being written again in place.
//!
//! Invariants:
//! - A key is claimed by one thread at a time.
//! - A claim ends with its holder, also by a panic, and whoever waits for it then wakes.
//!
//! A claim says nothing of how the work ended: who has waited looks again, and may claim the key itself. Who
//! waits holds no claim, and who holds one waits for no other, so nobody waits in a circle (rule R1). There
//! is no I/O here.

use crate::{Condvar, Mutex, MutexGuard};
use rustc_hash::FxHashSet;
use std::hash::Hash;

/// All claims of one kind.
#[derive(Debug)]
pub struct Claims<K> {
    claimed: Mutex<Claimed<K>>,
    released: Condvar,
}

#[derive(Debug)]
struct Claimed<K> {
    keys: FxHashSet<K>,
    /// Who waits for keys to be released.
    waiters: usize,
}

/// All claims as they are for as long as this is there: for a batch, instead of the lock for each key.
#[derive(Debug)]
pub struct View<'a, K>(MutexGuard<'a, Claimed<K>>);

/// The claims of one thread, released together on drop.
#[derive(Debug)]
pub struct Held<'a, K: Copy + Eq + Hash> {
    claims: &'a Claims<K>,
    keys: Vec<K>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        let claimed = Claimed { keys: FxHashSet::default(), waiters: 0 };
        Self { claimed: Mutex::new(claimed), released: Condvar::default() }
    }
}

impl<K: Copy + Eq + Hash> Claims<K> {
    /// Keeps everybody else from claiming and releasing until it is dropped.
    pub fn view(&self) -> View<'_, K> {
        View(self.claimed.lock())
    }

    /// Whether somebody claims `key` at this moment.
    pub fn contains(&self, key: &K) -> bool {
        self.view().contains(key)
    }

    /// Waits until nobody claims `key`. To be called without a claim of one's own.
    pub fn wait(&self, key: &K) {
        let mut claimed = self.claimed.lock();
        while claimed.keys.contains(key) {
            claimed.waiters += 1;
            claimed = self.released.wait(claimed);
            claimed.waiters -= 1;
        }
    }

    /// Nothing yet, for [`Held::claim`].
    pub fn hold(&self) -> Held<'_, K> {
        Held { claims: self, keys: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash> View<'_, K> {
    /// Whether somebody claims `key`.
    pub fn contains(&self, key: &K) -> bool {
        self.0.keys.contains(key)
    }
}

impl<K: Copy + Eq + Hash> Held<'_, K> {
    /// Claims `key` too, unless it is claimed already.
    pub fn claim(&mut self, key: K) -> bool {
        let mut view = self.claims.view();
        self.claim_in(&mut view, key)
    }

    /// The same in a view of the claims that this thread's are among.
    pub fn claim_in(&mut self, view: &mut View<'_, K>, key: K) -> bool {
        let is_new = view.0.keys.insert(key);
        if is_new {
            self.keys.push(key);
        }
        is_new
    }
}

impl<K: Copy + Eq + Hash> Drop for Held<'_, K> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut claimed = self.claims.claimed.lock();
        for key in &self.keys {
            claimed.keys.remove(key);
        }
        let waiters = claimed.waiters;
        drop(claimed);
        if waiters > 0 {
            self.claims.released.notify_all();
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_panic_releases_what_the_thread_claimed() {
        let claims = Claims::default();
        thread::scope(|scope| {
            let mut held = claims.hold();
            assert!(held.claim(1) && held.claim(2) && !claims.hold().claim(1));
            let waiter = scope.spawn(|| claims.wait(&2));
            let holder = scope.spawn(move || {
                let _held = held;
                std::panic::resume_unwind(Box::new("as a bug would"));
            });
            assert!(holder.join().is_err());
            waiter.join().unwrap();
        });
        assert!(!claims.contains(&1));
    }
}
