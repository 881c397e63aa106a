//! The metadata map against what the trees reach. After this nothing of the newest superblock's is left
//! unread.

use crate::Check;
use crate::report::{Findings, Kind};
use crate::sparse::PAGE;
use dedup_meta::{BlockType, MetaBlock};
use dedup_schema::META_MAP;
use dedup_spacemap::page;

impl Check<'_> {
    /// Walks the map, which makes its own blocks known, and then compares it.
    pub(crate) fn space(&mut self) {
        let (root, blocks) = (self.newest.roots.metamap, self.newest.layout.metadata_blocks);
        self.walk(BlockType::MetaMap, &root, |leaf, findings| {
            let beyond = META_MAP.leaf_entries(leaf).filter(|(block, _)| *block >= blocks);
            for (block, count) in beyond {
                findings.add(
                    Kind::MetadataCount,
                    format!("metadata block {block}"),
                    "count",
                    "0 beyond the device",
                    count,
                );
            }
        });
        self.summary.metadata_used = self.reach.blocks;
        let mut unreached = 0;
        for number in 0..blocks.div_ceil(PAGE) {
            match META_MAP.leaf(&*self.store, &root, number) {
                Ok(leaf) => {
                    let stored = leaf.as_ref().map(|leaf| &leaf.payload[..]);
                    unreached += self.compare_page(number, stored);
                }
                // What is behind a damaged node is unknown.
                Err(error) => self.findings.node_again(BlockType::MetaMap, &error),
            }
        }
        if unreached > 0 {
            self.tell_unreached(unreached);
        }
    }

    /// Compares a page of counts; returns how many blocks count as used and are not reached, if that is not
    /// for sure an error.
    fn compare_page(&mut self, number: u64, stored: Option<&[u8]>) -> u64 {
        let leaks_certain = !self.newest.recount_needed && self.reach.damaged == 0;
        let mut unreached = 0;
        let end = ((number + 1) * PAGE).min(self.newest.layout.metadata_blocks);
        for (i, block) in (number * PAGE..end).enumerate() {
            let stored = stored.map_or(0, |page| page::get(page, i));
            let references = self.reach.references(MetaBlock(block));
            if stored > 0 && references == 0 && !leaks_certain {
                unreached += 1;
            } else if stored != references.min(page::MAX_COUNT) {
                mismatch(block, stored, references, &mut self.findings);
            }
        }
        unreached
    }

    fn tell_unreached(&mut self, unreached: u64) {
        let found = format!("{unreached} that no tree reaches");
        let expected = match self.reach.damaged {
            0 => "0 but for the recount that is due",
            _ => "0 but for those below damaged nodes",
        };
        self.findings.add(Kind::MetadataRecount, "metadata map", "blocks in use", expected, found);
    }
}

fn mismatch(block: u64, stored: u8, references: u8, findings: &mut Findings) {
    let place = format_args!("metadata block {block}");
    match (stored, references) {
        (_, 0) => findings.add(Kind::MetadataLeak, place, "count", "0, as nothing refers to it", stored),
        (0, _) => findings.add(Kind::MetadataFree, place, "count", references, "0, free to be overwritten"),
        _ => findings.add(Kind::MetadataCount, place, "count", references, stored),
    }
}
