//! A small NBD client over a Unix socket that may have many requests under way. It encodes and decodes by itself, so that a mistake
//! in the server's protocol is not made twice.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

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

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Bytes that a reply brings, of reads under way.
    reads: HashMap<u64, u32>,
    /// Bytes of the export.
    pub size: u64,
}

impl Client {
    /// Connects and chooses the export that has no name.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { stream, reads: HashMap::new(), size: 0 };
        client.handshake()?;
        Ok(client)
    }

    fn handshake(&mut self) -> io::Result<()> {
        let greeting: [u8; 18] = self.take()?;
        expect(greeting[..16] == *b"NBDMAGICIHAVEOPT", "the greeting of a newstyle server")?;
        // Fixed newstyle, no zeroes; then NBD_OPT_GO with an empty name and no questions.
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(7_u32.to_be_bytes());
        hello.extend(6_u32.to_be_bytes());
        hello.extend([0; 6]);
        self.stream.write_all(&hello)?;
        loop {
            let header: [u8; 20] = self.take()?;
            expect(header[..8] == 0x0003_e889_0455_65a9_u64.to_be_bytes(), "an option reply")?;
            let mut data = vec![0; be32(&header[16..]) as usize];
            self.stream.read_exact(&mut data)?;
            match be32(&header[12..]) {
                1 => return Ok(()),
                // NBD_REP_INFO, and in it NBD_INFO_EXPORT: size and flags.
                3 if data.starts_with(&[0, 0]) => self.size = be64(&data[2..]),
                3 => {}
                other => return Err(io::Error::other(format!("the export was refused: {other:#x}"))),
            }
        }
    }

    /// Sends a request and does not wait for its reply.
    pub fn send(&mut self, cookie: u64, command: &Command) -> io::Result<()> {
        let (kind, offset, len, fua, data): (u16, u64, u32, bool, &[u8]) = match command {
            Command::Read { offset, len } => (0, *offset, *len, false, &[]),
            Command::Write { offset, data, fua } => (1, *offset, data.len() as u32, *fua, data),
            Command::Flush => (3, 0, 0, false, &[]),
            Command::Trim { offset, len, fua } => (4, *offset, *len, *fua, &[]),
            Command::Zero { offset, len, fua } => (6, *offset, *len, *fua, &[]),
        };
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend(u16::from(fua).to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        if kind == 0 {
            self.reads.insert(cookie, len);
        }
        self.stream.write_all(&bytes)
    }

    /// Sends bytes as they are: what a broken client does.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next reply, of whichever request.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let header: [u8; 16] = self.take()?;
        expect(be32(&header) == 0x6744_6698, "a simple reply")?;
        let (error, cookie) = (be32(&header[4..]), be64(&header[8..]));
        let mut data = Vec::new();
        if let Some(len) = self.reads.remove(&cookie)
            && error == 0
        {
            data.resize(len as usize, 0);
            self.stream.read_exact(&mut data)?;
        }
        Ok(Reply { cookie, error, data })
    }

    /// One request alone: what it read, or its `errno`.
    pub fn run(&mut self, command: &Command) -> io::Result<Result<Vec<u8>, u32>> {
        self.send(u64::MAX, command)?;
        let reply = self.receive()?;
        expect(reply.cookie == u64::MAX, "the reply to the only request")?;
        Ok(if reply.error == 0 { Ok(reply.data) } else { Err(reply.error) })
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn expect(is_so: bool, what: &str) -> io::Result<()> {
    if is_so { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, format!("expected {what}"))) }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}
