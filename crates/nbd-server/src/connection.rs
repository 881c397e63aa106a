//! The transmission phase of one connection: threads that take turns receiving, one at first, more as requests wait for others.
//!
//! ```text
//!  thread A:  receive batch 1 | run it, send replies        | receive batch 3 | ...
//!  thread B:                  | receive batch 2 | run it, send replies        | ...
//! ```
//!
//! Whoever holds the [`Receiver`] receives; with a batch in hand it puts the receiver back and works. Batches therefore
//! overlap in the export. If nobody is free to receive, another thread is started, up to a limit: so a few slow requests (flushes,
//! above all) hold up none that come later. Another thread is woken only if that can pay: while a client keeps a single short read in
//! flight, the thread that has answered it takes the receiver up again itself, and no switch between threads is paid for.
//!
//! A client that has become idle gets its threads and memory taken back after `idle_time`: threads that wait so long for the
//! receiver leave, and one that has received nothing for so long frees its memory, and leaves too if the first thread can take
//! its place. The first thread stays to the end, because it is the one that waits for the others; so one thread remains, asleep in
//! `recv` with hardly any memory. Liveness: a thread leaves only while another, counted, has the receiver or is handed it.
//!
//! Within a batch, what only asks about a range runs after what reads and writes, and requests that wait for a device's flush
//! run last, each after the replies of those before have gone out.

use crate::buffer::{ALIGNMENT, AlignedBuf};
use crate::command::{Action, Kind, reply_error};
use crate::export::Extent;
use crate::handshake::Agreed;
use crate::protocol::{Framing, ReplyError, RequestHeader};
use crate::receive::{Came, Inbox, Received, Receiver};
use crate::reply::{Replies, Sender};
use crate::server::Limits;
use crate::stats::Counters;
use crate::transport::Transport;
use dedup_volume::{Op, Request, RequestError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

/// Memory for data read that is kept between batches; what a single larger request needs is freed after it.
const READ_BUF_KEPT_MAX: usize = 8 << 20;
/// As [`READ_BUF_KEPT_MAX`], for heads and other payloads.
const HEADS_KEPT_MAX: usize = 64 << 10;
/// Extents in one chunk of a reply. The protocol allows 2^20; so few take 4 MiB, which is what a batch of reads may take.
const EXTENTS_MAX: usize = 1 << 18;

/// A single read of at most so many bytes is not worth a second thread.
const LONE_READ_MAX: u64 = 64 << 10;

/// A client in the transmission phase.
pub(crate) struct Connection<'c> {
    transport: &'c Transport,
    agreed: Agreed,
    baton: Mutex<Baton>,
    /// The baton's receiver was put back, or there will be none any more.
    handed_over: Condvar,
    send_turn: Mutex<()>,
    threads_max: usize,
    idle_time: Duration,
    counters: &'c Counters,
}

struct Baton {
    /// `None` while a thread receives.
    receiver: Option<Receiver>,
    /// Threads that there are.
    threads: usize,
    /// Those that wait for the receiver.
    waiting: usize,
    /// The first thread is one of them.
    first_waits: bool,
    over: bool,
}

/// One thread's memory, reused from batch to batch.
struct Memory {
    inbox: Inbox,
    read_buf: AlignedBuf,
    heads: Vec<u8>,
}

impl Memory {
    fn new(framing: Framing) -> Self {
        Self { inbox: Inbox::new(framing), read_buf: AlignedBuf::zeroed(0), heads: Vec::new() }
    }
}

/// A thread's part in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The thread that the connection began with.
    First,
    /// One started because another was needed.
    Additional,
}

impl<'c> Connection<'c> {
    /// Takes over after the handshake.
    pub(crate) fn new(
        transport: &'c Arc<Transport>,
        agreed: Agreed,
        refusing: Arc<AtomicBool>,
        limits: &Limits,
        counters: &'c Counters,
    ) -> Self {
        let receiver = Receiver::new(Arc::clone(transport), agreed.terms, refusing);
        let baton =
            Baton { receiver: Some(receiver), threads: 1, waiting: 0, first_waits: false, over: false };
        Self {
            transport,
            agreed,
            baton: Mutex::new(baton),
            handed_over: Condvar::new(),
            send_turn: Mutex::new(()),
            threads_max: limits.threads_per_connection,
            idle_time: limits.idle_time,
            counters,
        }
    }

    /// Serves the client, with this thread and others, until it leaves.
    pub(crate) fn serve(&self) {
        thread::scope(|scope| self.work(scope, Role::First));
    }

    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, role: Role) {
        let _guard = EndOnPanic(self);
        let framing = self.agreed.terms.framing;
        let mut memory = Memory::new(framing);
        let mut patience = Some(self.idle_time);
        while let Some(mut receiver) = self.take_receiver(role) {
            let came = receiver.receive(&mut memory.inbox, patience);
            if came == Came::NotYet {
                memory = Memory::new(framing);
                if self.rest(receiver, role) {
                    return;
                }
                if role == Role::First {
                    // There is nothing left to give back, so nothing to wake up for.
                    patience = None;
                }
                continue;
            }
            patience = Some(self.idle_time);
            let busy = came == Came::AtOnce;
            if self.put_back(receiver, busy || wants_company(memory.inbox.requests())) {
                self.add_thread(scope);
            }
            if let Err(error) = self.run(&mut memory) {
                tracing::debug!(%error, "connection lost");
                self.transport.end();
            }
            if memory.read_buf.len() > READ_BUF_KEPT_MAX {
                memory.read_buf = AlignedBuf::zeroed(0);
            }
            memory.heads.clear();
            memory.heads.shrink_to(HEADS_KEPT_MAX);
            memory.inbox.shrink();
        }
    }

    /// Starts a thread that is already counted.
    fn add_thread<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        // One that panics has reported it and ended the connection; caught, it does not make the others panic too.
        let work = || drop(catch_unwind(AssertUnwindSafe(|| self.work(scope, Role::Additional))));
        if let Err(error) = thread::Builder::new().name("nbd-worker".into()).spawn_scoped(scope, work) {
            tracing::warn!(%error, "serving a connection with fewer threads");
            self.baton().threads -= 1;
        }
    }

    fn baton(&self) -> MutexGuard<'_, Baton> {
        // Nothing in its critical sections can panic half-way.
        self.baton.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn to receive; `None` when there is nothing more to receive, or this thread is one too many and no longer
    /// counted.
    fn take_receiver(&self, role: Role) -> Option<Receiver> {
        let mut baton = self.baton();
        let mut has_waited = false;
        loop {
            if baton.over {
                return None;
            }
            if let Some(receiver) = baton.receiver.take() {
                return Some(receiver);
            }
            // Another thread has the receiver.
            if has_waited && baton.threads > 1 {
                baton.threads -= 1;
                return None;
            }
            baton.waiting += 1;
            if role == Role::First {
                baton.first_waits = true;
                baton = self.handed_over.wait(baton).unwrap_or_else(PoisonError::into_inner);
                baton.first_waits = false;
            } else {
                let woken = self.handed_over.wait_timeout(baton, self.idle_time);
                let (woken, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
                has_waited = timeout.timed_out();
                baton = woken;
            }
            baton.waiting -= 1;
        }
    }

    /// Puts the receiver back after nothing came. Returns whether this thread is to leave, no longer counted: the first thread has
    /// been woken to receive instead. Otherwise the caller goes on to take the receiver again.
    fn rest(&self, receiver: Receiver, role: Role) -> bool {
        let mut baton = self.baton();
        baton.receiver = Some(receiver);
        let leaves = role == Role::Additional && baton.first_waits;
        if leaves {
            baton.threads -= 1;
            // All, because which thread is woken cannot be chosen.
            self.handed_over.notify_all();
        }
        leaves
    }

    /// Lets others receive, and with `wake` sees to it that somebody does. Returns whether a thread is to be started for that,
    /// which then counts as one that there is.
    fn put_back(&self, receiver: Receiver, wake: bool) -> bool {
        let over = receiver.has_ended();
        let mut baton = self.baton();
        baton.over |= over;
        baton.receiver = Some(receiver);
        let nobody_waits = baton.waiting == 0;
        let adds = wake && nobody_waits && !baton.over && baton.threads < self.threads_max;
        baton.threads += usize::from(adds);
        drop(baton);
        if over {
            self.handed_over.notify_all();
        } else if wake && !nobody_waits {
            self.handed_over.notify_one();
        }
        adds
    }

    /// Runs a batch and sends its replies.
    fn run(&self, memory: &mut Memory) -> io::Result<()> {
        let received = memory.inbox.requests();
        let (prompt, flushing) = self.requests(&memory.inbox, &mut memory.read_buf);
        let terms = &self.agreed.terms;
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
        replies.finish()
    }

    /// Runs a request that neither reads nor changes the export.
    fn inquire(&self, request: &Received, payload: &[u8], replies: &mut Replies<'_, '_>) {
        let header = &request.header;
        let answered = match request.action {
            Action::Status => self.tell_status(header, payload, replies),
            _ => self.agreed.export.cache(header.offset, header.len).map_err(failed_inquiry).map(|()| {
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
        let query = self.agreed.terms.status_query(header, payload)?;
        let mut contexts = self.agreed.contexts.clone();
        if let Some(only) = &query.only {
            contexts.retain(|context| only.contains(&context.id));
            if contexts.len() != only.len() {
                return Err(ReplyError::Invalid);
            }
        }
        let extents_max = if query.one { 1 } else { EXTENTS_MAX };
        for (i, context) in contexts.iter().enumerate() {
            let extents = self.agreed.export.extents(context.name, header.offset, query.len, extents_max);
            let extents = extents.map_err(failed_inquiry)?;
            let extents = within(extents, query.len, extents_max).ok_or(ReplyError::Io)?;
            replies.status(header, context.id, &extents, i + 1 == contexts.len());
        }
        Ok(())
    }

    /// The batch in the export's terms, its reads given memory: first what runs at once, then what waits for a flush.
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
                Kind::Trim { fua } => Op::Trim { offset, len, fua },
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
        self.agreed.export.execute(batch, &mut |request, result| {
            if let Some(asked) = received.get(request.tag as usize) {
                unanswered -= 1;
                replies.completed(&asked.header, request, result);
            }
        });
        // A client would wait for the missing reply for ever.
        if unanswered == 0 { Ok(()) } else { Err(io::Error::other("the export lost a request")) }
    }
}

/// The error to answer when the export failed to tell about a range.
fn failed_inquiry(error: RequestError) -> ReplyError {
    reply_error(&Op::Flush, error)
}

/// The first `max` extents, none empty, and the last one ending where the range does or before; `None` if there is none.
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

/// Whether another thread should receive while this batch runs: it is more than one short request that waits for nothing but
/// itself. (A write may wait for space.)
fn wants_company(batch: &[Received]) -> bool {
    match batch {
        [only] => match only.action {
            Action::Run(Kind::Read) => only.header.len > LONE_READ_MAX,
            Action::Nothing | Action::Refuse(_) => false,
            Action::Run(_) | Action::Cache | Action::Status => true,
        },
        _ => true,
    }
}

/// If an export panics, its client must not wait for the replies that went down with it.
struct EndOnPanic<'a, 'c>(&'a Connection<'c>);

impl Drop for EndOnPanic<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.baton().over = true;
            self.0.handed_over.notify_all();
            self.0.transport.end();
        }
    }
}
