//! Keys and values of a B-tree: fixed sizes, encoded by the type itself.

use crate::bytes::{REF_SIZE, block_ref, put_block_ref};
use crate::rule::fault;
use dedup_meta::{BlockFault, BlockRef};

/// A key of a [`BTree`](crate::BTree). The order is the type's, not that of its bytes.
pub trait Key: Ord + Copy {
    /// Bytes on disk.
    const SIZE: usize;
    /// Writes the key into `SIZE` bytes.
    fn encode(&self, bytes: &mut [u8]);
    /// The key in `SIZE` bytes. Any bytes decode to some key.
    fn decode(bytes: &[u8]) -> Self;
}

/// What a [`BTree`](crate::BTree) holds for a key.
pub trait Value: Copy + PartialEq {
    /// Bytes on disk.
    const SIZE: usize;
    /// Writes the value into `SIZE` bytes.
    fn encode(&self, bytes: &mut [u8]);
    /// The value in `SIZE` bytes. Any bytes decode to some value.
    fn decode(bytes: &[u8]) -> Self;
    /// Whether a tree may hold this value; asked before each write and after each read.
    fn check(&self) -> Result<(), BlockFault> {
        Ok(())
    }
}

impl Key for u64 {
    const SIZE: usize = 8;

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut le = [0; 8];
        le.copy_from_slice(bytes);
        Self::from_le_bytes(le)
    }
}

impl<const N: usize> Key for [u8; N] {
    const SIZE: usize = N;

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self);
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut key = [0; N];
        key.copy_from_slice(bytes);
        key
    }
}

/// A set: the key is all there is.
impl Value for () {
    const SIZE: usize = 0;

    fn encode(&self, _bytes: &mut [u8]) {}

    fn decode(_bytes: &[u8]) -> Self {}
}

impl Value for u64 {
    const SIZE: usize = 8;

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        <Self as Key>::decode(bytes)
    }
}

/// The value of an internal node's entry.
impl Value for BlockRef {
    const SIZE: usize = REF_SIZE;

    fn encode(&self, bytes: &mut [u8]) {
        put_block_ref(bytes, *self);
    }

    fn decode(bytes: &[u8]) -> Self {
        block_ref(bytes)
    }

    fn check(&self) -> Result<(), BlockFault> {
        if self.block.0 == 0 { Err(fault("child block", "not 0", 0)) } else { Ok(()) }
    }
}
