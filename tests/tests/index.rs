//! The digest index is a hint: it can be damaged or lost, no data is, and it is built anew from the digests while the volume works.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::BlockDevice;
use dedup_tests::*;
use dedup_volume::{Label, OpenOptions};

const BLOCKS: u64 = 3000;

/// A closed volume of unique blocks, and the place of the index's root on its metadata device.
fn filled() -> (Disks, u64) {
    let disks = Disks::new(2 * BLOCKS * 4096, 16 << 20);
    disks.format(&format_options(2 * BLOCKS * 4096));
    let volume = disks.open(&OpenOptions { delta_max: 1000, ..options() }).unwrap();
    (0..BLOCKS).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.close().unwrap();
    let label = Label::read(&*disks.data).unwrap();
    let survey = dedup_meta::load_superblocks(&*disks.metadata);
    let root = survey.newest(Some(label.pool)).unwrap().hint.base.node.unwrap();
    (disks, root.block.0 * 4096)
}

/// Rebuilds, recounts and sweeps until nothing is left to do.
fn collect(volume: &dedup_volume::Volume) {
    let mut slices = 0;
    while volume.collect_some().unwrap() {
        slices += 1;
        assert!(slices < 1000, "collection does not end");
    }
}

#[test]
fn a_damaged_index_is_dropped_and_rebuilt_and_no_block_is_lost_or_leaked() {
    for background in [false, true] {
        let (disks, root) = filled();
        disks.metadata.write(root + 1024, &[0xff; 512]).unwrap();
        let volume = disks.open(&OpenOptions { background, ..options() }).unwrap();
        // Its content is stored already, which nobody knows at this moment.
        write(&volume, BLOCKS, 1);
        (0..=BLOCKS).step_by(100).for_each(|lbn| assert_content(&volume, lbn, lbn % BLOCKS + 1));
        if background {
            while volume.status().gc.rebuilding || volume.status().index_entries < BLOCKS {
                volume.checkpoint().unwrap();
                volume.gc_start();
                std::thread::yield_now();
            }
        } else {
            collect(&volume);
            volume.checkpoint().unwrap();
        }
        let used = volume.status().data_used_blocks;
        (0..200).for_each(|i| write(&volume, BLOCKS + 1 + i, 2 + i));
        assert_eq!(volume.status().data_used_blocks, used, "the rebuilt index knows what is stored");
        if !background {
            collect(&volume);
            volume.checkpoint().unwrap();
            volume.close().unwrap();
            disks.assert_clean("the old index's blocks are free again");
        }
    }
}

#[test]
fn a_sweep_removes_the_entries_of_freed_blocks_and_no_others() {
    let (disks, _) = filled();
    let volume = disks.open(&options()).unwrap();
    trim(&volume, 0, BLOCKS / 2);
    volume.checkpoint().unwrap();
    let estimate = volume.gc_estimate().unwrap();
    assert_eq!((estimate.entries, estimate.stale), (BLOCKS, BLOCKS / 2));
    volume.gc_start();
    collect(&volume);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().index_entries, BLOCKS / 2);
    assert_eq!(volume.status().counters.gc_counter, BLOCKS / 2);
    let used = volume.status().data_used_blocks;
    write(&volume, 1, BLOCKS);
    assert_eq!(volume.status().data_used_blocks, used, "an entry in use is still there");
    volume.close().unwrap();
    disks.assert_clean("after the sweep");
}
