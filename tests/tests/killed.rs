//! I16: the death of the server's process loses nothing that it acknowledged; a power cut may lose what was
//! not flushed, and nothing else.
//!
//! | what | where |
//! |---|---|
//! | a kill at any event of a life, of the open after it, and of the next; then a power cut | `nothing_acknowledged_is_lost_...` |
//! | journals that are not what they should be | `a_journal_that_...`, `a_copy_...` |
//! | a journal that cannot be written | `where_the_journal_...`, `without_a_place_...` |
//! | a read beside a write of the journal, or a commit | `a_read_is_answered_only_...`, `what_is_shown_...` |

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind};
use dedup_tests::hooked::Rig;
use dedup_tests::killed::{Files, Memory, run};
use dedup_tests::{
    Disks, assert_content, block, flush, formatted, options, read, run as run_op, trim, try_write, write,
};
use dedup_volume::{Op, OpenOptions, Volume, VolumeError};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A volume, and a journal for it.
struct Scene {
    disks: Disks,
    journal: Memory,
}

impl Scene {
    fn new() -> Self {
        Self { disks: formatted(16, 512), journal: Memory::new("the device") }
    }

    fn options(&self, id: u128) -> OpenOptions {
        OpenOptions { journal: Some(self.journal.options(1, id)), ..options() }
    }

    fn open(&self, id: u128) -> Volume {
        self.disks.open(&self.options(id)).unwrap()
    }

    fn refusal(&self, options: &OpenOptions) -> String {
        match self.disks.open(options).unwrap_err() {
            error @ VolumeError::Journal { .. } => error.to_string(),
            other => panic!("{other}"),
        }
    }

    /// Two writes, the first of which is durable, by a process that dies.
    fn killed() -> Self {
        let scene = Self::new();
        let volume = scene.open(1);
        write(&volume, 0, 1);
        flush(&volume);
        write(&volume, 0, 2);
        write(&volume, 1, 2);
        drop(volume);
        scene
    }
}

/// A server was killed below clients that reconnected: what they had been told was written, and not flushed,
/// was gone, and their flush succeeded.
#[test]
fn nothing_acknowledged_is_lost_by_a_kill_at_any_moment_also_of_the_open_after_it() {
    let mut kills = 0;
    for seed in 0..24 {
        let events = run(seed, u64::MAX - 1, |_| ()).events;
        for kill in (seed % 7..events).step_by(7) {
            kills += run(seed, kill, |_| ()).kills;
        }
    }
    assert!(kills > 1000, "{kills} kills");
}

#[test]
fn a_read_only_open_has_what_was_acknowledged_and_changes_nothing() {
    let scene = Scene::killed();
    let before = (scene.disks.data.image().fingerprint(), scene.disks.metadata.image().fingerprint());
    let files = scene.journal.files();
    let volume = scene.disks.open(&OpenOptions { read_only: true, ..scene.options(2) }).unwrap();
    assert_content(&volume, 0, 2);
    assert_content(&volume, 1, 2);
    assert_eq!(volume.status().journal.operations, 2);
    drop(volume);
    let after = (scene.disks.data.image().fingerprint(), scene.disks.metadata.image().fingerprint());
    assert_eq!(before, after);
    assert_eq!(files, scene.journal.files());
}

/// What was given up must not come back: it may be older than what was written since.
#[test]
fn a_journal_that_is_missing_is_said_to_be_and_what_is_given_up_does_not_come_back() {
    let scene = Scene::killed();
    let old = scene.journal.files();
    scene.journal.restore(Files::new());
    let refusal = scene.refusal(&scene.options(2));
    assert!(refusal.contains("the device") && refusal.contains("no such journal"), "{refusal}");
    assert!(refusal.contains("--force") && refusal.contains("--rescue"), "{refusal}");
    let read_only = OpenOptions { read_only: true, ..scene.options(2) };
    scene.refusal(&read_only);
    assert_content(&scene.disks.open(&OpenOptions { rescue: true, ..read_only }).unwrap(), 0, 1);
    let forced = scene.disks.open(&OpenOptions { force: true, ..scene.options(2) }).unwrap();
    assert_content(&forced, 0, 1);
    write(&forced, 0, 3);
    drop(forced);
    scene.journal.restore(old);
    let refusal = scene.refusal(&scene.options(3));
    assert!(refusal.contains("found journal"), "{refusal}");
}

/// An opener that knows of no journal opened the volume after its server had died, and what that had
/// acknowledged was lost or had to be forced over newer data.
#[test]
fn a_journal_is_passed_by_by_nobody_who_does_not_say_so() {
    let scene = Scene::killed();
    scene.refusal(&options());
    let read_only = OpenOptions { read_only: true, ..options() };
    scene.refusal(&read_only);
    assert_content(&scene.open(2), 0, 2);
}

#[test]
fn a_copy_made_of_an_open_volume_does_not_take_the_originals_journal() {
    let scene = Scene::killed();
    let copy = Scene {
        disks: scene.disks.crash(|_, _, _| true),
        journal: scene.journal.for_device("another device"),
    };
    let refusal = copy.refusal(&copy.options(7));
    assert!(refusal.contains("a copy that was made while the volume was open"), "{refusal}");
    let forced = copy.disks.open(&OpenOptions { force: true, ..copy.options(7) }).unwrap();
    assert_content(&forced, 0, 1);
    write(&forced, 5, 5);
    drop(forced);
    assert_content(&scene.open(2), 1, 2);
    assert_content(&copy.open(8), 5, 5);
}

#[test]
fn after_the_machine_was_restarted_nothing_is_expected_and_what_is_there_is_not_taken_in() {
    let scene = Scene::killed();
    let journal = Some(scene.journal.options(2, 2));
    let volume = scene.disks.open(&OpenOptions { journal, ..options() }).unwrap();
    assert_content(&volume, 0, 1);
    assert_content(&volume, 1, 0);
}

/// A journal that ends behind a gap would make older content of what was answered.
#[test]
fn a_journal_that_does_not_go_on_where_the_log_ends_is_refused() {
    let scene = Scene::new();
    drop(scene.open(1));
    let earlier = scene.disks.crash(|_, _, _| true);
    let volume = scene.open(2);
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    (0..4).for_each(|lbn| write(&volume, lbn, lbn + 11));
    flush(&volume);
    write(&volume, 9, 9);
    drop(volume);
    let earlier = Scene { disks: earlier, journal: scene.journal.clone() };
    let refusal = earlier.refusal(&earlier.options(3));
    assert!(refusal.contains("where 1 is expected"), "{refusal}");
}

/// The memory file system was full. Nothing may be answered that a kill would lose, and it goes on by itself
/// when there is room.
#[test]
fn where_the_journal_cannot_be_written_changes_are_committed_before_they_are_answered() {
    let scene = Scene::new();
    let volume = scene.open(1);
    write(&volume, 0, 1);
    scene.journal.fail(true);
    for lbn in 1..4 {
        write(&volume, lbn, lbn + 1);
        let status = volume.status();
        assert_eq!(status.commit.durable, status.commit.published, "LBN {lbn}");
    }
    trim(&volume, 1, 1);
    let status = volume.status();
    assert_eq!(status.commit.durable, status.commit.published);
    assert!(!status.journal.kept && status.journal.failure.is_some());
    scene.journal.fail(false);
    write(&volume, 4, 5);
    write(&volume, 5, 6);
    let status = volume.status();
    assert!(status.journal.kept && status.journal.operations > 0, "{:?}", status.journal);
    drop(volume);
    let volume = scene.open(2);
    for (lbn, content) in [(0, 1), (1, 0), (2, 3), (3, 4), (4, 5), (5, 6)] {
        assert_content(&volume, lbn, content);
    }
}

/// One client's write is published and on its way to the journal when another one reads it. Was the read
/// answered before the journal had it, a kill would take back what somebody has seen.
#[test]
fn a_read_is_answered_only_when_the_journal_has_what_it_shows() {
    let scene = Scene::new();
    let volume = Arc::new(scene.open(1));
    let (answer, answered) = channel();
    let reader = Arc::new(Mutex::new(None));
    let (weak, started) = (Arc::downgrade(&volume), Arc::clone(&reader));
    scene.journal.before_write(move || {
        let volume = weak.upgrade().unwrap();
        let thread = thread::spawn(move || answer.send(read(&volume, 0).unwrap()));
        *started.lock().unwrap() = Some(thread);
        // It may take a moment to come so far; an answer within it would be one too early.
        assert!(answered.recv_timeout(Duration::from_millis(100)).is_err(), "answered before it was kept");
    });
    write(&volume, 0, 7);
    let thread = reader.lock().unwrap().take().expect("the journal was written");
    // Nobody listens any more, and so there is an error: it has answered.
    assert_eq!(thread.join().unwrap().unwrap_err().0, block(7, 512));
}

/// A commit takes what was published, and was not answered yet: from then on the log was to have it. Somebody
/// reads it, and the process dies before the log is written.
#[test]
fn what_is_shown_while_a_commit_is_under_way_is_there_after_a_kill() {
    let journal = Memory::new("the device");
    let options = OpenOptions { journal: Some(journal.options(1, 1)), ..options() };
    let rig = Rig::open(formatted(16, 512), &options).unwrap();
    let killed = Arc::new(Mutex::new(None));
    let (weak, at_kill) = (Arc::downgrade(&rig.volume), Arc::clone(&killed));
    let (disks, files) = (rig.disks.clone(), journal.clone());
    rig.metadata.before(IoKind::Write, 0, move || {
        assert_content(&weak.upgrade().unwrap(), 0, 7);
        *at_kill.lock().unwrap() = Some((disks.crash(|_, _, _| true), files.files()));
    });
    try_write(&rig.volume, 0, 7, true).unwrap();
    let (disks, files) = killed.lock().unwrap().take().expect("the commit wrote its log");
    journal.restore(files);
    let scene = Scene { disks, journal };
    assert_content(&scene.open(2), 0, 7);
}

#[test]
fn counters_that_no_record_tells_are_those_of_the_killed_process() {
    let scene = Scene::new();
    let volume = scene.open(1);
    write(&volume, 0, 1);
    run_op(&volume, Op::Write { offset: 100, data: &[9; 17], fua: false }).unwrap();
    let counters = volume.status().counters;
    assert!(counters.reads_on_writes > 0, "a block was read to be changed in part");
    drop(volume);
    assert_eq!(scene.open(2).status().counters, counters);
}

#[test]
fn without_a_place_for_the_journal_changes_are_committed_before_they_are_answered() {
    let scene = Scene::new();
    scene.journal.refuse();
    let volume = scene.open(1);
    write(&volume, 0, 1);
    let status = volume.status();
    assert_eq!(status.commit.durable, status.commit.published);
    assert!(!status.journal.kept && status.journal.failure.is_some());
    drop(volume);
    // It left no journal, so it is no matter to whom it belongs.
    assert_content(&scene.disks.open(&options()).unwrap(), 0, 1);
}

#[test]
fn a_volume_that_is_closed_leaves_no_journal_and_needs_none() {
    let scene = Scene::killed();
    let volume = scene.open(2);
    assert_eq!(volume.status().journal.operations, 0, "what was taken in is durable");
    volume.close().unwrap();
    assert!(scene.journal.files().is_empty());
    assert_content(&scene.disks.open(&options()).unwrap(), 1, 2);
}

/// A commit was under way when the process died: of what one write to the journal has, the log has the
/// beginning.
#[test]
fn what_the_log_has_in_part_is_taken_in_from_there() {
    const BLOCKS: u64 = 128;
    let scene = Scene { disks: formatted(BLOCKS, 512), journal: Memory::new("the device") };
    let volume = scene.open(1);
    let data: Vec<u8> = (0..BLOCKS).flat_map(|lbn| block(lbn + 1, 512)).collect();
    run_op(&volume, Op::Write { offset: 0, data: &data, fua: false }).unwrap();
    scene.disks.metadata.fail_nth(IoKind::Flush, 0);
    run_op(&volume, Op::Flush).unwrap_err();
    drop(volume);
    // The first block of the log, of three.
    let disks = scene.disks.crash(|device, _, sector| device == 0 || sector < 8);
    let reads_as_written = |disks: &Disks, boot| {
        let journal = Some(scene.journal.options(boot, 2));
        let options = OpenOptions { read_only: true, journal, ..options() };
        let volume = disks.open(&options).unwrap();
        (0..BLOCKS).filter(|lbn| read(&volume, *lbn).unwrap() == block(lbn + 1, 512)).count() as u64
    };
    let in_the_log = reads_as_written(&disks, 2);
    assert!((1..BLOCKS).contains(&in_the_log), "{in_the_log} blocks");
    assert_eq!(reads_as_written(&disks, 1), BLOCKS);
    let scene = Scene { disks, journal: scene.journal.clone() };
    let volume = scene.open(2);
    assert_eq!(volume.status().counters.writes, BLOCKS);
}

/// Flips a bit of the block that holds `content`, on the data device.
fn damage(disks: &Disks, content: u64) {
    let (wanted, mut found) = (block(content, 512), vec![0; 512]);
    let is_there = |place: &u64| {
        disks.data.read(*place, &mut found).unwrap();
        found == wanted
    };
    let place = (0..disks.data.size() / 512).map(|sector| sector * 512).find(is_there).unwrap();
    let mut damaged = wanted.clone();
    damaged[17] ^= 1;
    disks.data.write(place, &damaged).unwrap();
}

/// A flush had failed before the process died, and the cache has let go of what it did not write.
#[test]
fn what_is_taken_in_and_is_not_what_was_written_is_known_to_be_bad() {
    let scene = Scene::new();
    let volume = scene.open(1);
    write(&volume, 0, 1);
    write(&volume, 1, 2);
    drop(volume);
    damage(&scene.disks, 1);
    let volume = scene.open(2);
    assert_eq!(volume.status().bad_blocks_now, 1);
    assert!(read(&volume, 0).is_err());
    assert_content(&volume, 1, 2);
    // The same content again heals it, and is no match of what is damaged.
    write(&volume, 5, 1);
    assert_content(&volume, 0, 1);
}

/// Where it cannot be read at all, nobody knows whether it was written.
#[test]
fn what_is_taken_in_and_cannot_be_read_is_known_to_be_bad() {
    let mut marked = 0;
    // The first read of an open is that of the label, the next two are those of the blocks.
    for n in 1..3 {
        let scene = Scene::new();
        let volume = scene.open(1);
        write(&volume, 0, 1);
        write(&volume, 1, 2);
        drop(volume);
        scene.disks.data.fail_nth(IoKind::Read, n);
        let volume = scene.open(2);
        let bad = volume.status().bad_blocks_now;
        marked += bad;
        write(&volume, 5, 1);
        write(&volume, 6, 2);
        assert_eq!(volume.status().bad_blocks_now, 0, "read {n}: the same content again heals it");
        assert_eq!(volume.status().counters.healed_blocks, bad);
        assert_content(&volume, 0, 1);
        assert_content(&volume, 1, 2);
    }
    assert!(marked > 0, "a read of what was taken in failed");
}

/// A block that was healed in place before the kill is whole after it, also if the flush had failed and the
/// power is cut then.
#[test]
fn a_block_that_was_healed_is_healed_after_a_kill_and_a_power_cut() {
    let scene = Scene::new();
    let volume = scene.open(1);
    write(&volume, 0, 1);
    flush(&volume);
    damage(&scene.disks, 1);
    scene.disks.data.flush().unwrap();
    assert!(read(&volume, 0).is_err());
    flush(&volume);
    write(&volume, 1, 1);
    assert_content(&volume, 0, 1);
    scene.disks.data.fail_nth(IoKind::Flush, 0);
    run_op(&volume, Op::Flush).unwrap_err();
    drop(volume);
    let volume = scene.open(2);
    assert_eq!(volume.status().bad_blocks_now, 0);
    drop(volume);
    let disks = scene.disks.lose_everything_unflushed();
    let journal = Some(Memory::new("the device").options(2, 3));
    let volume = disks.open(&OpenOptions { journal, ..options() }).unwrap();
    assert_content(&volume, 0, 1);
    assert_content(&volume, 1, 1);
}
