//! How much of a tree a walk met.

/// What a walk met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    /// Nodes that are intact.
    pub(crate) nodes: u64,
    /// Nodes that are not: entries are missing.
    pub(crate) damaged: u64,
}
