//! 48-bit numbers and child references in bytes, little-endian.
//!
//! ```text
//!  0              6           10
//!  | child block  | child crc |        BlockRef, 10 bytes
//! ```
//!
//! 48 bits are the project's limit for block numbers everywhere; a larger one is refused before it is
//! encoded.

use dedup_meta::{BlockRef, MetaBlock};

/// Numbers from here on do not fit.
pub(crate) const LIMIT_48: u64 = 1 << 48;
/// Bytes of an encoded [`BlockRef`].
pub(crate) const REF_SIZE: usize = 10;

/// The 48-bit number in the first six bytes.
pub(crate) fn u48(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..6].copy_from_slice(&bytes[..6]);
    u64::from_le_bytes(wide)
}

/// Puts a number below [`LIMIT_48`] into the first six bytes.
pub(crate) fn put_u48(bytes: &mut [u8], value: u64) {
    debug_assert!(value < LIMIT_48);
    bytes[..6].copy_from_slice(&value.to_le_bytes()[..6]);
}

/// The reference in the first ten bytes.
pub(crate) fn block_ref(bytes: &[u8]) -> BlockRef {
    let mut crc = [0; 4];
    crc.copy_from_slice(&bytes[6..REF_SIZE]);
    BlockRef { block: MetaBlock(u48(bytes)), crc: u32::from_le_bytes(crc) }
}

/// Puts a reference into the first ten bytes.
pub(crate) fn put_block_ref(bytes: &mut [u8], at: BlockRef) {
    put_u48(bytes, at.block.0);
    bytes[6..REF_SIZE].copy_from_slice(&at.crc.to_le_bytes());
}
