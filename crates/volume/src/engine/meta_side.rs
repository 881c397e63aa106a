//! [`MetaSide`]: what belongs to whoever runs a checkpoint.

use crate::engine::backing::Parts;
use crate::state::budget::MetaUsage;
use crate::trees::runs::Merging;
use dedup_meta::{LogSeq, MetaBlock, Root, Superblock};
use dedup_schema::{HintKey, Lbn};
use dedup_spacemap::{Generations, SpaceMap};

/// The metadata device as only checkpoints (and the open before them) see it. Lines of the log may be written
/// while it is locked: who waits for it waits for the I/O of a checkpoint in any case, and no request and no
/// status does.
#[derive(Debug)]
pub(crate) struct MetaSide {
    pub(crate) map: SpaceMap,
    pub(crate) generations: Generations,
    /// The tree over which the next map is written: that of the superblock, or an empty one if that is
    /// damaged.
    pub(crate) map_root: Root,
    /// As last written.
    pub(crate) superblock: Superblock,
    /// Where the log is needed from by the superblock before that.
    pub(crate) older_log: LogSeq,
    /// Blocks found to be in no tree, to be freed by the next checkpoint.
    pub(crate) leaked: Vec<MetaBlock>,
    /// How far runs of the LBN map, and of the index, have been merged into their bases.
    pub(crate) merging_mappings: Option<Merging<Lbn>>,
    pub(crate) merging_hints: Option<Merging<HintKey>>,
    /// Metadata blocks written by checkpoints since the open.
    pub(crate) blocks_written: u64,
}

impl MetaSide {
    /// As the map has it, and what it does not know of yet.
    pub(crate) fn usage(&self, backing: &Parts) -> MetaUsage {
        let free = self.map.allocatable() + backing.backed();
        let held = self.generations.held() + self.leaked.len() as u64;
        MetaUsage { free, holes: backing.promising(), used: self.map.in_use(), held }
    }
}
