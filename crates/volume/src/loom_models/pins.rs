//! Readers' pins, beside blocks that are freed and used again.

use super::{explore, finds};
use crate::ids::{Pbn, Seq};
use crate::pins::{Pin, Pins};
use crate::quarantine::Quarantine;
use crate::sync::{Arc, Mutex, thread};
use crate::tables::Tables;
use dedup_meta::{Root, RunSet, TxId};

fn tables() -> Arc<Tables> {
    let [digests, counts, overflow, bad] = [Root::EMPTY; 4];
    let [mappings, hints] = [RunSet::EMPTY, RunSet::EMPTY];
    Arc::new(Tables {
        txid: TxId(1),
        mappings,
        run_filters: Default::default(),
        digests,
        counts,
        overflow,
        hints,
        bad,
    })
}

/// One LBN, mapped to block 1 at first.
struct State {
    seq: Seq,
    mapped_to: Pbn,
    quarantine: Quarantine,
}

struct Volume {
    pins: Pins,
    state: Mutex<State>,
    /// Block 1 holds what the LBN was given first.
    intact: Mutex<bool>,
}

impl Volume {
    fn new() -> Arc<Self> {
        let state = State { seq: Seq(1), mapped_to: Pbn(1), quarantine: Quarantine::default() };
        Arc::new(Self { pins: Pins::default(), state: Mutex::new(state), intact: Mutex::new(true) })
    }

    /// Where the LBN is mapped, and a pin of that moment.
    fn look_up(&self) -> (Pbn, Pin<'_>) {
        let state = self.state.lock();
        (state.mapped_to, self.pins.pin(state.seq, tables()))
    }

    /// The device's part of a read.
    fn read(&self, mapped_to: Pbn) {
        assert!(mapped_to != Pbn(1) || *self.intact.lock(), "the block was used again under a reader");
    }

    /// Overwrites the LBN, commits, and uses again what may be.
    fn overwrite(&self) {
        let durable = {
            let mut state = self.state.lock();
            state.seq.0 += 1;
            let (seq, old) = (state.seq, std::mem::replace(&mut state.mapped_to, Pbn(2)));
            if old == Pbn(1) {
                state.quarantine.freed(seq, old);
            }
            seq
        };
        let oldest = self.pins.oldest_seq();
        let released = self.state.lock().quarantine.release(durable, oldest);
        if released.contains(&Pbn(1)) {
            *self.intact.lock() = false;
        }
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
    volume.state.lock().mapped_to = Pbn(3);
    let seq = volume.state.lock().seq;
    volume.state.lock().quarantine.release(seq, volume.pins.oldest_seq());
    assert_eq!(volume.state.lock().quarantine.range(..).count(), 0);
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

/// Red with: the drop of a pin or `without_trees` does not notify (deadlock); `wait_for_tables` compares with `<=` (deadlock); `without_trees`
/// forgets the pin.
#[test]
fn who_waits_for_lookups_from_before_wakes_when_the_last_needs_no_trees_and_not_earlier() {
    explore(|| {
        let shared = Arc::new((Pins::default(), Mutex::new(1)));
        let of = |number| Arc::new(Tables { txid: TxId(number), ..Tables::clone(&tables()) });
        let readers: Vec<_> = [false, true]
            .map(|reads_data| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (pins, newest) = &*shared;
                    let pin = {
                        let newest = newest.lock();
                        pins.pin(Seq(*newest), of(*newest))
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
        pins.wait_for_tables(TxId(2));
        assert!(pins.oldest_tables().is_none_or(|oldest| oldest >= TxId(2)));
        // Readers that begin now do not hold it up.
        let pin = pins.pin(Seq(2), of(2));
        pins.wait_for_tables(TxId(2));
        drop(pin);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(pins.oldest_seq().is_none());
    });
}
