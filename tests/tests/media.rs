//! Devices that lie: bits that rot, writes that are acknowledged and lost or go elsewhere, reads that return
//! old bytes, flushes that do nothing. Whatever it is and wherever it happens, a read returns the right bytes
//! or an error, before a reopen and after it; what is there after a reopen is a prefix of what was done; and
//! if anything cannot be read, the checker finds something.
//!
//! # What physics forces
//!
//! A prefix, but one that ends before what was acknowledged as durable, is all that can be had where the
//! medium holds a state that it might as well have held earlier. The tests allow that here and nowhere else:
//!
//! - **The tail of the log.** A block of the last commit that is in the log ring: no later block speaks of
//!   it, so it never was. What is lost is what was acknowledged as durable from the step on in which that
//!   block was written; all from before it is there. A block of any earlier commit is spoken of by each later
//!   one: that it is missing is damage, and not a tail.
//! - **A write that went astray into the log ring** takes the place of such a block: the same, for the block
//!   that stood there.
//! - **Rot of the ring's last block**, or an old version of it: the same, for that block and for no other of
//!   the ring.
//! - **A flush that did nothing**: the same, for the step in which it was.
//!
//! [`may_roll_back`] and [`Whole::may_roll_back_for`] are these four, and nothing else.
//!
//! A lost superblock is no exception: there are four copies, and the log reaches back to where the older one
//! stands. Nor is a lost data block (its checksum stands beside the mapping) or a lost node (its checksum
//! stands in its parent).

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, IoKind, SimFault, When};
use dedup_meta::{LogGeometry, Superblock};
use dedup_tests::sweep::scripts::scripts;
use dedup_tests::sweep::*;
use dedup_tests::*;
use dedup_volume::{FormatOptions, OpenOptions, RequestError, VolumeError};
use std::ops::Range;

/// The scripts that are played here, without their restarts: what a reopen finds is judged at the end.
fn lives() -> Vec<(&'static str, Scene, Vec<Step>)> {
    const CHOSEN: [&str; 6] =
        ["mixed", "strict", "index", "full", "index in runs", "replay, data in the log"];
    let chosen = scripts().into_iter().filter(|(name, ..)| CHOSEN.contains(name));
    chosen
        .map(|(name, scene, steps)| {
            let restarts = |step: &&Step| !matches!(step, Step::Close | Step::Kill | Step::ReadOnly);
            (name, scene, steps.iter().filter(restarts).copied().collect())
        })
        .collect()
}

fn ring(geometry: LogGeometry) -> Range<u64> {
    geometry.start.0 * 4096..(geometry.start.0 + geometry.blocks) * 4096
}

/// A script that was played to its end with nothing going wrong, and the metadata device's writes.
struct Whole {
    run: Run,
    ring: Range<u64>,
    writes: Vec<Range<u64>>,
    /// For each write, how many flushes had come before.
    flushes: Vec<usize>,
}

impl Whole {
    fn play(scene: &Scene, script: &[Step]) -> Self {
        let mut run = Run::start(scene);
        run.disks.metadata.keep_trace();
        run.play(script);
        run.volume = None;
        let layout = superblock(&run.disks).layout;
        let (mut writes, mut flushes, mut flushed) = (Vec::new(), Vec::new(), 0);
        for (kind, range) in run.disks.metadata.trace() {
            flushed += usize::from(kind == IoKind::Flush);
            if kind == IoKind::Write {
                writes.push(range);
                flushes.push(flushed);
            }
        }
        Self { ring: ring(layout.log), writes, flushes, run }
    }

    /// Whether a write is part of the last commit that went to the ring: nothing in the ring was written
    /// after the flush behind it.
    fn is_tail(&self, write: usize) -> bool {
        let last = self.writes.iter().rposition(|range| touches(range, &self.ring));
        last.is_some_and(|last| self.flushes[write] >= self.flushes[last])
    }

    /// What was acknowledged as durable before the step that wrote what stood in `range` of the ring when
    /// write `n` began. `None` if that is not in the ring, or was not written.
    fn before_log_write(&self, range: &Range<u64>, n: usize) -> Option<usize> {
        let pages = (range.start / 4096..range.end.div_ceil(4096)).map(|page| page * 4096..(page + 1) * 4096);
        pages
            .filter(|page| touches(page, &self.ring))
            .filter_map(|page| self.writes[..n].iter().rposition(|write| touches(write, &page)))
            .filter(|write| self.is_tail(*write))
            .map(|write| self.run.durable_before(1, IoKind::Write, write as u64))
            .min()
    }

    /// From which request on a prefix may end after the rot of `page`, if not from the last durable one.
    fn may_roll_back_for(&self, device: usize, page: u64) -> usize {
        let range = page * 4096..(page + 1) * 4096;
        let tail = device == 1 && last_log_block(&self.run.disks) == Some(range.start);
        let before = self.before_log_write(&range, self.writes.len()).filter(|_| tail);
        before.unwrap_or(self.run.ledger.durable_count())
    }
}

/// The block of the ring behind which the log ends.
fn last_log_block(disks: &Disks) -> Option<u64> {
    let newest = superblock(disks);
    let geometry = newest.layout.log;
    let log = dedup_meta::scan(
        &*disks.metadata,
        newest.pool,
        geometry,
        newest.log,
        newest.epoch,
        newest.epoch_start,
    );
    log.blocks.last().map(|block| geometry.place(block.seq).0 * 4096)
}

fn touches(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// From which request on a prefix may end after a lie about an operation, if not from the last durable one:
/// see the exceptions above.
fn may_roll_back(whole: &Whole, run: &Run, target: &Target, range: &Range<u64>) -> usize {
    let durable = run.ledger.durable_count();
    let before = run.durable_before(target.device, target.kind, target.n);
    let tail = touches(range, &whole.ring) && whole.is_tail(target.n as usize);
    let own = tail.then_some(before);
    let other = match target.fault {
        SimFault::MisdirectedWrite { to, .. } => {
            whole.before_log_write(&(to..to + range.end - range.start), target.n as usize)
        }
        _ => None,
    };
    match (target.device, target.kind) {
        (_, IoKind::Flush) => before.min(durable),
        (1, IoKind::Write) => own.into_iter().chain(other).fold(durable, usize::min),
        _ => durable,
    }
}

/// What an open finds is a prefix from request `from` on, each block right or unreadable; what cannot be
/// read, the checker has found. The same holds after more is written and the volume opened once more.
fn judge(scene: &Scene, ledger: &Ledger, from: usize, disks: &Disks, story: &str) {
    let mut ledger = ledger.clone();
    // The checker sees what the open will see: the medium.
    disks.metadata.bypass_cache().unwrap();
    let report = check(Some(&*disks.data), disks.metadata(), &CheckOptions::tiny(), &mut |_| ());
    let clean = report.is_ok_and(|report| report.is_clean());
    let volume = match disks.open(&scene.options) {
        Ok(volume) => volume,
        Err(error) => return assert!(!clean, "{story}: the checker found nothing, but: {error}"),
    };
    let failed = ledger.recover_from(&volume, from, true, story);
    assert!(failed == 0 || !clean, "{story}: {failed} LBNs cannot be read, and the checker found nothing");
    let content = Content::from(block(99, volume.block_size() as usize));
    match try_write(&volume, LBNS - 1, 99, true) {
        Ok(()) => {
            ledger.answered(&[(LBNS as usize - 1, vec![content])]);
            ledger.durable();
        }
        Err(error) => {
            assert!(!clean || error == RequestError::NoSpace, "{story}: {error}");
            if volume.is_read_only() { ledger.answered(&[]) } else { ledger.failed(&[], &volume, story) }
        }
    }
    ledger.check(&volume, false, true, story);
    drop(volume);
    let disks = disks.lose_everything_unflushed();
    if let Ok(volume) = disks.open(&scene.options) {
        ledger.recover_from(&volume, ledger.durable_count(), true, &format!("{story}, again"));
    }
}

/// Plays scripts with one write or flush going wrong, for every one of a device, and judges what comes after.
fn every_operation(device: usize, kind: IoKind, faults: impl Fn(&Range<u64>, &Superblock) -> Vec<SimFault>) {
    let mut points = 0;
    for (name, scene, script) in lives() {
        let whole = Whole::play(&scene, &script);
        let newest = superblock(&whole.run.disks);
        let mut traced = Run::start(&scene);
        traced.device(device).keep_trace();
        traced.play(&script);
        let operations =
            traced.device(device).trace().into_iter().filter(|(k, _)| *k == kind).map(|(_, r)| r);
        for (n, range) in (0..).zip(operations) {
            for fault in faults(&range, &newest) {
                let mut run = Run::start(&scene);
                run.story = name.into();
                let target = Target { device, kind, n, fault, lasting: false };
                run.order(target);
                run.play(&script);
                let from = may_roll_back(&whole, &run, &target, &range);
                run.volume = None;
                for ending in [Ending::Lose, Ending::Keep, Ending::Restart] {
                    let story = format!("{}, {ending:?}", run.story);
                    judge(&scene, &run.ledger, from, &ending.of(&run.disks), &story);
                }
                points += 1;
            }
        }
    }
    println!("{kind:?} of device {device}: {points} lies");
}

fn lost(_: &Range<u64>, _: &Superblock) -> Vec<SimFault> {
    [false, true].map(|cached| SimFault::LostWrite { cached }).into()
}

fn misdirected(places: &[u64]) -> Vec<SimFault> {
    places.iter().map(|to| SimFault::MisdirectedWrite { to: *to, cached: to % 8192 == 0 }).collect()
}

#[test]
fn after_any_lost_data_write_a_read_is_right_or_an_error() {
    every_operation(0, IoKind::Write, lost);
}

#[test]
fn after_any_lost_metadata_write_a_read_is_right_or_an_error() {
    every_operation(1, IoKind::Write, lost);
}

/// Only where faults are, and by itself: a fault is planted for the whole process.
#[cfg(feature = "planted")]
mod with_a_planted_fault {
    use super::*;
    use dedup_device::planted::plant;

    /// What may be rolled back is narrow enough: it was not, and these tests stayed green with R6 switched
    /// off.
    #[test]
    fn a_hole_in_the_log_that_is_taken_for_its_tail_is_noticed() {
        plant("MidLogDamageTakenForTail");
        let judged = std::panic::AssertUnwindSafe(|| every_operation(1, IoKind::Write, lost));
        let noticed = std::panic::catch_unwind(judged).expect_err("a lost write of the log is noticed");
        let message = noticed.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(message.contains("which is nothing between"), "{message}");
    }
}

#[test]
fn after_any_misdirected_data_write_a_read_is_right_or_an_error() {
    // Its neighbours, the first block in use, the label.
    every_operation(0, IoKind::Write, |write, _| misdirected(&[write.end, write.start - 4096, 4096, 0]));
}

#[test]
fn after_any_misdirected_metadata_write_a_read_is_right_or_an_error() {
    // Its neighbours, slots, the ring, a spare, a node.
    every_operation(1, IoKind::Write, |write, newest| {
        let (layout, node) = (&newest.layout, newest.roots.digest.node);
        let blocks = [
            layout.slot(newest.txid),
            layout.slot(newest.txid.next()),
            layout.spare(newest.txid),
            layout.log.start,
            node.map_or(layout.log.start, |node| node.block),
        ];
        let mut places: Vec<u64> = blocks.iter().map(|block| block.0 * 4096).collect();
        places.push(write.end);
        misdirected(&places)
    });
}

#[test]
fn after_any_flush_that_did_nothing_a_read_is_right_or_an_error() {
    every_operation(0, IoKind::Flush, |_, _| vec![SimFault::LostFlush]);
    every_operation(1, IoKind::Flush, |_, _| vec![SimFault::LostFlush]);
}

/// Rot of each block, one bit of it and all of it, in a volume whose script has ended.
#[test]
fn wherever_bits_rot_a_read_is_right_or_an_error() {
    let mut rotten = 0;
    for (name, scene, script) in lives() {
        let whole = Whole::play(&scene, &script);
        let run = &whole.run;
        for device in 0..2 {
            for page in stored_pages(run.device(device)) {
                for mask in [vec![1 << (page % 8)], vec![0xa5; 4096 - (page as usize * 37) % 4096]] {
                    let offset = page * 4096 + (page * 37) % 4096;
                    let disks = run.disks.crash(|_, _, _| true);
                    [&disks.data, &disks.metadata][device].rot(offset, &mask).unwrap();
                    let from = whole.may_roll_back_for(device, page);
                    let story = format!("{name}: {} bytes of rot at {offset} of device {device}", mask.len());
                    judge(&scene, &run.ledger, from, &disks, &story);
                    rotten += 1;
                }
            }
        }
    }
    println!("{rotten} blocks rotten");
}

/// Numbers of the 4 KiB pages of a device that hold anything.
fn stored_pages(device: &dedup_device::SimDevice) -> Vec<u64> {
    let image = device.image();
    let mut bytes = [0; 4096];
    let holds = |page: &u64| {
        image.read(page * 4096, &mut bytes).unwrap();
        bytes != [0; 4096]
    };
    (0..image.size() / 4096).filter(holds).collect()
}

/// A volume lives a script; then each block of either device comes back as it was one, two or three changes
/// before, once or as long as the next process runs.
#[test]
fn however_old_a_block_comes_back_a_read_is_right_or_an_error() {
    let mut stale = 0;
    for (name, scene, script) in lives() {
        let live = || {
            let mut run = Run::start(&scene);
            run.disks.data.keep_history();
            run.disks.metadata.keep_history();
            run.play(&script);
            run.volume = None;
            run
        };
        let whole = Whole::play(&scene, &script);
        for device in 0..2 {
            for page in stored_pages(whole.run.device(device)) {
                for age in 1..=3 {
                    let run = live();
                    let range = page * 4096..(page + 1) * 4096;
                    run.device(device).inject(When::Touching(range), SimFault::StaleRead { age });
                    let story = format!("{name}: page {page} of device {device} as {age} changes ago");
                    let from = whole.may_roll_back_for(device, page);
                    judge_stale(&scene, &run, from, &story);
                    stale += 1;
                }
            }
        }
    }
    println!("{stale} stale blocks");
}

/// What is read, and written, while a block comes back old; and what is there when it no longer does.
fn judge_stale(scene: &Scene, run: &Run, from: usize, story: &str) {
    let mut ledger = run.ledger.clone();
    if let Ok(volume) = run.disks.open(&scene.options) {
        ledger.recover_from(&volume, from, true, story);
        let content = Content::from(block(99, volume.block_size() as usize));
        let change = [(LBNS as usize - 1, vec![content])];
        match try_write(&volume, LBNS - 1, 99, true) {
            Ok(()) => {
                ledger.answered(&change);
                ledger.durable();
            }
            Err(_) if volume.is_read_only() => ledger.answered(&change),
            Err(_) => ledger.failed(&change, &volume, story),
        }
        ledger.check(&volume, volume.is_read_only(), true, story);
    }
    run.disks.data.clear_faults();
    run.disks.metadata.clear_faults();
    for ending in [Ending::Lose, Ending::Keep] {
        let from = ledger.durable_count().min(from);
        judge(scene, &ledger, from, &ending.of(&run.disks), &format!("{story}, no longer, {ending:?}"));
    }
}

/// Three commits, the first of which writes the log in the largest writes that there are; each is
/// acknowledged as durable. The metadata device's writes come with it.
fn large_commits(fault: Option<(u64, SimFault)>) -> (Disks, Vec<Range<u64>>) {
    const BLOCK: u64 = 64 << 10;
    let disks = Disks::new(64 * BLOCK, 40 << 20);
    disks.format(&FormatOptions {
        block_size: BLOCK as u32,
        log_blocks: Some(8192),
        ..format_options(32 * BLOCK)
    });
    let volume = disks.open(&OpenOptions { log_data: 2 << 20, ..options() }).unwrap();
    disks.metadata.keep_trace();
    if let Some((n, fault)) = fault {
        disks.metadata.inject(When::Nth(n), fault);
    }
    for lbns in [0..20, 20..21, 21..22] {
        lbns.for_each(|lbn| write(&volume, lbn, lbn + 1));
        flush(&volume);
    }
    drop(volume);
    let writes = disks.metadata.trace().into_iter().filter(|(kind, _)| *kind == IoKind::Write);
    let writes = writes.map(|(_, range)| range).collect();
    (disks, writes)
}

/// A write of 256 blocks of the log was lost, with all milestones in it. What stood there before said that
/// the log never came: the hole was taken for the log's end, and three flushed writes vanished in silence.
#[test]
fn a_write_of_the_largest_size_that_is_lost_or_goes_elsewhere_in_the_log_is_noticed() {
    let (disks, writes) = large_commits(None);
    assert!(writes.iter().any(|write| write.end - write.start == 1 << 20), "{writes:?}");
    let start = superblock(&disks).layout.log.start.0 * 4096;
    let (last, earlier) = writes.split_last().unwrap();
    for (n, write) in (0..).zip(earlier) {
        let places = [write.end, start + (20 << 20), start - 4096, last.end];
        let elsewhere = places.map(|to| SimFault::MisdirectedWrite { to, cached: false });
        for fault in [SimFault::LostWrite { cached: false }].into_iter().chain(elsewhere) {
            let (disks, _) = large_commits(Some((n, fault)));
            let found = disks.lose_everything_unflushed().open(&options());
            let noticed = matches!(found, Err(VolumeError::LogDamaged { .. }));
            assert!(noticed, "write {n}, {write:?}: {fault:?}: {found:?}");
        }
    }
}
