//! What a forgery may do: a change of one field after which every checksum is right again. No medium does
//! that by accident.
//!
//! Each line is a type of block, a field, and why. A line that no damage needed fails the test, so the lists
//! are as short as they can be.

use std::collections::{BTreeMap, BTreeSet};

/// Type of block, field, reason.
type Exception = (&'static str, &'static str, &'static str);

/// Not found by the checker. None of these changes what a block reads as, unless [`FORGED`] has it too.
pub(crate) static SILENT: &[Exception] = &[
    ("bad", "birth", BIRTH),
    ("digest", "birth", BIRTH),
    ("hint", "birth", BIRTH),
    ("mapping", "birth", BIRTH),
    ("mapping-run", "birth", BIRTH),
    ("mapping-run", "mapping.crc", "of a mapping that a younger run hides"),
    ("metamap", "birth", BIRTH),
    ("overflow", "birth", BIRTH),
    ("refcount", "birth", BIRTH),
    ("digest", "digest", "of a block that is free: what it last held"),
    ("hint", "key.pbn", HINT),
    ("hint", "key.prefix", HINT),
    ("label", "identity", LABEL),
    ("label", "zeros", PADDING),
    ("log", "unused", PADDING),
    ("log", "first index", PADDING),
    ("log", "group", LABEL),
    ("log", "flags", LABEL),
    ("log", "counters", STATISTICS),
    ("log", "durable", "claims less than it might: what is claimed besides is enough"),
    ("log", "birth", "an epoch of the log's own making"),
    ("log", "record.bad pbn", MARK),
    ("log", "record.bad type", MARK),
    ("log", "record.healed pbn", MARK),
    ("log", "record.healed type", MARK),
    ("log", "record.map lbn", OPERATION),
    ("log", "record.unmap lbn", OPERATION),
    ("log", "record.unmap blocks", OPERATION),
    ("superblock", "bad root.padding", PADDING),
    ("superblock", "digest root.padding", PADDING),
    ("superblock", "hint root.padding", PADDING),
    ("superblock", "hint run.padding", PADDING),
    ("superblock", "mapping root.padding", PADDING),
    ("superblock", "mapping run.padding", PADDING),
    ("superblock", "mapping run_count", "one run more, which is empty and says nothing"),
    ("superblock", "metamap root.padding", PADDING),
    ("superblock", "overflow root.padding", PADDING),
    ("superblock", "refcount root.padding", PADDING),
    ("superblock", "padding", PADDING),
    ("superblock", "unused", PADDING),
    ("superblock", "entries", PADDING),
    ("superblock", "first index", PADDING),
    ("superblock", "compat", "features that anybody may ignore"),
    ("superblock", "ro_compat", "features to come: told as info, and the volume opens for reading only"),
    ("superblock", "counters", STATISTICS),
    ("superblock", "cursor", SETTING),
    ("superblock", "flags", "told as info where it asks for something"),
    ("superblock", "flushrq", SETTING),
    ("superblock", "verify_match", SETTING),
    ("superblock", "volume.id", LABEL),
    (
        "superblock",
        "volume.logical_blocks",
        "the size is recorded once; larger, and there are more zeros at the end",
    ),
    ("superblock", "epoch", "recorded once"),
    ("superblock", "incompat", "a bit that is known says what the log may hold, not what it does"),
    ("superblock", "epoch_start", "earlier than it was, it claims less"),
];

/// After which a block reads as something else. The format has one account of these: that of the forged
/// field.
pub(crate) static FORGED: &[Exception] = &[
    ("log", "birth", "a higher epoch makes what follows a leftover of a crash"),
    ("log", "record.map lbn", OPERATION),
    ("log", "record.unmap lbn", OPERATION),
    ("log", "record.unmap blocks", OPERATION),
    (
        "mapping-run",
        "key.lbn",
        "an index node is the one account of which leaf has an LBN; found by the checker",
    ),
    ("superblock", "epoch", "a higher epoch makes the log a leftover of a crash"),
    ("superblock", "log_next", "the log is taken up elsewhere, if nothing behind it claims to be durable"),
    ("superblock", "log_blocks", "the log is looked for where it is not; found by the metadata map"),
];

const MARK: &str = "a mark on another block: a read finds damage by itself";
const OPERATION: &str =
    "the log is the one account of it until a checkpoint: it was made of other blocks, unmapped ones too";
const BIRTH: &str = "when a node was written: for people, nothing goes by it";
const HINT: &str = "the index is a hint: told as info, as an entry that is missing or stale";
const PADDING: &str = "bytes without a meaning, left to later versions";
const LABEL: &str = "a name or a mark that nothing depends on";
const STATISTICS: &str = "counted since format, and nowhere else";
const SETTING: &str = "a default or a place to go on from: any value is valid";

/// Which exceptions were needed, and which are missing.
#[derive(Default)]
pub(crate) struct Exceptions {
    needed: BTreeSet<Exception>,
    missing: BTreeMap<String, String>,
}

impl Exceptions {
    /// A damage is an exception, and the list must say so.
    pub(crate) fn demand(&mut self, list: &'static [Exception], kind: &str, class: &str, what: &str) {
        match list.iter().find(|(a, b, _)| *a == kind && *b == class) {
            Some(exception) => drop(self.needed.insert(*exception)),
            None => {
                let name = if std::ptr::eq(list, SILENT) { "not found" } else { "other bytes" };
                self.missing.entry(format!("{name}: ({kind:?}, {class:?})")).or_insert(what.to_string());
            }
        }
    }

    /// Fails if a list has a line too few or too many.
    pub(crate) fn assert_exact(&self) {
        let unneeded: Vec<_> =
            SILENT.iter().chain(FORGED).filter(|exception| !self.needed.contains(*exception)).collect();
        assert!(self.missing.is_empty(), "no exception has these: {:#?}", self.missing);
        assert!(unneeded.is_empty(), "these exceptions are not needed: {unneeded:#?}");
    }
}
