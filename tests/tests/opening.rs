//! What an open believes of a volume that is damaged or forged: what can be told anew is needed by nobody,
//! what is contradicted stops the volume with a word, and nothing that stands on a device ends the process.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind, SimDevice, SimFault, When};
use dedup_meta::{
    BlockRef, COUNTERS, LogWriter, MetaBlock, PendingBlock, Store, Superblock, load_superblocks,
};
use dedup_schema::{Digest, Lbn, Mapping, Pbn, Record};
use dedup_tests::*;
use dedup_volume::{FormatOptions, Label, OpenOptions, VolumeError};
use std::sync::Arc;

const BLOCKS: u64 = 32;

fn superblock(disks: &Disks) -> Superblock {
    load_superblocks(&*disks.metadata).newest(None).unwrap().clone()
}

/// LBN n holds content n + 1 in a volume that was closed.
fn written() -> Disks {
    let disks = formatted(BLOCKS, 4096);
    let volume = disks.open(&options()).unwrap();
    (0..BLOCKS).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.close().unwrap();
    disks
}

/// A copy, on which everything is durable.
fn copy(disks: &Disks) -> Disks {
    disks.crash(|_, _, _| true)
}

fn read_only(rescue: bool) -> OpenOptions {
    OpenOptions { read_only: true, rescue, ..options() }
}

#[track_caller]
fn assert_whole(disks: &Disks, options: &OpenOptions) {
    let volume = disks.open(options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
    (0..BLOCKS).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
}

fn unreadable(device: &SimDevice, block: MetaBlock) {
    let range = block.0 * 4096..(block.0 + 1) * 4096;
    device.inject(When::Touching(range), SimFault::Fail(IoKind::Read));
}

fn zero(device: &SimDevice, block: MetaBlock) {
    device.write(block.0 * 4096, &[0; 4096]).unwrap();
}

/// One sector of the map of free metadata was overwritten, and no way led to the data, although the trees say
/// what the map says.
#[test]
fn a_damaged_metadata_map_is_told_anew_by_the_trees_and_needed_by_no_reader() {
    let disks = written();
    let map = superblock(&disks).roots.metamap.node.unwrap().block;
    let damages: [fn(&SimDevice, MetaBlock); 2] = [zero, unreadable];
    for damage in damages {
        let disks = copy(&disks);
        damage(&disks.metadata, map);
        assert_whole(&disks, &read_only(false));
        assert_whole(&disks, &options());
        // Killed before a checkpoint wrote a new one.
        let disks = copy(&disks);
        damage(&disks.metadata, map);
        let volume = disks.open(&options()).unwrap();
        for round in 0..4 {
            (0..BLOCKS).for_each(|lbn| write(&volume, lbn, 100 * round + lbn + 1));
            volume.checkpoint().unwrap();
            // Every block that the last two superblocks reach is still theirs; the first of them has the
            // damaged map.
            if round > 0 {
                copy(&disks).assert_clean("a map told anew");
            }
        }
        volume.close().unwrap();
        disks.metadata.clear_faults();
        disks.assert_clean("a map told anew, closed");
    }
}

/// A map that passes its checksums and counts blocks twice made each close end the process.
#[test]
fn a_map_of_other_counts_than_0_and_1_or_without_what_is_in_use_is_damage() {
    // Counts of 2; nothing in use at all.
    for forge in [|byte: &mut u8| *byte <<= 1, |byte: &mut u8| *byte = 0] {
        let disks = written();
        let mut newest = superblock(&disks);
        let store = Store::new(disks.metadata(), newest.pool, 64);
        let at = newest.roots.metamap.node.unwrap().block;
        let mut map = store.read_raw(at).unwrap();
        map.payload.iter_mut().for_each(forge);
        let crc = map.seal(newest.pool);
        store.write_raw(&map).unwrap();
        newest.roots.metamap.node = Some(BlockRef { block: at, crc });
        dedup_meta::write_superblock(&store, &newest).unwrap();
        dedup_meta::write_spare(&store, &newest).unwrap();
        let volume = disks.open(&options()).unwrap();
        (0..BLOCKS).for_each(|lbn| assert_content(&volume, lbn, lbn + 1));
        write(&volume, 0, 77);
        volume.close().unwrap();
        disks.assert_clean("a forged map");
    }
}

/// An installer, a wrong mkfs or dd hit the first sector of the data device. All content was there, and no
/// option opened it.
#[test]
fn a_lost_label_is_written_again_on_the_volumes_own_data_and_on_no_other() {
    for block_size in [512, 4096] {
        let disks = formatted(BLOCKS, block_size);
        let volume = disks.open(&options()).unwrap();
        (0..BLOCKS).for_each(|lbn| write(&volume, lbn, lbn + 1));
        volume.close().unwrap();
        let label = Label::read(&*disks.data).unwrap();
        let other = Disks { data: Arc::new(SimDevice::new(disks.data.size())), ..copy(&disks) };
        disks.data.write(0, &[0x5a; 512]).unwrap();
        assert_whole(&disks, &read_only(false));
        assert!(Label::read(&*disks.data).is_err(), "a read-only open wrote");
        assert_whole(&disks, &options());
        assert_eq!(Label::read(&*disks.data).unwrap(), label);
        disks.assert_clean("a label written again");
        // Metadata with a device that holds nothing of it.
        let refused = other.open(&options());
        assert!(
            matches!(refused, Err(VolumeError::LabelLost { sampled: 1.., matching: 0, .. })),
            "{refused:?}"
        );
        assert!(Label::read(&*other.data).is_err());
    }
}

/// A volume with a log of two commits behind its last checkpoint, and a block marked damaged.
fn logged() -> Disks {
    let disks = Disks::new(1 << 20, 8 << 20);
    disks.format(&FormatOptions { log_blocks: Some(64), ..format_options(BLOCKS * 4096) });
    let volume = disks.open(&options()).unwrap();
    (0..BLOCKS).for_each(|lbn| write(&volume, lbn, lbn + 50));
    write(&volume, BLOCKS - 1, BLOCKS);
    volume.checkpoint().unwrap();
    (0..BLOCKS / 2).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    (BLOCKS / 2..BLOCKS).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    drop(volume);
    copy(&disks)
}

/// A leaf of counts was damaged, and after a crash, with a log to be replayed, there was no way in: but
/// nothing that is read depends on counts.
#[test]
fn a_rescue_replays_the_log_without_counts() {
    let disks = logged();
    let counts = superblock(&disks).roots.refcount.node.unwrap().block;
    let damages: [fn(&SimDevice, MetaBlock); 2] = [zero, unreadable];
    for damage in damages {
        let disks = copy(&disks);
        damage(&disks.metadata, counts);
        assert!(disks.open(&options()).is_err());
        assert_whole(&disks, &read_only(true));
    }
}

/// Who asked for the status of a volume that was being opened for minutes was told that it is in use.
#[test]
fn an_open_tells_how_much_of_the_log_it_has_replayed() {
    let (disks, whole) = (logged(), options());
    assert_eq!(whole.progress.percent(), 0);
    drop(disks.open(&whole).unwrap());
    assert_eq!(whole.progress.percent(), 100);
    // Where it does not come to an end, it does not say so.
    let (disks, part) = (logged(), options());
    zero(&disks.metadata, superblock(&disks).roots.refcount.node.unwrap().block);
    assert!(disks.open(&part).is_err());
    assert!(part.progress.percent() < 100);
}

/// A sector of the log that rots was no obstacle to a rescue, and one that the device cannot read was.
#[test]
fn a_rescue_reads_what_was_there_before_a_block_of_the_log_that_cannot_be_read() {
    let disks = logged();
    let newest = superblock(&disks);
    let last = dedup_meta::scan(
        &*disks.metadata,
        newest.pool,
        newest.layout.log,
        newest.log,
        newest.epoch,
        newest.epoch_start,
    );
    let last = last.blocks.last().unwrap().seq;
    unreadable(&disks.metadata, newest.layout.log.place(last));
    for options in [options(), read_only(false)] {
        let refused = disks.open(&options);
        assert!(matches!(refused, Err(VolumeError::LogUnreadable { .. })), "{refused:?}");
    }
    let volume = disks.open(&read_only(true)).unwrap();
    assert_content(&volume, 0, 1);
    let last_group = BLOCKS / 2;
    let found = read(&volume, last_group).unwrap();
    assert!([1, 50].iter().any(|content| found == block(last_group + content, 4096)));
}

/// The marks of damaged blocks save what is written from being matched with them; a block that is read has
/// its checksum.
#[test]
fn marks_of_damaged_blocks_are_needed_by_no_reader() {
    let disks = written();
    // The block of LBN 3, which becomes marked.
    let offset = (1..BLOCKS + 5).map(|pbn| pbn * 4096).find(|offset| {
        let mut bytes = vec![0; 4096];
        disks.data.read(*offset, &mut bytes).unwrap();
        bytes == block(4, 4096)
    });
    disks.data.rot(offset.unwrap() + 17, &[4]).unwrap();
    let volume = disks.open(&options()).unwrap();
    assert!(read(&volume, 3).is_err());
    volume.close().unwrap();
    zero(&disks.metadata, superblock(&disks).roots.bad.node.unwrap().block);
    assert!(disks.open(&options()).is_err());
    let volume = disks.open(&read_only(false)).unwrap();
    assert!(read(&volume, 3).is_err());
    assert_content(&volume, 4, 5);
}

/// The metadata's file had grown, and both superblocks in front were lost: "not formatted", with two good
/// ones at the file's old end.
#[test]
fn after_the_metadata_device_has_grown_the_spares_at_its_old_end_are_found() {
    let old = written();
    let grown = Disks { metadata: Arc::new(SimDevice::new((8 << 20) + (5 << 20))), ..copy(&old) };
    let mut bytes = vec![0; 8 << 20];
    old.metadata.read(0, &mut bytes).unwrap();
    [0, 1 << 20].iter().for_each(|slot| bytes[*slot..slot + 4096].fill(0));
    grown.metadata.write(0, &bytes).unwrap();
    assert_whole(&grown, &read_only(false));
    assert_whole(&grown, &options());
    assert_whole(&grown, &options());
}

/// A log that was forged maps an LBN to a block after the block's last reference is gone. It passed, since
/// the block had been allocated in the same log, and the block was in use and free at once.
#[test]
fn a_log_that_maps_to_a_block_it_has_freed_is_refused() {
    let options = OpenOptions { background: false, ..options() };
    let disks = formatted(64, 4096);
    disks.open(&options).unwrap().close().unwrap();
    let newest = load_superblocks(&*disks.metadata).newest(None).unwrap().clone();
    let pbn = Pbn(5);
    let mapping = Mapping { pbn, crc: 1, flags: 0 };
    let mut payload = Vec::new();
    for record in [
        Record::Allocate { pbn, digest: Digest([9; 32]) },
        Record::Map { lbn: Lbn(1), new: mapping, old: Pbn(0) },
        Record::Map { lbn: Lbn(1), new: Mapping::UNMAPPED, old: pbn },
        Record::Map { lbn: Lbn(2), new: mapping, old: Pbn(0) },
    ] {
        record.encode(&mut payload);
    }
    let block = PendingBlock { payload, records: 3, op_seq: newest.op_seq + 3, counters: [0; COUNTERS] };
    let layout = newest.layout.log;
    let mut writer = LogWriter::new(layout, newest.pool, newest.epoch, newest.log, newest.log.next, 0);
    writer.append(&*disks.metadata, vec![block]).unwrap();
    let error = disks.open(&options).unwrap_err().to_string();
    assert!(error.contains("the new block was never allocated"), "{error}");
}
