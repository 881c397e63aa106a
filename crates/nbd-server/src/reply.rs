//! Replies: gathered while a batch runs, and sent in few system calls.
//!
//! Only one thread sends at a time, and whole replies only, so replies of two batches never mix. Once sending has
//! failed nothing more is sent: the stream could be cut within a reply, and what follows would be taken for its rest.

use crate::command::reply_error;
use crate::protocol::{self, ReplyError, chunk};
use crate::socket::Socket;
use dedup_volume::{Op, Request, RequestError};
use std::io::{self, IoSlice};
use std::sync::{Mutex, PoisonError};

/// Gathered bytes at which replies are sent although the batch is not done: beyond it, waiting gains little and the
/// client could be working on what it has asked for.
const GATHERED_MAX: usize = 256 << 10;

/// The sending side of a connection.
#[derive(Debug)]
pub(crate) struct Sender<'c> {
    pub(crate) socket: &'c Socket,
    /// Held while sending.
    pub(crate) turn: &'c Mutex<()>,
    /// READ is answered in chunks, and errors carry a text.
    pub(crate) structured: bool,
}

/// Replies of one batch that have not been sent yet. Data read stays where it was read to.
#[derive(Debug)]
pub(crate) struct Replies<'c, 'a> {
    sender: Sender<'c>,
    /// Heads of all replies, and payloads other than data.
    heads: &'c mut Vec<u8>,
    /// For each reply with data: where its head ends, and the data that follows it.
    data: Vec<(usize, &'a [u8])>,
    data_len: usize,
    /// Errors answered.
    pub(crate) errors: u64,
    result: io::Result<()>,
}

impl<'c, 'a> Replies<'c, 'a> {
    /// No replies yet; `heads` is memory to use.
    pub(crate) fn new(sender: Sender<'c>, heads: &'c mut Vec<u8>) -> Self {
        heads.clear();
        Self { sender, heads, data: Vec::new(), data_len: 0, errors: 0, result: Ok(()) }
    }

    /// Answers what the export has run.
    pub(crate) fn completed(&mut self, cookie: u64, request: Request<'a>, result: Result<(), RequestError>) {
        match (result, request.op) {
            (Err(error), op) => self.error(cookie, matches!(op, Op::Read { .. }), reply_error(&op, error)),
            (Ok(()), Op::Read { offset, buf }) => self.read(cookie, offset, buf),
            (Ok(()), _) => protocol::put_simple_reply(self.heads, 0, cookie),
        }
        if self.heads.len() + self.data_len >= GATHERED_MAX {
            self.send();
        }
    }

    /// Answers a READ with what was read. Structured, an empty one has no data chunk.
    fn read(&mut self, cookie: u64, offset: u64, data: &'a [u8]) {
        if self.sender.structured {
            // `PAYLOAD_LEN_MAX` bounds the length far below what the field holds.
            protocol::put_chunk_head(self.heads, chunk::OFFSET_DATA, cookie, 8 + data.len() as u32);
            self.heads.extend(offset.to_be_bytes());
        } else {
            protocol::put_simple_reply(self.heads, 0, cookie);
        }
        self.data.push((self.heads.len(), data));
        self.data_len += data.len();
    }

    /// Answers success to a request that asked for nothing.
    pub(crate) fn nothing(&mut self, cookie: u64, is_read: bool) {
        if self.sender.structured && is_read {
            protocol::put_chunk_head(self.heads, chunk::NONE, cookie, 0);
        } else {
            protocol::put_simple_reply(self.heads, 0, cookie);
        }
    }

    /// Answers an error. After structured replies were agreed on, a READ never gets a simple reply.
    pub(crate) fn error(&mut self, cookie: u64, is_read: bool, error: ReplyError) {
        self.errors += 1;
        if self.sender.structured && is_read {
            protocol::put_chunk_head(self.heads, chunk::ERROR, cookie, 6);
            self.heads.extend((error as u32).to_be_bytes());
            self.heads.extend(0u16.to_be_bytes());
        } else {
            protocol::put_simple_reply(self.heads, error as u32, cookie);
        }
    }

    /// Sends what has been gathered.
    pub(crate) fn send(&mut self) {
        if self.heads.is_empty() {
            return;
        }
        if self.result.is_ok() {
            self.result = self.send_gathered();
        }
        self.heads.clear();
        self.data.clear();
        self.data_len = 0;
    }

    fn send_gathered(&self) -> io::Result<()> {
        let mut slices = Vec::with_capacity(2 * self.data.len() + 1);
        let mut start = 0;
        for &(head_end, data) in &self.data {
            slices.push(IoSlice::new(&self.heads[start..head_end]));
            slices.push(IoSlice::new(data));
            start = head_end;
        }
        slices.push(IoSlice::new(&self.heads[start..]));
        // A thread that panicked while sending has ended the connection, so the guard protects nothing any more.
        let _turn = self.sender.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.sender.socket.send_all(&mut slices)
    }

    /// Sends the rest, and tells whether all replies of the batch went out.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.send();
        self.result
    }
}
