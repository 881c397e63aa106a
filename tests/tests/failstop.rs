//! A failed flush ends everything that was under way beside it (I6).
//!
//! The story: commits and checkpoints flush the same device, each from a thread of its own. A device tells of
//! a lost write once. When a commit's flush failed while a checkpoint was writing its trees, the volume
//! stopped, but the checkpoint went on (now a property,
//! `a_checkpoint_ends_when_a_commits_flush_fails_beside_it`). The other way round, a commit whose flush came
//! after a checkpoint's failed one was acknowledged, and its log block was not there.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind};
use dedup_tests::hooked::{Hooked, Rig};
use dedup_tests::*;
use dedup_volume::{Op, OpenOptions, RequestError, Volume};
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

/// A volume with eight blocks on it, all durable, and its metadata device. Nothing is left for a checkpoint's
/// own commit to log, so the first write of the next checkpoint is one of its trees.
fn opened(disks: &Disks) -> (Arc<OnceLock<Volume>>, Arc<Hooked>) {
    let metadata = Hooked::new(Arc::clone(&disks.metadata));
    let volume = Arc::new(OnceLock::new());
    let opened = Volume::open(disks.data(), metadata.device(), &OpenOptions { cache_bytes: 0, ..options() });
    let opened = volume.get_or_init(|| opened.unwrap());
    (0..8).for_each(|lbn| write(opened, lbn, lbn + 1));
    flush(opened);
    (volume, metadata)
}

#[test]
fn a_commit_is_not_acknowledged_when_a_checkpoints_flush_fails_beside_it() {
    let disks = formatted(64, 4096);
    let (answer, answered) = channel();
    let answer = Mutex::new(Some(answer));
    let (volume, metadata) = opened(&disks);
    let client = Arc::clone(&volume);
    write(volume.get().unwrap(), 20, 100);
    // The checkpoint's first flush is that of its own commit, the second that of its trees: there, a client's
    // write is published already, and its FLUSH goes on as far as it can before the checkpoint hears that its
    // own has failed.
    let early = Arc::new(Mutex::new(None));
    let (seen, failing) = (Arc::clone(&early), Arc::clone(&disks.metadata));
    metadata.instead(IoKind::Flush, 1, move || {
        failing.fail_nth(IoKind::Flush, 0);
        failing.flush().unwrap_err();
        let answer = answer.lock().unwrap().take().unwrap();
        thread::spawn(move || {
            let volume = client.get().unwrap();
            write(volume, 21, 101);
            answer.send(run(volume, Op::Flush)).unwrap();
        });
        // Long enough for a client that waits for nothing; one that waits for this flush to end answers
        // later.
        *seen.lock().unwrap() = answered.recv_timeout(Duration::from_millis(300)).ok();
        io::Error::other("a write was lost")
    });
    volume.get().unwrap().checkpoint().unwrap_err();
    let early = early.lock().unwrap().take();
    assert!(!matches!(early, Some(Ok(()))), "a FLUSH was acknowledged although its log block is lost");
}

/// The threads of a volume that has stopped have nothing left to do: they end, and closing tells why it had
/// stopped.
#[test]
fn the_threads_of_a_volume_that_has_stopped_end_and_its_close_says_why() {
    let disks = formatted(64, 4096);
    // A checkpoint is due after each few operations.
    let volume = disks.open(&OpenOptions { background: true, delta_max: 8, ..options() }).unwrap();
    write(&volume, 0, 1);
    flush(&volume);
    disks.metadata.fail_nth(IoKind::Flush, 0);
    let refused = (0..10_000u64).find_map(|i| try_write(&volume, i % 64, i, i % 3 == 0).err());
    assert!(refused.is_some(), "the volume did not stop");
    assert_eq!(try_write(&volume, 0, 7, false), Err(RequestError::Io));
    let error = volume.close().unwrap_err().to_string();
    assert!(error.contains("flush"), "{error}");
}

/// The reason is all that an administrator has to go by: which device it was, what was asked of it, and what
/// it said. What fails later, because the volume has stopped, is told in the same words, once, and does not
/// take their place.
#[test]
fn a_volume_that_has_stopped_says_which_device_failed_at_what() {
    let on = |disks: &Disks, device: &str| match device {
        "data" => disks.data.clone(),
        _ => disks.metadata.clone(),
    };
    for (device, kind, operation) in [
        ("data", IoKind::Flush, "flush"),
        ("metadata", IoKind::Flush, "flush"),
        ("metadata", IoKind::Write, "write"),
    ] {
        let disks = formatted(64, 4096);
        let volume = disks.open(&options()).unwrap();
        write(&volume, 0, 1);
        on(&disks, device).fail_nth(kind, 0);
        assert_eq!(run(&volume, Op::Flush), Err(RequestError::Io));
        let reason = volume.status().failure.unwrap();
        assert!(
            reason.contains(&format!("{device} device"))
                && reason.contains(operation)
                && reason.contains("injected"),
            "{device}, {operation}: {reason}"
        );
        // Everything fails from now on.
        [&disks.data, &disks.metadata]
            .iter()
            .for_each(|device| device.fail_region(IoKind::Write, 0..u64::MAX));
        assert_eq!(try_write(&volume, 1, 2, true), Err(RequestError::Io));
        for error in [volume.checkpoint().unwrap_err(), volume.checkpoint().unwrap_err()] {
            let told = error.to_string();
            assert_eq!(told.matches(&reason).count(), 1, "{told}");
            assert_eq!(told.matches("stopped").count(), 1, "{told}");
        }
        assert_eq!(volume.status().failure, Some(reason.clone()));
        let told = volume.close().unwrap_err().to_string();
        assert_eq!(told.matches(&reason).count(), 1, "{told}");
    }
}

/// A commit fails beside a checkpoint, which then fails at something else. It is the first failure that the
/// other one follows from.
#[test]
fn the_first_failure_is_the_reason_whatever_fails_after_it() {
    let rig = Rig::open(formatted(64, 4096), &options()).unwrap();
    write(&rig.volume, 0, 1);
    let (volume, device) = (Arc::clone(&rig.volume), Arc::clone(&rig.disks.metadata));
    // The first write is of the log, the second one of a tree.
    rig.metadata.before(IoKind::Write, 1, move || {
        write(&volume, 1, 2);
        device.fail_nth(IoKind::Flush, 0);
        assert_eq!(run(&volume, Op::Flush), Err(RequestError::Io));
        device.fail_region(IoKind::Write, 0..u64::MAX);
    });
    rig.volume.checkpoint().unwrap_err();
    let reason = rig.volume.status().failure.unwrap();
    assert!(reason.contains("flush"), "{reason}");
}
