//! What the older superblock would need if the newest were lost: its blocks, none of which may be overwritten
//! yet, and its log.

use crate::Check;
use crate::report::{Findings, Kind, node_place};
use crate::sparse::Sparse;
use crate::trees::{Reach, WINDOW, sweep};
use dedup_btree::{Descend, Visit, Visitor};
use dedup_meta::{BlockRef, BlockType, LogDamage, MetaBlock, scan};

struct Older<'c> {
    tree: BlockType,
    device_blocks: u64,
    /// What the newest superblock reaches, and has been read already.
    newest: &'c Reach,
    /// What this walk has met.
    met: &'c mut Sparse<u8>,
    findings: &'c mut Findings,
}

impl Visitor for Older<'_> {
    fn reference(&mut self, at: BlockRef, level: u8, _parent: Option<MetaBlock>) -> bool {
        if at.block.0 >= self.device_blocks {
            return true;
        }
        if self.newest.references(at.block) > 0 {
            let found = self.newest.version(at.block);
            if found != at.crc {
                let place = node_place(self.tree, at.block, level);
                let found = format!("{found:#010x}, in use by the newest superblock");
                self.findings.add(Kind::OlderTree, place, "checksum", format!("{:#010x}", at.crc), found);
            }
            return false;
        }
        let met = self.met.slot(at.block.0);
        let first = *met == 0;
        *met = 1;
        first
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        if let Err(error) = &visit.node {
            self.findings.node(Kind::OlderTree, self.tree, visit.at.block, visit.level, error);
        }
        Descend::Yes
    }
}

impl Check<'_> {
    /// Walks what only the older superblock reaches.
    pub(crate) fn older_trees(&mut self) {
        let Some(older) = &self.older else { return };
        let mut met = Sparse::default();
        for (_, tree, root) in older.roots() {
            let mut visitor = Older {
                tree,
                device_blocks: self.newest.layout.metadata_blocks,
                newest: &self.reach,
                met: &mut met,
                findings: &mut self.findings,
            };
            let mut sweep = sweep(tree, &self.reader, WINDOW, &root);
            while sweep.step(&mut visitor) {}
        }
    }

    /// Whether the log leads from the older superblock to the newest (rule R3).
    pub(crate) fn older_log(&mut self) {
        let Some(older) = &self.older else { return };
        let (needed, device) = (self.newest.log.next, &**self.store.device());
        if older.log.next == needed {
            return;
        }
        let log = scan(device, older.pool, older.layout.log, older.log, older.epoch, older.epoch_start);
        match log.damage {
            Some(damage @ LogDamage::Released { .. }) => {
                let place = format!("log block {}", older.log.next);
                self.findings.add(Kind::OlderLog, place, "seq", older.log.next, damage);
            }
            _ if log.end.next < needed => {
                let place = format!("log block {}", log.end.next);
                let expected = format!("blocks up to {needed}, where the newest superblock goes on");
                self.findings.add(Kind::OlderLog, place, "log", expected, "an end");
            }
            _ => {}
        }
    }
}
