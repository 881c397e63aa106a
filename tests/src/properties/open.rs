//! What an open trusts, and what it refuses.

use super::*;
use crate::hooked::Rig;
use dedup_device::IoKind;
use dedup_meta::{COUNTERS, CopyState, Epoch, LogSeq, LogWriter, PendingBlock};

/// Bytes that a write of new content takes in the log: an allocation and a mapping.
const RECORD_BYTES: u64 = 39 + 25;

/// The process is killed between a log write and its flush, so the next open can read what is not durable.
/// Then the power fails at each event of that open, and of what was not flushed nothing is kept, or
/// everything, or one write: the volume opens.
pub fn a_power_cut_in_the_open_after_a_kill_leaves_a_volume_that_opens(options: &OpenOptions) {
    for cut in 0.. {
        let rig = Rig::open(formatted(64, 4096), options).unwrap();
        try_write(&rig.volume, 0, 1, true).unwrap();
        rig.metadata.refuse(IoKind::Flush, 0);
        try_write(&rig.volume, 1, 2, true).unwrap_err();
        let Rig { disks, .. } = rig;
        disks.metadata.set_cut_after(cut);
        let survived = disks.open(options).is_ok();
        let pending = disks.metadata.pending().len();
        for kept in 0..pending + 2 {
            let all = kept == pending + 1;
            let after = disks.crash(|device, write, _| device == 1 && (all || write == kept));
            assert_content(&reopened(&after, options), 0, 1);
        }
        if survived {
            break;
        }
    }
}

/// Blocks of the log behind a gap that a power cut left stay dead, even if the client repeats to the letter
/// what was in the gap.
pub fn blocks_behind_a_gap_in_the_log_stay_dead(options: &OpenOptions) {
    let disks = Disks::new(260 * 4096, 16 << 20);
    // A ring in which 100 operations wait for a commit without asking for one.
    disks.format(&FormatOptions { log_blocks: Some(2048), ..format_options(256 * 4096) });
    let volume = disks.open(options).unwrap();
    // The gap does not begin with the ring, where format has left a mark.
    try_write(&volume, 200, 5000, true).unwrap();
    // Enough for two log blocks in one commit. The cut lets the second one reach the medium, and not the
    // first.
    let in_first_block = LOG_PAYLOAD_SIZE as u64 / RECORD_BYTES;
    let fail_a_commit = |disks: &Disks, volume: Volume, different: u64| {
        (0..in_first_block).for_each(|lbn| write(&volume, lbn, lbn + 1));
        (in_first_block..100).for_each(|lbn| write(&volume, lbn, lbn + different));
        disks.metadata.fail_nth(IoKind::Flush, 0);
        run(&volume, Op::Flush).unwrap_err();
    };
    fail_a_commit(&disks, volume, 1);
    let disks = disks.crash(|device, _, sector| device == 0 || sector >= 8);
    let volume = reopened(&disks, options);
    assert_content(&volume, 0, 0);
    assert_content(&volume, 99, 0);
    // The same first block again, with another one behind it. This cut loses that other one.
    fail_a_commit(&disks, volume, 1000);
    let disks = disks.crash(|device, _, sector| device == 0 || sector < 8);
    let volume = reopened(&disks, options);
    assert_content(&volume, in_first_block - 1, in_first_block);
    assert_content(&volume, in_first_block, 0);
    assert_content(&volume, 99, 0);
}

/// A log block that was known durable is destroyed: the volume does not open as if nothing had been there,
/// unless it is asked to, for reading.
pub fn a_hole_in_front_of_a_durable_claim_is_refused(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..4).for_each(|lbn| try_write(&volume, lbn, lbn + 1, true).unwrap());
    drop(volume);
    let superblock = superblock(&disks);
    let mut second = superblock.log.next;
    second.0 += 1;
    disks.metadata.write(superblock.layout.log.place(second).0 * 4096, &[0; 4096]).unwrap();
    assert!(disks.open(options).is_err(), "opened for writing although acknowledged records are lost");
    let read_only = OpenOptions { read_only: true, ..options.clone() };
    assert!(disks.open(&read_only).is_err(), "opened for reading as if what is lost had never been written");
    let volume = disks.open(&OpenOptions { rescue: true, ..read_only }).unwrap();
    assert_content(&volume, 0, 1);
    assert_content(&volume, 1, 0);
}

/// A volume whose ring is several times as long as what an open reads of it without a look at milestones
/// (1024 blocks and a section).
fn with_long_log() -> Disks {
    let disks = Disks::new(260 * 4096, 96 << 20);
    disks.format(&FormatOptions { log_blocks: Some(16 << 10), ..format_options(256 * 4096) });
    disks
}

/// Acknowledged records stand in more log blocks than an open reads behind the end in any case, and all are
/// destroyed but the last: that is not the log's end.
pub fn a_long_hole_in_front_of_a_durable_claim_is_refused(options: &OpenOptions) {
    let disks = with_long_log();
    let volume = disks.open(options).unwrap();
    (0..1205).for_each(|n| try_write(&volume, n % 256, n + 1, true).unwrap());
    drop(volume);
    let superblock = superblock(&disks);
    let hole = (superblock.log.next.0 + 1..superblock.log.next.0 + 1200).map(LogSeq);
    for seq in hole {
        disks.metadata.write(superblock.layout.log.place(seq).0 * 4096, &[0; 4096]).unwrap();
    }
    assert!(disks.open(options).is_err(), "opened for writing although acknowledged records are lost");
}

/// The newest superblock is lost, and with it the only one that knew of its epoch; of its log, a power cut
/// has left one block far behind the end. The next epoch is a new one all the same.
pub fn an_epoch_of_a_lost_superblock_is_not_used_again(options: &OpenOptions) {
    const LOST: Epoch = Epoch(9);
    let disks = with_long_log();
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    volume.close().unwrap();
    let newest = superblock(&disks);
    let (log, next) = (newest.layout.log, newest.log.next);
    let record = |op_seq| PendingBlock { payload: vec![7; 8], records: 1, op_seq, counters: [0; COUNTERS] };
    let places: Vec<u64> = (next.0..next.0 + 1398).map(|seq| log.place(LogSeq(seq)).0 * 4096).collect();
    let mut before = vec![[0; 4096]; places.len()];
    let reads = places.iter().zip(&mut before);
    reads.for_each(|(at, block)| disks.metadata.read(*at, block).unwrap());
    let mut writer = LogWriter::new(log, newest.pool, LOST, newest.log, next, 0);
    writer.append(&*disks.metadata, (1..1400).map(record).collect()).unwrap();
    for (at, block) in places.iter().zip(&before) {
        disks.metadata.write(*at, block).unwrap();
    }
    for copy in [newest.layout.slot(newest.txid), newest.layout.spare(newest.txid)] {
        disks.metadata.write(copy.0 * 4096, &[0; 4096]).unwrap();
    }
    assert_content(&disks.open(options).unwrap(), 0, 1);
    let epoch = superblock(&disks).epoch;
    assert!(epoch > LOST, "epoch {epoch} begins, and the log has blocks of epoch {LOST}");
}

/// A log that an open accepted, and that nothing later was written behind, is destroyed: that is noticed.
pub fn an_accepted_log_that_is_gone_is_refused(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    try_write(&volume, 1, 2, true).unwrap();
    drop(volume);
    drop(disks.open(options).unwrap());
    let superblock = superblock(&disks);
    let mut last = superblock.log.next;
    last.0 += 1;
    disks.metadata.write(superblock.layout.log.place(last).0 * 4096, &[0; 4096]).unwrap();
    assert!(disks.open(options).is_err(), "opened for writing although an accepted record is lost");
}

/// A flush fails, the process starts again, and the device goes on showing what only its cache has: what the
/// open shows is made durable.
pub fn what_only_the_cache_has_is_written_again(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    disks.metadata.refuse_bypass();
    let volume = disks.open(options).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    disks.metadata.fail_nth(IoKind::Flush, 0);
    try_write(&volume, 0, 2, true).unwrap_err();
    drop(volume);
    let volume = disks.open(options).unwrap();
    assert_content(&volume, 0, 2);
    flush(&volume);
    let after = reopened(&disks.lose_everything_unflushed(), options);
    assert_content(&after, 0, 2);
}

/// Spares that a crash took are back after an open: each superblock stands in two places.
pub fn after_an_open_every_superblock_has_its_spare(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    disks.open(options).unwrap().checkpoint().unwrap();
    let end = disks.metadata.size() / 4096;
    for spare in [end - 1, end - 257] {
        disks.metadata.write(spare * 4096, &[0; 4096]).unwrap();
    }
    drop(disks.open(options).unwrap());
    let survey = load_superblocks(&*disks.metadata);
    let whole = survey.copies.iter().filter(|copy| matches!(copy.state, CopyState::Valid(_))).count();
    assert_eq!(whole, 4, "superblock copies after an open");
}

/// A read-only open, with records to replay, writes and flushes nothing.
pub fn a_read_only_open_writes_nothing(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    try_write(&volume, 0, 1, true).unwrap();
    drop(volume);
    let events = |disks: &Disks| (disks.data.events(), disks.metadata.events());
    let before = events(&disks);
    let volume = disks.open(&OpenOptions { read_only: true, ..options.clone() }).unwrap();
    assert_content(&volume, 0, 1);
    volume.close().unwrap();
    assert_eq!(events(&disks), before, "writes and flushes of a read-only volume");
}

/// The map of one volume is never laid over the data of another.
pub fn data_and_metadata_of_two_volumes_do_not_open(options: &OpenOptions) {
    let (one, other) = (formatted(64, 4096), Disks::new(69 * 4096, 8 << 20));
    other.format(&FormatOptions::new(64 * 4096, Uuid::from_u128(8), Uuid::from_u128(9)));
    let mixed = Disks { data: one.data.clone(), metadata: other.metadata };
    assert!(mixed.open(options).is_err(), "a volume was made of halves of two");
}
