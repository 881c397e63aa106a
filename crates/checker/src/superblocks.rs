//! The four copies of the superblock: which are as a running or crashed volume leaves them, and which are
//! damaged.
//!
//! ```text
//!   write slot N | flush | write spare N ........ flush of the next commit | ... | write slot N+1 | flush | write spare N+1
//!        slot N torn           spare N torn or old                                slot of N-1 torn
//! ```
//!
//! With N the newest valid one, so:
//! - slot of N: must hold N. If N stands in the spare alone, the slot was damaged later.
//! - slot of N-1: holds N-1, or is torn by the writing of N+1.
//! - spare of N: holds N, or an older one, or is torn, or is empty, if every earlier write to it was lost in
//!   a crash.
//! - spare of N-1: was durable when the slot of N was written, unless a crash came between: then N began a
//!   new epoch, or N is the mark of a close, which is flushed together with the spare before it.

use crate::report::{Findings, Kind};
use dedup_meta::{Access, BlockFault, CopyState, MetaBlock, Superblock, Survey, TxId};

/// A place in its role.
struct Place {
    at: MetaBlock,
    name: &'static str,
    /// The superblock that should be there.
    txid: u64,
    /// Whether a crash may leave it torn or older.
    torn_ok: bool,
    older_ok: bool,
}

/// Looks at every copy, given the newest superblock and the one before it.
pub(crate) fn check(
    survey: &Survey,
    newest: &Superblock,
    older: Option<&Superblock>,
    findings: &mut Findings,
) {
    let places = places(newest, older);
    for copy in &survey.copies {
        match places.iter().find(|place| place.at == copy.block) {
            Some(place) => check_place(place, &copy.state, newest, findings),
            None => check_stray(copy.block, &copy.state, findings),
        }
    }
    compare_copies(survey, newest, findings);
    if let Access::ReadOnly { unknown } = newest.access() {
        let found = format!("{unknown:#x}");
        findings.add(Kind::SuperblockNote, "superblock", "ro_compat features", "known ones", found);
    }
    if newest.needs_check {
        findings.add(Kind::SuperblockNote, "superblock", "needs_check", "not set", "set");
    }
    if newest.volumes.len() > 1 {
        findings.add(Kind::SuperblockField, "superblock", "volume_count", 1, newest.volumes.len());
    }
    if dedup_schema::DigestAlgorithm::from_u8(newest.digest_algorithm).is_none() {
        let found = newest.digest_algorithm;
        let expected = format!("1 to {}", dedup_schema::DigestAlgorithm::ALL.len());
        findings.add(Kind::SuperblockField, "superblock", "digest_algorithm", &expected, found);
    }
}

fn places(newest: &Superblock, older: Option<&Superblock>) -> [Place; 4] {
    let (layout, n) = (&newest.layout, newest.txid.0);
    let before = n.saturating_sub(1);
    let other = TxId(n + 1);
    let flushed =
        older.is_some_and(|older| older.txid.0 == before && older.epoch == newest.epoch) && !newest.clean;
    [
        Place { at: layout.slot(newest.txid), name: "slot", txid: n, torn_ok: false, older_ok: false },
        Place { at: layout.slot(other), name: "slot", txid: before, torn_ok: true, older_ok: false },
        Place { at: layout.spare(newest.txid), name: "spare", txid: n, torn_ok: true, older_ok: true },
        Place { at: layout.spare(other), name: "spare", txid: before, torn_ok: !flushed, older_ok: !flushed },
    ]
}

fn check_place(place: &Place, state: &CopyState, newest: &Superblock, findings: &mut Findings) {
    let Place { at, name, txid, .. } = *place;
    let where_ = format!("metadata block {at} (superblock {name})");
    let expected = format!("transaction {txid}");
    match state {
        CopyState::Valid(found) if found.pool != newest.pool => {
            findings.add(Kind::SuperblockCopy, where_, "pool", newest.pool, found.pool);
        }
        CopyState::Valid(found) if found.txid.0 == txid => {}
        CopyState::Valid(found) if place.older_ok && found.txid.0 < txid => {
            let found = format!("transaction {}", found.txid);
            findings.add(Kind::SuperblockTorn, where_, "txid", expected, found);
        }
        CopyState::Valid(found) => {
            let found = format!("transaction {}", found.txid);
            findings.add(Kind::SuperblockCopy, where_, "txid", expected, found);
        }
        // A place that no transaction was ever written to.
        CopyState::Empty if txid == 0 || (place.older_ok && txid <= 2) => {}
        CopyState::Empty if place.older_ok => {
            findings.add(Kind::SuperblockTorn, where_, "magic", expected, "no superblock");
        }
        CopyState::Empty => findings.add(Kind::SuperblockCopy, where_, "magic", expected, "no superblock"),
        CopyState::Unreadable(error) => findings.add(Kind::SuperblockCopy, where_, "read", expected, error),
        CopyState::Unsupported { reason, .. } => {
            findings.add(Kind::SuperblockCopy, where_, "version", expected, reason);
        }
        CopyState::Damaged(fault) => {
            // What a crash tears does not pass its checksum; what passes was written like that.
            let torn = place.torn_ok && matches!(fault, BlockFault::Checksum { .. });
            let kind = if torn { Kind::SuperblockTorn } else { Kind::SuperblockCopy };
            findings.fault(kind, where_, fault);
        }
    }
}

/// A transaction's slot and its spare are the same superblock, written twice: where they differ, one was not
/// written by a transaction.
fn compare_copies(survey: &Survey, newest: &Superblock, findings: &mut Findings) {
    let valid: Vec<(MetaBlock, &Superblock)> = survey
        .copies
        .iter()
        .filter_map(|copy| match &copy.state {
            CopyState::Valid(found) if found.pool == newest.pool => Some((copy.block, &**found)),
            _ => None,
        })
        .collect();
    for (i, (_, first)) in valid.iter().enumerate() {
        for (at, second) in valid[i + 1..].iter().filter(|(_, second)| second.txid == first.txid) {
            for (field, expected, found) in differences(first, second) {
                let place = format!("metadata block {at} (superblock copy of transaction {})", first.txid);
                findings.add(Kind::SuperblockCopy, place, field, expected, found);
            }
        }
    }
}

/// Fields in which two superblocks differ, with both values.
fn differences(a: &Superblock, b: &Superblock) -> Vec<(&'static str, String, String)> {
    macro_rules! fields {
        ($($name:literal: $($field:ident).+;)*) => {
            [$(($name, (a.$($field).+ != b.$($field).+).then(|| {
                (format!("{:?}", a.$($field).+), format!("{:?}", b.$($field).+))
            })),)*]
        };
    }
    let fields = fields! {
        "compat": features.compat;
        "ro_compat": features.ro_compat;
        "incompat": features.incompat;
        "block_size": block_size;
        "data_device": data_device;
        "digest_algorithm": digest_algorithm;
        "verify_match": verify_match;
        "flushrq": flushrq;
        "data_blocks": data_blocks;
        "metadata_blocks": layout.metadata_blocks;
        "log_blocks": layout.log.blocks;
        "flags": clean;
        "flags": needs_check;
        "flags": recount_needed;
        "epoch": epoch;
        "epoch_start": epoch_start;
        "log_next": log.next;
        "log_prev_crc": log.prev_crc;
        "op_seq": op_seq;
        "counters": counters;
        "data_used": data_used;
        "mapped": mapped;
        "cursor": cursor;
        "hint_rebuild_next": hint_rebuild_next;
        "digest root": roots.digest;
        "refcount root": roots.refcount;
        "overflow root": roots.overflow;
        "bad root": roots.bad;
        "metamap root": roots.metamap;
        "hint": hint;
        "volumes": volumes;
    };
    fields.into_iter().filter_map(|(name, values)| values.map(|(a, b)| (name, a, b))).collect()
}

/// A copy where the newest superblock has none: left over from when the device had another size.
fn check_stray(at: MetaBlock, state: &CopyState, findings: &mut Findings) {
    if matches!(state, CopyState::Valid(_) | CopyState::Unsupported { .. }) {
        let place = format!("metadata block {at}");
        findings.add(Kind::SuperblockNote, place, "superblock copy", "none here", "one of another layout");
    }
}
