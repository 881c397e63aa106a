//! Block numbers of the two address spaces, and the order of operations.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A block of the logical device that clients see.
    Lbn
}
id! {
    /// A block of the data device. Number 0 is the label: never allocated, so that 0 in a mapping means
    /// unmapped.
    Pbn
}
id! {
    /// The position of an operation in the one order in which operations change the volume (and stand in the
    /// log).
    Seq
}

/// Block numbers on disk have 48 bits.
pub const MAX_BLOCKS: u64 = 1 << 48;

/// Bytes of a block number on disk.
pub(crate) const ID_SIZE: usize = 6;

/// Writes a 48-bit number, little-endian.
pub(crate) fn put_u48(bytes: &mut [u8], value: u64) {
    debug_assert!(value < MAX_BLOCKS, "{value} does not fit in 48 bits");
    bytes[..ID_SIZE].copy_from_slice(&value.to_le_bytes()[..ID_SIZE]);
}

/// Reads a 48-bit number, little-endian.
pub(crate) fn get_u48(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..ID_SIZE].copy_from_slice(&bytes[..ID_SIZE]);
    u64::from_le_bytes(wide)
}
