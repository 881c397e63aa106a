//! What a server that died leaves is what was acknowledged, in order; and no more is kept than has to be.

use super::*;
use crate::batch::{Null, flush_all};
use dedup_volume::RequestError;
use proptest::prelude::*;

const MAX: u64 = 1 << 20;
const EPOCH: u64 = 7;

fn write(offset: u64, byte: u8) -> (Command, Vec<u8>) {
    (Command { kind: Kind::Write, offset, len: 512, fua: false }, vec![byte; 512])
}

fn append(unflushed: &Unflushed, change: &Change) -> bool {
    unflushed.append(&change.0, &change.1).unwrap()
}

fn replayed(stem: &Path) -> Vec<Change> {
    let mut all = Vec::new();
    let replayed = replay(stem, |changes| {
        all.extend(changes);
        Ok(())
    });
    assert_eq!(replayed.unwrap(), Replayed { changes: all.len() as u64, damaged: 0 });
    all
}

#[test]
fn what_was_recorded_is_replayed_in_order_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    let discard = Command { kind: Kind::Discard, offset: 4096, len: 1 << 30, fua: false };
    let zeroes = Command { kind: Kind::WriteZeroes, offset: 512, len: 1024, fua: false };
    let changes = [write(0, 1), (discard, vec![]), write(0, 2), (zeroes, vec![])];
    assert!(changes.iter().all(|change| append(&unflushed, change)));
    assert_eq!(replayed(&stem), changes);
}

#[test]
fn a_flush_drops_what_was_recorded_before_it_began_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    append(&unflushed, &write(0, 1));
    let begun = unflushed.begin().unwrap().unwrap();
    append(&unflushed, &write(0, 2));
    assert_eq!(replayed(&stem), [write(0, 1), write(0, 2)], "before the flush is done, all of it");
    assert!(unflushed.begin().unwrap().is_none(), "one flush drops at a time");
    unflushed.end(begun, true).unwrap();
    assert_eq!(replayed(&stem), [write(0, 2)]);
    let begun = unflushed.begin().unwrap().unwrap();
    unflushed.end(begun, true).unwrap();
    assert_eq!((unflushed.bytes(), replayed(&stem).len()), (0, 0));
    assert!(unflushed.begin().unwrap().is_none(), "nothing to drop");
}

#[test]
fn a_failed_flush_drops_nothing_and_the_order_stays() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    append(&unflushed, &write(0, 1));
    let begun = unflushed.begin().unwrap().unwrap();
    append(&unflushed, &write(0, 2));
    unflushed.end(begun, false).unwrap();
    let begun = unflushed.begin().unwrap().unwrap();
    append(&unflushed, &write(0, 3));
    assert_eq!(replayed(&stem), [write(0, 1), write(0, 2), write(0, 3)]);
    unflushed.end(begun, true).unwrap();
    assert_eq!(replayed(&stem), [write(0, 2), write(0, 3)], "the flush covers more, and more may stay");
}

#[test]
fn when_there_is_no_room_the_caller_is_told_and_after_a_flush_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    let unflushed = Unflushed::create(&stem, EPOCH, 2000).unwrap();
    assert!(
        append(&unflushed, &write(0, 1))
            && append(&unflushed, &write(0, 2))
            && append(&unflushed, &write(0, 3))
    );
    assert!(!append(&unflushed, &write(0, 4)));
    let begun = unflushed.begin().unwrap().unwrap();
    unflushed.end(begun, true).unwrap();
    assert!(append(&unflushed, &write(0, 5)));
    assert_eq!(replayed(&stem), [write(0, 5)]);
}

#[test]
fn creating_forgets_and_removing_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    append(&Unflushed::create(&stem, EPOCH, MAX).unwrap(), &write(0, 1));
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    assert_eq!(replayed(&stem), []);
    unflushed.remove().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(replayed(&stem), [], "and no file is no change");
}

/// A full runtime directory took the 8 bytes that an emptied file had given back; each flush then failed to begin, and was begun again
/// for ever.
#[test]
fn a_flush_needs_no_room_and_one_that_cannot_begin_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    let lens = || paths(&stem).map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(lens(), [HEAD; 2], "both have their page before anything is recorded");
    append(&unflushed, &write(0, 1));
    assert_eq!(flush_all(&Null, &unflushed), Ok(()));
    assert_eq!(lens(), [HEAD; 2]);
    append(&unflushed, &write(0, 2));
    // Where every write finds no space.
    unflushed.lock().old.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(flush_all(&Null, &unflushed), Err(RequestError::Io));
    assert_eq!(replayed(&stem), [write(0, 2)]);
}

/// A new server emptied the newer file first and was killed: the next one replayed the older alone, over newer data that was durable.
#[test]
fn the_older_file_is_emptied_first_or_it_would_be_replayed_alone() {
    let dir = tempfile::tempdir().unwrap();
    for newer in [0, 1] {
        let stem = dir.path().join(format!("ublk-{newer}"));
        let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
        // Each flush has them change places.
        while !unflushed.lock().current_is(&paths(&stem)[newer]) {
            append(&unflushed, &write(0, 1));
            assert_eq!(flush_all(&Null, &unflushed), Ok(()));
        }
        append(&unflushed, &write(0, 2));
        // The older one cannot be emptied, so the end comes before the newer one is reached.
        let older = &paths(&stem)[1 - newer];
        std::fs::remove_file(older).unwrap();
        std::os::unix::fs::symlink("/dev/full", older).unwrap();
        assert!(Unflushed::create(&stem, EPOCH, MAX).is_err());
        std::fs::remove_file(older).unwrap();
        assert_eq!(replayed(&stem), [write(0, 2)], "newer: .{newer}");
    }
}

impl Halves {
    fn current_is(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        self.current.file.metadata().unwrap().ino() == std::fs::metadata(path).unwrap().ino()
    }
}

#[test]
fn what_is_left_is_what_no_flush_has_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    assert_eq!(left(&stem).unwrap(), 0, "no files");
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    assert_eq!(left(&stem).unwrap(), 0, "no records");
    append(&unflushed, &write(0, 1));
    let begun = unflushed.begin().unwrap().unwrap();
    append(&unflushed, &write(0, 2));
    assert_eq!(left(&stem).unwrap(), unflushed.bytes());
    unflushed.end(begun, true).unwrap();
    assert_eq!(left(&stem).unwrap(), unflushed.bytes());
    assert_eq!(flush_all(&Null, &unflushed), Ok(()));
    assert_eq!(left(&stem).unwrap(), 0);
}

/// A damaged record in the middle ended the replay as a torn one does, and nobody was told of those behind it.
#[test]
fn a_damaged_record_ends_the_replay_and_what_is_lost_with_it_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let record = size_of::<Head>() as u64 + 512;
    // In the length, the kind, the checksum, the data.
    for (number, byte) in [8, 16, 24, 100].into_iter().enumerate() {
        let stem = dir.path().join(format!("ublk-{number}"));
        let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
        for change in [write(0, 1), write(512, 2), write(1024, 3)] {
            append(&unflushed, &change);
        }
        unflushed.lock().current.file.write_all_at(&[0xee], HEAD + record + byte).unwrap();
        let mut all = Vec::new();
        let replayed = replay(&stem, |changes| {
            all.extend(changes);
            Ok(())
        });
        assert_eq!(replayed.unwrap(), Replayed { changes: 1, damaged: 2 * record }, "byte {byte}");
        assert_eq!(all, [write(0, 1)]);
    }
}

fn epochs(stem: &Path) -> [u64; 2] {
    paths(stem).map(|path| head(&File::open(path).unwrap()).unwrap().unwrap().1)
}

/// A server died, another program wrote to the volume, and a recovery laid the older changes over what that had written.
#[test]
fn changes_are_taken_over_by_the_next_opening_of_the_volume_and_by_no_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("ublk-0");
    assert_eq!(take_over(&stem, 3, false).unwrap(), Ok(()), "no files");
    let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
    assert_eq!(
        take_over(&stem, EPOCH + 9, false).unwrap(),
        Ok(()),
        "no changes, so nothing to lay over anything"
    );
    append(&unflushed, &write(0, 1));
    // An older one is another volume's, or this one's before it was made again.
    for epoch in [0, EPOCH - 1, EPOCH, EPOCH + 2, EPOCH + 3] {
        assert_eq!(take_over(&stem, epoch, false).unwrap(), Err(OpenedSince { recorded: EPOCH }), "{epoch}");
        assert_eq!(epochs(&stem), [EPOCH; 2], "what is refused stays refused");
    }
    assert_eq!(take_over(&stem, EPOCH + 1, false).unwrap(), Ok(()));
    assert_eq!(replayed(&stem), [write(0, 1)], "and stays until it is dropped");
    // That one died in its replay, the next in here, having marked one of the files, each of the two.
    for (died, file) in paths(&stem).iter().enumerate() {
        let epoch = EPOCH + 2 + 2 * died as u64;
        OpenOptions::new()
            .write(true)
            .open(file)
            .unwrap()
            .write_all_at(&epoch.to_le_bytes(), EPOCH_AT)
            .unwrap();
        assert_eq!(take_over(&stem, epoch + 1, false).unwrap(), Ok(()), "after a crash");
        assert_eq!(epochs(&stem), [epoch + 1; 2]);
    }
    let last = EPOCH + 5;
    assert_eq!(take_over(&stem, last + 2, false).unwrap(), Err(OpenedSince { recorded: last }));
    assert_eq!(take_over(&stem, last + 2, true).unwrap(), Ok(()), "whoever knows better");
    assert_eq!((take_over(&stem, last + 3, false).unwrap(), replayed(&stem)), (Ok(()), vec![write(0, 1)]));
    // A server that goes on records at its own epoch.
    let unflushed = Unflushed::create(&stem, last + 3, MAX).unwrap();
    append(&unflushed, &write(0, 2));
    assert_eq!(take_over(&stem, last + 3, false).unwrap(), Err(OpenedSince { recorded: last + 3 }));
    assert_eq!(take_over(&stem, last + 4, false).unwrap(), Ok(()));
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8),
    Begin,
    End(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u8>().prop_map(Step::Write),
        1 => Just(Step::Begin),
        1 => any::<bool>().prop_map(Step::End),
    ]
}

proptest! {
    /// Killed at any moment, in the middle of a record too: what is replayed is a run of the acknowledged changes up to the last one,
    /// and begins no later than the first that no successful flush covers.
    #[test]
    fn after_a_kill_at_any_byte_every_unflushed_change_is_there(
        steps in prop::collection::vec(step(), 1..40),
        torn in 0u64..600,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("ublk-0");
        let unflushed = Unflushed::create(&stem, EPOCH, MAX).unwrap();
        let (mut all, mut durable, mut begun) = (Vec::new(), 0, None);
        for step in steps {
            match step {
                Step::Write(byte) => {
                    all.push(write(all.len() as u64 * 512, byte));
                    append(&unflushed, all.last().unwrap());
                }
                Step::Begin if begun.is_none() => begun = unflushed.begin().unwrap().map(|b| (b, all.len())),
                Step::Begin => prop_assert!(unflushed.begin().unwrap().is_none()),
                Step::End(ok) => if let Some((b, upto)) = begun.take() {
                    unflushed.end(b, ok).unwrap();
                    durable = if ok { upto } else { durable };
                },
            }
        }
        // One more that did not get far enough to be acknowledged.
        append(&unflushed, &write(1 << 30, 0));
        let halves = unflushed.lock();
        halves.current.file.set_len(halves.current.end - torn.clamp(1, 544)).unwrap();
        drop(halves);
        let found = replayed(&stem);
        prop_assert!(all.ends_with(&found), "{} of {}", found.len(), all.len());
        prop_assert!(found.len() >= all.len() - durable);
    }
}
