//! Whatever bytes stand where, with right checksums: a check ends without a panic. That each changed field is
//! found is the sweep's to show, in `tests/tests/damage.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_checker::{CheckOptions, check};
use dedup_meta::LogSeq;
use proptest::prelude::*;
use std::sync::LazyLock;
use support::*;

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

/// Bytes to put at places of a block, the checksum's excepted. Mostly near the front, where headers, keys and
/// counts are.
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
