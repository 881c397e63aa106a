//! A checkpoint changes nothing that anybody can see, and a power cut anywhere in it costs nothing.

use super::*;
use crate::hooked::Rig;
use dedup_device::IoKind;
use std::sync::Mutex;

/// Blocks between the two superblock slots, and between the two spares.
const COPY_DISTANCE: u64 = 256;
const BLOCK: u64 = 4096;

/// A checkpoint that has returned is where the next open starts from, whatever was not flushed.
pub fn a_checkpoint_is_durable_when_it_returns(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    for round in 0..4 {
        (0..8).for_each(|lbn| write(&volume, lbn, 1 + round * 8 + lbn));
        volume.checkpoint().unwrap();
        let transaction = volume.status().commit.transaction;
        let after = reopened(&disks.lose_everything_unflushed(), options);
        let commit = after.status().commit;
        assert_eq!(
            (commit.transaction, commit.delta_operations),
            (transaction + 1, 0),
            "one more for the open, nothing replayed"
        );
        (0..8).for_each(|lbn| assert_content(&after, lbn, 1 + round * 8 + lbn));
    }
}

/// The power is cut at each event of a checkpoint, and of what was not flushed nothing is kept, or
/// everything, or one write.
pub fn a_power_cut_anywhere_in_a_checkpoint_loses_nothing(options: &OpenOptions) {
    let base = formatted(64, 4096);
    let volume = base.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.checkpoint().unwrap();
    let base = base.lose_everything_unflushed();
    for cut in 0.. {
        let disks = base.crash(|_, _, _| true);
        let volume = disks.open(options).unwrap();
        (0..8).for_each(|lbn| write(&volume, lbn, lbn + 101));
        flush(&volume);
        disks.metadata.set_cut_after(cut);
        let survived = volume.checkpoint().is_ok();
        let pending = disks.metadata.pending().len();
        for kept in 0..pending + 2 {
            let all = kept == pending + 1;
            let after = disks.crash(|device, write, _| device == 1 && (all || write == kept));
            let after = reopened(&after, options);
            (0..8).for_each(|lbn| assert_content(&after, lbn, lbn + 101));
        }
        if survived {
            break;
        }
    }
}

/// Where superblock copies stand on this device: slots, then spares.
fn is_superblock(disks: &Disks, block: u64) -> bool {
    let end = disks.metadata.size() / BLOCK;
    [0, COPY_DISTANCE, end - 1, end - 1 - COPY_DISTANCE].contains(&block)
}

/// The power fails while a superblock is being written to its slot: the other slot serves, also if the spares
/// are gone.
pub fn a_torn_superblock_leaves_the_other_slot(options: &OpenOptions) {
    let disks = Disks::new(260 * BLOCK, 8 << 20);
    disks.format(&FormatOptions { log_blocks: Some(16), ..format_options(256 * BLOCK) });
    let volume = disks.open(options).unwrap();
    // Often enough for the log ring to go round: an old superblock is then of no use any more.
    for round in 0..24 {
        (0..4).for_each(|lbn| try_write(&volume, lbn, 1 + round * 4 + lbn, true).unwrap());
        if round % 2 == 1 {
            volume.checkpoint().unwrap();
        }
    }
    // Something for the last one to write, so that its superblock differs from those before in several
    // sectors.
    try_write(&volume, 5, 999, true).unwrap();
    // The trees' flush succeeds, the superblock's does not.
    disks.metadata.fail_nth(IoKind::Flush, 1);
    volume.checkpoint().unwrap_err();
    let slots = disks.metadata.pending();
    let is_slot = |write: usize| is_superblock(&disks, slots[write].offset / BLOCK);
    assert!((0..slots.len()).any(is_slot), "a superblock was on its way");
    for kept in 0..8 {
        let torn = disks.crash(|device, write, sector| device == 0 || !is_slot(write) || sector == kept);
        let end = torn.metadata.size() / BLOCK;
        [end - 1, end - 1 - COPY_DISTANCE].into_iter().for_each(|spare| destroy(&torn.metadata, spare));
        let after = reopened(&torn, options);
        (0..4).for_each(|lbn| assert_content(&after, lbn, 1 + 23 * 4 + lbn));
    }
}

/// With the newest superblock destroyed, the older one and the log lead to the present, at any time of a
/// volume's life.
pub fn either_superblock_is_enough(options: &OpenOptions) {
    // A request of so many blocks goes round the ring more than once.
    let blocks = 600;
    let disks = Disks::new((2 * blocks + 8) * BLOCK, 8 << 20);
    disks.format(&FormatOptions { log_blocks: Some(16), ..format_options(blocks * BLOCK) });
    let rig = Rig::open(disks, options).unwrap();
    let moments = Arc::new(Mutex::new(Vec::new()));
    for round in 0..2 {
        for n in 0..100 {
            let (disks, moments) = (rig.disks.clone(), moments.clone());
            rig.metadata.before(IoKind::Flush, n, move || {
                moments.lock().unwrap().push(disks.crash(|_, _, _| true));
            });
        }
        let contents = 1 + round * blocks;
        let data: Vec<u8> = (contents..contents + blocks).flat_map(|content| block(content, 4096)).collect();
        run(&rig.volume, Op::Write { offset: 0, data: &data, fua: true }).unwrap();
        rig.metadata.forget_hooks();
        for damaged in moments.lock().unwrap().drain(..) {
            let newest = superblock(&damaged);
            for copy in [newest.layout.slot(newest.txid), newest.layout.spare(newest.txid)] {
                destroy(&damaged.metadata, copy.0);
            }
            let after = reopened(&damaged, options);
            for lbn in (0..blocks).step_by(50) {
                let found = read(&after, lbn).unwrap();
                let old = if round == 0 { 0 } else { contents - blocks + lbn };
                let known = [old, contents + lbn].iter().any(|content| found == block(*content, 4096));
                assert!(known, "LBN {lbn} of the older superblock and the log: neither old nor new");
            }
        }
    }
}

/// A write that comes while a checkpoint's commit flushes belongs to the next one.
pub fn a_write_during_a_checkpoints_commit_is_no_part_of_it(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    write(&rig.volume, 0, 1);
    let volume = rig.volume.clone();
    rig.metadata.before(IoKind::Flush, 0, move || write(&volume, 0, 2));
    rig.volume.checkpoint().unwrap();
    let after = reopened(&rig.disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 1);
    assert_eq!(after.status().counters.writes, 1, "the counters are those of the cut");
    flush(&rig.volume);
    let after = reopened(&rig.disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 2);
}

/// Reads while a checkpoint writes its superblock see what is newest.
pub fn reads_during_a_checkpoint_see_the_latest(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    write(&rig.volume, 0, 1);
    rig.volume.checkpoint().unwrap();
    write(&rig.volume, 0, 2);
    let seen = Arc::new(Mutex::new(Vec::new()));
    for n in 0..2 {
        let (volume, seen) = (rig.volume.clone(), seen.clone());
        // The trees' flush and the superblock's.
        rig.metadata.before(IoKind::Flush, 1 + n, move || {
            let found = read(&volume, 0).unwrap();
            seen.lock().unwrap().push(found == block(2, found.len()));
        });
    }
    rig.volume.checkpoint().unwrap();
    assert_eq!(*seen.lock().unwrap(), [true, true], "reads during a checkpoint see the newest content");
}

/// When a spare is written, the slot of the same superblock is durable: no power cut tears both.
pub fn both_copies_of_a_superblock_are_never_at_risk_together(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    let at_risk = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2 {
        // An 8 MiB device: spares in its last MiB, slots in its first.
        let (metadata, at_risk) = (rig.disks.metadata.clone(), at_risk.clone());
        rig.metadata.before_at(
            IoKind::Write,
            0,
            |offset| offset >= (8 << 20) - 257 * BLOCK,
            move || {
                let slots = metadata.pending().iter().filter(|w| w.offset <= COPY_DISTANCE * BLOCK).count();
                at_risk.lock().unwrap().push(slots);
            },
        );
        write(&rig.volume, 0, 1);
        rig.volume.checkpoint().unwrap();
    }
    assert_eq!(*at_risk.lock().unwrap(), [0, 0], "slots that were not durable when a spare was written");
}

/// Free metadata blocks below which a write might wait for the lookup that waits for it.
const META_FREE_MIN: u64 = 200;

/// A lookup that is slow to read a node finds it, whatever checkpoints do meanwhile.
pub fn a_lookup_in_flight_keeps_its_nodes(options: &OpenOptions) {
    let disks = Disks::new(300 * BLOCK, 4 << 20);
    disks.format(&FormatOptions { log_blocks: Some(64), ..format_options(256 * BLOCK) });
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.close().unwrap();
    // Opened anew, with nothing in the cache.
    let rig = Rig::open(disks, options).unwrap();
    let volume = rig.volume.clone();
    rig.metadata.before(IoKind::Read, 0, move || {
        // Until the device is nearly full of what the lookup holds, or, if it holds nothing, has been gone
        // round.
        for round in 0..250 {
            let is_short = volume.status().metadata_free_blocks < META_FREE_MIN;
            if is_short
                || try_write(&volume, 100, 1000 + round, false).is_err()
                || volume.checkpoint().is_err()
            {
                break;
            }
        }
    });
    assert_content(&rig.volume, 3, 4);
    assert!(!rig.volume.is_read_only(), "the volume stopped although nothing is damaged");
}

/// However many checkpoints a small metadata device sees, the blocks of all but the last two come back.
pub fn checkpoints_give_back_what_they_take(options: &OpenOptions) {
    let disks = Disks::new(300 * BLOCK, 4 << 20);
    disks.format(&FormatOptions { log_blocks: Some(64), ..format_options(256 * BLOCK) });
    let volume = disks.open(options).unwrap();
    for round in 0..1000 {
        let written = try_write(&volume, round % 100, 1 + round, false);
        assert_eq!(written, Ok(()), "write {round} on a metadata device that is nearly empty");
        let checkpoint = volume.checkpoint();
        assert!(checkpoint.is_ok(), "checkpoint {round}: {checkpoint:?}");
    }
}

/// Damage that was found once is known until the volume is checked: every later superblock says so.
pub fn damage_that_was_found_is_remembered(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    volume.close().unwrap();
    let node = superblock(&disks).volumes[0].mapping.base.node.unwrap();
    let whole = disks.crash(|_, _, _| true);
    destroy(&disks.metadata, node.block.0);
    let volume = disks.open(options).unwrap();
    assert!(read(&volume, 0).is_err(), "a read by way of a damaged node");
    drop(volume);
    // Mended from a copy, so that the volume can go on.
    let mut bytes = vec![0; BLOCK as usize];
    whole.metadata.read(node.block.0 * BLOCK, &mut bytes).unwrap();
    disks.metadata.write(node.block.0 * BLOCK, &bytes).unwrap();
    for _ in 0..3 {
        let volume = reopened(&disks, options);
        write(&volume, 1, 2);
        volume.checkpoint().unwrap();
        assert!(volume.status().needs_check, "the need for a check is remembered");
    }
}
