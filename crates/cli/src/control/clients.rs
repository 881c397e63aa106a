//! Those who have connected to a control socket: how many there may be, and who goes first when there are too
//! many.
//!
//! ```text
//!   accepted ── silent ──> asks ── is answered ──> leaves
//!                 └── hung up on: by the end of the server, or as the oldest when there is no room
//! ```
//!
//! Invariants: one that says nothing holds up neither others nor the end of the server; one that has asked is
//! answered.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Clients at once, each with a thread: more than people and scripts ask at the same time.
pub(super) const CLIENTS_MAX: usize = 32;

/// The clients of one server.
#[derive(Debug, Default)]
pub(super) struct Clients {
    state: Mutex<State>,
    /// One has left, or the server ends.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    /// Those that have not asked for anything yet, in the order in which they came.
    silent: BTreeMap<u64, Arc<UnixStream>>,
    /// All of them, those that are being answered included.
    all: usize,
    over: bool,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Client<'c> {
    clients: &'c Clients,
    ticket: u64,
    pub(super) stream: Arc<UnixStream>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in its critical sections can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in, as soon as there is room; `None` if the server ends.
    pub(super) fn enter(&self, stream: UnixStream) -> Option<Client<'_>> {
        let mut state = self.lock();
        if state.all >= CLIENTS_MAX
            && let Some((_, oldest)) = state.silent.pop_first()
        {
            hang_up(&oldest);
        }
        let is_full = |state: &mut State| state.all >= CLIENTS_MAX && !state.over;
        let mut state = self.changed.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return None;
        }
        let (ticket, stream) = (state.tickets, Arc::new(stream));
        state.tickets += 1;
        state.all += 1;
        state.silent.insert(ticket, Arc::clone(&stream));
        Some(Client { clients: self, ticket, stream })
    }

    /// Nobody is let in any more, and who has not asked yet is hung up on.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.silent.values().for_each(|stream| hang_up(stream));
        drop(state);
        self.changed.notify_all();
    }

    /// Whether the server ends.
    pub(super) fn are_over(&self) -> bool {
        self.lock().over
    }
}

impl Client<'_> {
    /// It has asked for something: from now on it is not hung up on.
    pub(super) fn has_asked(&self) {
        self.clients.lock().silent.remove(&self.ticket);
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let mut state = self.clients.lock();
        state.silent.remove(&self.ticket);
        state.all -= 1;
        drop(state);
        self.clients.changed.notify_all();
    }
}

/// Wakes the thread that waits for it. It fails only if the client has gone.
fn hang_up(stream: &UnixStream) {
    let _ = stream.shutdown(Shutdown::Both);
}
