//! What the engine logs, and when.
//!
//! The story: a line was written under the state's lock. A log that nobody read (a pipe, a stopped terminal)
//! held up its writer, and that the whole volume. So whoever is told of an event can use the volume
//! meanwhile; and what fails is told, once for each block.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::*;
use dedup_volume::Volume;
use std::fmt::Debug;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Longer than the volume takes to say whether it is read-only.
const LONG: Duration = Duration::from_secs(20);

/// Hears events, and has another thread use the volume during each.
#[derive(Clone)]
struct Listener {
    volume: Arc<Volume>,
    heard: Arc<Mutex<Vec<String>>>,
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let (answer, answered) = channel();
        let volume = Arc::clone(&self.volume);
        thread::spawn(move || answer.send(volume.is_read_only()));
        let is_free = answered.recv_timeout(LONG).is_ok();
        self.heard.lock().unwrap().push(if is_free { message.0 } else { format!("LOCKED: {}", message.0) });
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What is heard while `act` runs on a volume with some content.
fn heard(act: impl FnOnce(&Disks, &Volume)) -> Vec<String> {
    let disks = formatted(64, 4096);
    let volume = Arc::new(disks.open(&options()).unwrap());
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    flush(&volume);
    let listener = Listener { volume: Arc::clone(&volume), heard: Arc::default() };
    tracing::subscriber::with_default(listener.clone(), || act(&disks, &volume));
    let heard = listener.heard.lock().unwrap().clone();
    assert!(heard.iter().all(|line| !line.starts_with("LOCKED")), "{heard:#?}");
    heard
}

/// Two lines for each block that could not be written.
#[test]
fn a_failed_write_is_told_once_for_each_block_and_while_the_volume_can_be_used() {
    let heard = heard(|disks, volume| {
        disks.data.fail_region(IoKind::Write, 0..disks.data.image().size());
        try_write(volume, 20, 99, false).unwrap_err();
    });
    assert_eq!(heard.len(), 1, "{heard:#?}");
    assert!(heard[0].starts_with("data device: write of block "), "{heard:#?}");
}

/// A client was sent to the server's log, which said nothing.
#[test]
fn a_failed_read_is_told_with_both_its_blocks_also_where_a_write_needs_it() {
    let heard = heard(|disks, volume| {
        disks.data.fail_region(IoKind::Read, 0..disks.data.image().size());
        read(volume, 3).unwrap_err();
        run(volume, dedup_volume::Op::Write { offset: 5 * 4096, data: &[1; 512], fua: false }).unwrap_err();
    });
    assert_eq!(heard.len(), 2, "{heard:#?}");
    for (line, lbn) in heard.iter().zip([3, 5]) {
        assert!(line.starts_with(&format!("read of LBN {lbn}, block ")), "{heard:#?}");
        assert!(line.contains("data device: read"), "{heard:#?}");
    }
}

#[test]
fn a_block_that_is_not_what_was_written_is_told_once() {
    let heard = heard(|disks, volume| {
        let blocks: Vec<u64> = (4096..disks.data.image().size()).step_by(4096).collect();
        blocks.iter().for_each(|at| disks.data.rot(*at, &[1]).unwrap());
        read(volume, 3).unwrap_err();
    });
    assert_eq!(heard.len(), 1, "{heard:#?}");
    assert!(heard[0].starts_with("LBN 3, block ") && heard[0].contains("checksum"), "{heard:#?}");
}

#[test]
fn a_volume_that_stops_can_be_asked_while_it_is_told() {
    let heard = heard(|disks, volume| {
        write(volume, 20, 99);
        disks.metadata.fail_nth(IoKind::Flush, 0);
        run(volume, dedup_volume::Op::Flush).unwrap_err();
    });
    assert!(heard.iter().any(|line| line.starts_with("the volume stops taking writes")), "{heard:#?}");
}
