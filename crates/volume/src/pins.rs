//! Pins: what a lookup in flight may still reach is not reused under it.
//!
//! A reader pins before it looks anything up, under the lock that guards counts, and unpins when it has its
//! data. A pin names no block: it is the point in the order of operations at which the reader began. Blocks
//! freed at or after that point wait for it (invariant I2), and so do the metadata blocks of the roots it
//! began on (I1).

use crate::ids::Seq;
use crate::sync::{Arc, Condvar, Mutex};
use crate::tables::Tables;
use dedup_meta::TxId;
use std::collections::BTreeMap;

/// All pins of a volume.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    live: Mutex<Live>,
    unpinned: Condvar,
}

#[derive(Debug, Default)]
struct Live {
    /// (where the reader began, a number of its own) -> the roots it began on. Both rise together, so the
    /// first entry is the oldest in either sense.
    pins: BTreeMap<(Seq, u64), TxId>,
    next: u64,
    /// Who waits for pins to go.
    waiters: usize,
}

/// A reader's pin, with the trees it reads from; unpinned on drop.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pins: &'a Pins,
    key: (Seq, u64),
    /// The trees as of the pin.
    pub(crate) tables: Arc<Tables>,
}

impl Pins {
    /// Pins everything that is reachable now. To be called under the lock under which `seq` and `tables` were
    /// read.
    pub(crate) fn pin(&self, seq: Seq, tables: Arc<Tables>) -> Pin<'_> {
        let mut live = self.live.lock();
        let key = (seq, live.next);
        live.next += 1;
        live.pins.insert(key, tables.txid);
        Pin { pins: self, key, tables }
    }

    /// Blocks freed after this point may still be read; `None` if nobody reads.
    pub(crate) fn oldest_seq(&self) -> Option<Seq> {
        self.live.lock().pins.first_key_value().map(|((seq, _), _)| *seq)
    }

    /// Waits until no reader is left that began before `seq`. To be called without a pin of one's own.
    pub(crate) fn wait_past(&self, seq: Seq) {
        let mut live = self.live.lock();
        while live.pins.first_key_value().is_some_and(|((oldest, _), _)| *oldest < seq) {
            live.waiters += 1;
            live = self.unpinned.wait(live);
            live.waiters -= 1;
        }
    }

    /// The oldest roots that somebody reads from.
    pub(crate) fn oldest_tables(&self) -> Option<TxId> {
        self.live.lock().pins.first_key_value().map(|(_, txid)| *txid)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut live = self.pins.live.lock();
        live.pins.remove(&self.key);
        if live.waiters > 0 {
            self.pins.unpinned.notify_all();
        }
    }
}
