//! A client that speaks raw bytes. It encodes and decodes on its own: the server's constants are not used here, so a
//! wrong one is found.

use dedup_nbd_server::{Export, Listen, Server, ServerBuilder, ServerHandle};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;
pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;
pub(crate) const PAYLOAD: u16 = 32;
/// Types of chunks.
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const ERROR: u16 = 0x8001;

/// Longer than any step of any test takes; a test that would hang fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a Unix socket of its own.
pub(crate) struct Fixture {
    pub(crate) server: ServerHandle,
    pub(crate) path: PathBuf,
    pub(crate) dir: TempDir,
}

pub(crate) fn serve(export: impl Export + 'static) -> Fixture {
    serve_with(|builder| builder.export("disk", "a disk", Arc::new(export)))
}

pub(crate) fn serve_with(configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let builder = Server::builder().listen(Listen::unix(path.clone(), 0o600));
    Fixture { server: configure(builder).serve().unwrap(), path, dir }
}

impl Fixture {
    /// A connection on which nothing has been said.
    pub(crate) fn connect(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    /// A connection that has become encrypted.
    pub(crate) fn encrypted(&self, config: &Arc<ClientConfig>) -> Client<TlsStream> {
        self.greeted().start_tls(config)
    }

    /// A connection past the greeting.
    pub(crate) fn greeted(&self) -> Client<UnixStream> {
        let mut client = self.connect();
        client.greet(3);
        client
    }

    /// A connection in transmission, with simple replies.
    pub(crate) fn simple(&self) -> Client<UnixStream> {
        let mut client = self.greeted();
        client.go(b"disk", &[]);
        client
    }

    /// A connection in transmission, with structured replies.
    pub(crate) fn structured(&self) -> Client<UnixStream> {
        self.with_contexts(8, &[])
    }

    /// A connection in transmission, with extended headers.
    pub(crate) fn extended(&self) -> Client<UnixStream> {
        self.with_contexts(11, &[])
    }

    /// A connection in transmission after this option, with these metadata contexts, whose numbers are 1, 2 and so on.
    pub(crate) fn with_contexts(&self, option: u32, contexts: &[&str]) -> Client<UnixStream> {
        let mut client = self.greeted();
        client.send_option(option, b"");
        assert_eq!(client.option_reply(option), (1, vec![]));
        if !contexts.is_empty() {
            assert_eq!(client.select(b"disk", contexts).len(), contexts.len());
        }
        client.go(b"disk", &[]);
        client
    }
}

/// A client's end of an encrypted connection.
pub(crate) type TlsStream = StreamOwned<ClientConnection, UnixStream>;

impl Client<UnixStream> {
    /// Asks for TLS and begins it; the first use of the stream finishes the handshake.
    pub(crate) fn start_tls(mut self, config: &Arc<ClientConfig>) -> Client<TlsStream> {
        self.send_option(5, b"");
        assert_eq!(self.option_reply(5), (1, vec![]));
        let name = "localhost".try_into().unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        Client { stream: StreamOwned::new(connection, self.stream) }
    }
}

pub(crate) struct Client<S> {
    pub(crate) stream: S,
}

/// What a structured reply chunk holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// The error of this chunk, which is a reply's only one and whose text fills what its length says.
    pub(crate) fn error(&self, cookie: u64) -> u32 {
        assert_eq!((self.flags, self.kind, self.cookie), (1, ERROR, cookie), "{self:?}");
        let (error, rest) = self.payload.split_first_chunk().unwrap();
        let (text_len, text) = rest.split_first_chunk().unwrap();
        assert_eq!(usize::from(u16::from_be_bytes(*text_len)), text.len());
        u32::from_be_bytes(*error)
    }
}

pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

pub(crate) fn extended_request(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The data of the options that list and select metadata contexts.
pub(crate) fn context_data(export: &[u8], queries: &[&str]) -> Vec<u8> {
    let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let mut data = string(export);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query.as_bytes())));
    data
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn go_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn take_u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub(crate) fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub(crate) fn take_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Checks that the server closes without another byte.
    pub(crate) fn expect_end(&mut self) {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("expected the end of the stream, found {other:?}"),
        }
    }

    pub(crate) fn greet(&mut self, client_flags: u32) {
        assert_eq!(self.take(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.take_u16(), 3, "fixed newstyle, no zeroes");
        self.send(&client_flags.to_be_bytes());
    }

    pub(crate) fn send_option(&mut self, number: u32, data: &[u8]) {
        self.send(&option(number, data));
    }

    /// Type and data of the next reply to this option.
    pub(crate) fn option_reply(&mut self, number: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.take_u64(), 0x0003_e889_0455_65a9);
        assert_eq!(self.take_u32(), number);
        let kind = self.take_u32();
        let len = self.take_u32() as usize;
        (kind, self.take(len))
    }

    /// The code of an option's error reply, counted from 2^31.
    pub(crate) fn option_error(&mut self, number: u32) -> u32 {
        let (kind, _) = self.option_reply(number);
        kind.checked_sub(1 << 31).unwrap_or_else(|| panic!("expected an error, found {kind}"))
    }

    /// Chooses an export; returns the information given.
    pub(crate) fn go(&mut self, name: &[u8], wanted: &[u16]) -> Vec<Vec<u8>> {
        self.send_option(7, &go_data(name, wanted));
        self.infos(7)
    }

    /// Information replies up to the acknowledgement.
    pub(crate) fn infos(&mut self, number: u32) -> Vec<Vec<u8>> {
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
    pub(crate) fn select(&mut self, export: &[u8], queries: &[&str]) -> Vec<(u32, String)> {
        self.send_option(10, &context_data(export, queries));
        self.contexts(10)
    }

    /// Context replies up to the acknowledgement.
    pub(crate) fn contexts(&mut self, number: u32) -> Vec<(u32, String)> {
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

    pub(crate) fn extended_request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) {
        self.send(&extended_request(flags, command, cookie, offset, len));
    }

    /// The next chunk of a reply to a request at `offset`.
    pub(crate) fn extended_chunk(&mut self, offset: u64) -> Chunk {
        assert_eq!(self.take_u32(), 0x6e8a_278c, "an extended reply");
        let (flags, kind, cookie) = (self.take_u16(), self.take_u16(), self.take_u64());
        assert_eq!(self.take_u64(), offset);
        let len = self.take_u64() as usize;
        Chunk { flags, kind, cookie, payload: self.take(len) }
    }

    pub(crate) fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        self.send(&request(flags, command, cookie, offset, len));
    }

    pub(crate) fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        self.request(flags, WRITE, cookie, offset, data.len() as u32);
        self.send(data);
    }

    /// Cookie and error of a simple reply.
    pub(crate) fn simple_reply(&mut self) -> (u64, u32) {
        assert_eq!(self.take_u32(), 0x6744_6698, "a simple reply");
        let error = self.take_u32();
        (self.take_u64(), error)
    }

    pub(crate) fn chunk(&mut self) -> Chunk {
        assert_eq!(self.take_u32(), 0x668e_33ef, "a structured reply");
        let (flags, kind, cookie) = (self.take_u16(), self.take_u16(), self.take_u64());
        let len = self.take_u32() as usize;
        Chunk { flags, kind, cookie, payload: self.take(len) }
    }

    /// The error of a reply that is one error chunk.
    pub(crate) fn error_chunk(&mut self, cookie: u64) -> u32 {
        self.chunk().error(cookie)
    }

    /// The data of a simple read.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.request(0, READ, 7, offset, len);
        assert_eq!(self.simple_reply(), (7, 0));
        self.take(len as usize)
    }
}
