//! Whether a client is still there for what it has sent.
//!
//! A client that has gone may come back over another connection, send again what had no answer, and go on to write something newer. So
//! nothing of the old connection may be begun any more: neither what waits in a batch, nor what the socket still holds. The export asks
//! [`Presence::is_wanted`] whenever it is about to begin a change and nothing can come between, and the socket itself is looked at: who
//! receives may be at something else, and would hear of the end too late.
//!
//! A client that has taken its leave (`NBD_CMD_DISC`) may hang up at once and expects what it sent before to be done. It is, though only as
//! long as no connection to the same export has begun since the socket was last seen open: a later one may have written something newer.
//!
//! Over TCP the end of a connection is known when the client's FIN or RST has come, which a client that reconnects cannot hasten.

use crate::transport::Transport;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Connections to one export that have begun to send requests, ever.
pub(crate) type Entries = Arc<AtomicU64>;

/// One connection's client.
#[derive(Debug)]
pub(crate) struct Presence<'c> {
    transport: &'c Transport,
    entries: Entries,
    /// Entries counted at a moment at which the connection was open: the latest such moment that is known.
    seen_at: AtomicU64,
    took_leave: AtomicBool,
    is_gone: AtomicBool,
}

impl<'c> Presence<'c> {
    /// The client begins to send requests to an export.
    pub(crate) fn enter(transport: &'c Transport, entries: Entries) -> Self {
        let entered = entries.fetch_add(1, Ordering::SeqCst) + 1;
        let flags = (AtomicBool::new(false), AtomicBool::new(false));
        Self { transport, entries, seen_at: AtomicU64::new(entered), took_leave: flags.0, is_gone: flags.1 }
    }

    /// It has said that it sends no more.
    pub(crate) fn takes_leave(&self) {
        self.took_leave.store(true, Ordering::SeqCst);
    }

    /// Its stream has ended without a word.
    pub(crate) fn is_lost(&self) {
        // In a shutdown the server ends the stream, and the client may still be there.
        if !self.transport.has_ended_receiving() {
            self.is_gone.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a change that it has sent may begin now.
    pub(crate) fn is_wanted(&self) -> bool {
        if self.is_gone.load(Ordering::SeqCst) {
            return false;
        }
        // Counted before the socket is looked at: if it is open, nobody can have come back before this.
        let entries = self.entries.load(Ordering::SeqCst);
        if self.transport.is_open() {
            self.seen_at.fetch_max(entries, Ordering::SeqCst);
            return true;
        }
        self.took_leave.load(Ordering::SeqCst)
            && self.entries.load(Ordering::SeqCst) == self.seen_at.load(Ordering::SeqCst)
    }
}
