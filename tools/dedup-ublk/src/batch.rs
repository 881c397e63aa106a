//! One batch of commands, run against what is served.
//!
//! ```text
//!   data of writes: window ─> arena ─> Target::execute ─ each as it is done ─> data of reads: arena ─> window
//!                                                                          ─> complete(tag, result)
//! ```
//!
//! Not here: threads, the kernel.

use crate::command::{Command, failure};
use dedup_device::AlignedBuf;
use dedup_volume::{Op, Request, RequestError, Volume};
use rustix::io::Errno;
use std::io;

/// What the data of each command begins at a multiple of, in bytes: with it the engine need not copy for
/// direct I/O.
const ALIGNMENT: usize = 4096;

/// What is served: a volume, or nothing at all.
pub trait Target: Send + Sync {
    /// Runs a batch; calls `done` from this thread once for each request as it completes, and returns when
    /// all are done.
    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    );
}

impl Target for Volume {
    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        Volume::execute(self, batch, done);
    }
}

/// Drops what is written and reads as zeros: what remains is the cost of the server itself.
#[derive(Clone, Copy, Debug)]
pub struct Null;

impl Target for Null {
    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        for mut request in batch {
            if let Op::Read { buf, .. } = &mut request.op {
                buf.fill(0);
            }
            done(request, Ok(()));
        }
    }
}

/// Acknowledges flushes and FUA writes without making anything durable. For tests only: it shows that they
/// notice.
#[derive(Clone, Debug)]
pub struct IgnoreFlush<T>(pub T);

impl<T: Target> Target for IgnoreFlush<T> {
    fn execute<'a>(
        &self,
        mut batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        for request in &mut batch {
            match &mut request.op {
                Op::Write { fua, .. } | Op::Trim { fua, .. } | Op::WriteZeroes { fua, .. } => *fua = false,
                Op::Flush | Op::Read { .. } => {}
            }
        }
        let (flushes, rest) = batch.into_iter().partition(|request| matches!(request.op, Op::Flush));
        self.0.execute(rest, done);
        Vec::into_iter(flushes).for_each(|request| done(request, Ok(())));
    }
}

impl<T: Target + ?Sized> Target for std::sync::Arc<T> {
    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        (**self).execute(batch, done);
    }
}

/// Where the data of a queue's commands is, by tag.
pub trait Window: Send + Sync {
    /// Fetches the data of a write.
    fn fetch(&self, tag: u16, buf: &mut [u8]) -> io::Result<()>;
    /// Hands over the data of a read.
    fn store(&self, tag: u16, data: &[u8]) -> io::Result<()>;
}

/// One command of a queue. Its tag is the driver's number for it and belongs to it until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The number.
    pub tag: u16,
    /// What to do.
    pub command: Command,
}

impl Task {
    /// Bytes of an arena that it takes: its data, beginning where direct I/O wants it.
    pub fn arena_len(&self) -> usize {
        self.command.data_len().next_multiple_of(ALIGNMENT)
    }
}

/// Runs `tasks`, whose [`Task::arena_len`]s fit into `arena`; calls `complete` with each tag once, and the
/// result that the driver is to be told.
pub fn run(
    target: &dyn Target,
    window: &dyn Window,
    tasks: &[Task],
    arena: &mut AlignedBuf,
    complete: &mut dyn FnMut(u16, i32),
) {
    let mut requests = Vec::with_capacity(tasks.len());
    let mut rest: &mut [u8] = arena;
    for (place, task) in tasks.iter().enumerate() {
        let (buf, tail) = rest.split_at_mut(task.arena_len());
        rest = tail;
        let buf = &mut buf[..task.command.data_len()];
        // The driver has reads filled in later: only writes bring data.
        if task.command.changes()
            && !buf.is_empty()
            && let Err(error) = window.fetch(task.tag, buf)
        {
            tracing::error!("write at {}: its data cannot be fetched: {error}", task.command.offset);
            complete(task.tag, -Errno::IO.raw_os_error());
            continue;
        }
        requests.push(Request { tag: place as u64, op: task.command.op(buf) });
    }
    target.execute(requests, &mut |request, result| {
        let task = &tasks[request.tag as usize];
        let acknowledged = match (&request.op, result) {
            (Op::Read { buf, .. }, Ok(())) => window.store(task.tag, buf).map_err(|error| {
                tracing::error!("read at {}: its data cannot be handed over: {error}", task.command.offset);
                RequestError::Io
            }),
            (_, result) => result,
        };
        complete(task.tag, acknowledged.map_or_else(failure, |()| task.command.success()));
    });
}

/// Makes everything durable that is done.
///
/// # Errors
/// Those of the flush.
pub fn flush(target: &dyn Target) -> Result<(), RequestError> {
    let mut result = Ok(());
    target.execute(vec![Request { tag: 0, op: Op::Flush }], &mut |_, r| result = r);
    result
}

#[cfg(test)]
mod tests;
