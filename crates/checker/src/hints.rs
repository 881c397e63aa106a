//! The digest index: only a hint, so what it lacks or has too much of is counted and no error.

use crate::Check;
use crate::batch::{Batch, Note};
use crate::merge::Stream;
use crate::report::Kind;
use crate::tags::tag;
use crate::truth::Truth;
use dedup_btree::KeySet;
use dedup_meta::BlockType;
use dedup_schema::{HINTS, HintKey};

impl Check<'_> {
    /// Walks the index and its runs, side by side: what a run says of an entry hides what stands below it.
    pub(crate) fn hints(&mut self, truth: &mut Truth) {
        let (set, data_blocks) = (self.newest.hint.clone(), self.newest.data_blocks);
        let trees: Vec<_> = KeySet::<HintKey>::trees(&set).copied().collect();
        // The base, then what each run adds and removes.
        let mut streams: Vec<Stream<HintKey, ()>> = trees
            .iter()
            .enumerate()
            .rev()
            .map(|(i, root)| self.stream(BlockType::Hint, root, i == 0))
            .collect();
        let newest = streams.len() - 1;
        let (mut entries, mut stale) = (0, 0);
        let mut batch = Batch::default();
        let mut look = |page, notes: &[Note]| stale += truth.tags.index(page, notes);
        let exists = |key: &HintKey| (1..data_blocks).contains(&key.pbn.0);
        self.merge(
            &mut streams,
            |leaf, ahead, findings| {
                ahead.extend(HINTS.leaf_entries(leaf));
                for (key, ()) in ahead.iter().filter(|(key, ())| !exists(key)) {
                    let place = format!("index entry {:016x}", key.prefix);
                    let expected = format!("1 to {}", data_blocks - 1);
                    findings.add(Kind::HintEntry, place, "pbn", expected, key.pbn.0);
                }
            },
            |part, _| {
                let tree = newest - part.stream;
                if tree > 0 && tree.is_multiple_of(2) {
                    return; // removed
                }
                entries += part.entries.len() as u64;
                for (key, ()) in part.entries.iter().filter(|(key, ())| exists(key)) {
                    if batch.push(key.pbn.0, tag(key.prefix)) {
                        batch.drain(&mut look);
                    }
                }
            },
        );
        batch.drain(&mut look);
        for stream in streams.iter().rev() {
            self.check_total(Kind::HintEntry, BlockType::Hint, &stream.root, stream.met, stream.entries);
        }
        let missing = truth.tags.unindexed();
        self.summary.hint_entries = entries;
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
