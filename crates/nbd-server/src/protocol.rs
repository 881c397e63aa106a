//! The wire format: numbers and layouts of the NBD protocol, fixed newstyle, as its specification
//! `doc/proto.md` names them. All integers are big-endian.
//!
//! ```text
//!  option           | IHAVEOPT 8 | option 4 | length 4 | data ...
//!  option reply     | magic 8 | option 4 | reply type 4 | length 4 | data ...
//!  request          | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 | data (WRITE only) ...
//!  extended request | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 8 | payload (if a flag says so) ...
//!  simple reply     | magic 4 | error 4 | cookie 8 | data (successful READ only) ...
//!  reply chunk      | magic 4 | flags 2 | type 2 | cookie 8 | length 4 | payload ...
//!  extended chunk   | magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8 | payload ...
//! ```
//!
//! Only encoding and decoding is here; what the fields mean is decided by `handshake`, `command` and `reply`.

/// `NBDMAGIC`: the first bytes a server sends.
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: newstyle, and the head of each option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Head of each option reply.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Head of each request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Head of each extended request.
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Head of a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a structured reply chunk.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Head of an extended reply chunk.
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flags that the server sends, and client flags that it accepts: the same two bits.
pub(crate) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// What an export can do, told when the client has chosen one.
pub(crate) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Options of the handshake.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub(crate) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub(crate) const ERR_POLICY: u32 = (1 << 31) + 2;
    pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
    pub(crate) const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Types of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Commands of the transmission phase.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flag of the last chunk of a reply.
const CHUNK_FLAG_DONE: u16 = 1 << 0;

/// Types of structured reply chunks.
pub(crate) mod chunk {
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
}

/// Strings may have this many bytes: the specification's own limit.
pub(crate) const STRING_LEN_MAX: usize = 4096;
/// Bytes of the handshake's zero padding after `NBD_OPT_EXPORT_NAME`.
pub(crate) const EXPORT_NAME_PADDING: usize = 124;
/// Bytes in an option's header.
pub(crate) const OPTION_HEADER_SIZE: usize = 16;
/// Bytes in an extended request's header: the larger of the two.
pub(crate) const REQUEST_HEADER_SIZE_MAX: usize = 32;

/// How messages of the transmission phase look, as agreed on in the handshake. Each includes what those
/// before it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Framing {
    /// Every reply is a simple one.
    Simple,
    /// Replies with data, and errors, are chunks.
    Structured,
    /// Lengths have 64 bits, in requests and in replies; every reply is made of chunks.
    Extended,
}

impl Framing {
    /// Bytes in a request's header.
    pub(crate) fn request_header_size(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => REQUEST_HEADER_SIZE_MAX,
        }
    }
}

/// Errors that a reply can carry. The discriminants are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ReplyError {
    /// `NBD_EPERM`
    NotPermitted = 1,
    /// `NBD_EIO`
    Io = 5,
    /// `NBD_EINVAL`
    Invalid = 22,
    /// `NBD_ENOSPC`
    NoSpace = 28,
    /// `NBD_EOVERFLOW`
    Overflow = 75,
    /// `NBD_ENOTSUP`
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`
    Shutdown = 108,
}

impl ReplyError {
    /// For people, in replies that have room for it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "the export is read-only",
            Self::Io => "I/O error; the server's log says more",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left, or beyond the end of the export",
            Self::Overflow => "more data than fits into one reply",
            Self::NotSupported => "no faster than writing zeros",
            Self::Shutdown => "not begun: the server is shutting down, or the connection ended before",
        }
    }
}

/// What stands in front of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    /// Command flags.
    pub(crate) flags: u16,
    /// Which command.
    pub(crate) command: u16,
    /// The client's own number for it, handed back in the reply.
    pub(crate) cookie: u64,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes of the export that it is about, or of the payload that follows.
    pub(crate) len: u64,
}

impl RequestHeader {
    /// The header at the front of `bytes`, which are as many as one has; `None` if they do not begin with its
    /// magic.
    pub(crate) fn decode(bytes: &[u8], framing: Framing) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let magic = match framing {
            Framing::Simple | Framing::Structured => REQUEST_MAGIC,
            Framing::Extended => EXTENDED_REQUEST_MAGIC,
        };
        if fields.u32()? != magic {
            return None;
        }
        let (flags, command) = (fields.u16()?, fields.u16()?);
        let (cookie, offset) = (fields.u64()?, fields.u64()?);
        let len = if framing == Framing::Extended { fields.u64()? } else { fields.u32()?.into() };
        Some(Self { flags, command, cookie, offset, len })
    }

    /// Bytes of payload that follow this header.
    pub(crate) fn payload_len(&self, framing: Framing) -> u64 {
        // The flag is due on extended WRITEs too, but QEMU (8.2 to 10 at least) sends them without it.
        let announced = framing == Framing::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        if announced || self.command == command::WRITE { self.len } else { 0 }
    }
}

/// Takes big-endian fields off the front of bytes; every method is `None` once they run out.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// `Some` if nothing is left.
    pub(crate) fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }
}

/// Appends the head of an option reply and its data.
pub(crate) fn put_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(reply.to_be_bytes());
    // Names and descriptions are at most `STRING_LEN_MAX` bytes each, so this fits.
    out.extend((len as u32).to_be_bytes());
    data.iter().for_each(|part| out.extend(*part));
}

/// Appends a simple reply, without its data.
pub(crate) fn put_simple_reply(out: &mut Vec<u8>, error: u32, cookie: u64) {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    out.extend(head);
}

/// A chunk of a reply, without its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkHead {
    /// A member of [`chunk`].
    pub(crate) kind: u16,
    /// Whether it is the reply's last one.
    pub(crate) last: bool,
    /// Bytes of payload, which the caller appends.
    pub(crate) len: u32,
}

impl ChunkHead {
    /// Appends it, for an answer to `request`.
    pub(crate) fn put(self, out: &mut Vec<u8>, request: &RequestHeader, framing: Framing) {
        let flags = if self.last { CHUNK_FLAG_DONE } else { 0 };
        let mut head = [0; 32];
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&self.kind.to_be_bytes());
        head[8..16].copy_from_slice(&request.cookie.to_be_bytes());
        if framing == Framing::Extended {
            head[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
            head[16..24].copy_from_slice(&request.offset.to_be_bytes());
            head[24..].copy_from_slice(&u64::from(self.len).to_be_bytes());
            out.extend(head);
        } else {
            head[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
            head[16..20].copy_from_slice(&self.len.to_be_bytes());
            out.extend(&head[..20]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(header: &RequestHeader, framing: Framing) -> Vec<u8> {
        let extended = framing == Framing::Extended;
        let mut bytes = Vec::new();
        bytes.extend(if extended { 0x21e4_1c71u32 } else { 0x2560_9513 }.to_be_bytes());
        bytes.extend(header.flags.to_be_bytes());
        bytes.extend(header.command.to_be_bytes());
        bytes.extend(header.cookie.to_be_bytes());
        bytes.extend(header.offset.to_be_bytes());
        let len = header.len.to_be_bytes();
        bytes.extend(if extended { &len[..] } else { &len[4..] });
        bytes
    }

    proptest! {
        #[test]
        fn a_request_header_decodes_to_what_was_encoded(
            flags: u16, command: u16, cookie: u64, offset: u64, len: u64
        ) {
            for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
                let len = if framing == Framing::Extended { len } else { len >> 32 };
                let header = RequestHeader { flags, command, cookie, offset, len };
                let bytes = encode(&header, framing);
                prop_assert_eq!(bytes.len(), framing.request_header_size());
                prop_assert_eq!(RequestHeader::decode(&bytes, framing), Some(header));
            }
        }

        #[test]
        fn without_the_magic_there_is_no_header(bytes: [u8; REQUEST_HEADER_SIZE_MAX]) {
            for framing in [Framing::Simple, Framing::Extended] {
                let header = RequestHeader { flags: 0, command: 0, cookie: 0, offset: 0, len: 0 };
                prop_assume!(bytes[..4] != encode(&header, framing)[..4]);
                prop_assert_eq!(RequestHeader::decode(&bytes, framing), None);
            }
        }
    }
}
