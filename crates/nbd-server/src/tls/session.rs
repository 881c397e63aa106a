//! One client's encrypted session over a socket.
//!
//! A session is one state machine for both directions, behind a lock that is held while records are encrypted
//! or decrypted and never while the socket is waited for. Records must be sent in the order in which they
//! were made, so whoever makes some holds `sending` until they are sent; that is taken before the session's
//! own lock. Only one thread receives at a time; what it has to send (an answer to a change of keys, an
//! alert) waits for its turn like everything else.

use super::TlsConfig;
use super::names::names;
use crate::socket::{Pace, Socket, Wait};
use rustls::ServerConnection;
use std::io::{self, IoSlice, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes taken from the socket at once: a few records of 16 KiB.
const INCOMING_LEN: usize = 64 << 10;

/// One client's encrypted session.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Mutex<ServerConnection>,
    /// Held by whoever makes records, until they are sent.
    sending: Mutex<()>,
    incoming: Mutex<Incoming>,
}

/// Bytes from the socket that have not been decrypted.
#[derive(Debug)]
struct Incoming {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    /// Takes from the socket what is there; `None` if there is nothing and the call was not to wait.
    fn refill(&mut self, socket: &Socket, wait: Wait) -> io::Result<Option<usize>> {
        let received = socket.recv(&mut self.buf, wait)?;
        (self.start, self.end) = (0, received.unwrap_or(0));
        Ok(received)
    }

    /// Hands bytes to the session, as many as it takes, and has them decrypted.
    fn feed(&mut self, connection: &mut ServerConnection) -> io::Result<()> {
        let mut bytes = &self.buf[self.start..self.end];
        self.start += connection.read_tls(&mut bytes)?;
        match connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// What a poisoned lock guards is still whole, or belongs to a connection that the panic has ended.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the records that are ready.
fn flush(connection: &mut ServerConnection, socket: &Socket, wait: Wait) -> io::Result<()> {
    let records = take_records(connection)?;
    socket.send_all(&mut [IoSlice::new(&records)], wait, &mut Pace::default())
}

fn take_records(connection: &mut ServerConnection) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut records)?;
    }
    Ok(records)
}

impl Session {
    /// Does the server's part of the handshake, by `deadline`, however slowly bytes come.
    pub(crate) fn negotiate(config: &TlsConfig, socket: &Socket, deadline: Instant) -> io::Result<Self> {
        let connection = ServerConnection::new(config.current());
        let mut connection = connection.map_err(io::Error::other)?;
        let wait = Wait::Until(deadline);
        let mut incoming = Incoming { buf: vec![0; INCOMING_LEN], start: 0, end: 0 };
        while connection.is_handshaking() || connection.wants_write() {
            if connection.wants_write() {
                flush(&mut connection, socket, wait)?;
                continue;
            }
            if incoming.is_empty() && incoming.refill(socket, wait)? == Some(0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = incoming.feed(&mut connection) {
                // The client is told why, if it still listens.
                let _ = flush(&mut connection, socket, wait);
                return Err(error);
            }
        }
        Ok(Self {
            connection: Mutex::new(connection),
            sending: Mutex::new(()),
            incoming: Mutex::new(incoming),
        })
    }

    /// The first name in the client's certificate.
    pub(crate) fn certificate(&self) -> Option<String> {
        let connection = lock(&self.connection);
        names(connection.peer_certificates()?.first()?).into_iter().next()
    }

    /// As [`Socket::recv`]; after `None`, nothing is left undelivered. The end of the stream is one whether
    /// the client has announced it or not.
    pub(crate) fn recv(&self, socket: &Socket, buf: &mut [u8], wait: Wait) -> io::Result<Option<usize>> {
        let mut incoming = lock(&self.incoming);
        let mut filled = 0;
        loop {
            let has_ended = self.take_plain(buf, &mut filled)?;
            let has_all = filled == buf.len() || (filled > 0 && incoming.is_empty());
            if has_all || has_ended {
                return Ok(Some(filled));
            }
            if incoming.is_empty() && incoming.refill(socket, wait)?.is_none() {
                return Ok(None);
            }
            let (fed, wants_write) = {
                let mut connection = lock(&self.connection);
                (incoming.feed(&mut connection), connection.wants_write())
            };
            if wants_write {
                let sent = self.send_records(socket, wait);
                fed.and(sent)?;
            } else {
                fed?;
            }
        }
    }

    /// Takes decrypted bytes; whether the stream has ended behind them.
    fn take_plain(&self, buf: &mut [u8], filled: &mut usize) -> io::Result<bool> {
        let mut connection = lock(&self.connection);
        while *filled < buf.len() {
            match connection.reader().read(&mut buf[*filled..]) {
                Ok(0) => return Ok(true),
                Ok(read) => *filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Sends what the session itself has to say.
    fn send_records(&self, socket: &Socket, wait: Wait) -> io::Result<()> {
        let _sending = lock(&self.sending);
        let records = take_records(&mut lock(&self.connection))?;
        // A receiver that is not to wait for data has to wait for this: what is sent in part cannot be taken
        // back.
        let wait = if wait == Wait::Never { Wait::Forever } else { wait };
        socket.send_all(&mut [IoSlice::new(&records)], wait, &mut Pace::default())
    }

    /// As [`Socket::send_all`].
    pub(crate) fn send_all(
        &self,
        socket: &Socket,
        mut slices: &mut [IoSlice<'_>],
        wait: Wait,
        pace: &mut Pace,
    ) -> io::Result<()> {
        let _sending = lock(&self.sending);
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let records = {
                let mut connection = lock(&self.connection);
                let taken = connection.writer().write_vectored(slices)?;
                IoSlice::advance_slices(&mut slices, taken);
                take_records(&mut connection)?
            };
            socket.send_all(&mut [IoSlice::new(&records)], wait, pace)?;
        }
        Ok(())
    }

    /// Announces the end, if that can be done without waiting.
    pub(crate) fn say_goodbye(&self, socket: &Socket) {
        let Ok(_sending) = self.sending.try_lock() else { return };
        let mut connection = lock(&self.connection);
        connection.send_close_notify();
        // A client that is gone already misses nothing.
        let _ = flush(&mut connection, socket, Wait::Never);
    }
}
