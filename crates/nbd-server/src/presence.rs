//! Whether a client is still there for what it has sent.
//!
//! A client that has gone may come back over another connection, send again what had no answer, and go on to
//! write something newer. So nothing of the old connection may be begun any more: neither what waits in a
//! batch, nor what the socket still holds. The export asks [`Presence::is_wanted`] whenever it is about to
//! begin a change and nothing can come between, and the socket itself is looked at: who receives may be at
//! something else, and would hear of the end too late.
//!
//! A client that has taken its leave (`NBD_CMD_DISC`) may hang up at once and expects what it sent before to
//! be done. It is, though only as long as no connection to the same export has begun since the socket was
//! last seen open: a later one may have written something newer. The farewell may be among what has not been
//! received yet when the socket is seen closed; then it is waited for, a moment. A connection counts before
//! its client is told that it has the export, so that one that knows of it is not taken by surprise.
//!
//! Over TCP the end of a connection is known when the client's FIN or RST has come, which a client that
//! reconnects cannot hasten.

use crate::transport::Transport;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long what a client that has hung up had sent may take to be received: it is in the socket's buffer
/// already. Blocks are locked meanwhile.
const RECEIPT_TIME: Duration = Duration::from_millis(500);

/// Connections to one export that may have begun to send requests, ever.
pub(crate) type Entries = Arc<AtomicU64>;

/// One of them.
#[derive(Debug)]
pub(crate) struct Entry {
    entries: Entries,
    number: u64,
}

impl Entry {
    /// The next one.
    pub(crate) fn new(entries: &Entries) -> Self {
        let number = entries.fetch_add(1, Ordering::SeqCst) + 1;
        Self { entries: Arc::clone(entries), number }
    }
}

/// One connection's client.
#[derive(Debug)]
pub(crate) struct Presence<'c> {
    transport: &'c Transport,
    entries: Entries,
    /// Entries counted at a moment at which the connection was open: the latest such moment that is known.
    seen_at: AtomicU64,
    /// How the stream has ended, if it has.
    end: Mutex<Option<Farewell>>,
    ended: Condvar,
}

/// The last that was heard of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    /// It has said that it sends no more.
    Said,
    /// The stream has ended without a word.
    Missing,
    /// Nobody listens any more: what it sent last was no request, or the server is shutting down. It may
    /// still be there.
    Unheard,
}

impl<'c> Presence<'c> {
    /// The client begins to send requests to an export.
    pub(crate) fn new(transport: &'c Transport, Entry { entries, number }: Entry) -> Self {
        let (end, ended) = (Mutex::default(), Condvar::default());
        Self { transport, entries, seen_at: AtomicU64::new(number), end, ended }
    }

    /// It has said that it sends no more.
    pub(crate) fn takes_leave(&self) {
        self.ends(Farewell::Said);
    }

    /// Its stream has ended without a word.
    pub(crate) fn is_lost(&self) {
        // In a shutdown the server ends the stream, and the client may still be there.
        match self.transport.has_ended_receiving() {
            true => self.is_unheard(),
            false => self.ends(Farewell::Missing),
        }
    }

    /// Nothing more is received of it, so no farewell either.
    pub(crate) fn is_unheard(&self) {
        self.ends(Farewell::Unheard);
    }

    /// The first that is heard counts: what has once been refused stays so.
    fn ends(&self, farewell: Farewell) {
        self.end().get_or_insert(farewell);
        self.ended.notify_all();
    }

    fn end(&self) -> MutexGuard<'_, Option<Farewell>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a change that it has sent may begin now.
    pub(crate) fn is_wanted(&self) -> bool {
        if *self.end() == Some(Farewell::Missing) {
            return false;
        }
        // Counted before the socket is looked at: if it is open, nobody can have come back before this.
        let entries = self.entries.load(Ordering::SeqCst);
        if self.transport.is_open() {
            self.seen_at.fetch_max(entries, Ordering::SeqCst);
            return true;
        }
        let received = self.ended.wait_timeout_while(self.end(), RECEIPT_TIME, |end| end.is_none());
        let (mut end, _) = received.unwrap_or_else(PoisonError::into_inner);
        *end.get_or_insert(Farewell::Missing) == Farewell::Said
            && self.entries.load(Ordering::SeqCst) == self.seen_at.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    /// A client that sent nonsense and hung up had its blocks locked for as long as a farewell was waited
    /// for, which nobody would have heard.
    #[test]
    fn no_farewell_is_waited_for_where_nobody_listens() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let transport = Transport::new(ours.into(), false).unwrap();
        let presence = Presence::new(&transport, Entry::new(&Entries::default()));
        presence.is_unheard();
        assert!(presence.is_wanted(), "it is there still");
        drop(theirs);
        let begin = Instant::now();
        assert!(!presence.is_wanted());
        assert!(begin.elapsed() < RECEIPT_TIME / 2, "{:?}", begin.elapsed());
    }
}
