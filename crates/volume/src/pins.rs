//! Pins: what a lookup in flight may still reach is not reused under it.
//!
//! A reader pins before it looks anything up, under the lock that guards counts, and unpins when it has its
//! data. A pin names no block: it is the point in the order of operations at which the reader began. Blocks
//! freed at or after that point wait for it (invariant I2), and so do the metadata blocks of the roots it
//! began on (I1). The latter only until the reader has looked everything up: then it goes on with a [`DataPin`], so that a data
//! device that does not answer holds no metadata back.

use crate::ids::Seq;
use crate::line::Line;
use crate::sync::{Arc, Condvar, Mutex};
use crate::tables::Tables;
use dedup_meta::TxId;
use std::collections::BTreeMap;

/// All pins of a volume.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    live: Mutex<Live>,
    unpinned: Condvar,
    /// Writes that wait for free data blocks.
    pub(crate) blocks: Line,
}

#[derive(Debug, Default)]
struct Live {
    /// (where the reader began, a number of its own) -> the roots it reads from, if it still does. Both rise together, so the
    /// first entry is the oldest in either sense.
    pins: BTreeMap<(Seq, u64), Option<TxId>>,
    next: u64,
    /// Who waits for pins to go.
    waiters: usize,
}

/// A reader's pin, with the trees it reads from; unpinned on drop.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    blocks: DataPin<'a>,
    /// The trees as of the pin.
    pub(crate) tables: Arc<Tables>,
}

/// The pin of a reader that needs no trees any more, only data blocks; unpinned on drop.
#[derive(Debug)]
pub(crate) struct DataPin<'a> {
    pins: &'a Pins,
    key: (Seq, u64),
}

impl Pins {
    /// Pins everything that is reachable now. To be called under the lock under which `seq` and `tables` were
    /// read.
    pub(crate) fn pin(&self, seq: Seq, tables: Arc<Tables>) -> Pin<'_> {
        let mut live = self.live.lock();
        let key = (seq, live.next);
        live.next += 1;
        live.pins.insert(key, Some(tables.txid));
        Pin { blocks: DataPin { pins: self, key }, tables }
    }

    /// Blocks freed after this point may still be read; `None` if nobody reads.
    pub(crate) fn oldest_seq(&self) -> Option<Seq> {
        self.live.lock().pins.first_key_value().map(|((seq, _), _)| *seq)
    }

    /// The oldest roots that somebody reads from.
    pub(crate) fn oldest_tables(&self) -> Option<TxId> {
        self.live.lock().oldest_tables()
    }

    /// Waits until nobody reads from roots before those of `txid`. To be called without a pin of one's own. What is waited for are lookups
    /// on the metadata device that have begun already, so it takes no longer than that device does.
    pub(crate) fn wait_for_tables(&self, txid: TxId) {
        let mut live = self.live.lock();
        while live.oldest_tables().is_some_and(|oldest| oldest < txid) {
            live.waiters += 1;
            live = self.unpinned.wait(live);
            live.waiters -= 1;
        }
    }

    fn told(&self, live: &Live) {
        if live.waiters > 0 {
            self.unpinned.notify_all();
        }
    }
}

impl Live {
    fn oldest_tables(&self) -> Option<TxId> {
        self.pins.values().find_map(|txid| *txid)
    }
}

impl<'a> Pin<'a> {
    /// Everything is looked up: from here on only data blocks are needed.
    pub(crate) fn without_trees(self) -> DataPin<'a> {
        let Self { blocks, .. } = self;
        let mut live = blocks.pins.live.lock();
        live.pins.insert(blocks.key, None);
        blocks.pins.told(&live);
        drop(live);
        blocks
    }
}

impl Drop for DataPin<'_> {
    fn drop(&mut self) {
        let mut live = self.pins.live.lock();
        live.pins.remove(&self.key);
        self.pins.told(&live);
        drop(live);
        self.pins.blocks.changed();
    }
}
