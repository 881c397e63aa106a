//! A client for tests, of this server and of programs that contain it. It speaks raw bytes: what is well
//! formed and what is not.
//!
//! ```text
//!   connect ── greet ── options, GO ── many requests under way:   submit(cookie, &Command) ... receive() -> Reply
//!                          │           one at a time:             run(&Command)
//!                          │           any bytes:                 request(flags, command, ...), send(bytes)
//!                          └ after structured replies or extended headers: chunk(), extended_chunk(offset)
//! ```
//!
//! What is asked of a server that may be killed meanwhile returns an [`io::Result`]; what checks a byte of
//! the protocol panics with what it found, which fails the test.
//!
//! It encodes and decodes by itself: nothing of the server's own encoding is used here, so that a mistake
//! there is not made twice.
//!
//! It is a module of the server, behind the feature `test-client`, and not a crate: the server's own tests,
//! those of whole processes, those of `dedup-nbd` and the fuzzer all have the server as a dependency already.
//! No program enables the feature.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A command: read.
pub const READ: u16 = 0;
/// A command: write.
pub const WRITE: u16 = 1;
/// A command: end the connection.
pub const DISC: u16 = 2;
/// A command: make durable what was answered.
pub const FLUSH: u16 = 3;
/// A command: unmap what is covered as a whole.
pub const TRIM: u16 = 4;
/// A command: prefetch.
pub const CACHE: u16 = 5;
/// A command: make all of it zeros.
pub const WRITE_ZEROES: u16 = 6;
/// A command: what ranges hold.
pub const BLOCK_STATUS: u16 = 7;
/// A flag: durable when answered.
pub const FUA: u16 = 1;
/// A flag: zeros that have space.
pub const NO_HOLE: u16 = 2;
/// A flag: the reply in one chunk.
pub const DF: u16 = 4;
/// A flag: one extent.
pub const REQ_ONE: u16 = 8;
/// A flag: only if faster than a write.
pub const FAST_ZERO: u16 = 16;
/// A flag: the length is that of a payload.
pub const PAYLOAD: u16 = 32;
/// A type of chunk: bytes.
pub const DATA: u16 = 1;
/// A type of chunk: so many zeros.
pub const HOLE: u16 = 2;
/// A type of chunk: an error.
pub const ERROR: u16 = 0x8001;

/// Longer than any request takes on a busy machine; one that would hang fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read so many bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write these bytes.
    Write {
        /// First byte.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// Durable when answered.
        fua: bool,
    },
    /// Unmap what is covered as a whole.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Durable when answered.
        fua: bool,
    },
    /// Make all of it zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Durable when answered.
        fua: bool,
    },
    /// Make durable what was answered.
    Flush,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// That of the request.
    pub cookie: u64,
    /// 0, or an `errno`.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

/// A client's end of an encrypted connection.
pub type TlsStream = StreamOwned<ClientConnection, UnixStream>;

impl Client {
    /// A connection on which nothing has been said, and on which nothing takes longer than `patience`.
    pub fn dial(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self::new(stream))
    }

    /// A connection in transmission with the export that has no name, and simple replies.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut client = Self::dial(socket, PATIENCE)?;
        client.try_greet(3)?;
        client.try_send(&option(7, &go_data(b"", &[])))?;
        loop {
            match client.try_option_reply(7)? {
                (1, _) => return Ok(client),
                (3, _) => {}
                (other, _) => return Err(io::Error::other(format!("the export was refused: {other:#x}"))),
            }
        }
    }

    /// Asks for TLS and begins it; the first use of the stream finishes the handshake.
    pub fn start_tls(mut self, config: &Arc<ClientConfig>) -> Client<TlsStream> {
        self.send_option(5, b"");
        assert_eq!(self.option_reply(5), (1, vec![]));
        let name = "localhost".try_into().unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        Client::new(StreamOwned::new(connection, self.stream))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client<S = UnixStream> {
    /// What it speaks over.
    pub stream: S,
    /// Bytes that a reply brings, of reads under way.
    reads: HashMap<u64, u32>,
}

/// What a structured reply chunk holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// 1: the last of its reply.
    pub flags: u16,
    /// What the payload is.
    pub kind: u16,
    /// That of the request.
    pub cookie: u64,
    /// What it brings.
    pub payload: Vec<u8>,
}

impl Chunk {
    /// The error of this chunk, which is a reply's only one and whose text fills what its length says.
    pub fn error(&self, cookie: u64) -> u32 {
        assert_eq!((self.flags, self.kind, self.cookie), (1, ERROR, cookie), "{self:?}");
        let (error, rest) = self.payload.split_first_chunk().unwrap();
        let (text_len, text) = rest.split_first_chunk().unwrap();
        assert_eq!(usize::from(u16::from_be_bytes(*text_len)), text.len());
        u32::from_be_bytes(*error)
    }
}

/// The header of a request.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The header of an extended request.
pub fn extended_request(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The data of the options that list and select metadata contexts.
pub fn context_data(export: &[u8], queries: &[&str]) -> Vec<u8> {
    let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let mut data = string(export);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query.as_bytes())));
    data
}

/// An option of the handshake.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of the options INFO and GO.
pub fn go_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

impl<S: Read + Write> Client<S> {
    /// A client's end of this stream.
    pub fn new(stream: S) -> Self {
        Self { stream, reads: HashMap::new() }
    }

    /// Sends a request and does not wait for its reply.
    pub fn submit(&mut self, cookie: u64, command: &Command) -> io::Result<()> {
        let (kind, offset, len, fua, data): (u16, u64, u32, bool, &[u8]) = match command {
            Command::Read { offset, len } => (READ, *offset, *len, false, &[]),
            Command::Write { offset, data, fua } => (WRITE, *offset, data.len() as u32, *fua, data),
            Command::Flush => (FLUSH, 0, 0, false, &[]),
            Command::Trim { offset, len, fua } => (TRIM, *offset, *len, *fua, &[]),
            Command::Zero { offset, len, fua } => (WRITE_ZEROES, *offset, *len, *fua, &[]),
        };
        if kind == READ {
            self.reads.insert(cookie, len);
        }
        self.try_send(&[&request(u16::from(fua) * FUA, kind, cookie, offset, len), data].concat())
    }

    /// The next reply, of whichever request that was [submitted](Self::submit).
    pub fn receive(&mut self) -> io::Result<Reply> {
        let (cookie, error) = self.try_simple_reply()?;
        let len = self.reads.remove(&cookie).filter(|_| error == 0).unwrap_or(0);
        Ok(Reply { cookie, error, data: self.try_take(len as usize)? })
    }

    /// One request alone: what it read, or its `errno`.
    pub fn run(&mut self, command: &Command) -> io::Result<Result<Vec<u8>, u32>> {
        self.submit(u64::MAX, command)?;
        let reply = self.receive()?;
        expect(reply.cookie == u64::MAX, "the reply to the only request")?;
        Ok(if reply.error == 0 { Ok(reply.data) } else { Err(reply.error) })
    }

    fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    fn try_take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn try_greet(&mut self, client_flags: u32) -> io::Result<()> {
        let greeting = self.try_take(18)?;
        expect(greeting == *b"NBDMAGICIHAVEOPT\0\x03", "the greeting of a fixed newstyle server, no zeroes")?;
        self.try_send(&client_flags.to_be_bytes())
    }

    fn try_option_reply(&mut self, number: u32) -> io::Result<(u32, Vec<u8>)> {
        let head = self.try_take(20)?;
        expect(be(&head[..8]) == 0x0003_e889_0455_65a9, "an option reply")?;
        expect(be(&head[8..12]) == u64::from(number), "a reply to the option that was sent")?;
        Ok((be(&head[12..16]) as u32, self.try_take(be(&head[16..]) as usize)?))
    }

    fn try_simple_reply(&mut self) -> io::Result<(u64, u32)> {
        let head = self.try_take(16)?;
        expect(be(&head[..4]) == 0x6744_6698, "a simple reply")?;
        Ok((be(&head[8..]), be(&head[4..8]) as u32))
    }

    /// Sends these bytes, whatever they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// The next so many bytes.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        self.try_take(len).unwrap()
    }

    /// The next two bytes as a number.
    pub fn take_u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    /// The next four.
    pub fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    /// The next eight.
    pub fn take_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Checks that the server closes without another byte.
    pub fn expect_end(&mut self) {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("expected the end of the stream, found {other:?}"),
        }
    }

    /// Takes the greeting and answers it.
    pub fn greet(&mut self, client_flags: u32) {
        self.try_greet(client_flags).unwrap();
    }

    /// Sends an option.
    pub fn send_option(&mut self, number: u32, data: &[u8]) {
        self.send(&option(number, data));
    }

    /// Type and data of the next reply to this option.
    pub fn option_reply(&mut self, number: u32) -> (u32, Vec<u8>) {
        self.try_option_reply(number).unwrap()
    }

    /// The code of an option's error reply, counted from 2^31.
    pub fn option_error(&mut self, number: u32) -> u32 {
        let (kind, _) = self.option_reply(number);
        kind.checked_sub(1 << 31).unwrap_or_else(|| panic!("expected an error, found {kind}"))
    }

    /// Chooses an export; returns the information given.
    pub fn go(&mut self, name: &[u8], wanted: &[u16]) -> Vec<Vec<u8>> {
        self.send_option(7, &go_data(name, wanted));
        self.infos(7)
    }

    /// Information replies up to the acknowledgement.
    pub fn infos(&mut self, number: u32) -> Vec<Vec<u8>> {
        let mut infos = Vec::new();
        loop {
            match self.option_reply(number) {
                (3, data) => infos.push(data),
                (1, data) if data.is_empty() => return infos,
                other => panic!("expected information, found {other:?}"),
            }
        }
    }

    /// Selects metadata contexts; returns their numbers and names.
    pub fn select(&mut self, export: &[u8], queries: &[&str]) -> Vec<(u32, String)> {
        self.send_option(10, &context_data(export, queries));
        self.contexts(10)
    }

    /// Context replies up to the acknowledgement.
    pub fn contexts(&mut self, number: u32) -> Vec<(u32, String)> {
        let mut contexts = Vec::new();
        loop {
            match self.option_reply(number) {
                (4, data) => {
                    let (id, name) = data.split_first_chunk().unwrap();
                    contexts.push((u32::from_be_bytes(*id), String::from_utf8(name.to_vec()).unwrap()));
                }
                (1, data) if data.is_empty() => return contexts,
                other => panic!("expected a context, found {other:?}"),
            }
        }
    }

    /// Sends the header of an extended request.
    pub fn extended_request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) {
        self.send(&extended_request(flags, command, cookie, offset, len));
    }

    /// The next chunk of a reply to a request at `offset`.
    pub fn extended_chunk(&mut self, offset: u64) -> Chunk {
        assert_eq!(self.take_u32(), 0x6e8a_278c, "an extended reply");
        let (flags, kind, cookie) = (self.take_u16(), self.take_u16(), self.take_u64());
        assert_eq!(self.take_u64(), offset);
        let len = self.take_u64() as usize;
        Chunk { flags, kind, cookie, payload: self.take(len) }
    }

    /// Sends the header of a request.
    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        self.send(&request(flags, command, cookie, offset, len));
    }

    /// Sends a write.
    pub fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        self.request(flags, WRITE, cookie, offset, data.len() as u32);
        self.send(data);
    }

    /// Cookie and error of a simple reply.
    pub fn simple_reply(&mut self) -> (u64, u32) {
        self.try_simple_reply().unwrap()
    }

    /// The next chunk of a structured reply.
    pub fn chunk(&mut self) -> Chunk {
        assert_eq!(self.take_u32(), 0x668e_33ef, "a structured reply");
        let (flags, kind, cookie) = (self.take_u16(), self.take_u16(), self.take_u64());
        let len = self.take_u32() as usize;
        Chunk { flags, kind, cookie, payload: self.take(len) }
    }

    /// The error of a reply that is one error chunk.
    pub fn error_chunk(&mut self, cookie: u64) -> u32 {
        self.chunk().error(cookie)
    }

    /// The data of a simple read.
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.request(0, READ, 7, offset, len);
        assert_eq!(self.simple_reply(), (7, 0));
        self.take(len as usize)
    }
}

fn expect(is_so: bool, what: &str) -> io::Result<()> {
    if is_so { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, format!("expected {what}"))) }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
