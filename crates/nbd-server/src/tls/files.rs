//! The files of a server's TLS directory, as they were read. What is there must be usable: a list of revoked
//! certificates that is empty, cut off, something else or a link to nothing would otherwise admit those whom
//! it should keep out.

use super::TlsError;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::io;
use std::path::Path;

/// The server's certificate, then those that signed it.
pub(super) const SERVER: &str = "server-cert.pem";
/// Its key.
const KEY: &str = "server-key.pem";
/// Who may sign clients' certificates.
pub(super) const AUTHORITIES: &str = "ca-cert.pem";
/// Clients' certificates that are no longer valid.
pub(super) const REVOCATIONS: &str = "ca-crl.pem";

/// What the files hold.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) server: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// Empty if clients' certificates do not matter.
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// Empty if there is no such file.
    pub(super) revocations: Vec<CertificateRevocationListDer<'static>>,
}

impl Files {
    /// Reads them; those about clients only if they matter.
    pub(super) fn read(directory: &Path, clients_matter: bool) -> Result<Self, TlsError> {
        let server = all(directory, SERVER, "certificates")?;
        let path = directory.join(KEY);
        let key = PrivateKeyDer::from_pem_file(&path);
        let key = key.map_err(|source| TlsError::File { path, expected: "a private key", source })?;
        let (mut authorities, mut revocations) = (Vec::new(), Vec::new());
        if clients_matter {
            authorities = all(directory, AUTHORITIES, "certificates")?;
            if is_there(&directory.join(REVOCATIONS)) {
                revocations = all(directory, REVOCATIONS, "lists of revoked certificates")?;
            }
        }
        Ok(Self { server, key, authorities, revocations })
    }

    /// The authorities, as what clients' certificates are held against. An error comes with the file that it
    /// is about.
    pub(super) fn roots(&self) -> Result<RootCertStore, (&'static str, String)> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.authorities {
            roots.add(certificate.clone()).map_err(|error| (AUTHORITIES, error.to_string()))?;
        }
        Ok(roots)
    }
}

/// Whether there is anything of this name. A link that leads nowhere is something, as is what cannot be
/// looked at.
fn is_there(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// All items of one kind in a file, at least one.
fn all<T: PemObject>(directory: &Path, name: &str, expected: &'static str) -> Result<Vec<T>, TlsError> {
    let path = directory.join(name);
    let read = || -> Result<Vec<T>, pem::Error> {
        let items = T::pem_file_iter(&path)?.collect::<Result<Vec<_>, _>>()?;
        if items.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(items) }
    };
    read().map_err(|source| TlsError::File { path: path.clone(), expected, source })
}
