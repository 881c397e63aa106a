//! Receiving: from a stream of bytes to batches of requests, in as few system calls as it takes.
//!
//! ```text
//!  Inbox:  ... | header | payload (page-aligned) | header | payload | header | payl
//!              ^ start                                              ^ left over: begins the next inbox
//! ```
//!
//! One `recv` takes whatever waits in the transport, often dozens of requests; payloads are used where they
//! lie. The first payload is page-aligned, and a request whose payload has not all arrived never joins a
//! batch that has others: it begins the next inbox, where the rest of its payload is received in place. So
//! large writes are aligned and are copied at most in part, and a slow sender delays nobody but itself.
//!
//! Invariants: a batch has at least one request (or the stream has ended), at most [`BATCH_REQUESTS_MAX`],
//! and more than [`BATCH_PAYLOAD_MAX`] bytes of payload only if it is a single request, of which there are
//! few at a time. What is left over is bounded by one `recv`. What is more than small is leased from the
//! server's [`Budget`] before it is taken, all at once: who waits for a lease holds none.

mod inbox;

use crate::budget::Budget;
use crate::buffer::{ALIGNMENT, AlignedBuf};
use crate::command::{Action, Kind, PAYLOAD_LEN_MAX, Terms};
use crate::protocol::{Framing, ReplyError, RequestHeader, command, command_flag};
use crate::transport::Transport;
use crate::turns::LargeTurns;
use inbox::{INBOX_KEPT_MAX, RECV_MAX};
pub(crate) use inbox::{Inbox, Received, THREAD_LEN};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Requests in a batch: twice the queue depth of a busy client, and few enough that the other thread gets its
/// share.
const BATCH_REQUESTS_MAX: usize = 64;
/// Payload bytes, read and written, in a batch of more than one request.
const BATCH_PAYLOAD_MAX: usize = 4 << 20;
/// What the answer to a BLOCK_STATUS takes at most: its extents, and their encoding twice.
const STATUS_LEN: usize = 16 << 20;

// A payload that is not to be held cannot have arrived whole with its header.
const _: () = assert!(PAYLOAD_LEN_MAX as usize > INBOX_KEPT_MAX + RECV_MAX);

/// The receiving side of a connection. Whichever thread holds it is the one that receives.
#[derive(Debug)]
pub(crate) struct Receiver {
    transport: Arc<Transport>,
    terms: Terms,
    /// Set when the server answers new requests only with `NBD_ESHUTDOWN`.
    refusing: Arc<AtomicBool>,
    leftover: Vec<u8>,
    large_turns: Arc<LargeTurns>,
    budget: Arc<Budget>,
    /// How long a client may stop in the middle of a request.
    rest_time_max: Option<Duration>,
    /// When it was first waited for the rest of the request that is being received.
    rest_since: Option<Instant>,
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
    /// Not at all: nothing was sent for as long as the receiver was to wait, and nothing that was sent is
    /// unanswered for lack of the rest.
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
    pub(crate) fn new(
        transport: Arc<Transport>,
        terms: Terms,
        refusing: Arc<AtomicBool>,
        budget: Arc<Budget>,
        rest_time_max: Option<Duration>,
    ) -> Self {
        Self {
            transport,
            terms,
            refusing,
            leftover: Vec::new(),
            large_turns: Arc::default(),
            budget,
            rest_time_max,
            rest_since: None,
            patience: None,
            ended: None,
        }
    }

    /// Whether nothing more can come, and why.
    pub(crate) fn ended(&self) -> Option<End> {
        self.ended
    }

    /// Receives the next batch, waiting for its first request. Without requests, the stream has ended (with
    /// some, it may have too). If the client sends nothing for `patience`, it gives up. What is to be read
    /// will be read into `read_buf`.
    pub(crate) fn receive(
        &mut self,
        inbox: &mut Inbox,
        read_buf: &mut AlignedBuf,
        patience: Option<Duration>,
    ) -> Came {
        inbox.begin(&mut self.leftover);
        self.rest_since = None;
        // Mostly unchanged, so a batch costs no system call for this.
        if self.patience != patience && self.transport.set_patience(patience).is_ok() {
            self.patience = patience;
        }
        let mut came = Came::AtOnce;
        loop {
            match self.parse(inbox, read_buf) {
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
    fn parse(&self, inbox: &mut Inbox, read_buf: &mut AlignedBuf) -> Parsed {
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
            let (payload_len, rest_len) = (payload_len as usize, rest.len());
            let action = self.action(&header);
            let (received, read) = inbox.payload_len;
            let batch_len = (received + payload_len, read + read_len(&header, action));
            if !self.makes_room(inbox, read_buf, batch_len) {
                return Parsed::Full;
            }
            let size = framing.request_header_size() + payload_len;
            if size > rest_len {
                return Parsed::Missing(size - rest_len);
            }
            inbox.payload_len = batch_len;
            inbox.push(header, action, size);
        }
    }

    /// Sees to it that there may be memory for a batch with so many bytes received and to be read; `false` if
    /// it is large enough as it is.
    fn makes_room(
        &self,
        inbox: &mut Inbox,
        read_buf: &mut AlignedBuf,
        (received, read): (usize, usize),
    ) -> bool {
        let is_large = received + read > BATCH_PAYLOAD_MAX;
        if is_large && !inbox.requests.is_empty() {
            return false;
        }
        let needs_turn = is_large && inbox.large.is_none();
        let needed = inbox.lease_len(received, read, read_buf);
        if !needs_turn && inbox.lease.try_grow(needed) {
            return true;
        }
        if !inbox.requests.is_empty() {
            return false;
        }
        inbox.let_go(read_buf);
        if needs_turn {
            inbox.large = Some(LargeTurns::take(&self.large_turns));
        }
        let needed = inbox.lease_len(received, read, read_buf);
        inbox.lease.take(needed);
        true
    }

    fn action(&self, header: &RequestHeader) -> Action {
        if self.refusing.load(Ordering::Relaxed) {
            return Action::Refuse(ReplyError::Shutdown);
        }
        self.terms.check(header)
    }

    /// Receives at least a byte, at best `missing` or more; `false` at the end of the stream. The first byte
    /// of a batch may not come. With a part of a request in hand, the rest is on its way, and whether it has
    /// to be waited for need not be asked.
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
            let so_far = inbox.filled - inbox.start;
            let leases = inbox.lease.bytes() > 0;
            self.recv_rest(target, leases, so_far).map(Some)
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
                crate::transport::tell_lost(&error);
                false
            }
        }
    }

    /// Receives more of a request that has begun, `so_far` bytes of which are there. A client that stops in
    /// the middle of one is given up when that has been too long, or, if it `leases` memory, others wait for
    /// that.
    fn recv_rest(&mut self, target: &mut [u8], leases: bool, so_far: usize) -> io::Result<usize> {
        let since = *self.rest_since.get_or_insert_with(Instant::now);
        let look = self.budget.stall_time() * 2;
        if self.patience.is_none_or(|patience| patience > look) {
            // Or nobody would look.
            self.transport.set_patience(Some(look))?;
            self.patience = Some(look);
        }
        let silent_since = Instant::now();
        loop {
            let received = self.transport.recv_patiently(target)?;
            let bytes = received.unwrap_or_default();
            let is_too_slow = leases
                && bytes < target.len()
                && self.budget.is_too_slow(since.elapsed(), (so_far + bytes) as u64);
            let is_silent = received.is_none()
                && self.rest_time_max.is_some_and(|time_max| silent_since.elapsed() >= time_max);
            if is_too_slow || is_silent {
                let what = "the client stopped in the middle of a request";
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            if let Some(bytes) = received {
                return Ok(bytes);
            }
        }
    }

    /// Reads past the payload of the WRITE at the parse position, which nothing precedes; `false` if the
    /// stream ends in it.
    fn drop_payload(&mut self, inbox: &mut Inbox, header: &RequestHeader) -> bool {
        let payload_start = inbox.parsed + self.terms.framing.request_header_size();
        // The payload is larger than any inbox is at this point, so all that came behind its header is its
        // own.
        let mut left = header.len - (inbox.filled - payload_start) as u64;
        inbox.filled = payload_start;
        while left > 0 {
            let free = &mut inbox.buf[payload_start..];
            let some = left.min(free.len() as u64) as usize;
            match self.recv_rest(&mut free[..some], false, 0) {
                Ok(received @ 1..) => left -= received as u64,
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }
}

/// Bytes that will be read to answer a request.
fn read_len(header: &RequestHeader, action: Action) -> usize {
    match action {
        // The next one begins at a page boundary again.
        Action::Run(Kind::Read) => (header.len as usize).next_multiple_of(ALIGNMENT),
        Action::Status if header.flags & command_flag::REQ_ONE == 0 => STATUS_LEN,
        _ => 0,
    }
}
