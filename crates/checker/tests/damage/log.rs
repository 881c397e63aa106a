//! The log: holes, and records that do not fit.

use crate::support::*;
use crate::*;

/// Puts other records into the last block of the log, with its checksum right.
fn rewrite_last(image: &Image, records: &[Record]) -> u64 {
    let superblock = image.superblock();
    let report = image.check();
    let seq = superblock.log.next.0 + report.summary.log_blocks - 1;
    let at = superblock.layout.log.place(dedup_meta::LogSeq(seq));
    let mut block = image.block(at);
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    // The records stand behind a header of 168 bytes, whose byte 36 has their length.
    block.payload[168..].fill(0);
    block.payload[168..][..bytes.len()].copy_from_slice(&bytes);
    block.payload[36..38].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
    block.seal(superblock.pool);
    image.put(at, &block);
    seq
}

fn one_record(record: Record) -> (Image, Vec<dedup_checker::Finding>) {
    let image = sample_with_log();
    rewrite_last(&image, &[record]);
    let problems = image.problems();
    (image, problems.into_iter().filter(|f| f.kind == Kind::LogRecord).collect())
}

#[test]
fn a_hole_before_what_was_durable_is_damage_and_a_torn_end_is_not() {
    let image = sample_with_log();
    let superblock = image.superblock();
    let place = |i: u64| superblock.layout.log.place(dedup_meta::LogSeq(superblock.log.next.0 + i));
    let torn = image.clone();
    torn.flip(place(2), 500, 1);
    assert!(torn.problems().is_empty());
    assert_eq!(torn.check().summary.log_blocks, 2);

    image.flip(place(0), 500, 1);
    let problems = image.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].kind, Kind::LogDamage);
    assert_eq!(problems[0].place, format!("log block {}", superblock.log.next));
}

#[test]
fn records_that_contradict_the_trees_are_named_by_their_block() {
    let digest = dedup_schema::Digest([7; 32]);
    let mapping = |pbn| Mapping { pbn: Pbn(pbn), crc: 1, flags: 0 };
    let in_use = pbn_of(&sample_with_log(), 20);
    let free = sample_with_log().superblock().data_blocks - 1;
    let cases = [
        (Record::Map { lbn: Lbn(20), new: mapping(0), old: Pbn(in_use + 1) }, "map old pbn"),
        (Record::Map { lbn: Lbn(90), new: mapping(free), old: Pbn(0) }, "map pbn"),
        (Record::Map { lbn: Lbn(LBNS), new: mapping(in_use), old: Pbn(0) }, "map lbn"),
        (
            Record::Map { lbn: Lbn(90), new: Mapping { flags: 1, ..mapping(in_use) }, old: Pbn(0) },
            "map flags",
        ),
        (Record::Map { lbn: Lbn(90), new: mapping(free + 1), old: Pbn(0) }, "map pbn"),
        (Record::Allocate { pbn: Pbn(in_use), digest }, "allocate"),
        (Record::Allocate { pbn: Pbn(0), digest }, "allocate"),
        (Record::Unmap { lbn: Lbn(90), blocks: 7 }, "unmap"),
        (Record::Bad { pbn: Pbn(free + 1) }, "bad"),
        (Record::Healed { pbn: Pbn(0) }, "healed"),
        (Record::Content { pbn: Pbn(free + 1), offset: 0, bytes: &[1; 8] }, "content"),
        (Record::Content { pbn: Pbn(free), offset: 8, bytes: &[1; 8] }, "content"),
    ];
    for (record, field) in cases {
        let (image, problems) = one_record(record);
        assert!(problems.iter().any(|f| f.field == field), "{record:?}: {problems:?}");
        assert!(problems.iter().all(|f| f.place.starts_with("log block ")));
        match (image.open(), field) {
            // What the LBN was mapped to is in a tree, where a replay does not look.
            (Ok(_), "map old pbn" | "map flags" | "bad" | "healed") | (Err(_), _) => {}
            (Ok(_), _) => panic!("a log that says {record:?} was believed"),
        }
    }
}

/// Data in the log goes over what is at its place: half of a block, or bytes that are not those whose digest
/// was logged, must not.
#[test]
fn data_in_the_log_that_is_not_whole_or_not_its_own_is_found_and_not_restored() {
    let pbn = Pbn(sample_with_log().superblock().data_blocks - 1);
    let (new, digest) = (Mapping { pbn, crc: 1, flags: 0 }, dedup_schema::Digest([7; 32]));
    let records = |bytes| {
        let content = Record::Content { pbn, offset: 0, bytes };
        [content, Record::Allocate { pbn, digest }, Record::Map { lbn: Lbn(90), new, old: Pbn(0) }]
    };
    let (half, whole) = ([1; BLOCK_SIZE / 2], content(5));
    for (records, kind, says) in
        [(records(&half), Kind::LogRecord, "content"), (records(&whole), Kind::DataMismatch, "digest")]
    {
        let image = sample_with_log();
        rewrite_last(&image, &records);
        let problems = image.problems();
        assert!(problems.iter().any(|f| f.kind == kind), "{says}: {problems:?}");
        let before = image.data.image();
        let error = image.open().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(image.data.image() == before, "{says}: it was restored");
    }
}

#[test]
fn an_allocation_that_nothing_maps_and_a_garbled_record_are_found() {
    let free = sample_with_log().superblock().data_blocks - 1;
    let (_, problems) =
        one_record(Record::Allocate { pbn: Pbn(free), digest: dedup_schema::Digest([7; 32]) });
    assert_eq!(problems.len(), 1);
    assert_eq!(&*problems[0].found, "none");

    let image = sample_with_log();
    let seq = rewrite_last(&image, &[Record::Bad { pbn: Pbn(1) }]);
    let superblock = image.superblock();
    let at = superblock.layout.log.place(dedup_meta::LogSeq(seq));
    let mut block = image.block(at);
    block.payload[168] = 99;
    block.seal(superblock.pool);
    image.put(at, &block);
    assert!(image.problems().iter().any(|f| f.field == "record"));
}

#[test]
fn an_operation_number_that_skips_is_found() {
    let image = sample_with_log();
    image.edit_superblock(|sb| sb.op_seq -= 1);
    let problems = image.problems();
    assert!(problems.iter().any(|f| (f.kind, &*f.field) == (Kind::LogRecord, "op_seq")), "{problems:?}");
}

#[test]
fn a_log_overwritten_before_the_older_superblock_let_go_of_it_is_a_warning() {
    let disks = Disks::formatted(LBNS);
    let volume = disks.open(1);
    (0..4).for_each(|lbn| write(&volume, lbn, 1 + lbn));
    volume.checkpoint().unwrap();
    (0..4).for_each(|lbn| write(&volume, lbn, 11 + lbn));
    volume.checkpoint().unwrap();
    let image = disks.image();
    let survey = dedup_meta::load_superblocks(&*image.metadata);
    let older = survey.older(survey.newest(None).unwrap()).unwrap().clone();
    assert!(image.problems().is_empty());
    image.flip(older.layout.log.place(dedup_meta::LogSeq(older.log.next.0 + 1)), 50, 1);
    let problems = image.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].kind, Kind::OlderLog);
}
