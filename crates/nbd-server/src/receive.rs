//! Receiving: from a stream of bytes to batches of requests, in as few system calls as it takes.
//!
//! ```text
//!  Inbox:  ... | header | payload (page-aligned) | header | payload | header | payl
//!              ^ start                                              ^ left over: begins the next inbox
//! ```
//!
//! One `recv` takes whatever waits in the transport, often dozens of requests; payloads are used where they lie. The first
//! payload is page-aligned, and a request whose payload has not all arrived never joins a batch that has others: it
//! begins the next inbox, where the rest of its payload is received in place. So large writes are aligned and are
//! copied at most in part, and a slow sender delays nobody but itself.
//!
//! Invariants: a batch has at least one request (or the stream has ended), at most [`BATCH_REQUESTS_MAX`], and more than
//! [`BATCH_PAYLOAD_MAX`] bytes of payload only if it is a single request, of which there are at most [`LARGE_MAX`] at a time. What is
//! left over is bounded by one `recv`.

use crate::buffer::{ALIGNMENT, AlignedBuf};
use crate::command::{Action, Kind, PAYLOAD_LEN_MAX, Terms};
use crate::protocol::{Framing, REQUEST_HEADER_SIZE_MAX, ReplyError, RequestHeader, command};
use crate::transport::Transport;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Requests in a batch: twice the queue depth of a busy client, and few enough that the other thread gets its share.
const BATCH_REQUESTS_MAX: usize = 64;
/// Payload bytes, read and written, in a batch of more than one request.
const BATCH_PAYLOAD_MAX: usize = 4 << 20;
/// Bytes taken by one `recv`, unless a single payload lacks more: 64 writes of 4 KiB, and above what Linux buffers for
/// a Unix socket by default (208 KiB).
const RECV_MAX: usize = (256 << 10) + 64 * REQUEST_HEADER_SIZE_MAX;
/// Bytes in front of the first payload, the last of which are its header.
const FRONT: usize = ALIGNMENT;
/// An inbox that has grown beyond this for one large write shrinks afterwards.
const INBOX_KEPT_MAX: usize = BATCH_PAYLOAD_MAX + ALIGNMENT;

// A payload that is not to be held cannot have arrived whole with its header.
const _: () = assert!(PAYLOAD_LEN_MAX as usize > INBOX_KEPT_MAX + RECV_MAX);

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
    buf: AlignedBuf,
    framing: Framing,
    /// Where it begins: one header in front of a page boundary.
    start: usize,
    /// Bytes received so far end here.
    filled: usize,
    /// Bytes parsed so far end here.
    parsed: usize,
    /// Payload bytes of `requests`, both ways.
    payload_len: usize,
    requests: Vec<Received>,
    /// Held while the batch is a large request.
    large: Option<LargeTurn>,
}

/// Large requests that a connection may have in memory at once, so that many threads do not mean much memory.
const LARGE_MAX: usize = 2;

/// Requests with more than [`BATCH_PAYLOAD_MAX`] of payload, either way, wait for each other here.
#[derive(Debug, Default)]
struct LargeTurns {
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// The right to hold a large request; given back on drop.
#[derive(Debug)]
struct LargeTurn(Arc<LargeTurns>);

impl LargeTurns {
    /// Waits for a turn. Who holds one needs nothing but the export and the client to be done with it.
    fn take(turns: &Arc<Self>) -> LargeTurn {
        // Nothing in its critical sections can panic half-way.
        let taken = turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = turns.given_back.wait_while(taken, |taken| *taken == LARGE_MAX);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        LargeTurn(Arc::clone(turns))
    }
}

impl Drop for LargeTurn {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.given_back.notify_one();
    }
}

impl Inbox {
    /// An empty one.
    pub(crate) fn new(framing: Framing) -> Self {
        let buf = AlignedBuf::zeroed(FRONT + RECV_MAX);
        let start = FRONT - framing.request_header_size();
        Self {
            buf,
            framing,
            start,
            filled: start,
            parsed: start,
            payload_len: 0,
            requests: Vec::new(),
            large: None,
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

    /// Forgets the batch, which has been answered, and gives back what a large one has taken.
    pub(crate) fn shrink(&mut self) {
        self.requests.clear();
        if self.buf.len() > INBOX_KEPT_MAX {
            self.buf = AlignedBuf::zeroed(FRONT + RECV_MAX);
        }
        self.large = None;
    }

    /// Begins the next batch with what the last receiver had left over.
    fn begin(&mut self, leftover: &mut Vec<u8>) {
        self.buf.reserve(FRONT + leftover.len());
        self.filled = self.start + leftover.len();
        self.buf[self.start..self.filled].copy_from_slice(leftover);
        leftover.clear();
        self.parsed = self.start;
        self.payload_len = 0;
        self.requests.clear();
    }

    /// Makes room for `missing` bytes more, keeping those received.
    fn make_room(&mut self, missing: usize) {
        let needed = self.filled + missing;
        if needed > self.buf.len() {
            let mut larger = AlignedBuf::zeroed(needed);
            larger[self.start..self.filled].copy_from_slice(&self.buf[self.start..self.filled]);
            self.buf = larger;
        }
    }

    fn push(&mut self, header: RequestHeader, action: Action, size: usize) {
        let end = self.parsed + size;
        self.requests.push(Received {
            header,
            action,
            payload: self.parsed + self.framing.request_header_size()..end,
        });
        self.parsed = end;
    }
}

/// The receiving side of a connection. Whichever thread holds it is the one that receives.
#[derive(Debug)]
pub(crate) struct Receiver {
    transport: Arc<Transport>,
    terms: Terms,
    /// Set when the server answers new requests only with `NBD_ESHUTDOWN`.
    refusing: Arc<AtomicBool>,
    leftover: Vec<u8>,
    large_turns: Arc<LargeTurns>,
    /// What the transport has last been told.
    patience: Option<Duration>,
    ended: Option<End>,
}

/// Why nothing more can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client has taken its leave.
    Leave,
    /// It has sent what is no request.
    Nonsense,
    /// Its stream has ended, or failed, without a word.
    Lost,
}

/// How a batch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Without waiting: the client is ahead of the server.
    AtOnce,
    /// It, or its end, was waited for.
    Late,
    /// Not at all: nothing was sent for as long as the receiver was to wait, and nothing that was sent is unanswered for lack of
    /// the rest.
    NotYet,
}

/// What stands at the parse position.
enum Parsed {
    /// The batch is at one of its limits.
    Full,
    /// A request of which this many bytes have not arrived.
    Missing(usize),
    /// A WRITE whose payload is not to be held in memory.
    Oversized(RequestHeader),
    /// Nothing that could be taken for the next request.
    End(End),
}

impl Receiver {
    pub(crate) fn new(transport: Arc<Transport>, terms: Terms, refusing: Arc<AtomicBool>) -> Self {
        Self {
            transport,
            terms,
            refusing,
            leftover: Vec::new(),
            large_turns: Arc::default(),
            patience: None,
            ended: None,
        }
    }

    /// Whether nothing more can come, and why.
    pub(crate) fn ended(&self) -> Option<End> {
        self.ended
    }

    /// Receives the next batch, waiting for its first request. Without requests, the stream has ended (with some, it
    /// may have too). If the client sends nothing for `patience`, it gives up.
    pub(crate) fn receive(&mut self, inbox: &mut Inbox, patience: Option<Duration>) -> Came {
        inbox.begin(&mut self.leftover);
        // Mostly unchanged, so a batch costs no system call for this.
        if self.patience != patience && self.transport.set_patience(patience).is_ok() {
            self.patience = patience;
        }
        let mut came = Came::AtOnce;
        loop {
            match self.parse(inbox) {
                Parsed::Full => break,
                Parsed::End(end) => {
                    self.ended = Some(end);
                    break;
                }
                Parsed::Missing(_) | Parsed::Oversized(_) if !inbox.requests.is_empty() => break,
                Parsed::Missing(bytes) => {
                    if !self.fill(inbox, bytes, &mut came) {
                        self.ended = Some(End::Lost);
                        return came;
                    }
                    if came == Came::NotYet {
                        self.leftover = Vec::new();
                        return came;
                    }
                }
                Parsed::Oversized(header) => {
                    self.ended = (!self.drop_payload(inbox, &header)).then_some(End::Lost);
                    inbox.push(header, self.action(&header), self.terms.framing.request_header_size());
                    break;
                }
            }
        }
        if self.ended.is_none() {
            self.leftover.extend(&inbox.buf[inbox.parsed..inbox.filled]);
        }
        came
    }

    /// Takes complete requests, up to the batch's limits, and says why it stopped.
    fn parse(&self, inbox: &mut Inbox) -> Parsed {
        loop {
            if inbox.requests.len() >= BATCH_REQUESTS_MAX {
                return Parsed::Full;
            }
            let rest = &inbox.buf[inbox.parsed..inbox.filled];
            let framing = self.terms.framing;
            if rest.len() < framing.request_header_size() {
                return Parsed::Missing(framing.request_header_size() - rest.len());
            }
            let Some(header) = RequestHeader::decode(rest, framing) else {
                tracing::warn!("a request without its magic: closing the connection");
                return Parsed::End(End::Nonsense);
            };
            if header.command == command::DISC {
                return Parsed::End(End::Leave);
            }
            let payload_len = header.payload_len(framing);
            if payload_len > u64::from(PAYLOAD_LEN_MAX) {
                // Extended, nobody can send so much by mistake, and reading past it could take for ever.
                return match framing {
                    Framing::Extended => Parsed::End(End::Nonsense),
                    Framing::Simple | Framing::Structured => Parsed::Oversized(header),
                };
            }
            let payload_len = payload_len as usize;
            let action = self.action(&header);
            let read_len = if action == Action::Run(Kind::Read) { header.len as usize } else { 0 };
            let batch_payload_len = inbox.payload_len + payload_len + read_len;
            if batch_payload_len > BATCH_PAYLOAD_MAX && !inbox.requests.is_empty() {
                return Parsed::Full;
            }
            if batch_payload_len > BATCH_PAYLOAD_MAX && inbox.large.is_none() {
                inbox.large = Some(LargeTurns::take(&self.large_turns));
            }
            let size = framing.request_header_size() + payload_len;
            if size > rest.len() {
                return Parsed::Missing(size - rest.len());
            }
            inbox.payload_len = batch_payload_len;
            inbox.push(header, action, size);
        }
    }

    fn action(&self, header: &RequestHeader) -> Action {
        if self.refusing.load(Ordering::Relaxed) {
            return Action::Refuse(ReplyError::Shutdown);
        }
        self.terms.check(header)
    }

    /// Receives at least a byte, at best `missing` or more; `false` at the end of the stream. The first byte of a batch may not
    /// come. With a part of a request in hand, the rest is on its way, and whether it has to be waited for need not be asked.
    fn fill(&mut self, inbox: &mut Inbox, missing: usize, came: &mut Came) -> bool {
        inbox.make_room(missing);
        // Beyond a large payload nothing is taken: it would have to be copied to the next inbox.
        let room = inbox.buf.len() - inbox.filled;
        let wanted = if missing >= RECV_MAX { missing } else { room.min(RECV_MAX) };
        let target = &mut inbox.buf[inbox.filled..inbox.filled + wanted];
        let is_first = inbox.filled == inbox.start;
        let received = if is_first {
            self.transport.try_recv(target).and_then(|received| match received {
                Some(received) => Ok(Some(received)),
                None => {
                    *came = Came::Late;
                    self.transport.recv_patiently(target)
                }
            })
        } else {
            *came = Came::Late;
            self.transport.recv(target).map(Some)
        };
        match received {
            Ok(None) => {
                *came = Came::NotYet;
                true
            }
            Ok(Some(0)) => false,
            Ok(Some(received)) => {
                inbox.filled += received;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "connection lost");
                false
            }
        }
    }

    /// Reads past the payload of the WRITE at the parse position, which nothing precedes; `false` if the stream ends in it.
    fn drop_payload(&mut self, inbox: &mut Inbox, header: &RequestHeader) -> bool {
        let payload_start = inbox.parsed + self.terms.framing.request_header_size();
        // The payload is larger than any inbox is at this point, so all that came behind its header is its own.
        let mut left = header.len - (inbox.filled - payload_start) as u64;
        inbox.filled = payload_start;
        while left > 0 {
            let free = &mut inbox.buf[payload_start..];
            let some = left.min(free.len() as u64) as usize;
            match self.transport.recv(&mut free[..some]) {
                Ok(received @ 1..) => left -= received as u64,
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }
}
