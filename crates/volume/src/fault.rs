//! Planted faults: ways to break the volume on purpose, to prove that the tests would notice.
//!
//! Compiled in only with the feature `planted-faults`, which no tool enables; without it [`Engine::planted`]
//! is `false` at compile time.

use crate::engine::{Engine, EngineOptions};

/// One thing done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted-faults"),
    allow(unreachable_pub, reason = "public only for tests that plant faults")
)]
#[non_exhaustive]
pub enum Fault {
    /// A commit writes the log without having flushed the data device.
    DataFlushSkipped,
    /// A commit is acknowledged without a flush after the log write.
    LogFlushSkipped,
    /// A checkpoint writes the superblock without having flushed the trees.
    TreeFlushSkipped,
    /// A checkpoint goes on without having flushed the superblock.
    SuperblockFlushSkipped,
    /// A duplicate is published although the block's count has dropped to 0 meanwhile.
    HitNotRechecked,
    /// A hint is believed without comparing the digest.
    HintTrusted,
    /// A writable open keeps the old epoch.
    EpochKept,
    /// A trim unmaps blocks that it covers in part.
    TrimRoundsOut,
    /// A read does not compare checksums.
    ChecksumIgnored,
    /// FUA is acknowledged without a commit.
    FuaIgnored,
}

impl EngineOptions {
    /// Whether this fault is planted.
    #[cfg(feature = "planted-faults")]
    pub(crate) fn planted(&self, fault: Fault) -> bool {
        self.planted == Some(fault)
    }

    /// Whether this fault is planted: never, in this build.
    #[cfg(not(feature = "planted-faults"))]
    pub(crate) const fn planted(&self, _fault: Fault) -> bool {
        false
    }
}

impl Engine {
    /// Whether this fault is planted.
    pub(crate) fn planted(&self, fault: Fault) -> bool {
        self.options.planted(fault)
    }
}
