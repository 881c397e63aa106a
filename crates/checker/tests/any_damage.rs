//! Whatever bytes stand where: a check ends without a panic, and a changed byte that matters is told.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_btree::{Descend, Visit, Visitor};
use dedup_checker::{CheckOptions, check};
use dedup_meta::{BlockType, LogSeq, MetaBlock, Store, TxId};
use dedup_volume::{BAD, COUNTS, DIGESTS, HINTS, MAPPINGS, META_MAP, OVERFLOW};
use proptest::prelude::*;
use std::sync::LazyLock;
use support::*;

/// Collects the blocks of trees.
struct Blocks(Vec<MetaBlock>);

impl Visitor for Blocks {
    fn node(&mut self, visit: Visit<'_>) -> Descend {
        self.0.push(visit.at.block);
        Descend::Yes
    }
}

/// A volume with inner nodes in its trees, and a log.
static LARGE: LazyLock<Image> = LazyLock::new(|| {
    let disks = Disks::formatted(1500);
    let volume = disks.open(0);
    (0..1500).for_each(|lbn| write(&volume, lbn, 1 + lbn % 1100));
    volume.checkpoint().unwrap();
    (0..30).for_each(|lbn| write(&volume, lbn, 5000 + lbn));
    flush(&volume);
    disks.image()
});

static SMALL: LazyLock<Image> = LazyLock::new(sample_with_log);

/// Every block that the newest superblock reaches, and all superblock copies.
fn reachable(image: &Image) -> Vec<MetaBlock> {
    let superblock = image.superblock();
    let store = Store::new(image.metadata.clone(), superblock.pool, 64);
    let (n, layout) = (superblock.txid, superblock.layout);
    let other = TxId(n.0 + 1);
    let mut found = Blocks(vec![layout.slot(n), layout.slot(other), layout.spare(n), layout.spare(other)]);
    for (_, tree, root) in superblock.roots() {
        match tree {
            BlockType::Mapping => MAPPINGS.walk(&store, &root, &mut found),
            BlockType::Digest => DIGESTS.walk(&store, &root, &mut found),
            BlockType::RefCount => COUNTS.walk(&store, &root, &mut found),
            BlockType::Overflow => OVERFLOW.walk(&store, &root, &mut found),
            BlockType::Hint => HINTS.walk(&store, &root, &mut found),
            BlockType::Bad => BAD.walk(&store, &root, &mut found),
            _ => META_MAP.walk(&store, &root, &mut found),
        }
    }
    found.0
}

fn picks() -> impl Strategy<Value = Pick> {
    prop_oneof![
        Just(mappings as Pick),
        Just(digests as Pick),
        Just(counts as Pick),
        Just(overflow as Pick),
        Just(hints as Pick),
        Just(metamap as Pick),
    ]
}

/// Bytes to put at places of a block, the checksum's excepted. Mostly near the front, where headers, keys and counts are.
fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let place = prop_oneof![3 => 4_usize..32, 3 => 32_usize..400, 2 => 32_usize..4096];
    proptest::collection::vec((place, any::<u8>()), 1..6)
}

fn change(block: &mut dedup_meta::Block, changes: &[(usize, u8)]) {
    let bytes = zerocopy::IntoBytes::as_mut_bytes(block);
    changes.iter().for_each(|(at, value)| bytes[*at] = *value);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_flipped_bit_in_any_block_that_matters_is_told(choice in any::<prop::sample::Index>(), byte in 0_usize..4096, bit in 0..8_u8) {
        let image = LARGE.clone();
        let blocks = reachable(&image);
        let at = *choice.get(&blocks);
        image.flip(at, byte, 1 << bit);
        let report = image.check();
        let place = format!("metadata block {at} ");
        prop_assert!(report.findings.iter().any(|f| f.place.starts_with(&place)), "{at}, byte {byte}: {report}");
    }

    #[test]
    fn trees_of_any_bytes_with_right_checksums_do_no_harm(pick in picks(), changes in changes()) {
        let image = SMALL.clone();
        image.edit(pick, |block, _| change(block, &changes));
        image.check();
    }

    #[test]
    fn superblocks_of_any_bytes_with_right_checksums_do_no_harm(changes in changes(), large in any::<bool>()) {
        let image = if large { LARGE.clone() } else { SMALL.clone() };
        let superblock = image.superblock();
        for at in [superblock.layout.slot(superblock.txid), superblock.layout.spare(superblock.txid)] {
            let mut block = image.block(at);
            change(&mut block, &changes);
            block.seal(superblock.pool);
            image.put(at, &block);
        }
        let _ = check(Some(&*image.data), image.metadata.clone(), &CheckOptions::tiny(), &mut |_| ());
    }

    #[test]
    fn log_blocks_of_any_bytes_with_right_checksums_do_no_harm(number in 0..3_u64, changes in changes()) {
        let image = SMALL.clone();
        let superblock = image.superblock();
        let at = superblock.layout.log.place(LogSeq(superblock.log.next.0 + number));
        let mut block = image.block(at);
        change(&mut block, &changes);
        block.seal(superblock.pool);
        image.put(at, &block);
        image.check();
    }
}
