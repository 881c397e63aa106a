//! What a check says: findings, each with a stable kind, and what was counted on the way.
//!
//! ```text
//!   Finding   severity  kind            place                                    field     expected     found        advice
//!             error     tree_node       metadata block 17 (mapping tree, ...)    checksum  0x1c8f0a11   0x90ab33f2   restore ...
//! ```
//!
//! As JSON a report is `{"clean": bool, "findings": [...], "counts": {kind: number}, "summary": {...}}`;
//! names of kinds and fields stay, new ones may come.

use dedup_meta::{BlockFault, BlockType, MetaBlock, MetaError, Superblock};
use rustc_hash::FxHashSet;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use uuid::Uuid;

/// Findings of one kind that are kept in full; a thousand say what a million would, and memory stays bounded.
pub const FINDINGS_PER_KIND_MAX: u64 = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to correct.
    Info,
    /// Something redundant or rebuildable is lost.
    Warning,
    /// Truth is damaged or contradicts itself.
    Error,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $severity:ident, $advice:literal;)*) => {
        /// What kind of finding it is. The serialised names are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// What to do about it.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

impl Kind {
    /// Its name in JSON.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

kinds! {
    /// The data device's label is missing or damaged.
    DataLabel: Error, "check that the paths are not mixed up; without its label the volume does not open";
    /// The data device belongs to another volume.
    Pairing: Error, "name the two devices that were formatted together";
    /// A device is smaller than the volume on it.
    DeviceSize: Error, "give the device its full size back; what was cut off is lost";
    /// A superblock copy is lost that no crash takes, or differs from the other copy of its transaction.
    SuperblockCopy: Warning, "the next checkpoints write it again; check the device's health";
    /// A superblock copy in a state that a crash leaves.
    SuperblockTorn: Info, "none: a crash leaves this, and the next checkpoints write it again";
    /// A superblock field has a value that this version does not write.
    SuperblockField: Error, "check with the version that wrote it; otherwise restore from a backup";
    /// The superblock asks for something, or says something of itself.
    SuperblockNote: Info, "none";
    /// A block of a tree of truth is damaged or unreadable.
    TreeNode: Error, "what it held is lost: copy out what still reads, format anew, restore the rest";
    /// A tree's recorded number of entries is wrong.
    TreeTotal: Error, "copy out what reads, and format anew";
    /// A mapping names what does not exist.
    MappingRange: Error, "the LBN cannot be read: trim or overwrite it after the count is put right";
    /// A mapping has flags that this version does not write.
    MappingFlags: Error, "check with the version that wrote it";
    /// A reference count is lower than the mappings say: the block may be given to other content.
    CountTooLow: Error, "do not write to the volume; copy out what reads";
    /// A reference count is higher than the mappings say: its space never comes back.
    CountTooHigh: Error, "no data is at risk, the space is lost until the volume is formatted anew";
    /// A large count has no entry in the overflow tree, or an entry has no large count.
    Overflow: Error, "do not write to the volume; copy out what reads";
    /// A block in use has no digest.
    DigestMissing: Error, "rewrite the LBNs that map to it";
    /// A block that does not exist has a digest.
    DigestRange: Error, "copy out what reads, and format anew";
    /// The superblock's total of blocks in use or of mapped LBNs is wrong.
    SpaceTotal: Error, "no data is at risk, free space is reported wrongly";
    /// A mark names a block that does not exist.
    BadRange: Error, "no data is at risk";
    /// Marks of damaged content on blocks in use.
    BadBlock: Info, "write the same content again anywhere on the volume to heal them, or overwrite their LBNs";
    /// A block of the index is damaged.
    HintNode: Warning, "none: the index is dropped and rebuilt when the damage is met";
    /// The index names a block that does not exist, or its total is wrong.
    HintEntry: Warning, "none: entries are verified before use";
    /// Index entries whose block has other content by now.
    HintStale: Info, "none: they are dropped as they are met, or by a garbage collection";
    /// Blocks in use that the index does not know.
    HintMissing: Info, "none: duplicates of them are stored again until the index is rebuilt";
    /// A metadata block is in use, and no tree has it.
    MetadataLeak: Error, "no data is at risk, the block is lost to the metadata device";
    /// Metadata blocks that a recount will free.
    MetadataRecount: Info, "none: the next writable open frees them";
    /// A metadata block is part of a tree, and the map calls it free.
    MetadataFree: Error, "do not open the volume for writing: the block would be overwritten; copy out what reads";
    /// A metadata block is referred to more than once.
    MetadataShared: Error, "do not open the volume for writing; copy out what reads";
    /// A metadata block's count is neither 0 nor what it should be, or beyond the device.
    MetadataCount: Error, "copy out what reads, and format anew";
    /// A block that only the older superblock reaches is damaged or was overwritten.
    OlderTree: Warning, "none: it matters only if the newest superblock is lost before the next checkpoint";
    /// The log that the older superblock would need is not all there.
    OlderLog: Warning, "none: it matters only if the newest superblock is lost before the next checkpoint";
    /// The log has lost what was acknowledged as durable.
    LogDamage: Error, "a writable open refuses the log; open read-only and copy out what reads";
    /// A part of the log's ring cannot be read.
    LogUnreadable: Warning, "replace the metadata device: the ring will be written there again";
    /// A log record contradicts the rest of the metadata.
    LogRecord: Error, "a writable open refuses the log; open read-only and copy out what reads";
    /// Two LBNs that share a block disagree about its checksum.
    MappingChecksum: Error, "one of the LBNs fails to read: overwrite it";
    /// A data block cannot be read.
    DataUnreadable: Error, "overwrite the LBNs that map to it; check the device's health";
    /// A data block's content is not what was written.
    DataMismatch: Error, "write the same content again anywhere on the volume after a read has marked the block, or overwrite its LBNs";
    /// A block marked as damaged is.
    DataKnownBad: Warning, "write the same content again anywhere on the volume to heal it, or overwrite its LBNs";
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is.
    pub kind: Kind,
    /// Where: `metadata block 17 (mapping tree, level 0)`, `LBN 5`, `PBN 9`, `log block 12`, `data label`.
    pub place: String,
    /// The field concerned, as in `docs/format.md`.
    pub field: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.place, self.field, self.expected, self.found)
    }
}

/// What was counted, whether or not anything is wrong. Sizes in the units their names say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The pool.
    pub pool: Uuid,
    /// The newest superblock's transaction.
    pub txid: u64,
    /// Closed in good order.
    pub clean_shutdown: bool,
    /// Bytes in a data block.
    pub block_size: u32,
    /// Blocks of the logical device.
    pub logical_blocks: u64,
    /// Blocks of the data device, the label's included.
    pub data_blocks: u64,
    /// Blocks of the metadata device.
    pub metadata_blocks: u64,
    /// Metadata blocks in use: reserved places and nodes reached.
    pub metadata_used: u64,
    /// Nodes reached, by tree.
    pub tree_blocks: BTreeMap<&'static str, u64>,
    /// LBNs mapped, the log included.
    pub mapped: u64,
    /// Data blocks in use, the log included.
    pub data_used: u64,
    /// Entries of the index, as the trees have them.
    pub hint_entries: u64,
    /// Of these stale. One of a block whose good entry is missing is taken for that with a chance of 1 in 14.
    pub hint_stale: u64,
    /// Data blocks in use that the index does not know, as the trees have them.
    pub hint_missing: u64,
    /// Blocks marked as damaged, the log included.
    pub bad_blocks: u64,
    /// Log blocks behind the last checkpoint.
    pub log_blocks: u64,
    /// Records in them.
    pub log_records: u64,
    /// Data blocks read and compared.
    pub data_checked: u64,
}

impl Summary {
    /// What the superblock says, and zeros.
    pub(crate) fn of(superblock: &Superblock) -> Self {
        Self {
            pool: superblock.pool,
            txid: superblock.txid.0,
            clean_shutdown: superblock.clean,
            block_size: superblock.block_size,
            logical_blocks: superblock.volumes.iter().map(|v| v.logical_blocks).sum(),
            data_blocks: superblock.data_blocks,
            metadata_blocks: superblock.layout.metadata_blocks,
            metadata_used: 0,
            tree_blocks: BTreeMap::new(),
            mapped: 0,
            data_used: 0,
            hint_entries: 0,
            hint_stale: 0,
            hint_missing: 0,
            bad_blocks: 0,
            log_blocks: 0,
            log_records: 0,
            data_checked: 0,
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing above [`Severity::Info`] was found.
    clean: bool,
    /// The findings, worst first, those of a kind together in the order in which they were met.
    pub findings: Vec<Finding>,
    /// How many of each kind there are, also those not kept.
    pub counts: BTreeMap<Kind, u64>,
    /// What was counted.
    pub summary: Summary,
}

impl Report {
    pub(crate) fn new(findings: Findings, summary: Summary) -> Self {
        let Findings { mut kept, counts, .. } = findings;
        kept.sort_by_key(|f| (std::cmp::Reverse(f.severity), f.kind));
        let clean = counts.keys().all(|kind| kind.severity() == Severity::Info);
        Self { clean, findings: kept, counts, summary }
    }

    /// Whether nothing above [`Severity::Info`] was found.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Whether anything of this kind was found.
    pub fn has(&self, kind: Kind) -> bool {
        self.counts.contains_key(&kind)
    }
}

impl fmt::Display for Report {
    /// A line for each finding.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings
            .iter()
            .try_for_each(|finding| writeln!(f, "{:?} {:?}: {finding}", finding.severity, finding.kind))
    }
}

/// Findings as they come.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: Vec<Finding>,
    counts: BTreeMap<Kind, u64>,
    /// Nodes that could not be read.
    damaged: FxHashSet<MetaBlock>,
}

impl Findings {
    /// Adds one.
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        place: impl fmt::Display,
        field: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= FINDINGS_PER_KIND_MAX {
            self.kept.push(Finding {
                severity: kind.severity(),
                kind,
                place: place.to_string(),
                field: field.to_string(),
                expected: expected.to_string(),
                found: found.to_string(),
                advice: kind.advice(),
            });
        }
    }

    /// Adds what is wrong with the block at `place`.
    pub(crate) fn fault(&mut self, kind: Kind, place: impl fmt::Display, fault: &BlockFault) {
        match fault {
            BlockFault::Checksum { expected, found } => {
                self.add(kind, place, "checksum", hex(*expected), hex(*found))
            }
            BlockFault::Version { expected, found } => {
                self.add(kind, place, "checksum named by the parent", hex(*expected), hex(*found))
            }
            BlockFault::Field { field, expected, found } => self.add(kind, place, field, expected, found),
            other => self.add(kind, place, "block", "intact", other),
        }
    }

    /// Adds why a node could not be read.
    pub(crate) fn node(&mut self, kind: Kind, tree: BlockType, at: MetaBlock, level: u8, error: &MetaError) {
        self.damaged.insert(at);
        let place = node_place(tree, at, level);
        match error {
            MetaError::Damaged { fault, .. } => self.fault(kind, place, fault),
            MetaError::Io { source, .. } => self.add(kind, place, "read", "4096 bytes", source),
            other => self.add(kind, place, "block", "intact", other),
        }
    }

    /// Adds why a node could not be read once more, unless that is known since the walk that came to it
    /// first.
    pub(crate) fn node_again(&mut self, tree: BlockType, error: &MetaError) {
        let (MetaError::Damaged { block, .. } | MetaError::Io { block, .. }) = error else {
            return self.add(Kind::TreeNode, tree.name(), "block", "what was read before", error);
        };
        if self.damaged.insert(*block) {
            let place = format!("metadata block {block} ({})", tree.name());
            self.add(Kind::TreeNode, place, "block", "what was read before", error);
        }
    }
}

/// `metadata block 17 (mapping tree, level 0)`.
pub(crate) fn node_place(tree: BlockType, at: MetaBlock, level: u8) -> String {
    format!("metadata block {at} ({}, level {level})", tree.name())
}

pub(crate) fn hex(value: u32) -> String {
    format!("{value:#010x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_in_json_and_all_are_documented() {
        let documentation = include_str!("../../../docs/check.md");
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            let severity = format!("{:?}", kind.severity()).to_lowercase();
            let row = format!("| `{}` | {severity} |", kind.name());
            assert!(documentation.contains(&row), "docs/check.md has no row {row}");
        }
        let rows =
            documentation.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() == 4);
        assert_eq!(rows.count(), Kind::ALL.len(), "docs/check.md has rows for kinds that are gone");
    }

    #[test]
    fn findings_beyond_the_limit_are_counted_and_not_kept() {
        let mut findings = Findings::default();
        (0..FINDINGS_PER_KIND_MAX + 5).for_each(|i| findings.add(Kind::DataMismatch, i, "digest", 1, 2));
        findings.add(Kind::HintStale, "index", "entries", 0, 1);
        assert_eq!(findings.kept.len() as u64, FINDINGS_PER_KIND_MAX + 1);
        assert_eq!(findings.counts[&Kind::DataMismatch], FINDINGS_PER_KIND_MAX + 5);
    }
}
