//! Authorisation by name: beyond being signed by the authority, a client's certificate must carry one of a
//! list of names.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::Arc;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Asks another verifier first, then looks at the names.
#[derive(Debug)]
pub(super) struct NamesVerifier {
    signatures: Arc<dyn ClientCertVerifier>,
    allowed: Vec<String>,
}

impl NamesVerifier {
    /// Certificates that `signatures` accepts, with one of these names.
    pub(super) fn new(signatures: Arc<dyn ClientCertVerifier>, allowed: &[String]) -> Self {
        Self { signatures, allowed: allowed.to_vec() }
    }
}

impl ClientCertVerifier for NamesVerifier {
    fn offer_client_auth(&self) -> bool {
        self.signatures.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.signatures.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signatures.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.signatures.verify_client_cert(end_entity, intermediates, now)?;
        let is_allowed =
            |name: &String| self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
        match names(end_entity).iter().any(is_allowed) {
            true => Ok(verified),
            // The client is told "access denied".
            false => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

/// The names that a certificate carries: its subject's common names, then DNS names, email addresses and
/// URIs. None if it cannot be parsed.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let alternative = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    common.chain(alternative).map(str::to_owned).collect()
}
