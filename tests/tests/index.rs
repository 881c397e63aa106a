//! The digest index is a hint: it can be damaged or lost, no data is, and it is built anew from the digests
//! while the volume works.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind};
use dedup_meta::Superblock;
use dedup_tests::hooked::Rig;
use dedup_tests::*;
use dedup_volume::{FormatOptions, Label, Op, OpenOptions, RunPolicy};
use std::sync::Arc;
use std::sync::mpsc::channel;

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

/// After the index was lost, its blocks are found by walking the trees that are left. What of these cannot be
/// read may hold any of the blocks that the walk did not meet: they stay as they are.
#[test]
fn a_recount_that_meets_damage_in_the_truth_frees_nothing_and_stays_due() {
    let (disks, root) = filled();
    let volume = disks.open(&options()).unwrap();
    disks.metadata.write(root + 1024, &[0xff; 512]).unwrap();
    write(&volume, BLOCKS, u64::MAX >> 2);
    while !newest(&disks).recount_needed {
        assert!(volume.collect_some().unwrap(), "no recount became due");
        volume.checkpoint().unwrap();
    }
    drop(volume);
    let mapping = newest(&disks).volumes[0].mapping.base;
    assert!(mapping.level > 0, "only what has children is read");
    disks.metadata.write(mapping.node.unwrap().block.0 * 4096 + 1024, &[0xff; 512]).unwrap();
    let volume = disks.open(&options()).unwrap();
    let used = volume.status().metadata_used_blocks;
    // Whatever comes first of the slices that are left: the index is built anew before.
    let error = (0..100).find_map(|_| volume.collect_some().err()).expect("the recount met nothing");
    assert!(error.to_string().contains("checksum"), "{error}");
    volume.checkpoint().unwrap();
    assert!(newest(&disks).recount_needed, "the next open begins it again");
    let used_now = volume.status().metadata_used_blocks;
    assert!(
        used_now >= used,
        "{used_now} of {used} blocks are left: some were freed that the damaged tree may have"
    );
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

/// Nobody asks for a sweep for months; overwrites and trims must not let the index grow without end.
#[test]
fn an_index_of_more_than_a_quarter_too_many_entries_is_swept_unasked_and_a_sweep_can_be_stopped() {
    const MANY: u64 = 80 << 10;
    let disks = Disks::new(MANY * 512 + (64 << 10), 64 << 20);
    disks.format(&FormatOptions { block_size: 512, ..format_options(MANY * 512) });
    // While runs are merged, entries are counted twice.
    let options = OpenOptions { cache_bytes: 16 << 20, runs: RunPolicy::Never, ..options() };
    let volume = disks.open(&options).unwrap();
    for first in (0..MANY).step_by(1024) {
        let data: Vec<u8> = (first..first + 1024).flat_map(|lbn| block(lbn + 1, 512)).collect();
        run(&volume, Op::Write { offset: first * 512, data: &data, fua: false }).unwrap();
    }
    volume.checkpoint().unwrap();
    collect(&volume);
    assert_eq!(volume.status().index_entries, MANY, "nothing is stale, and nothing was swept");
    volume.gc_start();
    assert!(volume.status().gc.running);
    volume.gc_stop();
    assert!(
        !volume.status().gc.running && !volume.collect_some().unwrap(),
        "a stopped sweep goes no further"
    );
    trim(&volume, 0, MANY / 4);
    volume.checkpoint().unwrap();
    collect(&volume);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().index_entries, MANY - MANY / 4);
    volume.close().unwrap();
    disks.assert_clean("after the sweep");
}

fn check(disks: &Disks) -> dedup_checker::Report {
    let options = dedup_checker::CheckOptions { data: true, cache_bytes: 1 << 20 };
    dedup_checker::check(Some(&*disks.data), disks.metadata(), &options, &mut |_| ()).unwrap()
}

fn newest(disks: &Disks) -> Superblock {
    let label = Label::read(&*disks.data).unwrap();
    dedup_meta::load_superblocks(&*disks.metadata).newest(Some(label.pool)).unwrap().clone()
}

/// A volume that was filled, overwritten and trimmed in random places, with so many checkpoints and opens
/// between that its index has a base and runs; what each block holds; and the most runs that it had.
fn in_runs(seed: u64) -> (Disks, Vec<u64>, usize) {
    let disks = Disks::new(2 * BLOCKS * 4096, 16 << 20);
    disks.format(&format_options(BLOCKS * 4096));
    let options = OpenOptions { runs: RunPolicy::Always, delta_max: 1000, ..options() };
    let mut volume = disks.open(&options).unwrap();
    let (mut rng, mut held) = (rng::Rng::new(seed), vec![0; BLOCKS as usize]);
    let (mut content, mut runs_max) = (0, 0);
    for round in 0..80 {
        for _ in 0..[3, 30, 200][rng.below(3) as usize] {
            let lbn = rng.below(BLOCKS);
            // Now and then what was stored before, and perhaps overwritten since.
            let back = rng.below(5) == 0 && content > 0;
            content += u64::from(!back);
            held[lbn as usize] = if back { 1 + rng.below(content) } else { content };
            write(&volume, lbn, held[lbn as usize]);
        }
        let (lbn, blocks) = (rng.below(BLOCKS - 20), rng.below(20));
        trim(&volume, lbn, blocks);
        held[lbn as usize..][..blocks as usize].fill(0);
        volume.checkpoint().unwrap();
        runs_max = runs_max.max(newest(&disks).hint.runs.len() / 2);
        if round % 7 == 0 {
            volume.close().unwrap();
            volume = disks.open(&options).unwrap();
        }
    }
    volume.close().unwrap();
    (disks, held, runs_max)
}

#[test]
fn an_index_in_runs_knows_all_that_is_stored_and_nothing_else() {
    for seed in 0..4 {
        let (disks, held, runs_max) = in_runs(seed);
        assert!(runs_max > 2, "{runs_max} runs at most: they were not tried");
        let report = check(&disks);
        assert!(report.is_clean() && report.summary.hint_missing == 0, "{report}");
        let volume = disks.open(&options()).unwrap();
        // In half of the volumes the filter has read the index by then.
        if seed % 2 == 0 {
            collect(&volume);
        }
        let used = volume.status().data_used_blocks;
        let stored = held.iter().filter(|content| **content > 0);
        for content in stored {
            write(&volume, 0, *content);
            // What block 0 held may be the only copy.
            let used_now = volume.status().data_used_blocks;
            assert!(used_now <= used, "content {content} was stored and is stored again");
        }
        held.iter()
            .enumerate()
            .skip(1)
            .for_each(|(lbn, content)| assert_content(&volume, lbn as u64, *content));
        volume.close().unwrap();
        disks.assert_clean("an index in runs");
    }
}

#[test]
fn a_damaged_run_is_dropped_with_the_index_which_is_rebuilt_and_no_block_is_leaked() {
    let (disks, held, _) = in_runs(9);
    let superblock = newest(&disks);
    let run = superblock.hint.runs.iter().find_map(|root| root.node).unwrap();
    disks.metadata.write(run.block.0 * 4096 + 1024, &[0xff; 512]).unwrap();
    let volume = disks.open(&options()).unwrap();
    write(&volume, 0, u64::MAX >> 2);
    collect(&volume);
    volume.checkpoint().unwrap();
    collect(&volume);
    volume.checkpoint().unwrap();
    assert!(newest(&disks).hint.runs.is_empty());
    held.iter().enumerate().skip(1).for_each(|(lbn, content)| assert_content(&volume, lbn as u64, *content));
    volume.close().unwrap();
    let report = check(&disks);
    assert!(report.is_clean() && report.summary.hint_missing == 0, "{report}");
}

#[test]
fn a_sweep_takes_stale_entries_out_of_an_index_in_runs() {
    let (disks, _, _) = in_runs(5);
    let volume = disks.open(&OpenOptions { runs: RunPolicy::Always, ..options() }).unwrap();
    trim(&volume, 0, BLOCKS / 2);
    volume.checkpoint().unwrap();
    let estimate = volume.gc_estimate().unwrap();
    assert!(estimate.sampled_stale > 0, "{estimate:?}");
    volume.gc_start();
    collect(&volume);
    volume.checkpoint().unwrap();
    assert_eq!(volume.gc_estimate().unwrap().sampled_stale, 0);
    volume.close().unwrap();
    let report = check(&disks);
    let summary = &report.summary;
    assert!(report.is_clean() && (summary.hint_stale, summary.hint_missing) == (0, 0), "{report}");
}

#[test]
fn new_content_costs_no_read_in_an_index_that_the_filter_has_seen() {
    let reads = |filter_bytes_max: u64| {
        let (disks, _) = filled();
        let volume = disks.open(&OpenOptions { filter_bytes_max, cache_bytes: 0, ..options() }).unwrap();
        collect(&volume);
        // The mapping's leaf and the paths to it are read once, for this.
        write(&volume, BLOCKS + 1000, u64::MAX >> 3);
        let before = disks.metadata.operations(IoKind::Read);
        (0..200).for_each(|i| write(&volume, BLOCKS + 1001 + i, (u64::MAX >> 2) - i));
        disks.metadata.operations(IoKind::Read) - before
    };
    let (with, without) = (reads(1 << 20), reads(0));
    assert!(with * 4 < without, "{with} reads with the filter, {without} without");
}

/// An entry whose block is free costs each lookup of its content a look at the counts, and a pile of them
/// hides what is stored. Who meets one has it removed, also if the block is not taken anew: nothing else
/// would.
#[test]
fn an_entry_whose_block_is_free_is_gone_after_a_lookup_has_met_it() {
    let disks = formatted(16, 4096);
    // A block that waits for its discard is given out to nobody.
    let volume = disks.open(&OpenOptions { discard: true, ..options() }).unwrap();
    (0..2).for_each(|lbn| write(&volume, lbn, 1 + lbn));
    volume.checkpoint().unwrap();
    trim(&volume, 0, 1);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().index_entries, 2, "nobody has met it");
    write(&volume, 2, 1);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().index_entries, 2, "contents 1 and 2");
    volume.close().unwrap();
    disks.assert_clean("an entry was dropped");
}

/// Between the lookup that finds the block free and the step that has the entry removed, the block is taken
/// for the very content of that entry, and a checkpoint makes the entry a good one.
#[test]
fn an_entry_that_came_true_since_the_lookup_stays() {
    let disks = formatted(16, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..2).for_each(|lbn| write(&volume, lbn, 1 + lbn));
    volume.checkpoint().unwrap();
    trim(&volume, 0, 1);
    volume.close().unwrap();
    let rig = Rig::open(disks, &options()).unwrap();
    let other = Arc::clone(&rig.volume);
    let (acted, has_acted) = channel();
    rig.metadata.before(IoKind::Read, 0, move || {
        write(&other, 6, 1);
        other.checkpoint().unwrap();
        acted.send(()).unwrap();
    });
    write(&rig.volume, 5, 1);
    has_acted.try_recv().unwrap();
    rig.volume.checkpoint().unwrap();
    assert_eq!(rig.volume.status().index_entries, 2, "of contents 1 and 2");
    let Rig { disks, volume, .. } = rig;
    Arc::into_inner(volume).unwrap().close().unwrap();
    let volume = disks.open(&options()).unwrap();
    write(&volume, 7, 1);
    assert_eq!(volume.status().data_used_blocks, 2, "content 1 was stored again");
}
