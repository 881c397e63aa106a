//! Digests of blocks' content: by them duplicates are found.

use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// Bytes of a digest that are kept; longer ones (SHA-512) are truncated, shorter ones end in zeros.
pub const DIGEST_SIZE: usize = 32;

/// The digest of a block's content.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; DIGEST_SIZE]);

impl Digest {
    /// What the index is sorted by: the first eight bytes, big-endian.
    pub fn prefix(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The digest algorithms. The discriminants are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DigestAlgorithm {
    /// 128 bits, broken: every match is compared byte by byte.
    Md5 = 1,
    /// 160 bits, broken: every match is compared byte by byte.
    Sha1 = 2,
    /// The default.
    Sha256 = 3,
    /// Truncated to 256 bits.
    Sha512 = 4,
    /// Faster than SHA-256 where the CPU has wide vectors.
    Blake3 = 5,
}

impl DigestAlgorithm {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512, Self::Blake3];

    /// The algorithm with this discriminant.
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|a| *a as u8 == value)
    }

    /// The name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// Whether different contents with one digest can be made on purpose, so that a match proves nothing.
    pub fn is_weak(self) -> bool {
        matches!(self, Self::Md5 | Self::Sha1)
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Digest {
        let mut digest = Digest::default();
        let mut keep = |bytes: &[u8]| {
            let len = bytes.len().min(DIGEST_SIZE);
            digest.0[..len].copy_from_slice(&bytes[..len]);
        };
        match self {
            Self::Md5 => keep(&md5::Md5::digest(data)),
            Self::Sha1 => keep(&sha1::Sha1::digest(data)),
            Self::Sha256 => keep(&sha2::Sha256::digest(data)),
            Self::Sha512 => keep(&sha2::Sha512::digest(data)),
            Self::Blake3 => keep(blake3::hash(data).as_bytes()),
        }
        digest
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DigestAlgorithm {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            format!("unknown digest algorithm '{name}': expected md5, sha1, sha256, sha512 or blake3")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_published_test_vectors() {
        let hex = |a: DigestAlgorithm| a.digest(b"abc").to_string();
        assert_eq!(hex(DigestAlgorithm::Md5), format!("900150983cd24fb0d6963f7d28e17f72{}", "0".repeat(32)));
        assert_eq!(
            hex(DigestAlgorithm::Sha1),
            format!("a9993e364706816aba3e25717850c26c9cd0d89d{}", "0".repeat(24))
        );
        assert_eq!(
            hex(DigestAlgorithm::Sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(DigestAlgorithm::Sha512),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        );
        assert_eq!(
            hex(DigestAlgorithm::Blake3),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
    }
}
