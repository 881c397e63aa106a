//! What a server has done since it started, counted once a batch.

use crate::command::{Action, Kind};
use crate::receive::Received;
use std::sync::atomic::{AtomicU64, Ordering};

/// A server's totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Requests answered.
    pub requests: u64,
    /// Those answered with an error.
    pub errors: u64,
    /// Bytes that clients asked to read.
    pub read_bytes: u64,
    /// Bytes that clients asked to write, without trims and zeroes.
    pub written_bytes: u64,
}

/// The live totals. Each is exact; together they are no snapshot.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn add_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_batch(&self, batch: &[Received], errors: u64) {
        let (mut read, mut written) = (0, 0);
        for request in batch {
            match request.action {
                Action::Run(Kind::Read) => read += request.header.len,
                Action::Run(Kind::Write { .. }) => written += request.header.len,
                _ => {}
            }
        }
        self.requests.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.errors.fetch_add(errors, Ordering::Relaxed);
        self.read_bytes.fetch_add(read, Ordering::Relaxed);
        self.written_bytes.fetch_add(written, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Stats {
        Stats {
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}
