//! Until when certificates and lists of revoked ones are valid. An expired list is still obeyed: what it
//! revokes stays revoked, but what was revoked since is not known.

use super::files::{AUTHORITIES, Files, REVOCATIONS, SERVER};
use rustls::pki_types::CertificateDer;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// How long before the end it is told: time to renew a certificate by hand, holidays included.
const NOTICE: Duration = Duration::from_secs(14 * 24 * 3600);

/// What has expired, is not valid yet or expires soon, a sentence each.
pub(super) fn warnings(files: &Files, now: SystemTime) -> Vec<String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let certificates = |name, list: &[CertificateDer<'_>], what| -> Vec<String> {
        list.iter().filter_map(|certificate| certificate_warning(name, certificate, what, now)).collect()
    };
    let mut warnings = certificates(SERVER, &files.server, "clients refuse the server");
    warnings.extend(certificates(AUTHORITIES, &files.authorities, "certificates that it signed are refused"));
    warnings.extend(files.revocations.iter().filter_map(|list| {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        let next = list.next_update()?;
        let consequence = "certificates revoked since are not known";
        let issuer = list.issuer().to_string();
        expiry(REVOCATIONS, &format!("the list of {issuer}"), next, consequence, now)
    }));
    warnings
}

fn certificate_warning(
    file: &str,
    certificate: &CertificateDer<'_>,
    consequence: &str,
    now: Duration,
) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    let what = format!("the certificate of {}", certificate.subject());
    if seconds(validity.not_before) > now.as_secs() {
        return Some(format!(
            "{file}: {what} is valid from {} on only: until then {consequence}",
            validity.not_before
        ));
    }
    expiry(file, &what, validity.not_after, consequence, now)
}

fn expiry(file: &str, what: &str, end: ASN1Time, consequence: &str, now: Duration) -> Option<String> {
    if seconds(end) < now.as_secs() {
        Some(format!("{file}: {what} expired on {end}: {consequence}"))
    } else if seconds(end) < (now + NOTICE).as_secs() {
        Some(format!("{file}: {what} expires on {end}: from then on {consequence}"))
    } else {
        None
    }
}

/// Since the Unix epoch; what lies before it is long over.
fn seconds(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}
