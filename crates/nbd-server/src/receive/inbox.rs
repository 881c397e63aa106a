//! One thread's batch and the memory that it takes: what is received lies where it came, what is to be read
//! has a buffer beside it.
//!
//! What is above [`FREE_LEN`] bytes each way is leased from the server's [`Budget`] before it is taken.

use super::BATCH_PAYLOAD_MAX;
use crate::budget::{Budget, Lease};
use crate::buffer::{ALIGNMENT, AlignedBuf};
use crate::command::Action;
use crate::protocol::{Framing, REQUEST_HEADER_SIZE_MAX, RequestHeader};
use crate::turns::LargeTurn;
use std::ops::Range;
use std::sync::Arc;

/// Bytes taken by one `recv`, unless a single payload lacks more: 64 writes of 4 KiB, and above what Linux
/// buffers for a Unix socket by default (208 KiB).
pub(super) const RECV_MAX: usize = (256 << 10) + 64 * REQUEST_HEADER_SIZE_MAX;
/// Bytes in front of the first payload, the last of which are its header.
const FRONT: usize = ALIGNMENT;
/// Memory for data read that is kept between batches; what a single larger request needs is freed after it.
const READ_BUF_KEPT_MAX: usize = 8 << 20;
/// Payload bytes, each way, for which a thread has memory without a lease: a batch of small requests.
const FREE_LEN: usize = 256 << 10;
/// What a thread takes that has leased nothing.
pub(crate) const THREAD_LEN: usize = FRONT + RECV_MAX + FREE_LEN;
/// An inbox that has grown beyond this for one large write shrinks afterwards.
pub(super) const INBOX_KEPT_MAX: usize = BATCH_PAYLOAD_MAX + ALIGNMENT;

/// One request, checked; `payload` is where its data lies in the inbox.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) header: RequestHeader,
    pub(crate) action: Action,
    payload: Range<usize>,
}

/// One thread's batch and the memory it lies in.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(super) buf: AlignedBuf,
    framing: Framing,
    /// Where it begins: one header in front of a page boundary.
    pub(super) start: usize,
    /// Bytes received so far end here.
    pub(super) filled: usize,
    /// Bytes parsed so far end here.
    pub(super) parsed: usize,
    /// Payload bytes of `requests`, those received and those to be read.
    pub(super) payload_len: (usize, usize),
    pub(super) requests: Vec<Received>,
    /// Held while the batch is a large request.
    pub(super) large: Option<LargeTurn>,
    /// Memory for the batch, beyond what is free.
    pub(super) lease: Lease,
}

impl Inbox {
    /// An empty one.
    pub(crate) fn new(framing: Framing, budget: &Arc<Budget>) -> Self {
        let buf = AlignedBuf::zeroed(FRONT + RECV_MAX);
        let start = FRONT - framing.request_header_size();
        Self {
            buf,
            framing,
            start,
            filled: start,
            parsed: start,
            payload_len: (0, 0),
            requests: Vec::new(),
            large: None,
            lease: budget.lease(),
        }
    }

    /// The batch.
    pub(crate) fn requests(&self) -> &[Received] {
        &self.requests
    }

    /// The payload of a request of this batch, empty for most.
    pub(crate) fn payload(&self, request: &Received) -> &[u8] {
        &self.buf[request.payload.clone()]
    }

    /// Forgets the batch, which has been answered, and gives back what a large one has taken, here and in
    /// `read_buf`; and if memory is `scarce`, all of it.
    pub(crate) fn end_batch(&mut self, read_buf: &mut AlignedBuf, budget: &Budget) {
        self.requests.clear();
        self.large = None;
        let leased = self.lease.bytes() > 0;
        let kept_max =
            if leased && budget.is_scarce() { (0, 0) } else { (INBOX_KEPT_MAX, READ_BUF_KEPT_MAX) };
        if self.buf.len() > kept_max.0.max(FRONT + RECV_MAX) {
            self.buf = AlignedBuf::zeroed(FRONT + RECV_MAX);
        }
        if read_buf.len() > kept_max.1.max(FREE_LEN) {
            *read_buf = AlignedBuf::zeroed(0);
        }
        if leased {
            let kept = self.lease_len(0, 0, read_buf);
            self.lease.shrink_to(kept);
        }
    }

    /// What is to be leased for a batch with so many bytes received and to be read, with the memory that
    /// there is already.
    pub(super) fn lease_len(&self, received: usize, read: usize, read_buf: &AlignedBuf) -> usize {
        let above = |needed: usize, is: usize| needed.max(is).saturating_sub(FREE_LEN);
        above(received, self.buf.len().saturating_sub(FRONT + RECV_MAX)) + above(read, read_buf.len())
    }

    /// Gives back everything that is leased, before anything else is waited for; what has been received
    /// stays.
    pub(super) fn let_go(&mut self, read_buf: &mut AlignedBuf) {
        *read_buf = AlignedBuf::zeroed(0);
        let least = (FRONT + RECV_MAX).max(self.filled);
        if self.buf.len() > least {
            let mut smaller = AlignedBuf::zeroed(least);
            smaller[self.start..self.filled].copy_from_slice(&self.buf[self.start..self.filled]);
            self.buf = smaller;
        }
        self.lease.shrink_to(0);
    }

    /// Begins the next batch with what the last receiver had left over.
    pub(super) fn begin(&mut self, leftover: &mut Vec<u8>) {
        self.buf.reserve(FRONT + leftover.len());
        self.filled = self.start + leftover.len();
        self.buf[self.start..self.filled].copy_from_slice(leftover);
        leftover.clear();
        self.parsed = self.start;
        self.payload_len = (0, 0);
        self.requests.clear();
    }

    /// Makes room for `missing` bytes more, keeping those received.
    pub(super) fn make_room(&mut self, missing: usize) {
        let needed = self.filled + missing;
        if needed > self.buf.len() {
            let mut larger = AlignedBuf::zeroed(needed);
            larger[self.start..self.filled].copy_from_slice(&self.buf[self.start..self.filled]);
            self.buf = larger;
        }
    }

    pub(super) fn push(&mut self, header: RequestHeader, action: Action, size: usize) {
        let end = self.parsed + size;
        self.requests.push(Received {
            header,
            action,
            payload: self.parsed + self.framing.request_header_size()..end,
        });
        self.parsed = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_a_batch_has_taken_is_kept_for_the_next_only_while_memory_is_plenty() {
        const LEN: usize = 2 << 20;
        for is_scarce in [false, true] {
            let budget = Budget::new(8 << 20, Duration::from_secs(1));
            let mut inbox = Inbox::new(Framing::Simple, &budget);
            let mut read_buf = AlignedBuf::zeroed(LEN);
            inbox.lease.take(inbox.lease_len(0, LEN, &read_buf));
            let mut others = budget.lease();
            assert!(others.try_grow(if is_scarce { 5 << 20 } else { 1 << 20 }));
            inbox.end_batch(&mut read_buf, &budget);
            let kept = if is_scarce { 0 } else { LEN };
            assert_eq!((read_buf.len(), inbox.lease.bytes()), (kept, kept.saturating_sub(FREE_LEN)));
        }
    }
}
