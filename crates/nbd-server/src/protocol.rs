//! The wire format: numbers and layouts of the NBD protocol, fixed newstyle, as its specification `doc/proto.md`
//! names them. All integers are big-endian.
//!
//! ```text
//!  option          | IHAVEOPT 8 | option 4 | length 4 | data ...
//!  option reply    | magic 8 | option 4 | reply type 4 | length 4 | data ...
//!  request         | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 | data (WRITE only) ...
//!  simple reply    | magic 4 | error 4 | cookie 8 | data (successful READ only) ...
//!  reply chunk     | magic 4 | flags 2 | type 2 | cookie 8 | length 4 | payload ...
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
/// Head of a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a structured reply chunk.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

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
}

/// Options of the handshake.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
}

/// Types of option replies.
pub(crate) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
    pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
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
    pub(crate) const WRITE_ZEROES: u16 = 6;
}

/// Flags of a command.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
}

/// Flag of the last chunk of a structured reply.
pub(crate) const CHUNK_FLAG_DONE: u16 = 1 << 0;

/// Types of structured reply chunks.
pub(crate) mod chunk {
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
}

/// Strings may have this many bytes: the specification's own limit.
pub(crate) const STRING_LEN_MAX: usize = 4096;
/// Bytes of the handshake's zero padding after `NBD_OPT_EXPORT_NAME`.
pub(crate) const EXPORT_NAME_PADDING: usize = 124;
/// Bytes in an option's header.
pub(crate) const OPTION_HEADER_SIZE: usize = 16;
/// Bytes in a request's header.
pub(crate) const REQUEST_HEADER_SIZE: usize = 28;
/// Bytes in the head of a chunk.
pub(crate) const CHUNK_HEAD_SIZE: usize = 20;

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
    /// `NBD_ESHUTDOWN`
    Shutdown = 108,
}

/// The 28 bytes in front of every request.
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
    /// Bytes.
    pub(crate) len: u32,
}

impl RequestHeader {
    /// Decodes a header; `None` without the magic: then the stream has no meaning any more.
    pub(crate) fn decode(bytes: &[u8; REQUEST_HEADER_SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }

    /// Bytes of data that follow this header.
    pub(crate) fn payload_len(&self) -> usize {
        if self.command == command::WRITE { self.len as usize } else { 0 }
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

/// Appends the head of a reply's only chunk, whose payload of `len` bytes the caller appends.
pub(crate) fn put_chunk_head(out: &mut Vec<u8>, chunk_type: u16, cookie: u64, len: u32) {
    let mut head = [0; CHUNK_HEAD_SIZE];
    head[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&CHUNK_FLAG_DONE.to_be_bytes());
    head[6..8].copy_from_slice(&chunk_type.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&len.to_be_bytes());
    out.extend(head);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(header: &RequestHeader) -> [u8; REQUEST_HEADER_SIZE] {
        let mut bytes = Vec::new();
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(header.flags.to_be_bytes());
        bytes.extend(header.command.to_be_bytes());
        bytes.extend(header.cookie.to_be_bytes());
        bytes.extend(header.offset.to_be_bytes());
        bytes.extend(header.len.to_be_bytes());
        bytes.try_into().unwrap()
    }

    proptest! {
        #[test]
        fn a_request_header_decodes_to_what_was_encoded(
            flags: u16, command: u16, cookie: u64, offset: u64, len: u32
        ) {
            let header = RequestHeader { flags, command, cookie, offset, len };
            prop_assert_eq!(RequestHeader::decode(&encode(&header)), Some(header));
        }

        #[test]
        fn without_the_magic_there_is_no_header(bytes: [u8; REQUEST_HEADER_SIZE]) {
            prop_assume!(bytes[..4] != REQUEST_MAGIC.to_be_bytes());
            prop_assert_eq!(RequestHeader::decode(&bytes), None);
        }
    }
}
