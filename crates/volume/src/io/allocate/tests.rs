//! Who waits for blocks is told of what comes free, and of nothing else.

use crate::engine::space::Places;
use crate::{FormatOptions, Op, OpenOptions, Request, Volume, format};
use dedup_device::{BlockDevice, MemDevice};
use dedup_sync::Place;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use uuid::Uuid;

const BLOCK: usize = 4096;
/// Longer than any wake-up takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn volume() -> Volume {
    let data: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(1 << 20));
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
    format(&*data, &metadata, &FormatOptions::new(1 << 19, Uuid::from_u128(1), Uuid::from_u128(2))).unwrap();
    Volume::open(data, metadata, &OpenOptions { background: false, ..OpenOptions::default() }).unwrap()
}

fn run(volume: &Volume, op: Op<'_>) {
    volume.execute(vec![Request { tag: 0, op }], &mut |_, result| result.unwrap());
}

/// The first in line, which has just found nothing.
fn first_in_line(volume: &Volume) -> Place<'_> {
    let mut place = volume.engine.pins.blocks.place();
    assert!(place.join());
    place.advance();
    place
}

/// It gave back what was freed, of which there was nothing, told everybody, and was woken by it: a processor
/// was busy for as long as it waited.
#[test]
fn the_first_in_line_that_finds_nothing_freed_does_not_wake_itself() {
    let volume = volume();
    let place = first_in_line(&volume);
    let before = place.changes();
    volume.engine.release_freed(volume.engine.commits.durable());
    volume.engine.release_checkpointed();
    assert_eq!(place.changes(), before);
}

/// Whoever commits or checkpoints gives back what was freed for all who wait.
#[test]
fn what_a_commit_gives_back_is_told_to_the_first_in_line() {
    let volume = volume();
    run(&volume, Op::Write { offset: 0, data: &[7; BLOCK], fua: true });
    run(&volume, Op::Trim { offset: 0, len: BLOCK as u64, fua: false });
    let mut place = first_in_line(&volume);
    let (told, is_told) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            place.wait();
            told.send(()).unwrap();
        });
        volume.engine.commit(volume.engine.published_seq()).unwrap();
        let woken = is_told.recv_timeout(PATIENCE);
        // Lets it go in any case.
        volume.engine.pins.blocks.changed();
        assert!(woken.is_ok(), "a block came free and nobody was told");
    });
}

/// A file system below that is full: a search found nothing with space, and somebody gives back a block that
/// was reserved.
#[test]
fn what_is_given_back_is_looked_for_again_on_a_full_file_system() {
    let volume = volume();
    let space = &volume.engine.space;
    let reserved = volume.engine.allocate(2, Places::Backed, &volume.engine.pins.blocks.place()).unwrap();
    space.allocator.lock().is_exhausted = true;
    assert!(space.look(|taken| taken.is_exhausted));
    space.give_back(reserved);
    assert!(!space.look(|taken| taken.is_exhausted));
}
