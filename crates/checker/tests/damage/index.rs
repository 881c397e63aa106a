//! The digest index.

use crate::support::*;
use crate::*;

#[test]
fn an_entry_for_a_block_that_does_not_exist_is_a_warning() {
    let image = sample();
    let blocks = image.superblock().data_blocks;
    image.edit(hints, |block, _| {
        let last = usize::from(block.header.entries.get()) - 1;
        block.payload[last * 14 + 8..][..6].copy_from_slice(&blocks.to_le_bytes()[..6]);
    });
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].kind, &*problems[0].field), (Kind::HintEntry, "pbn"));
}
