//! The death of the process loses nothing that it acknowledged (I16).

use super::*;
use crate::killed::{Files, Memory};
use dedup_device::IoKind;

/// A volume and the journal that outlives its processes.
struct Kept {
    disks: Disks,
    journal: Memory,
    options: OpenOptions,
    boot: u128,
}

impl Kept {
    fn new(options: &OpenOptions) -> Self {
        let (disks, journal) = (formatted(16, 512), Memory::new("the device"));
        Self { disks, journal, options: options.clone(), boot: 1 }
    }

    /// Opens it as another process does.
    fn open(&self, process: u128) -> Volume {
        let journal = Some(self.journal.options(self.boot, process));
        reopened(&self.disks, &OpenOptions { journal, ..self.options.clone() })
    }

    /// What was not flushed is gone, and so is everything in memory.
    fn lose_power(&mut self) {
        self.disks = self.disks.lose_everything_unflushed();
        self.journal.restore(Files::new());
        self.boot += 1;
    }

    /// Both copies of the newest superblock are gone.
    fn lose_newest_superblock(&self) {
        let newest = superblock(&self.disks);
        for at in [newest.layout.slot(newest.txid), newest.layout.spare(newest.txid)] {
            destroy(&self.disks.metadata, at.0);
        }
    }
}

/// Overwrites, duplicates, zeros and trims that were answered and not flushed are there after a kill.
pub fn what_was_answered_is_there_after_a_kill(options: &OpenOptions) {
    let kept = Kept::new(options);
    let volume = kept.open(1);
    (0..6).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    write(&volume, 0, 11);
    write(&volume, 1, 11);
    write(&volume, 2, 0);
    trim(&volume, 3, 1);
    drop(volume);
    let volume = kept.open(2);
    for (lbn, content) in [(0, 11), (1, 11), (2, 0), (3, 0), (4, 5), (5, 6)] {
        assert_content(&volume, lbn, content);
    }
    let counters = volume.status().counters;
    assert_eq!((counters.writes, counters.dupwrites, counters.zerowrites, counters.trimmed), (9, 1, 1, 1));
}

/// What an open has taken in is durable when it returns: the journal is written over from then on.
pub fn what_an_open_takes_in_is_durable_when_it_returns(options: &OpenOptions) {
    let mut kept = Kept::new(options);
    let volume = kept.open(1);
    write(&volume, 0, 1);
    drop(volume);
    drop(kept.open(2));
    kept.lose_power();
    assert_content(&kept.open(3), 0, 1);
}

/// A process died after a flush of the data device had failed: the data could be read from the cache, the
/// next flush succeeded and said nothing of it, and after a power cut the mapping was there and the data was
/// not.
pub fn what_is_taken_in_after_a_failed_flush_is_on_the_device(options: &OpenOptions) {
    // Data in the log would need no flush of the data device.
    let mut kept = Kept::new(&OpenOptions { log_data: 0, ..options.clone() });
    let volume = kept.open(1);
    write(&volume, 3, 7);
    kept.disks.data.fail_nth(IoKind::Flush, 0);
    assert!(run(&volume, Op::Flush).is_err(), "the flush was to fail");
    drop(volume);
    drop(kept.open(2));
    kept.lose_power();
    assert_content(&kept.open(3), 3, 7);
}

/// Both copies of the superblock that named the journal were damaged, and the one before it knew of none, or
/// of one from before the machine was restarted: what the killed process had acknowledged was passed by in
/// silence. And after a clean close the one before named a journal that was gone.
pub fn without_the_newest_superblock_the_journal_is_found_all_the_same(options: &OpenOptions) {
    let mut kept = Kept::new(options);
    for (life, content) in (1..).zip([10, 20, 30, 40]) {
        let volume = kept.open(life);
        write(&volume, 0, content);
        if life == 3 {
            volume.checkpoint().unwrap();
        }
        write(&volume, 1, content + 1);
        drop(volume);
        kept.lose_newest_superblock();
        let volume = kept.open(10 + life);
        assert_content(&volume, 0, content);
        assert_content(&volume, 1, content + 1);
        match life {
            2 => drop(volume),
            _ => {
                volume.close().unwrap();
                kept.lose_newest_superblock();
            }
        }
        if life == 2 {
            kept.lose_power();
        }
    }
}
