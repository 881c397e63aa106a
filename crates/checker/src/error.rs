//! Why a check could not be done at all. What is wrong with a volume is a [`Finding`](crate::Finding)
//! instead.

use dedup_meta::SuperblockError;

/// There was nothing to check.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// No superblock that this version can use. The rest of a volume cannot be found without one.
    #[error("no volume to check: {0}")]
    NoVolume(#[from] SuperblockError),
}
