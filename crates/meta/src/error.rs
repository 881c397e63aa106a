//! What can go wrong on the metadata device.

use crate::{BlockFault, BlockType, MetaBlock};
use std::io;

/// What to do about a device's error, as a part of its message: nothing is full but what lies below the
/// device.
pub fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; it is the file system that the device's file is on that is full: delete something there, or move the file to a larger one"
        }
        _ => "",
    }
}

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
    #[error(
        "metadata device: block {block} ({kind}, level {level}) is damaged: {fault}; run dedup-check, which says what it takes with it"
    )]
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

#[cfg(test)]
mod tests {
    use super::*;

    /// "metadata block 1 (MetaMap, level 0) is damaged" named a type of the program, and nothing to do.
    #[test]
    fn damage_is_told_in_the_words_of_the_documents_with_what_to_do() {
        let fault = BlockFault::Checksum { expected: 1, found: 2 };
        let error = MetaError::Damaged { block: MetaBlock(1), kind: BlockType::MetaMap, level: 0, fault };
        let text = error.to_string();
        assert!(
            text.starts_with("metadata device: block 1 (metadata map, level 0) is damaged: checksum"),
            "{text}"
        );
        assert!(text.contains("run dedup-check"), "{text}");
    }

    /// "No space left on device" was said of a device that had space: the file system below it had none.
    #[test]
    fn a_full_file_system_is_told_from_a_full_device() {
        let text = |kind: io::ErrorKind| {
            MetaError::Io { operation: "write", block: MetaBlock(0), source: kind.into() }.to_string()
        };
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(text(kind).contains("it is the file system that the device's file is on that is full"));
        }
        assert!(!text(io::ErrorKind::TimedOut).contains("full"));
    }
}
