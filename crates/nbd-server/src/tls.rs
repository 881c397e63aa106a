//! TLS: a server's certificates, and one client's encrypted session over a socket.
//!
//! A session is one state machine for both directions, behind a lock that is held while records are encrypted or decrypted and
//! never while the socket is waited for. Records must be sent in the order in which they were made, so whoever makes some
//! holds `sending` until they are sent; that is taken before the session's own lock. Only one thread receives at a time; what
//! it has to send (an answer to a change of keys, an alert) waits for its turn like everything else.
//!
//! Authentication is by certificates (X.509) only; there are no pre-shared keys.

use crate::socket::{Socket, Wait};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes taken from the socket at once: a few records of 16 KiB.
const INCOMING_LEN: usize = 64 << 10;

/// What a client has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing: whoever reaches the server may use it, encrypted.
    Ignored,
    /// A certificate that the authority has signed, or none.
    Optional,
    /// A certificate that the authority has signed.
    Required,
}

/// Why a server's TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing, unreadable, or holds nothing of the kind.
    #[error("{}: expected {expected}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What was found.
        source: pem::Error,
    },
    /// The files contradict each other, or hold what TLS cannot use.
    #[error("{}: {what}: {reason}", directory.display())]
    Unusable {
        /// Where the files are.
        directory: PathBuf,
        /// What cannot be used.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// A server's certificate and what it asks of clients.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    config: Arc<ServerConfig>,
}

impl TlsConfig {
    /// Reads the files that nbdkit and QEMU read: in `directory`, `server-cert.pem` (certificate, then those that signed it)
    /// and `server-key.pem`; and, if clients' certificates matter, `ca-cert.pem` (who may sign those) and, if it is there,
    /// `ca-crl.pem` (which of them are no longer valid).
    ///
    /// # Errors
    /// If a file cannot be used, with its name and what was expected in it.
    pub fn load(directory: &Path, clients: ClientCertificates) -> Result<Self, TlsError> {
        let unusable = |what, reason: &dyn std::fmt::Display| TlsError::Unusable {
            directory: directory.into(),
            what,
            reason: reason.to_string(),
        };
        let certificates = certificates(directory.join("server-cert.pem"))?;
        let path = directory.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&path);
        let key = key.map_err(|source| TlsError::File { path, expected: "a private key", source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS 1.2 and 1.3", &error))?;
        let builder = if clients == ClientCertificates::Ignored {
            builder.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(directory.join("ca-cert.pem"))? {
                roots.add(certificate).map_err(|error| unusable("ca-cert.pem", &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(revocations(directory.join("ca-crl.pem"))?);
            let verifier = match clients {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required | ClientCertificates::Ignored => verifier,
            };
            builder
                .with_client_cert_verifier(verifier.build().map_err(|error| unusable("ca-cert.pem", &error))?)
        };
        let config = builder.with_single_cert(certificates, key);
        let config = config.map_err(|error| unusable("server-cert.pem and server-key.pem", &error))?;
        Ok(Self { config: Arc::new(config) })
    }
}

fn certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || -> Result<Vec<_>, pem::Error> {
        let certificates = CertificateDer::pem_file_iter(&path)?.collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(certificates) }
    };
    read().map_err(|source| TlsError::File { path: path.clone(), expected: "certificates", source })
}

/// Lists of revoked certificates; none, if there is no such file.
fn revocations(path: PathBuf) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    if let Ok(false) = path.try_exists() {
        return Ok(Vec::new());
    }
    let lists = CertificateRevocationListDer::pem_file_iter(&path).and_then(Iterator::collect);
    lists.map_err(|source| TlsError::File { path, expected: "lists of revoked certificates", source })
}

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
    socket.send_all(&mut [IoSlice::new(&records)], wait)
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
        let connection = ServerConnection::new(Arc::clone(&config.config));
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

    /// As [`Socket::recv`]; after `None`, nothing is left undelivered. The end of the stream is one whether the client has announced it or not.
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
        // A receiver that is not to wait for data has to wait for this: what is sent in part cannot be taken back.
        let wait = if wait == Wait::Never { Wait::Forever } else { wait };
        socket.send_all(&mut [IoSlice::new(&records)], wait)
    }

    /// As [`Socket::send_all`].
    pub(crate) fn send_all(
        &self,
        socket: &Socket,
        mut slices: &mut [IoSlice<'_>],
        wait: Wait,
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
            socket.send_all(&mut [IoSlice::new(&records)], wait)?;
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
