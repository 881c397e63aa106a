//! What a connection's bytes travel over: a socket in the clear, or, once the client has asked for it, TLS
//! over that socket.
//!
//! The rest of the server sees a stream of bytes with the calls of a socket and does not know which of the
//! two it is. Once encrypted, a transport stays so.

use crate::budget::Budget;
use crate::socket::{Pace, Socket, Wait};
use crate::tls::{Session, TlsConfig};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// One client's connection. Both directions may be used at once, each by one thread at a time.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: Socket,
    tls: OnceLock<Session>,
}

impl Transport {
    /// Wraps a connected stream; `tcp` sets the options that only TCP has.
    pub(crate) fn new(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(fd, tcp)?, tls: OnceLock::new() })
    }

    /// Becomes encrypted: does the server's part of a TLS handshake, by `deadline`. Nobody else may be using
    /// the transport.
    pub(crate) fn start_tls(&self, config: &TlsConfig, deadline: Instant) -> io::Result<()> {
        let session = Session::negotiate(config, &self.socket, deadline)?;
        // It was not encrypted, or the handshake would not have come to this.
        let _ = self.tls.set(session);
        Ok(())
    }

    /// Whether it has become encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.get().is_some()
    }

    /// A name in the certificate that the client has shown, if it has shown one.
    pub(crate) fn certificate(&self) -> Option<String> {
        self.tls.get()?.certificate()
    }

    fn recv_with(&self, buf: &mut [u8], wait: Wait) -> io::Result<Option<usize>> {
        match self.tls.get() {
            None => self.socket.recv(buf, wait),
            Some(session) => session.recv(&self.socket, buf, wait),
        }
    }

    fn send_with(&self, slices: &mut [IoSlice<'_>], wait: Wait, pace: &mut Pace) -> io::Result<()> {
        match self.tls.get() {
            None => self.socket.send_all(slices, wait, pace),
            Some(session) => session.send_all(&self.socket, slices, wait, pace),
        }
    }

    /// Receives what is there, up to `buf`'s length. 0 is the end of the stream; `None` if nothing came for
    /// as long as [`set_patience`](Self::set_patience) says.
    pub(crate) fn recv_patiently(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.recv_with(buf, Wait::Patience)
    }

    /// How long [`recv_patiently`](Self::recv_patiently) waits, `None` for ever.
    pub(crate) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.socket.set_patience(patience)
    }

    /// As [`recv_patiently`](Self::recv_patiently), but `None` instead of waiting.
    pub(crate) fn try_recv(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.recv_with(buf, Wait::Never)
    }

    /// Fills `buf`, or fails: at the end of the stream, or when `deadline` has passed.
    pub(crate) fn recv_exact_until(&self, mut buf: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !buf.is_empty() {
            match self.recv_with(buf, Wait::Until(deadline))? {
                Some(received @ 1..) => buf = &mut buf[received..],
                Some(0) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, or fails when `deadline` has passed.
    pub(crate) fn send_all_until(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.send_with(&mut [IoSlice::new(bytes)], Wait::Until(deadline), &mut Pace::default())
    }

    /// Ends what deadlines of the handshake have left behind.
    pub(crate) fn clear_timeouts(&self) -> io::Result<()> {
        self.socket.clear_timeouts()
    }

    /// See [`Socket::send_within`].
    pub(crate) fn send_within(&self, budget: &Arc<Budget>) -> io::Result<()> {
        self.socket.send_within(budget)
    }

    /// Sends all bytes of all slices, which belong to a batch that the peer has been taking at this pace.
    pub(crate) fn send_all(&self, slices: &mut [IoSlice<'_>], pace: &mut Pace) -> io::Result<()> {
        self.send_with(slices, Wait::Forever, pace)
    }

    /// Whether something waits to be received. Encrypted, what has been taken from the socket and not been
    /// decrypted is left out.
    pub(crate) fn has_input(&self) -> bool {
        self.socket.has_input()
    }

    /// Whether the peer has not ended the connection; see [`Socket::is_open`].
    pub(crate) fn is_open(&self) -> bool {
        self.socket.is_open()
    }

    /// Whether the end of the stream may be our own doing.
    pub(crate) fn has_ended_receiving(&self) -> bool {
        self.socket.has_ended_receiving()
    }

    /// No more is received than what has arrived by now. Replies can still be sent.
    pub(crate) fn end_receiving(&self) {
        self.socket.end_receiving();
    }

    /// Ends both directions: every call that waits on the transport returns.
    pub(crate) fn end(&self) {
        self.socket.end();
    }

    /// Tells an encrypted peer that this is the end and no accident, if it can be told without waiting.
    pub(crate) fn say_goodbye(&self) {
        if let Some(session) = self.tls.get() {
            session.say_goodbye(&self.socket);
        }
    }
}

/// A connection has failed. Clients go as they like; one that is given up is worth a line.
pub(crate) fn tell_lost(error: &io::Error) {
    match error.kind() {
        io::ErrorKind::TimedOut => tracing::warn!("connection ended: {error}"),
        _ => tracing::debug!(%error, "connection lost"),
    }
}
