//! The digest index: only a hint, so what it lacks or has too much of is counted and no error.
//!
//! The index is sorted by digest and the digests by block, so neither can be looked up cheaply in the other. Each block in use has
//! 14 bits of its digest in memory instead ([`tag`]): an entry that they agree with counts as good.

use crate::Check;
use crate::report::Kind;
use crate::truth::{TAG_INDEXED, Truth, tag};
use dedup_meta::BlockType;
use dedup_volume::HINTS;

impl Check<'_> {
    /// Walks the index and its runs.
    pub(crate) fn hints(&mut self, truth: &mut Truth) {
        let (set, data_blocks) = (self.newest.hint.clone(), self.newest.data_blocks);
        let mut stale = 0_u64;
        for root in std::iter::once(&set.base).chain(&set.runs) {
            let mut entries = 0;
            let met = self.walk(BlockType::Hint, root, |leaf, findings| {
                for (key, ()) in HINTS.leaf_entries(leaf) {
                    entries += 1;
                    let pbn = key.pbn.0;
                    if !(1..data_blocks).contains(&pbn) {
                        let place = format!("index entry {:016x}", key.prefix);
                        findings.add(Kind::HintEntry, place, "pbn", format!("1 to {}", data_blocks - 1), pbn);
                    } else if truth.tags.get(pbn) == tag(key.prefix) {
                        *truth.tags.slot(pbn) |= TAG_INDEXED;
                    } else {
                        stale += 1;
                    }
                }
            });
            self.check_total(Kind::HintEntry, BlockType::Hint, root, met, entries);
            self.summary.hint_entries += entries;
        }
        let missing = truth.tags.iter().filter(|(_, tag)| *tag != 0 && tag & TAG_INDEXED == 0).count() as u64;
        (self.summary.hint_stale, self.summary.hint_missing) = (stale, missing);
        for (kind, field, count) in
            [(Kind::HintStale, "stale entries", stale), (Kind::HintMissing, "missing entries", missing)]
        {
            if count > 0 {
                self.findings.add(kind, "index", field, 0, count);
            }
        }
        truth.tags = Default::default();
    }
}
