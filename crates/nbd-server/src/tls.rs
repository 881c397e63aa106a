//! TLS: a server's certificates, what it asks of clients, and when that is read again. One client's session
//! is in [`session`].
//!
//! ```text
//!   DIR/server-cert.pem, server-key.pem ─> who the server is
//!   DIR/ca-cert.pem, ca-crl.pem         ─> whose certificates clients show ─> names (allowed ones only)
//! ```
//!
//! Everything here fails closed: a file that is there and cannot be used refuses to load, and a new version
//! that cannot be used leaves the old one in force. Authentication is by certificates (X.509) only; there are
//! no pre-shared keys.

mod files;
mod names;
mod session;
mod told;
mod validity;

pub(crate) use session::Session;

use files::Files;
use names::NamesVerifier;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

/// What a client has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing: whoever reaches the server may use it, encrypted.
    Ignored,
    /// A certificate that the authority has signed, or none.
    Optional,
    /// A certificate that the authority has signed.
    Required,
    /// One that has, besides, one of these names: as its subject's common name, or as a DNS name, email
    /// address or URI among its alternative names. Case does not matter.
    Named(Vec<String>),
}

/// Why a server's TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing, unreadable, or holds nothing of the kind.
    #[error("{}: expected {expected}: {}", path.display(), told::found(path, source))]
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

/// A server's certificate and what it asks of clients. Its clones are one: what is [read again](Self::reload)
/// holds for all of them.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    clients: ClientCertificates,
    current: RwLock<Loaded>,
}

#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    files: Arc<Files>,
}

impl TlsConfig {
    /// Reads the files that nbdkit and QEMU read: in `directory`, `server-cert.pem` (certificate, then those
    /// that signed it) and `server-key.pem`; and, if clients' certificates matter, `ca-cert.pem` (who may
    /// sign those) and, if it is there, `ca-crl.pem` (which of them are no longer valid).
    ///
    /// # Errors
    /// If a file cannot be used, with its name and what was expected in it.
    pub fn load(directory: &Path, clients: ClientCertificates) -> Result<Self, TlsError> {
        let current = RwLock::new(Loaded::read(directory, &clients)?);
        Ok(Self { shared: Arc::new(Shared { directory: directory.into(), clients, current }) })
    }

    /// Reads the files again, for the sessions that begin from now on.
    ///
    /// # Errors
    /// As [`load`](Self::load); then what was read before stays in force.
    pub fn reload(&self) -> Result<(), TlsError> {
        let loaded = Loaded::read(&self.shared.directory, &self.shared.clients)?;
        *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// What an administrator should know of the files in force, a sentence each: certificates and lists that
    /// have expired by `now`, or will within two weeks.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let loaded = self.loaded();
        validity::warnings(&loaded.files, now)
    }

    fn loaded(&self) -> Loaded {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a session that begins now uses.
    fn current(&self) -> Arc<ServerConfig> {
        self.loaded().config
    }
}

impl Loaded {
    fn read(directory: &Path, clients: &ClientCertificates) -> Result<Self, TlsError> {
        let unusable = |what, reason: &dyn Display| TlsError::Unusable {
            directory: directory.into(),
            what,
            reason: reason.to_string(),
        };
        let files = Files::read(directory, *clients != ClientCertificates::Ignored)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS 1.2 and 1.3", &error))?;
        let builder =
            match verifier(&files, clients, provider).map_err(|(file, error)| unusable(file, &error))? {
                None => builder.with_no_client_auth(),
                Some(verifier) => builder.with_client_cert_verifier(verifier),
            };
        let mut config = builder
            .with_single_cert(files.server.clone(), files.key.clone_key())
            .map_err(|error| unusable("server-cert.pem and server-key.pem", &told::unusable(&error)))?;
        // A session that is resumed would show no certificate: one that has expired since would still be let
        // in.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), files: Arc::new(files) })
    }
}

/// Who judges clients' certificates, if anybody does. An error comes with the file that it is about.
fn verifier(
    files: &Files,
    clients: &ClientCertificates,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, (&'static str, String)> {
    use rustls::server::VerifierBuilderError::InvalidCrl;
    if *clients == ClientCertificates::Ignored {
        return Ok(None);
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(files.roots()?), provider)
        .with_crls(files.revocations.clone());
    let builder = match clients {
        ClientCertificates::Optional => builder.allow_unauthenticated(),
        _ => builder,
    };
    let verifier = builder.build().map_err(|error| match error {
        InvalidCrl(_) => (files::REVOCATIONS, error.to_string()),
        _ => (files::AUTHORITIES, error.to_string()),
    })?;
    Ok(Some(match clients {
        ClientCertificates::Named(names) => Arc::new(NamesVerifier::new(verifier, names)),
        _ => verifier,
    }))
}
