//! Pins: what a lookup in flight may still reach is not reused under it.
//!
//! A reader pins before it looks anything up, under the lock that guards counts, and unpins when it has its
//! data. A pin names no block: it is the point in the order of operations at which the reader began. Blocks
//! freed at or after that point wait for it (invariant I2), and so do the metadata blocks of the roots it
//! began on (I1). The latter only until the reader has looked everything up: then it goes on with a
//! [`DataPin`], so that a data device that does not answer holds no metadata back.

use crate::line::Line;
use crate::{Arc, Condvar, Mutex};
use std::collections::BTreeMap;

/// All pins of a volume: `S` is a point in the order of operations, `V` a version of the trees.
#[derive(Debug)]
pub struct Pins<S, V> {
    live: Mutex<Live<S, V>>,
    unpinned: Condvar,
    /// Writes that wait for free data blocks.
    pub blocks: Line,
}

#[derive(Debug)]
struct Live<S, V> {
    /// (where the reader began, a number of its own) -> the trees it reads from, if it still does. Both rise
    /// together, so the first entry is the oldest in either sense.
    pins: BTreeMap<(S, u64), Option<V>>,
    next: u64,
    /// Who waits for pins to go.
    waiters: usize,
}

/// A reader's pin, with the trees `T` that it reads from; unpinned on drop.
#[derive(Debug)]
pub struct Pin<'a, S: Copy + Ord, V: Copy + Ord, T> {
    blocks: DataPin<'a, S, V>,
    /// The trees as of the pin.
    pub tables: Arc<T>,
}

/// The pin of a reader that needs no trees any more, only data blocks; unpinned on drop.
#[derive(Debug)]
pub struct DataPin<'a, S: Copy + Ord, V: Copy + Ord> {
    pins: &'a Pins<S, V>,
    key: (S, u64),
}

impl<S, V> Default for Pins<S, V> {
    fn default() -> Self {
        let live = Live { pins: BTreeMap::new(), next: 0, waiters: 0 };
        Self { live: Mutex::new(live), unpinned: Condvar::default(), blocks: Line::default() }
    }
}

impl<S: Copy + Ord, V: Copy + Ord> Pins<S, V> {
    /// Pins everything that is reachable now: the operations up to `seq`, and `tables` of this version. To be
    /// called under the lock under which these were read.
    pub fn pin<T>(&self, seq: S, version: V, tables: Arc<T>) -> Pin<'_, S, V, T> {
        let mut live = self.live.lock();
        let key = (seq, live.next);
        live.next += 1;
        live.pins.insert(key, Some(version));
        Pin { blocks: DataPin { pins: self, key }, tables }
    }

    /// Blocks freed after this point may still be read; `None` if nobody reads.
    pub fn oldest_seq(&self) -> Option<S> {
        self.live.lock().pins.first_key_value().map(|((seq, _), _)| *seq)
    }

    /// The oldest trees that somebody reads from.
    pub fn oldest_tables(&self) -> Option<V> {
        self.live.lock().oldest_tables()
    }

    /// Waits until nobody reads from trees before those of `version`. To be called without a pin of one's
    /// own. What is waited for are lookups on the metadata device that have begun already, so it takes no
    /// longer than that device does.
    pub fn wait_for_tables(&self, version: V) {
        let mut live = self.live.lock();
        while live.oldest_tables().is_some_and(|oldest| oldest < version) {
            live.waiters += 1;
            live = self.unpinned.wait(live);
            live.waiters -= 1;
        }
    }

    fn told(&self, live: &Live<S, V>) {
        if live.waiters > 0 {
            self.unpinned.notify_all();
        }
    }
}

impl<S, V: Copy> Live<S, V> {
    fn oldest_tables(&self) -> Option<V> {
        self.pins.values().find_map(|version| *version)
    }
}

impl<'a, S: Copy + Ord, V: Copy + Ord, T> Pin<'a, S, V, T> {
    /// The last operation before the reader began.
    pub fn seq(&self) -> S {
        self.blocks.key.0
    }

    /// Everything is looked up: from here on only data blocks are needed.
    pub fn without_trees(self) -> DataPin<'a, S, V> {
        let Self { blocks, .. } = self;
        let mut live = blocks.pins.live.lock();
        live.pins.insert(blocks.key, None);
        blocks.pins.told(&live);
        drop(live);
        blocks
    }
}

impl<S: Copy + Ord, V: Copy + Ord> Drop for DataPin<'_, S, V> {
    fn drop(&mut self) {
        let mut live = self.pins.live.lock();
        live.pins.remove(&self.key);
        self.pins.told(&live);
        drop(live);
        self.pins.blocks.changed();
    }
}
