//! What can go wrong on the metadata device.

use crate::{BlockFault, BlockType, MetaBlock};
use std::io;

/// An error of the metadata device or of what stands on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The device failed.
    #[error("metadata device: {operation} of block {block}: {source}{}", advice(source))]
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
    #[error(
        "metadata device is full: {in_use} of {total} blocks in use; free space by trimming, or format with a larger --metadata-size"
    )]
    NoSpace {
        /// Blocks in use.
        in_use: u64,
        /// Blocks on the device.
        total: u64,
    },
    /// An earlier failure ended this transaction or log writer; nothing more may be written through it.
    #[error("metadata writes have stopped: {reason}")]
    Dead {
        /// The first failure.
        reason: String,
    },
    /// The log ring has no room; a checkpoint has to release some first.
    #[error("log is full: {needed} blocks needed, {free} of {total} free")]
    LogFull {
        /// Blocks that the append needs.
        needed: u64,
        /// Blocks that may be written.
        free: u64,
        /// Blocks of the ring.
        total: u64,
    },
    /// What was handed to a tree does not rise strictly.
    #[error("input for a {kind:?} tree is not sorted: entry {position} is not above the one before")]
    Unsorted {
        /// The tree.
        kind: BlockType,
        /// The first entry out of order, counted from 0.
        position: u64,
    },
}

/// What to do about it, where that is not a matter of the device itself.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; it is the file system that the device's file is on that is full: delete something there, or move the file to a larger one"
        }
        _ => "",
    }
}
