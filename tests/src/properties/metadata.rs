//! Damage to a node of the metadata is noticed when it is used, and nothing is built upon it.

use super::*;
use crate::hooked::Rig;
use crate::properties::matching::Tail;
use dedup_device::IoKind;
use dedup_schema::{MAPPINGS, Mapping};
use dedup_volume::{CheckOnRead, OpenOptions, RunPolicy};
use std::sync::Mutex;

/// A volume whose trees nobody has read yet, and a change to the node of its mappings.
fn damaged(options: &OpenOptions, change: impl FnOnce(&mut Block, Uuid)) -> Volume {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.close().unwrap();
    let superblock = superblock(&disks);
    let store = Store::new(disks.metadata(), superblock.pool, 64);
    let node = superblock.volumes[0].mapping.base.node.unwrap();
    let mut block = store.read_raw(node.block).unwrap();
    change(&mut block, superblock.pool);
    store.write_raw(&block).unwrap();
    disks.open(options).unwrap()
}

/// The index is damaged: it is dropped, built anew, and finds duplicates again; its blocks come back, and no
/// other tree loses any.
pub fn a_damaged_index_is_built_anew_and_costs_no_other_tree_a_block(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    // Counts that stand in a tree of their own.
    (10..15).for_each(|lbn| write(&volume, lbn, 1));
    volume.close().unwrap();
    let root = superblock(&disks).hint.base.node.unwrap();
    disks.metadata.write(root.block.0 * 4096, &[0xff; 4096]).unwrap();
    let volume = disks.open(options).unwrap();
    write(&volume, 20, 100);
    while volume.collect_some().unwrap() {}
    (0..3).for_each(|_| volume.checkpoint().unwrap());
    let used = volume.status().data_used_blocks;
    (0..8).for_each(|lbn| write(&volume, 30 + lbn, lbn + 1));
    assert_eq!(volume.status().data_used_blocks, used, "duplicates are found by the new index");
    volume.close().unwrap();
    disks.assert_clean("the index was built anew");
}

/// The bytes of a block have changed, and the checksum beside its mapping fits them all the same: a read that
/// compares digests finds it.
pub fn damage_that_the_checksum_misses_is_found_by_the_digest(options: &OpenOptions) {
    let options = &OpenOptions { check_on_read: CheckOnRead::Digest, ..options.clone() };
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    // What the block of LBN 0 will hold, for the sake of its checksum.
    let mut changed_bytes = block(1, 4096);
    changed_bytes[17] ^= 1;
    run(&volume, Op::Write { offset: 4096, data: &changed_bytes, fua: false }).unwrap();
    volume.close().unwrap();
    damage_content(&disks, 1);
    let newest = superblock(&disks);
    let store = Store::new(disks.metadata(), newest.pool, 64);
    let (mut sink, mut changed) = Tail::of(&store, &newest);
    let mut mappings = Vec::new();
    let root = newest.volumes[0].mapping.base;
    MAPPINGS.get_many(&store, &root, &[0, 1], |_, mapping| mappings.push(mapping)).unwrap();
    let forged = Mapping { crc: mappings[1].crc, ..mappings[0] };
    changed.volumes[0].mapping.base =
        MAPPINGS.apply(&mut sink, &root, &[(0, forged)], &mut |_, _, _| {}).unwrap();
    dedup_meta::write_superblock(&store, &changed).unwrap();
    store.flush().unwrap();
    let volume = reopened(&disks, options);
    assert_eq!(read(&volume, 0), Err(RequestError::Io), "a read of content that has another digest");
    assert!(read(&volume, 1).unwrap() == changed_bytes);
}

/// Where hardly a metadata block is free, those that are freed are wanted at once; a checkpoint leaves the
/// older superblock's trees whole all the same, so the way back is there if the newest superblock is lost
/// meanwhile.
pub fn the_older_superblocks_trees_stay_whole_on_a_nearly_full_device(options: &OpenOptions) {
    let options = &OpenOptions { runs: RunPolicy::Never, ..options.clone() };
    let lbns = 400_000;
    let disks = Disks::new((lbns + 50) * 512, 4 << 20);
    disks.format(&FormatOptions { log_blocks: Some(64), block_size: 512, ..format_options(lbns * 512) });
    let rig = Rig::open(disks, options).unwrap();
    let place = |n: u64| n * 7919 % lbns;
    let stored = (0..4000).find(|n| try_write(&rig.volume, place(*n), n + 1, false).is_err()).unwrap();
    rig.volume.checkpoint().unwrap();
    for n in 0..60 {
        let moments = Arc::new(Mutex::new(Vec::new()));
        for checkpoint in 0..2 {
            let (disks, moments) = (rig.disks.clone(), moments.clone());
            // The trees are written, the superblock is not.
            rig.metadata.before_at(IoKind::Write, checkpoint, is_slot, move || {
                moments.lock().unwrap().push(disks.crash(|_, _, _| true));
            });
        }
        trim(&rig.volume, place(n), 1);
        // A volume so short of metadata checkpoints by itself; a second one, of nothing, would let the blocks
        // go that are to be missed.
        if rig.volume.status().commit.delta_operations > 0 {
            rig.volume.checkpoint().unwrap();
        }
        rig.metadata.forget_hooks();
        for damaged in moments.lock().unwrap().drain(..) {
            let newest = superblock(&damaged);
            for copy in [newest.layout.slot(newest.txid), newest.layout.spare(newest.txid)] {
                damaged.metadata.write(copy.0 * 4096, &[0xff; 4096]).unwrap();
            }
            let after = reopened(&damaged, options);
            (n + 1..stored).step_by(19).for_each(|kept| assert_content(&after, place(kept), kept + 1));
        }
    }
}

/// The index was damaged and dropped, and the metadata map is recounted: blocks of the LBN map's runs are in
/// use.
pub fn a_recount_keeps_the_blocks_of_runs(options: &OpenOptions) {
    let options = &OpenOptions { runs: RunPolicy::Always, ..options.clone() };
    let disks = formatted(600, 4096);
    let volume = disks.open(options).unwrap();
    (0..500).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    write(&volume, 510, 510);
    volume.close().unwrap();
    let root = superblock(&disks).hint.runs.iter().find_map(|root| root.node).unwrap();
    disks.metadata.write(root.block.0 * 4096, &[0xff; 4096]).unwrap();
    let volume = disks.open(options).unwrap();
    write(&volume, 520, 10_000);
    while volume.collect_some().unwrap() {}
    (0..3).for_each(|_| volume.checkpoint().unwrap());
    assert!(!superblock(&disks).volumes[0].mapping.runs.is_empty(), "nothing is in a run");
    volume.close().unwrap();
    disks.assert_clean("the metadata was recounted");
}

/// A large run is merged a few mappings a checkpoint, while younger runs stand above it: each LBN is mapped
/// to what was written last.
pub fn a_merge_in_slices_loses_no_mapping_and_brings_none_back(options: &OpenOptions) {
    let disks = formatted(600, 4096);
    let volume = disks.open(&OpenOptions { runs: RunPolicy::Always, ..options.clone() }).unwrap();
    (0..500).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    for n in 0..6 {
        write(&volume, n * 80, 1000 + n);
        volume.checkpoint().unwrap();
        (0..500).for_each(|lbn| {
            let is_new = lbn % 80 == 0 && lbn / 80 <= n;
            assert_content(&volume, lbn, if is_new { 1000 + lbn / 80 } else { lbn + 1 });
        });
        assert!(superblock(&disks).volumes[0].mapping.runs.len() > 1, "the run is merged already");
    }
}

/// Overwrites stand in runs above the mappings that they replace, and the runs have filters: reads find the
/// newest run's word.
pub fn a_mapping_in_a_run_is_found_through_its_filter(options: &OpenOptions) {
    let disks = formatted(400, 4096);
    let volume = disks.open(&OpenOptions { runs: RunPolicy::Always, ..options.clone() }).unwrap();
    for round in 0..4 {
        (0..20).for_each(|n| write(&volume, n * 17 + round, 1000 * round + n + 1));
        volume.checkpoint().unwrap();
        while volume.collect_some().unwrap() {}
        (0..20).for_each(|n| assert_content(&volume, n * 17 + round, 1000 * round + n + 1));
    }
    (0..20).for_each(|n| write(&volume, n * 17, 9000 + n));
    volume.checkpoint().unwrap();
    while volume.collect_some().unwrap() {}
    assert!(!superblock(&disks).volumes[0].mapping.runs.is_empty(), "nothing is in a run");
    (0..20).for_each(|n| assert_content(&volume, n * 17, 9000 + n));
}

/// Whether a superblock slot stands at this offset.
fn is_slot(offset: u64) -> bool {
    [0, 256 * 4096].contains(&offset)
}

/// One bit of a node flips. The mapping that is asked for is none of those that changed, so nothing else
/// would tell.
pub fn a_flipped_bit_in_a_node_is_noticed_by_whoever_reads_it(options: &OpenOptions) {
    let volume = damaged(options, |block, _| block.payload[5 * 12] ^= 1);
    assert!(read(&volume, 0).is_err(), "a node with a flipped bit was believed");
    assert!(volume.is_read_only(), "the volume goes on with damaged mappings");
    assert!(try_write(&volume, 1, 9, false).is_err(), "a write over damaged mappings");
}

/// An intact node stands where another version of it belongs, as after a write that the device lost.
pub fn an_intact_node_that_its_parent_does_not_name_is_refused(options: &OpenOptions) {
    let volume = damaged(options, |block, pool| {
        // LBNs 0 and 1 change places.
        let (first, second) = block.payload.split_at_mut(12);
        first.swap_with_slice(&mut second[..12]);
        block.seal(pool);
    });
    match read(&volume, 0) {
        Ok(found) => {
            assert!(found == block(1, 4096), "another version of a node was believed: other bytes were read");
            panic!("another version of a node was believed");
        }
        Err(_) => assert!(volume.is_read_only(), "the volume goes on with mappings of another time"),
    }
}
