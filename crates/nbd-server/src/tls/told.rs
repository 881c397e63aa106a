//! What is wrong with a PEM file, for the one who has to put it right. The parser says it in bytes, and of a
//! file in another form only that it found nothing.

use rustls::pki_types::pem;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What rustls says of a key that its cryptography library refuses.
const UNPARSED: &str = "failed to parse private key";
/// How much of a file is looked at: more than the largest key has.
const LOOKED_AT: u64 = 64 << 10;
/// What every DER file of this kind begins with: a sequence.
const DER: u8 = 0x30;

/// What the file at `path` holds in place of what was expected.
pub(super) fn found(path: &Path, error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "the file is cut off: a section that begins in it does not end".to_owned()
        }
        pem::Error::IllegalSectionStart { .. } => "a damaged line `-----BEGIN ...-----`".to_owned(),
        pem::Error::NoItemsFound => nothing(path),
        other => other.to_string(),
    }
}

/// Why certificate and key cannot be used. Of a key that is intact, and of a size that the cryptography
/// library does not take, it says the same as of garbage: its primes have to be of a multiple of 512 bits.
pub(super) fn unusable(error: &rustls::Error) -> String {
    let text = error.to_string();
    match text.contains(UNPARSED) {
        true => format!(
            "{text}; usable are RSA keys of 2048, 3072 and 4096 bits, ECDSA keys on P-256 and P-384, and Ed25519 keys: `openssl genpkey -algorithm \
             ed25519` makes one"
        ),
        false => text,
    }
}

/// What a file is in which there is nothing of the kind.
fn nothing(path: &Path) -> String {
    let mut bytes = Vec::new();
    // What cannot be read any more is told as what it was when it could.
    let _ = File::open(path).and_then(|file| file.take(LOOKED_AT).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    if text.contains("ENCRYPTED") {
        return "an encrypted key, which a server that starts by itself cannot read; `openssl pkey -in KEY -out NEW` decrypts it".to_owned();
    }
    if let Some((_, section)) = text.split_once("-----BEGIN ") {
        return section.split_once("-----").map_or(section, |(label, _)| label).trim().to_owned();
    }
    match bytes.first() {
        None => "an empty file".to_owned(),
        Some(&DER) => {
            "the binary form (DER); `openssl x509`, `crl` or `pkey`, with `-inform DER`, makes PEM of it"
                .to_owned()
        }
        Some(_) => "no PEM: no line `-----BEGIN ...-----`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;

    /// The key is of 2432 bits; it was refused with "failed to parse private key".
    #[test]
    fn a_key_of_a_size_that_cannot_be_used_is_told_the_sizes_that_can() {
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../tests/keys/rsa2432.pem")).unwrap();
        let error = rustls::crypto::ring::sign::any_supported_type(&key).unwrap_err();
        assert!(unusable(&error).contains("RSA keys of 2048, 3072 and 4096 bits"), "{error}");
        let other = unusable(&rustls::Error::NoCertificatesPresented);
        assert!(!other.contains("RSA"), "{other}");
    }

    /// They read `missing section end marker: [88, 53, ...]` and `no items found`.
    #[test]
    fn a_file_that_is_cut_off_encrypted_binary_or_another_is_told_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let told = |content: &[u8], error: pem::Error| {
            let path = dir.path().join("file");
            std::fs::write(&path, content).unwrap();
            found(&path, &error)
        };
        let cut_off = pem::Error::MissingSectionEnd { end_marker: vec![88, 53] };
        assert!(told(b"-----BEGIN X509 CRL-----", cut_off).contains("cut off"));
        for (content, part) in [
            (&b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"[..], "encrypted"),
            (b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "encrypted"),
            (&[DER, 0x82, 1, 2], "DER"),
            (b"", "an empty file"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "CERTIFICATE"),
            (b"some text", "no PEM"),
        ] {
            let text = told(content, pem::Error::NoItemsFound);
            assert!(text.contains(part), "{text}");
        }
    }
}
