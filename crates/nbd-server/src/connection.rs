//! The transmission phase of one connection: threads that take turns receiving, one at first, more as
//! requests wait for others.
//!
//! ```text
//!  thread A:  receive batch 1 | run it, send replies        | receive batch 3 | ...
//!  thread B:                  | receive batch 2 | run it, send replies        | ...
//! ```
//!
//! Whoever holds the [`Receiver`] receives; with a batch in hand it puts the receiver back and works. Batches
//! therefore overlap in the export. If nobody is free to receive, another thread is started, up to a limit:
//! so a few slow requests (flushes, above all) hold up none that come later. Another thread is woken only if
//! that can pay: while the client waits for the server's short replies, and not the server for the client,
//! one thread receives and works by turns. Who receives when is settled in [`Baton`].
//!
//! A client that has become idle gets its threads and memory taken back after `idle_time`: a thread that has
//! received nothing for so long frees its memory, and leaves if the first thread can take its place. So one
//! thread remains, asleep in `recv` with hardly any memory.
//!
//! Within a batch, what only asks about a range runs after what reads and writes, and requests that wait for
//! a device's flush run last, each after the replies of those before have gone out. The parts are no single
//! step: whether the client is still there is asked by the export, each time that it is about to begin a
//! change (see [`Presence`]).

use crate::baton::{Baton, Next, Role};
use crate::budget::Budget;
use crate::buffer::{ALIGNMENT, AlignedBuf};
use crate::command::{Action, Kind, Terms, reply_error};
use crate::contexts::Context;
use crate::export::{Export, Extent};
use crate::handshake::Agreed;
use crate::limits::Limits;
use crate::presence::Presence;
use crate::protocol::{Framing, ReplyError, RequestHeader, command};
use crate::receive::{Came, End, Inbox, Received, Receiver, THREAD_LEN};
use crate::reply::{Replies, Sender};
use crate::stats::Counters;
use crate::transport::{self, Transport};
use dedup_request::{Op, Request, RequestError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::Duration;

/// Memory for heads and payloads other than data that is kept between batches.
const HEADS_KEPT_MAX: usize = 64 << 10;
/// Extents in one chunk of a reply. The protocol allows 2^20; so few take 4 MiB, which is what a batch of
/// reads may take.
const EXTENTS_MAX: usize = 1 << 18;

/// Reads and writes of at most so many bytes together are done before a second thread would have begun.
const SHORT_LEN_MAX: u64 = 64 << 10;

/// A client in the transmission phase.
pub(crate) struct Connection<'c> {
    transport: &'c Transport,
    export: Arc<dyn Export>,
    terms: Terms,
    contexts: Vec<Context>,
    presence: Presence<'c>,
    baton: Baton<Receiver>,
    send_turn: Mutex<()>,
    /// The client did not wait for the reply to the last request that was alone in its batch, before it sent
    /// another.
    is_pipelined: AtomicBool,
    idle_time: Duration,
    /// How long it may be idle at all.
    idle_limit: Option<Duration>,
    /// Batches under way.
    at_work: AtomicUsize,
    budget: Arc<Budget>,
    counters: &'c Counters,
}

/// One thread's memory, reused from batch to batch.
struct Memory {
    inbox: Inbox,
    read_buf: AlignedBuf,
    heads: Vec<u8>,
}

impl Memory {
    fn new(framing: Framing, budget: &Arc<Budget>) -> Self {
        Self { inbox: Inbox::new(framing, budget), read_buf: AlignedBuf::zeroed(0), heads: Vec::new() }
    }
}

impl<'c> Connection<'c> {
    /// Takes over after the handshake.
    pub(crate) fn new(
        transport: &'c Arc<Transport>,
        agreed: Agreed,
        refusing: Arc<AtomicBool>,
        limits: &Limits,
        budget: &Arc<Budget>,
        counters: &'c Counters,
    ) -> Self {
        let (of_all, rest_time_max) = (Arc::clone(budget), limits.idle_limit);
        let Agreed { export, entry, terms, contexts, .. } = agreed;
        let receiver = Receiver::new(Arc::clone(transport), terms, refusing, of_all, rest_time_max);
        let baton = Baton::new(receiver, limits.threads_per_connection, limits.idle_time);
        Self {
            transport,
            export,
            terms,
            contexts,
            presence: Presence::new(transport, entry),
            baton,
            send_turn: Mutex::new(()),
            is_pipelined: AtomicBool::new(false),
            idle_time: limits.idle_limit.map_or(limits.idle_time, |limit| limit.min(limits.idle_time)),
            idle_limit: limits.idle_limit,
            at_work: AtomicUsize::new(0),
            budget: Arc::clone(budget),
            counters,
        }
    }

    /// Serves the client, with this thread and others, until it leaves.
    pub(crate) fn serve(&self) {
        thread::scope(|scope| self.work(scope, Role::First));
    }

    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, role: Role) {
        let _guard = EndOnPanic(self);
        let framing = self.terms.framing;
        let mut memory = Memory::new(framing, &self.budget);
        let mut patience = Some(self.idle_time);
        let (mut back, mut has_rested) = (false, false);
        while let Some(mut receiver) = self.baton.take(role, back) {
            back = true;
            let came = receiver.receive(&mut memory.inbox, &mut memory.read_buf, patience);
            if came == Came::NotYet {
                memory = Memory::new(framing, &self.budget);
                if has_rested && self.has_been_idle_for_too_long() {
                    return;
                }
                if self.baton.rest(receiver, role) {
                    return;
                }
                if role == Role::First {
                    // There is nothing left to give back, so nothing else to wake up for.
                    patience = self.idle_limit;
                    has_rested = true;
                }
                continue;
            }
            has_rested = false;
            self.at_work.fetch_add(1, Ordering::SeqCst);
            patience = Some(self.idle_time);
            match receiver.ended() {
                None => {}
                Some(End::Nonsense) => self.presence.is_unheard(),
                Some(End::Leave) => self.presence.takes_leave(),
                Some(End::Lost) => self.presence.is_lost(),
            }
            let next = match receiver.ended() {
                Some(_) => Next::Nobody,
                None => self.next(came, memory.inbox.requests()),
            };
            if self.baton.put_back(receiver, next) {
                self.add_thread(scope);
            }
            if let Err(error) = self.run(&mut memory) {
                transport::tell_lost(&error);
                self.transport.end();
            }
            self.at_work.fetch_sub(1, Ordering::SeqCst);
            memory.heads.clear();
            memory.heads.shrink_to(HEADS_KEPT_MAX);
            memory.inbox.end_batch(&mut memory.read_buf, &self.budget);
        }
    }

    /// Ends a connection on which nothing has been sent for as long as that may be, unless the client waits
    /// for something itself.
    fn has_been_idle_for_too_long(&self) -> bool {
        let is_idle = self.idle_limit.is_some() && self.at_work.load(Ordering::SeqCst) == 0;
        if is_idle {
            tracing::info!("ended a connection that was idle for {:?}", self.idle_limit.unwrap_or_default());
            self.transport.end();
            self.baton.end();
        }
        is_idle
    }

    /// Who is to receive while this batch runs.
    fn next(&self, came: Came, batch: &[Received]) -> Next {
        let client_is_ahead = match (came, batch) {
            (Came::AtOnce, [_]) => self.is_pipelined.load(Ordering::Relaxed),
            (came, _) => came == Came::AtOnce,
        };
        if client_is_ahead || !is_short(batch) { Next::Another } else { Next::Same }
    }

    /// Starts a thread that is already counted.
    fn add_thread<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        // Without memory for another, fewer threads do. It is kept for as long as the thread has something to
        // do now and then.
        let mut lease = self.budget.lease();
        if !lease.try_grow_to_keep(THREAD_LEN) {
            return self.baton.not_started();
        }
        // One that panics has reported it and ended the connection; caught, it does not make the others panic
        // too.
        let work = move || {
            let _lease = lease;
            drop(catch_unwind(AssertUnwindSafe(|| self.work(scope, Role::Additional))));
        };
        if let Err(error) = thread::Builder::new().name("nbd-worker".into()).spawn_scoped(scope, work) {
            tracing::warn!(%error, "serving a connection with fewer threads");
            self.baton.not_started();
        }
    }

    /// Runs a batch and sends its replies.
    fn run(&self, memory: &mut Memory) -> io::Result<()> {
        let received = memory.inbox.requests();
        let (prompt, flushing) = self.requests(&memory.inbox, &mut memory.read_buf);
        let terms = &self.terms;
        let sender = Sender {
            transport: self.transport,
            turn: &self.send_turn,
            framing: terms.framing,
            block_size: terms.block_size,
        };
        let mut replies = Replies::new(sender, &mut memory.heads);
        for Received { header, action, .. } in received {
            match action {
                Action::Run(_) | Action::Cache | Action::Status => {}
                Action::Nothing => replies.done(header),
                Action::Refuse(error) => replies.error(header, *error),
            }
        }
        self.execute(prompt, received, &mut replies)?;
        for request in received.iter().filter(|r| matches!(r.action, Action::Cache | Action::Status)) {
            replies.send();
            if replies.has_failed() {
                break;
            }
            self.inquire(request, memory.inbox.payload(request), &mut replies);
        }
        if !flushing.is_empty() {
            replies.send();
            self.execute(flushing, received, &mut replies)?;
        }
        self.counters.add_batch(received, replies.errors);
        if let [_] = received {
            // Seen only before the reply: after it, a quick client has sent the next request whatever it
            // keeps in flight.
            self.is_pipelined.store(self.transport.has_input(), Ordering::Relaxed);
        }
        replies.finish()
    }

    /// A trim found no space for the blocks that it covers in part. It frees the others then, and may find
    /// some.
    fn trim_first<'a>(&self, request: Request<'a>) -> (Request<'a>, Result<(), RequestError>) {
        let Op::WriteZeroes { offset, len, fua } = request.op else { return (request, Ok(())) };
        let wanted = || self.presence.is_wanted();
        let run = |op| {
            let mut outcome = Err(RequestError::Io);
            self.export.execute(&wanted, vec![Request { tag: 0, op }], &mut |_, result| outcome = result);
            outcome
        };
        let result =
            run(Op::Trim { offset, len, fua }).and_then(|()| run(Op::WriteZeroes { offset, len, fua }));
        (request, result)
    }

    /// Runs a request that neither reads nor changes the export.
    fn inquire(&self, request: &Received, payload: &[u8], replies: &mut Replies<'_, '_>) {
        let header = &request.header;
        let answered = match request.action {
            Action::Status => self.tell_status(header, payload, replies),
            _ => self.export.cache(header.offset, header.len).map_err(failed_inquiry).map(|()| {
                replies.done(header);
            }),
        };
        if let Err(error) = answered {
            replies.error(header, error);
        }
    }

    /// Answers a BLOCK_STATUS: a chunk for each context.
    fn tell_status(
        &self,
        header: &RequestHeader,
        payload: &[u8],
        replies: &mut Replies<'_, '_>,
    ) -> Result<(), ReplyError> {
        let query = self.terms.status_query(header, payload)?;
        let mut contexts = self.contexts.clone();
        if let Some(only) = &query.only {
            contexts.retain(|context| only.contains(&context.id));
            if contexts.len() != only.len() {
                return Err(ReplyError::Invalid);
            }
        }
        let extents_max = if query.one { 1 } else { EXTENTS_MAX };
        for (i, context) in contexts.iter().enumerate() {
            let extents = self.export.extents(context.name, header.offset, query.len, extents_max);
            let extents = extents.map_err(failed_inquiry)?;
            let extents = within(extents, query.len, extents_max).ok_or(ReplyError::Io)?;
            replies.status(header, context.id, &extents, i + 1 == contexts.len());
        }
        Ok(())
    }

    /// The batch in the export's terms, its reads given memory: first what runs at once, then what waits for
    /// a flush.
    fn requests<'a>(
        &self,
        inbox: &'a Inbox,
        read_buf: &'a mut AlignedBuf,
    ) -> (Vec<Request<'a>>, Vec<Request<'a>>) {
        let reads = inbox.requests().iter().filter(|request| request.action == Action::Run(Kind::Read));
        read_buf.reserve(reads.map(aligned_len).sum());
        let mut free = &mut read_buf[..];
        let mut prompt = Vec::with_capacity(inbox.requests().len());
        let mut flushing = Vec::new();
        for (tag, request) in inbox.requests().iter().enumerate() {
            let Action::Run(kind) = request.action else { continue };
            let offset = request.header.offset;
            let len = request.header.len;
            let op = match kind {
                Kind::Read => {
                    let (slot, rest) = free.split_at_mut(aligned_len(request));
                    free = rest;
                    Op::Read { offset, buf: &mut slot[..request.header.len as usize] }
                }
                Kind::Write { fua } => Op::Write { offset, data: inbox.payload(request), fua },
                Kind::Flush => Op::Flush,
                Kind::Trim { fua } if self.terms.has_whole_blocks_only(&request.header) => {
                    Op::Trim { offset, len, fua }
                }
                // Some clients take what they have trimmed for zeros, the parts of blocks at its ends too.
                Kind::Trim { fua } => Op::WriteZeroes { offset, len, fua },
                Kind::WriteZeroes { fua } => Op::WriteZeroes { offset, len, fua },
            };
            let list = if kind.waits_for_flush() { &mut flushing } else { &mut prompt };
            list.push(Request { tag: tag as u64, op });
        }
        (prompt, flushing)
    }

    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        received: &[Received],
        replies: &mut Replies<'_, 'a>,
    ) -> io::Result<()> {
        let mut unanswered = batch.len();
        if unanswered == 0 {
            return Ok(());
        }
        let wanted = || self.presence.is_wanted();
        let mut crowded = Vec::new();
        self.export.execute(&wanted, batch, &mut |request, result| {
            if let Some(asked) = received.get(request.tag as usize) {
                unanswered -= 1;
                let is_trim = asked.header.command == command::TRIM;
                match (&request.op, result) {
                    (Op::WriteZeroes { .. }, Err(RequestError::NoSpace)) if is_trim => crowded.push(request),
                    _ => replies.completed(&asked.header, request, result),
                }
            }
        });
        for request in crowded {
            if let Some(asked) = received.get(request.tag as usize) {
                let (request, result) = self.trim_first(request);
                replies.completed(&asked.header, request, result);
            }
        }
        // A client would wait for the missing reply for ever.
        if unanswered == 0 { Ok(()) } else { Err(io::Error::other("the export lost a request")) }
    }
}

/// The error to answer when the export failed to tell about a range.
fn failed_inquiry(error: RequestError) -> ReplyError {
    reply_error(&Op::Flush, error)
}

/// The first `max` extents, none empty, and the last one ending where the range does or before; `None` if
/// there is none.
fn within(mut extents: Vec<Extent>, mut len: u64, max: usize) -> Option<Vec<Extent>> {
    extents.truncate(max);
    extents.retain_mut(|extent| {
        extent.len = extent.len.min(len);
        len -= extent.len;
        extent.len > 0
    });
    (!extents.is_empty()).then_some(extents)
}

/// Bytes of memory that a read takes, so that the next begins at a page boundary again.
fn aligned_len(request: &Received) -> usize {
    (request.header.len as usize).next_multiple_of(ALIGNMENT)
}

/// Whether a batch is likely to be done at once: it waits for no flush, and moves little.
fn is_short(batch: &[Received]) -> bool {
    let len = |request: &Received| match request.action {
        Action::Run(Kind::Read | Kind::Write { fua: false }) => Some(request.header.len),
        Action::Nothing | Action::Refuse(_) => Some(0),
        Action::Run(_) | Action::Cache | Action::Status => None,
    };
    batch.iter().map(len).sum::<Option<u64>>().is_some_and(|len| len <= SHORT_LEN_MAX)
}

/// If an export panics, its client must not wait for the replies that went down with it.
struct EndOnPanic<'a, 'c>(&'a Connection<'c>);

impl Drop for EndOnPanic<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.baton.end();
            self.0.transport.end();
        }
    }
}
