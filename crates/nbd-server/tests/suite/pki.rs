//! Certificates for tests, in the files that servers and clients look for.

use dedup_nbd_server::{ClientCertificates, TlsConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// The client's certificate has this number.
const CLIENT_SERIAL: u64 = 77;

/// An authority, a server for `localhost` and a client, in one directory.
pub(crate) struct Pki {
    pub(crate) dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ca = params("test authority", &[]);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.path().join("ca-cert.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
        let pki = Self { dir, issuer: Issuer::new(ca, key) };
        let mut server = params("test server", &["localhost", "127.0.0.1", "::1"]);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        pki.issue("server", server);
        pki.issue_client(&[]);
        pki
    }

    /// Gives the client another certificate, with these DNS names.
    pub(crate) fn issue_client(&self, names: &[&str]) {
        let mut client = params("test client", names);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        client.serial_number = Some(SerialNumber::from(CLIENT_SERIAL));
        self.issue("client", client);
    }

    fn issue(&self, name: &str, mut params: CertificateParams) {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path().join(format!("{name}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path().join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }

    /// Lists the client's certificate as no longer valid.
    pub(crate) fn revoke_client(&self) {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(CLIENT_SERIAL),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        std::fs::write(self.path().join("ca-crl.pem"), list.pem().unwrap()).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn server(&self, clients: ClientCertificates) -> TlsConfig {
        TlsConfig::load(self.path(), clients).unwrap()
    }

    /// A client that trusts this authority and shows the certificate of `shows`, if any.
    pub(crate) fn client(&self, shows: Option<&Pki>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path().join("ca-cert.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match shows {
            None => builder.with_no_client_auth(),
            Some(pki) => {
                let certificate = CertificateDer::from_pem_file(pki.path().join("client-cert.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_file(pki.path().join("client-key.pem")).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        })
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let mut params =
        CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
