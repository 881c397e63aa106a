//! Who receives: the threads of a connection pass the right to, and what it takes (the receiver), from one to
//! another.
//!
//! A thread that has received a batch puts the receiver back and works. Then either another thread takes it,
//! which is woken or started for that; or, if the batch is likely to be done before another thread could have
//! begun, nobody is woken and the thread comes back for it: it is spoken for. Such a batch can turn out slow
//! all the same, so one of the waiting threads watches, in its sleep: it looks at every [`TICK`], and takes
//! the receiver if the same batch has been running since the last one. With nothing going on it stops
//! looking, and is called again with the next batch: so what is quick and frequent costs no switch between
//! threads, and silence costs nothing at all.
//!
//! A client that has become idle gets its threads taken back: those that have waited for the idle time leave,
//! except for the first thread, because that is the one that waits for the others.
//!
//! Liveness: a thread leaves only while another, counted, has the receiver, will be back for it, or is handed
//! it. A watcher that was called is not forgotten: whoever waits looks for the call before anything else, and
//! who takes the receiver instead takes back the call.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a thread that watches looks. Short batches take a tenth of it, a disk's flush about as long.
const TICK: Duration = Duration::from_millis(2);

/// The receiver `R` of a connection, and the threads that want it.
#[derive(Debug)]
pub(crate) struct Baton<R> {
    state: Mutex<State<R>>,
    /// The receiver was put back, a watcher is called, or there will be no receiver any more.
    handed_over: Condvar,
    threads_max: usize,
    idle_time: Duration,
}

#[derive(Debug)]
struct State<R> {
    /// `None` while a thread receives.
    receiver: Option<R>,
    /// The thread that put the receiver back will be back for it soon.
    spoken_for: bool,
    watch: Watch,
    /// Batches received so far.
    batches: u64,
    /// Threads that there are.
    threads: usize,
    /// Those that wait.
    waiting: usize,
    /// The first thread is one of them.
    first_waits: bool,
    over: bool,
}

/// Whether one of the waiting threads looks now and then if a batch takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Nobody,
    /// One has been woken, or is being started, to do so.
    Called,
    Kept,
}

/// A thread's part in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The thread that the connection began with.
    First,
    /// One started because another was needed.
    Additional,
}

/// What becomes of a receiver that is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another thread is to receive.
    Another,
    /// This thread, which will be back soon.
    Same,
    /// There is nothing more to receive.
    Nobody,
}

impl<R> Baton<R> {
    /// With the first thread, which has not taken the receiver yet.
    pub(crate) fn new(receiver: R, threads_max: usize, idle_time: Duration) -> Self {
        let state = State {
            receiver: Some(receiver),
            spoken_for: false,
            watch: Watch::Nobody,
            batches: 0,
            threads: 1,
            waiting: 0,
            first_waits: false,
            over: false,
        };
        Self { state: Mutex::new(state), handed_over: Condvar::new(), threads_max, idle_time }
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // Nothing in its critical sections can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn to receive; `None` when there is nothing more to receive, or this thread is one too
    /// many and no longer counted. A thread that is `back` from work takes a receiver that another has spoken
    /// for: it is awake, after all.
    pub(crate) fn take(&self, role: Role, back: bool) -> Option<R> {
        let mut state = self.lock();
        if back && !state.over && state.receiver.is_some() {
            return state.take();
        }
        loop {
            if state.over {
                return None;
            }
            if !state.spoken_for && state.receiver.is_some() {
                if state.watch == Watch::Called {
                    state.watch = Watch::Nobody;
                }
                return state.take();
            }
            if state.watch == Watch::Called {
                let (watched, receiver) = self.watch(state, role);
                if receiver.is_some() {
                    return receiver;
                }
                state = watched;
                continue;
            }
            let timeout = (role == Role::Additional).then_some(self.idle_time);
            let (woken, timed_out) = self.wait(state, role, timeout);
            state = woken;
            let is_wanted = state.over || state.watch == Watch::Called;
            let is_free = state.receiver.is_some() && !state.spoken_for;
            if timed_out && !is_wanted && !is_free && state.threads > 1 {
                state.threads -= 1;
                return None;
            }
        }
    }

    /// Looks at every tick whether the same batch has been running since the last, and takes the receiver if
    /// so. Without it, nothing has been going on.
    fn watch<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<R>>,
        role: Role,
    ) -> (MutexGuard<'a, State<R>>, Option<R>) {
        state.watch = Watch::Kept;
        let mut seen = None;
        let receiver = loop {
            let nothing_new = seen == Some(state.batches);
            if state.over {
                break None;
            }
            if state.receiver.is_some() && (nothing_new || !state.spoken_for) {
                break state.take();
            }
            if nothing_new {
                break None;
            }
            let batches = state.batches;
            let (woken, timed_out) = self.wait(state, role, Some(TICK));
            state = woken;
            seen = timed_out.then_some(batches);
        };
        state.watch = Watch::Nobody;
        (state, receiver)
    }

    /// Sleeps until woken, or for `timeout`: then `true`.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<R>>,
        role: Role,
        timeout: Option<Duration>,
    ) -> (MutexGuard<'a, State<R>>, bool) {
        state.waiting += 1;
        state.first_waits |= role == Role::First;
        let (mut state, timed_out) = match timeout {
            None => (self.handed_over.wait(state).unwrap_or_else(PoisonError::into_inner), false),
            Some(timeout) => {
                let woken = self.handed_over.wait_timeout(state, timeout);
                let (state, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
                (state, timeout.timed_out())
            }
        };
        state.waiting -= 1;
        state.first_waits &= role != Role::First;
        (state, timed_out)
    }

    /// Puts the receiver back with a batch in hand. Returns whether a thread is to be started, to receive or
    /// to watch, which then counts as one that there is.
    pub(crate) fn put_back(&self, receiver: R, next: Next) -> bool {
        let mut state = self.lock();
        state.over |= next == Next::Nobody;
        state.receiver = Some(receiver);
        state.spoken_for = next == Next::Same;
        state.batches += 1;
        let nobody_waits = state.waiting == 0;
        // One that was called and is still on its way counts as waiting, or has not begun.
        let calls = next == Next::Another || (next == Next::Same && state.watch == Watch::Nobody);
        let adds = calls && nobody_waits && !state.over && state.threads < self.threads_max;
        state.threads += usize::from(adds);
        if next == Next::Same && calls && (adds || !nobody_waits) {
            state.watch = Watch::Called;
        }
        let over = state.over;
        drop(state);
        if over {
            self.handed_over.notify_all();
        } else if calls && !nobody_waits {
            self.handed_over.notify_one();
        }
        adds
    }

    /// Puts the receiver back after nothing came. Returns whether this thread is to leave, no longer counted:
    /// the first thread has been woken to receive instead. Otherwise the caller goes on to take the receiver
    /// again.
    pub(crate) fn rest(&self, receiver: R, role: Role) -> bool {
        let mut state = self.lock();
        state.receiver = Some(receiver);
        state.spoken_for = false;
        let leaves = role == Role::Additional && state.first_waits;
        if leaves {
            state.threads -= 1;
            // All, because which thread is woken cannot be chosen.
            self.handed_over.notify_all();
        }
        leaves
    }

    /// A thread that was to be started could not be.
    pub(crate) fn not_started(&self) {
        let mut state = self.lock();
        state.threads -= 1;
        if state.watch == Watch::Called {
            state.watch = Watch::Nobody;
        }
    }

    /// There is nothing more to receive.
    pub(crate) fn end(&self) {
        self.lock().over = true;
        self.handed_over.notify_all();
    }
}

impl<R> State<R> {
    fn take(&mut self) -> Option<R> {
        self.spoken_for = false;
        self.receiver.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    /// The first thread has put the receiver back, with a batch that it expects to be done with soon.
    fn spoken_for() -> Baton<u32> {
        let baton = Baton::new(7, 8, LONG);
        assert_eq!(baton.take(Role::First, false), Some(7));
        assert!(baton.put_back(7, Next::Same), "nobody is there to watch");
        baton
    }

    #[test]
    fn a_batch_that_takes_long_after_all_is_left_behind() {
        assert_eq!(spoken_for().take(Role::Additional, false), Some(7));
    }

    #[test]
    fn who_is_back_goes_on_and_needs_no_other_thread() {
        let baton = spoken_for();
        for _ in 0..3 {
            assert_eq!(baton.take(Role::First, true), Some(7));
            assert!(!baton.put_back(7, Next::Same), "one has been called to watch");
        }
        assert_eq!(baton.take(Role::First, true), Some(7));
        assert!(baton.put_back(7, Next::Another), "nobody is there to receive");
    }

    #[test]
    fn with_nothing_going_on_nobody_looks_until_called_again() {
        let baton = spoken_for();
        assert_eq!(baton.take(Role::First, true), Some(7));
        thread::scope(|scope| {
            let other = scope.spawn(|| baton.take(Role::Additional, false));
            // The first thread receives, and nothing comes.
            let sleeps = |state: &State<u32>| state.waiting == 1 && state.watch == Watch::Nobody;
            let deadline = Instant::now() + LONG;
            while !sleeps(&baton.lock()) {
                assert!(Instant::now() < deadline, "{baton:?}");
                thread::yield_now();
            }
            assert!(!baton.put_back(7, Next::Same), "the one that sleeps is enough");
            assert_eq!(other.join().unwrap(), Some(7));
        });
    }

    #[test]
    fn a_thread_too_many_leaves_and_the_last_one_does_not() {
        let baton = Baton::new(7, 8, Duration::from_millis(1));
        assert_eq!(baton.take(Role::First, false), Some(7));
        assert!(baton.put_back(7, Next::Another));
        assert_eq!(baton.take(Role::First, true), Some(7));
        assert_eq!(baton.take(Role::Additional, false), None);
        let state = baton.lock();
        assert_eq!((state.threads, state.over), (1, false));
    }
}
