//! What can go wrong on the metadata device.

use crate::{BlockFault, BlockType, MetaBlock};
use std::io;

/// An error of the metadata device or of what stands on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The device failed.
    #[error("metadata device: {operation} of block {block}: {source}")]
    Io {
        /// `read`, `write` or `flush`.
        operation: &'static str,
        /// First block concerned (0 for a flush).
        block: MetaBlock,
        /// What the device said.
        source: io::Error,
    },
    /// A block is not what it should be.
    #[error("metadata block {block} ({kind:?}, level {level}) is damaged: {fault}")]
    Damaged {
        /// Where.
        block: MetaBlock,
        /// The type that was expected there.
        kind: BlockType,
        /// The level that was expected there.
        level: u8,
        /// What is wrong.
        fault: BlockFault,
    },
    /// No metadata block is free.
    #[error("metadata device is full: {in_use} of {total} blocks in use; free space by trimming, or format with a larger --metadata-size")]
    NoSpace {
        /// Blocks in use.
        in_use: u64,
        /// Blocks on the device.
        total: u64,
    },
}
