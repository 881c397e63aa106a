//! Replies: gathered while a batch runs, and sent in few system calls.
//!
//! Only one thread sends at a time, and whole replies only, so replies of two batches never mix. Once sending
//! has failed nothing more is sent: the stream could be cut within a reply, and what follows would be taken
//! for its rest.
//!
//! Zeros are not sent if the client can be told of them: whole blocks of a read that hold nothing else become
//! holes.

use crate::command::reply_error;
use crate::export::Extent;
use crate::protocol::{self, ChunkHead, Framing, ReplyError, RequestHeader, chunk, command, command_flag};
use crate::socket::Pace;
use crate::transport::Transport;
use dedup_request::{Op, Request, RequestError};
use std::io::{self, IoSlice};
use std::sync::{Mutex, PoisonError};

/// Gathered bytes at which replies are sent although the batch is not done: beyond it, waiting gains little
/// and the client could be working on what it has asked for.
const GATHERED_MAX: usize = 256 << 10;
/// Smallest hole that is told, and what its ends are aligned to, unless the export's blocks are larger: a
/// chunk costs both sides more than a few zeros do.
const HOLE_MIN: u64 = 4096;

/// The sending side of a connection.
#[derive(Debug)]
pub(crate) struct Sender<'c> {
    pub(crate) transport: &'c Transport,
    /// Held while sending.
    pub(crate) turn: &'c Mutex<()>,
    /// How replies look.
    pub(crate) framing: Framing,
    /// Bytes of the export's blocks.
    pub(crate) block_size: u64,
}

/// Replies of one batch that have not been sent yet. Data read stays where it was read to.
#[derive(Debug)]
pub(crate) struct Replies<'c, 'a> {
    sender: Sender<'c>,
    /// Heads of all replies, and payloads other than data.
    heads: &'c mut Vec<u8>,
    /// For each chunk of data: where its head ends, and the data that follows it.
    data: Vec<(usize, &'a [u8])>,
    data_len: usize,
    pace: Pace,
    /// Errors answered.
    pub(crate) errors: u64,
    result: io::Result<()>,
}

impl<'c, 'a> Replies<'c, 'a> {
    /// No replies yet; `heads` is memory to use.
    pub(crate) fn new(sender: Sender<'c>, heads: &'c mut Vec<u8>) -> Self {
        heads.clear();
        let (data, pace) = (Vec::new(), Pace::default());
        Self { sender, heads, data, data_len: 0, pace, errors: 0, result: Ok(()) }
    }

    /// Answers what the export has run.
    pub(crate) fn completed(
        &mut self,
        header: &RequestHeader,
        request: Request<'a>,
        result: Result<(), RequestError>,
    ) {
        match (result, request.op) {
            (Err(error), op) => self.error(header, reply_error(&op, error)),
            (Ok(()), Op::Read { buf, .. }) => self.read(header, buf),
            (Ok(()), _) => self.done(header),
        }
        if self.heads.len() + self.data_len >= GATHERED_MAX {
            self.send();
        }
    }

    /// Answers a READ with what was read.
    fn read(&mut self, header: &RequestHeader, data: &'a [u8]) {
        if self.sender.framing == Framing::Simple {
            protocol::put_simple_reply(self.heads, 0, header.cookie);
            return self.put_data(data);
        }
        let mut runs = runs(header.offset, data, HOLE_MIN.max(self.sender.block_size));
        if header.flags & command_flag::DF != 0 && runs.len() > 1 {
            runs = vec![Run { start: 0, end: data.len(), hole: false }];
        }
        let last = runs.len() - 1;
        for (i, run) in runs.into_iter().enumerate() {
            let offset = (header.offset + run.start as u64).to_be_bytes();
            // `PAYLOAD_LEN_MAX` bounds the length far below what the fields hold.
            let len = (run.end - run.start) as u32;
            if run.hole {
                self.put_chunk(header, chunk::OFFSET_HOLE, i == last, &[&offset, &len.to_be_bytes()]);
            } else {
                let head = ChunkHead { kind: chunk::OFFSET_DATA, last: i == last, len: 8 + len };
                head.put(self.heads, header, self.sender.framing);
                self.heads.extend(offset);
                self.put_data(&data[run.start..run.end]);
            }
        }
    }

    fn put_data(&mut self, data: &'a [u8]) {
        self.data.push((self.heads.len(), data));
        self.data_len += data.len();
    }

    /// Answers a BLOCK_STATUS in one of its contexts, `last` for the last of them.
    pub(crate) fn status(&mut self, header: &RequestHeader, context: u32, extents: &[Extent], last: bool) {
        // The caller bounds the number of extents.
        let count = extents.len() as u32;
        if self.sender.framing == Framing::Extended {
            ChunkHead { kind: chunk::BLOCK_STATUS_EXT, last, len: 8 + 16 * count }.put(
                self.heads,
                header,
                Framing::Extended,
            );
            self.heads.extend(context.to_be_bytes());
            self.heads.extend(count.to_be_bytes());
            for extent in extents {
                self.heads.extend(extent.len.to_be_bytes());
                self.heads.extend(u64::from(extent.status).to_be_bytes());
            }
        } else {
            ChunkHead { kind: chunk::BLOCK_STATUS, last, len: 4 + 8 * count }.put(
                self.heads,
                header,
                self.sender.framing,
            );
            self.heads.extend(context.to_be_bytes());
            for extent in extents {
                // No extent is longer than the request, whose length had 32 bits.
                self.heads.extend((extent.len as u32).to_be_bytes());
                self.heads.extend(extent.status.to_be_bytes());
            }
        }
        self.send();
    }

    /// Answers success without data.
    pub(crate) fn done(&mut self, header: &RequestHeader) {
        let is_read = header.command == command::READ;
        match self.sender.framing {
            Framing::Structured if is_read => self.put_chunk(header, chunk::NONE, true, &[]),
            Framing::Simple | Framing::Structured => protocol::put_simple_reply(self.heads, 0, header.cookie),
            Framing::Extended => self.put_chunk(header, chunk::NONE, true, &[]),
        }
    }

    /// Answers an error. After structured replies were agreed on, none is a simple reply: a READ must not
    /// have one, and others gain a text.
    pub(crate) fn error(&mut self, header: &RequestHeader, error: ReplyError) {
        self.errors += 1;
        let code = error as u32;
        if self.sender.framing == Framing::Simple {
            return protocol::put_simple_reply(self.heads, code, header.cookie);
        }
        let text = error.text();
        let text_len = (text.len() as u16).to_be_bytes();
        self.put_chunk(header, chunk::ERROR, true, &[&code.to_be_bytes(), &text_len, text.as_bytes()]);
    }

    fn put_chunk(&mut self, header: &RequestHeader, kind: u16, last: bool, payload: &[&[u8]]) {
        // Payloads other than data are a few fields and a short text.
        let len = payload.iter().map(|part| part.len() as u32).sum();
        ChunkHead { kind, last, len }.put(self.heads, header, self.sender.framing);
        payload.iter().for_each(|part| self.heads.extend(*part));
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

    /// Whether the client can still be answered.
    pub(crate) fn has_failed(&self) -> bool {
        self.result.is_err()
    }

    fn send_gathered(&mut self) -> io::Result<()> {
        let mut slices = Vec::with_capacity(2 * self.data.len() + 1);
        let mut start = 0;
        for &(head_end, data) in &self.data {
            slices.push(IoSlice::new(&self.heads[start..head_end]));
            slices.push(IoSlice::new(data));
            start = head_end;
        }
        slices.push(IoSlice::new(&self.heads[start..]));
        // A thread that panicked while sending has ended the connection, so the guard protects nothing any
        // more.
        let _turn = self.sender.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.sender.transport.send_all(&mut slices, &mut self.pace)
    }

    /// Sends the rest, and tells whether all replies of the batch went out.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.send();
        self.result
    }
}

/// A stretch of data read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: usize,
    end: usize,
    /// All zeros, and long enough to be told.
    hole: bool,
}

/// Cuts what was read at `offset` into holes and data: at least one run, side by side. Holes end where blocks
/// do, or the data.
fn runs(offset: u64, data: &[u8], block_size: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let in_block = (offset + start as u64) % block_size;
        let end = data.len().min(start + (block_size - in_block) as usize);
        let hole = is_zero(&data[start..end]);
        match runs.last_mut() {
            Some(last) if last.hole == hole => last.end = end,
            _ => runs.push(Run { start, end, hole }),
        }
        start = end;
    }
    // Zeros at an unaligned end that are too few to be told.
    for run in &mut runs {
        run.hole &= (run.end - run.start) as u64 >= HOLE_MIN;
    }
    runs.dedup_by(|next, run| {
        let joined = !next.hole && !run.hole;
        if joined {
            run.end = next.end;
        }
        joined
    });
    runs
}

/// Whether all bytes are zeros: the first one is, and each equals the one before it, which is what `memcmp`
/// is fast at.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_the_data_and_holes_are_zeros_of_whole_blocks(
            offset in 0u64..20_000, blocks in proptest::collection::vec(any::<bool>(), 1..6), cut in 0usize..9000
        ) {
            let mut data: Vec<u8> = blocks.iter().flat_map(|zero| [u8::from(!zero); 4096]).collect();
            data.truncate((data.len() - cut.min(data.len() - 1)).max(1));
            let runs = runs(offset, &data, 4096);
            let mut at = 0;
            for (i, run) in runs.iter().enumerate() {
                prop_assert_eq!(run.start, at);
                prop_assert!(run.end > run.start);
                at = run.end;
                prop_assert!(i == 0 || runs[i - 1].hole != run.hole);
                if run.hole {
                    prop_assert!(is_zero(&data[run.start..run.end]));
                    prop_assert!(run.end - run.start >= 4096);
                    prop_assert!(run.end == data.len() || (offset + run.end as u64).is_multiple_of(4096));
                    prop_assert!(run.start == 0 || (offset + run.start as u64).is_multiple_of(4096));
                } else {
                    // No hole was missed: two whole blocks of zeros hold an aligned one.
                    let zeros = data[run.start..run.end].split(|byte| *byte != 0).map(<[u8]>::len).max();
                    prop_assert!(zeros < Some(2 * 4096));
                }
            }
            prop_assert_eq!(at, data.len());
        }
    }

    #[test]
    fn zeros_are_told_from_others_wherever_the_other_byte_is() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 5000]));
        for at in [0, 1, 63, 64, 4999] {
            let mut bytes = [0; 5000];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
