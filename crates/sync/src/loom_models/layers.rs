//! The swap of deltas, and lookups beside it.

use super::{explore, finds};
use crate::{Arc, Layers, Mutex, thread};

/// Two keys; a delta and the trees are maps of them.
type Map = [Option<u64>; 2];

struct State {
    layers: Layers<Map, Map>,
    seq: u64,
}

fn state() -> Arc<Mutex<State>> {
    Arc::new(Mutex::new(State { layers: Layers::new([Some(0); 2]), seq: 0 }))
}

/// An operation: its number becomes the key's value.
fn publish(state: &Mutex<State>, key: usize) -> u64 {
    let mut state = state.lock();
    state.seq += 1;
    let seq = state.seq;
    state.layers.active[key] = Some(seq);
    seq
}

fn laid_over(above: &Map, below: &Map) -> Map {
    [above[0].or(below[0]), above[1].or(below[1])]
}

/// Writes the sealed delta to the trees, as a checkpoint does.
fn checkpoint(state: &Mutex<State>) {
    let (sealed, below) = {
        let mut state = state.lock();
        (state.layers.seal().expect("one checkpoint at a time"), **state.layers.tables())
    };
    let tables = laid_over(&sealed, &below);
    state.lock().layers.install(tables);
}

/// A lookup: the deltas under the lock, the trees without. `at_once`: both as of one moment.
fn lookup(state: &Mutex<State>, key: usize, at_once: bool) -> u64 {
    let early = Arc::clone(state.lock().layers.tables());
    let (recent, tables) = {
        let state = state.lock();
        let recent = state.layers.deltas().find_map(|delta| delta[key]);
        (recent, if at_once { Arc::clone(state.layers.tables()) } else { early })
    };
    recent.or(tables[key]).expect("the key is in one of the layers")
}

fn reads_beside_checkpoints(at_once: bool) {
    let state = state();
    publish(&state, 0);
    let checkpoints = {
        let state = Arc::clone(&state);
        thread::spawn(move || {
            checkpoint(&state);
            checkpoint(&state);
        })
    };
    let writer = {
        let state = Arc::clone(&state);
        thread::spawn(move || {
            let written = publish(&state, 1);
            let found = lookup(&state, 1, true);
            assert_eq!(found, written);
        })
    };
    assert_eq!(lookup(&state, 0, at_once), 1, "an older value, or none");
    checkpoints.join().unwrap();
    writer.join().unwrap();
    assert_eq!((lookup(&state, 0, true), lookup(&state, 1, true)), (1, 2));
}

/// Red with: `install` sets the tables without dropping the frozen delta (the next `seal` fails); `seal` does
/// not keep the frozen one; `deltas` without the frozen one.
#[test]
fn a_reader_finds_each_key_in_one_of_the_layers_at_every_moment() {
    explore(|| reads_beside_checkpoints(true));
}

/// The mistake was in the volume once: the lookup of a write pinned the trees before it asked the deltas.
#[test]
fn trees_from_before_the_deltas_were_asked_are_found() {
    finds(|| reads_beside_checkpoints(false));
}

/// `at_the_cut`: the delta is sealed under the same lock under which the sequence number was read.
fn cut_beside_writers(at_the_cut: bool) {
    let state = state();
    let writers: Vec<_> = (0..2)
        .map(|key| {
            let state = Arc::clone(&state);
            thread::spawn(move || publish(&state, key))
        })
        .collect();
    let (cut, sealed) = if at_the_cut {
        let mut state = state.lock();
        (state.seq, state.layers.seal().unwrap())
    } else {
        let cut = state.lock().seq;
        (cut, state.lock().layers.seal().unwrap())
    };
    let numbers: Vec<u64> = sealed.iter().flatten().copied().collect();
    assert_eq!(numbers.len() as u64, cut, "an operation up to the cut is missing, or a later one is there");
    assert!(numbers.iter().all(|number| *number <= cut));
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn the_sealed_delta_has_the_operations_up_to_the_cut_and_no_other() {
    explore(|| cut_beside_writers(true));
}

#[test]
fn a_delta_swapped_after_the_cut_is_found() {
    finds(|| cut_beside_writers(false));
}
