//! Readers' pins, beside blocks that are freed and used again.

use super::{explore, finds};
use crate::{Arc, Mutex, Pin, Pins, thread};

/// The block that the LBN was given first.
const FIRST: u32 = 1;

/// One LBN, mapped to [`FIRST`] at first.
struct State {
    seq: u64,
    mapped_to: u32,
    /// The operation that freed that block, while it may not be used again.
    freed: Option<u64>,
}

struct Volume {
    pins: Pins<u64, u64>,
    state: Mutex<State>,
    /// The first block holds what the LBN was given first.
    intact: Mutex<bool>,
}

impl Volume {
    fn new() -> Arc<Self> {
        let state = State { seq: 1, mapped_to: FIRST, freed: None };
        Arc::new(Self { pins: Pins::default(), state: Mutex::new(state), intact: Mutex::new(true) })
    }

    /// Where the LBN is mapped, and a pin of that moment.
    fn look_up(&self) -> (u32, Pin<'_, u64, u64, ()>) {
        let state = self.state.lock();
        (state.mapped_to, self.pins.pin(state.seq, 1, Arc::new(())))
    }

    /// The device's part of a read.
    fn read(&self, mapped_to: u32) {
        assert!(mapped_to != FIRST || *self.intact.lock(), "the block was used again under a reader");
    }

    /// Overwrites the LBN, commits, and uses again what may be.
    fn overwrite(&self) {
        let durable = {
            let mut state = self.state.lock();
            state.seq += 1;
            let old = std::mem::replace(&mut state.mapped_to, FIRST + 1);
            state.freed = (old == FIRST).then_some(state.seq);
            state.seq
        };
        if self.release(durable) {
            *self.intact.lock() = false;
        }
    }

    /// Whether the first block may be used again, now that operations up to `durable` are durable.
    fn release(&self, durable: u64) -> bool {
        let oldest = self.pins.oldest_seq();
        let limit = oldest.map_or(durable, |oldest| oldest.min(durable));
        self.state.lock().freed.take_if(|freed| *freed <= limit).is_some()
    }
}

/// An older and a younger reader. `in_one_step`: the mapping is looked up and pinned at one moment.
fn readers_beside_an_overwrite(in_one_step: bool) {
    let volume = Volume::new();
    let (mapped_to, pin) = volume.look_up();
    let mut pin = in_one_step.then_some(pin);
    let others: Vec<_> = [false, true]
        .map(|overwrites| {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                if overwrites {
                    volume.overwrite();
                } else {
                    let (mapped_to, pin) = volume.look_up();
                    volume.read(mapped_to);
                    drop(pin);
                }
            })
        })
        .into();
    pin.get_or_insert_with(|| volume.look_up().1);
    volume.read(mapped_to);
    drop(pin);
    others.into_iter().for_each(|other| other.join().unwrap());
    // Whatever was held back for readers comes free without them.
    let seq = volume.state.lock().seq;
    volume.release(seq);
    assert_eq!(volume.state.lock().freed, None);
}

/// Red with: `oldest_seq` gives the newest pin, or the drop of a pin removes nothing.
#[test]
fn a_block_is_not_handed_back_while_a_reader_from_before_is_pinned() {
    explore(|| readers_beside_an_overwrite(true));
}

#[test]
fn a_lookup_that_pins_afterwards_is_found() {
    finds(|| readers_beside_an_overwrite(false));
}

/// Red with: the drop of a pin or `without_trees` does not notify (deadlock); `wait_for_tables` compares with
/// `<=` (deadlock); `without_trees` forgets the pin.
#[test]
fn who_waits_for_lookups_from_before_wakes_when_the_last_needs_no_trees_and_not_earlier() {
    explore(|| {
        let shared = Arc::new((Pins::default(), Mutex::new(1)));
        let readers: Vec<_> = [false, true]
            .map(|reads_data| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (pins, newest) = &*shared;
                    let pin = {
                        let newest = newest.lock();
                        pins.pin(*newest, *newest, Arc::new(()))
                    };
                    if reads_data {
                        let _pin = pin.without_trees();
                        assert!(pins.oldest_seq().is_some(), "its blocks are not held");
                    }
                })
            })
            .into();
        let (pins, newest) = &*shared;
        *newest.lock() = 2;
        pins.wait_for_tables(2);
        assert!(pins.oldest_tables().is_none_or(|oldest| oldest >= 2));
        // Readers that begin now do not hold it up.
        let pin = pins.pin(2, 2, Arc::new(()));
        pins.wait_for_tables(2);
        drop(pin);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(pins.oldest_seq().is_none());
    });
}
