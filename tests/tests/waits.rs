//! Who waits for whom without need.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::hooked::{Rig, WATCHDOG, watched};
use dedup_tests::killed::Memory;
use dedup_tests::{formatted, options, write};
use dedup_volume::OpenOptions;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A checkpoint of a large delta takes seconds on a slow device. The status needs one word of what the
/// checkpoint has locked, the number of the newest superblock, and waited for all of it: `dedup-tool status`
/// hung, and so did everything that watched a server by it.
#[test]
fn the_status_is_told_at_every_moment_of_a_checkpoint() {
    watched(WATCHDOG, || {
        let rig = Rig::open(formatted(64, 4096), &options()).unwrap();
        (0..64).for_each(|lbn| write(&rig.volume, lbn, lbn + 1));
        let asked = Arc::new(AtomicU64::new(0));
        for (kind, calls) in [(IoKind::Write, 6), (IoKind::Flush, 3)] {
            for n in 0..calls {
                let (volume, asked) = (Arc::downgrade(&rig.volume), asked.clone());
                rig.metadata.before(kind, n, move || {
                    let volume = volume.upgrade().unwrap();
                    let status = volume.status();
                    assert_eq!((status.mode, status.data_used_blocks), ("read-write", 64));
                    assert!(!volume.is_read_only());
                    volume.gc_start();
                    volume.gc_stop();
                    volume.gc_estimate().unwrap();
                    asked.fetch_add(1, SeqCst);
                });
            }
        }
        let before = rig.volume.status();
        rig.volume.checkpoint().unwrap();
        rig.metadata.forget_hooks();
        assert!(asked.load(SeqCst) >= 6, "{asked:?}");
        let after = rig.volume.status();
        assert_eq!(after.commit.transaction, before.commit.transaction + 1);
        assert!(after.commit.checkpoint_blocks_written > before.commit.checkpoint_blocks_written);
    });
}

/// The directory of the journal may be on a disk, and a disk may be slow: then the status of a server that
/// was written to hung, too.
#[test]
fn the_status_waits_for_no_write_of_the_journal() {
    watched(WATCHDOG, || {
        let journal = Memory::new("the device");
        let options = OpenOptions { journal: Some(journal.options(1, 1)), ..options() };
        let volume = Arc::new(formatted(16, 512).open(&options).unwrap());
        let asked = Arc::new(AtomicU64::new(0));
        let (weak, count) = (Arc::downgrade(&volume), asked.clone());
        journal.before_write(move || {
            let status = weak.upgrade().unwrap().status();
            assert!(status.journal.kept && status.journal.operations == 1, "{:?}", status.journal);
            count.fetch_add(1, SeqCst);
        });
        write(&volume, 0, 1);
        assert_eq!(asked.load(SeqCst), 1);
        let after = volume.status().journal;
        assert!(after.kept && after.bytes > 0, "{after:?}");
    });
}
