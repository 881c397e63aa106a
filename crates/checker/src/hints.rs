//! The digest index: only a hint, so what it lacks or has too much of is counted and no error.
//!
//! The index is sorted by digest and the digests by block, so neither can be looked up cheaply in the other. Each block in use has
//! 14 bits of its digest in memory instead ([`tag`]): an entry that they agree with counts as good.

use crate::Check;
use crate::report::Kind;
use crate::truth::{TAG_INDEXED, Truth};
use dedup_btree::KeySet;
use dedup_meta::BlockType;
use dedup_volume::{HINT_SET, HINTS, HintKey, Pbn};

impl Check<'_> {
    /// Walks the index and its runs.
    pub(crate) fn hints(&mut self, truth: &mut Truth) {
        let (set, data_blocks) = (self.newest.hint.clone(), self.newest.data_blocks);
        let mut stale = 0_u64;
        let has_runs = !set.runs.is_empty();
        for root in KeySet::<HintKey>::trees(&set) {
            let mut entries = 0;
            let met = self.walk(BlockType::Hint, root, |leaf, findings| {
                for (key, ()) in HINTS.leaf_entries(leaf) {
                    entries += 1;
                    let pbn = key.pbn.0;
                    if !(1..data_blocks).contains(&pbn) {
                        let place = format!("index entry {:016x}", key.prefix);
                        findings.add(Kind::HintEntry, place, "pbn", format!("1 to {}", data_blocks - 1), pbn);
                    } else if !has_runs {
                        stale += u64::from(!truth.index(pbn, key.prefix));
                    }
                }
            });
            self.check_total(Kind::HintEntry, BlockType::Hint, root, met, entries);
            self.summary.hint_entries += entries;
        }
        if has_runs {
            // What a run says of an entry hides what stands below it, so all trees are read again, side by side. Damage was reported.
            let first = HintKey { prefix: 0, pbn: Pbn(0) };
            let valid = HINT_SET.range(&*self.store, &set, first).map_while(Result::ok);
            self.summary.hint_entries = valid.fold(0, |entries, key| {
                stale += u64::from(!truth.index(key.pbn.0, key.prefix));
                entries + 1
            });
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
