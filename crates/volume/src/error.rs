//! What can go wrong with a volume as a whole. Requests report the few kinds of [`RequestError`]; the story
//! is here and in the log.

use dedup_meta::MetaError;
use dedup_request::RequestError;
use dedup_schema::{LabelError, Lbn, Pbn};
use std::io;
use uuid::Uuid;

/// An error of formatting, opening or running a volume.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The metadata device failed, is damaged or is full.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The data device failed.
    #[error("data device: {operation}: {source}{}", dedup_meta::advice(source))]
    Data {
        /// What was tried.
        operation: &'static str,
        /// What the device said.
        source: io::Error,
    },
    /// Data that only the log has cannot be written to its place.
    #[error(
        "data device: block {block}, whose content only the log has, cannot be written: {source}; nothing is lost: give the device space, or replace \
         it by a copy, and open again; or open read-only, which needs no writing"
    )]
    NotRestored {
        /// The data block.
        block: u64,
        /// What the device said.
        source: io::Error,
    },
    /// There is no volume on the metadata device.
    #[error(
        "the metadata device holds no volume: {found}; format it first, or check that the paths are right"
    )]
    NoVolume {
        /// What is there instead.
        found: String,
    },
    /// The volume needs a newer program.
    #[error("the volume uses {found}; this program knows {expected}: use a newer version")]
    Unsupported {
        /// What this program can read.
        expected: String,
        /// What the superblock asks for.
        found: String,
    },
    /// The data device has no readable label.
    #[error(
        "the data device holds no label of a volume: {found}; check that the data and metadata devices are not mixed up"
    )]
    NoLabel {
        /// What is there instead.
        found: String,
    },
    /// The data device's label is lost, and its content does not show whose it is.
    #[error(
        "the data device has no label ({found}), and of {sampled} blocks looked at, {matching} hold what the volume stored there: it is not certain enough that it is the volume's; check that the data and metadata devices are not mixed up; --read-only opens it without a label"
    )]
    LabelLost {
        /// What is there instead.
        found: String,
        /// Blocks in use that were looked at.
        sampled: u64,
        /// Those with the content that the metadata names.
        matching: u64,
    },
    /// The two devices do not belong together.
    #[error(
        "data and metadata devices do not belong together: the metadata names {what} {expected}, the data label {found}"
    )]
    WrongPair {
        /// Which UUID or size differs.
        what: &'static str,
        /// From the superblock.
        expected: String,
        /// From the label.
        found: String,
    },
    /// A device is smaller than the volume on it.
    #[error("the {device} device is too small: the volume needs {expected} bytes, the device has {found}")]
    DeviceTooSmall {
        /// `data` or `metadata`.
        device: &'static str,
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// An option contradicts what the volume was formatted with.
    #[error(
        "{parameter} {found} was asked for, but the volume was formatted with {expected}, which cannot be changed: leave the option away"
    )]
    Mismatch {
        /// The option.
        parameter: &'static str,
        /// What is recorded.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// A parameter has no possible value.
    #[error("{parameter}: expected {expected}, found {found}")]
    Parameter {
        /// The option.
        parameter: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Formatting would destroy something.
    #[error("the {device} device holds {found}; use --force to overwrite it")]
    InUse {
        /// `data` or `metadata`.
        device: &'static str,
        /// What was recognised.
        found: String,
    },
    /// The log has lost what was acknowledged as durable.
    #[error(
        "the intent log on the metadata device is damaged: {what}; run dedup-check; to copy out what was there before the damage, open the volume with --read-only --rescue"
    )]
    LogDamaged {
        /// What is missing.
        what: String,
    },
    /// What the last process had acknowledged and not committed is not to be had.
    #[error(
        "what the process that had the volume open acknowledged cannot be taken in: expected journal {id} at {place}, found {found}; make it \
         available and open again, or give up what was not committed: with --force, or for reading with --read-only --rescue"
    )]
    Journal {
        /// The journal's id, by the superblock.
        id: Uuid,
        /// Where it was.
        place: String,
        /// What is there.
        found: String,
    },
    /// The device cannot read a block of the log.
    #[error(
        "{what}; if it stays so, copy the device to a good one and open that; to copy out what was there before that block, open the volume with --read-only --rescue"
    )]
    LogUnreadable {
        /// Which block, and what the device said.
        what: String,
    },
    /// Metadata that is intact block by block contradicts itself.
    #[error("the metadata contradicts itself: {what}; run dedup-check")]
    Contradiction {
        /// What does not fit.
        what: String,
    },
    /// A block's content is not what was written.
    #[error(
        "LBN {lbn}, block {pbn} of the data device: its checksum should be {expected:#010x} and is {found:#010x}; writing the same content again anywhere on the volume heals it"
    )]
    DamagedBlock {
        /// The logical block.
        lbn: Lbn,
        /// The block on the data device.
        pbn: Pbn,
        /// CRC32C beside the mapping.
        expected: u32,
        /// CRC32C of what was read.
        found: u32,
    },
    /// A lookup of several blocks failed for another one.
    #[error("a lookup of the same batch failed: {reason}")]
    Lookup {
        /// The failure.
        reason: String,
    },
    /// The volume is open read-only.
    #[error("the volume is open read-only")]
    ReadOnly,
    /// The volume is being closed.
    #[error("the volume is being closed")]
    Closed,
    /// The volume stopped taking writes after a failure.
    #[error("the volume stopped taking writes: {reason}; reads go on, reopen it to recover")]
    Stopped {
        /// The first failure.
        reason: String,
    },
    /// Whoever asked is gone.
    #[error("whoever asked was gone before this was done")]
    Abandoned,
    /// The data device has no free block.
    #[error("the data device is full: {used} of {total} blocks in use")]
    DataFull {
        /// Blocks in use.
        used: u64,
        /// Blocks on the device.
        total: u64,
    },
    /// The file system below a device has no room.
    #[error(
        "{device} device: the file system that its file is on is full: {wanted} bytes were wanted{}; delete something there, or trim blocks of the \
         volume, or move the file to a larger file system",
        room_of(*.room)
    )]
    FullBelow {
        /// `data` or `metadata`.
        device: &'static str,
        /// Bytes that did not fit.
        wanted: u64,
        /// Bytes that it has, if it tells.
        room: Option<u64>,
    },
    /// Threads could not be started.
    #[error("cannot start threads: {0}")]
    Threads(String),
}

impl VolumeError {
    /// Whether intact devices hold metadata that is not as it should be.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Meta(MetaError::Damaged { .. }) | Self::Contradiction { .. })
    }

    /// What a client is told.
    pub fn for_client(&self) -> RequestError {
        match self {
            // Not that it has stopped: that is the failure of a device, and is told as one.
            Self::ReadOnly => RequestError::ReadOnly,
            Self::Closed => RequestError::ShuttingDown,
            Self::Abandoned => RequestError::Abandoned,
            Self::DataFull { .. } | Self::FullBelow { .. } | Self::Meta(MetaError::NoSpace { .. }) => {
                RequestError::NoSpace
            }
            Self::Data { source, .. } if is_full(source) => RequestError::NoSpace,
            _ => RequestError::Io,
        }
    }
}

/// Whether a device says that what lies below it is full: a sparse file on a full file system, or one that
/// may not grow any more.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// How much room there is, as the end of a sentence.
fn room_of(room: Option<u64>) -> String {
    room.map_or_else(String::new, |room| format!(", {room} bytes are free"))
}

impl From<LabelError> for VolumeError {
    fn from(error: LabelError) -> Self {
        match error {
            LabelError::Io { operation, source } => Self::Data { operation, source },
            LabelError::Missing { found } => Self::NoLabel { found },
            LabelError::Unsupported { expected, found } => Self::Unsupported { expected, found },
        }
    }
}

/// The name of a pool in messages.
pub(crate) fn name_of(uuid: Uuid) -> String {
    uuid.hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write of a volume that had stopped was answered as one of an export that is read-only by choice.
    #[test]
    fn a_client_is_told_what_it_can_do_something_about() {
        let data = |kind: io::ErrorKind| VolumeError::Data { operation: "write", source: kind.into() };
        for (error, told) in [
            (VolumeError::Stopped { reason: String::new() }, RequestError::Io),
            (VolumeError::ReadOnly, RequestError::ReadOnly),
            (VolumeError::Closed, RequestError::ShuttingDown),
            (VolumeError::Abandoned, RequestError::Abandoned),
            (VolumeError::DataFull { used: 1, total: 1 }, RequestError::NoSpace),
            (data(io::ErrorKind::StorageFull), RequestError::NoSpace),
            (data(io::ErrorKind::QuotaExceeded), RequestError::NoSpace),
            (data(io::ErrorKind::FileTooLarge), RequestError::NoSpace),
            (data(io::ErrorKind::Other), RequestError::Io),
        ] {
            assert_eq!(error.for_client(), told, "{error}");
        }
    }
}
