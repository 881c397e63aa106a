//! Every kind of damage, made on purpose: it is found, and named with its place and its field.
//!
//! "Damaged" means that bytes change and checksums do not; "contradicts" means that all checksums are right
//! and the content is not.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

#[path = "../support/mod.rs"]
mod support;

mod data;
mod index;
mod log;
mod pairing;
mod runs;
mod space;
mod trees;
mod truth;

use dedup_checker::{CheckError, CheckOptions, Kind, check};
use dedup_device::{BlockDevice, MemDevice};
use dedup_meta::{BlockRef, Layout, META_BLOCK_SIZE, MetaBlock, Root, Store, Superblock, TxId};
use dedup_schema::{Label, Lbn, Mapping, MappingLeaf, Pbn, Record};
use std::sync::Arc;
use support::*;

/// The stored count of a block, in the payload of a count leaf.
fn set_count(payload: &mut [u8], pbn: u64, count: u8) {
    dedup_spacemap::page::set(payload, pbn as usize, count);
}

fn get_count(payload: &[u8], pbn: u64) -> u8 {
    dedup_spacemap::page::get(payload, pbn as usize)
}

/// Where an LBN is mapped to.
fn pbn_of(image: &Image, lbn: u64) -> u64 {
    let leaf = image.block(image.root_block(mappings));
    <MappingLeaf as dedup_btree::LeafCodec>::get(&leaf.payload, lbn as usize).pbn.0
}

/// Changes a mapping; the leaf's and the root's figures follow.
fn remap(image: &Image, lbn: u64, change: impl FnOnce(&mut Mapping)) {
    use dedup_btree::LeafCodec;
    image.edit(mappings, |block, root| {
        let mut mapping = MappingLeaf::get(&block.payload, lbn as usize);
        change(&mut mapping);
        MappingLeaf::set(&mut block.payload, lbn as usize, mapping);
        let used = MappingLeaf::used(&block.payload);
        block.header.entries = (used as u16).into();
        root.entries = used.into();
    });
}

#[test]
fn a_metadata_block_that_cannot_be_read_is_a_finding_and_not_the_end() {
    use dedup_device::{IoKind, SimDevice};
    let image = sample();
    let at = image.root_block(overflow);
    let disk = SimDevice::from_image(image.metadata.image());
    let offset = at.0 * META_BLOCK_SIZE as u64;
    disk.fail_region(IoKind::Read, offset..offset + 1);
    let report = check(Some(&*image.data), Arc::new(disk), &CheckOptions::tiny(), &mut |_| ()).unwrap();
    assert_eq!((report.findings[0].kind, &*report.findings[0].field), (Kind::TreeNode, "read"));
    assert_eq!(report.counts[&Kind::TreeNode], 1, "{report}");
}
