//! Any requests from a client that has chosen an export: each is answered at most once, with a well-formed
//! reply, and the server hangs up at the end.
//!
//! ```text
//!  input:  mode 1 | for each request: flags 2 | command 2 | offset 4 | length 4, big-endian | payload, if there is one
//! ```
//!
//! Cookies are the requests' numbers. Offsets are signed, and so are lengths of extended requests, so that
//! both ends of their range are near.

use crate::{Input, nbd};
use dedup_nbd_server::test_client::{
    DATA, ERROR, HOLE, PAYLOAD, READ, WRITE, context_data, extended_request, go_data, option, request,
};
use std::collections::BTreeMap;

/// Structured replies are asked for.
const STRUCTURED: u8 = 1;
/// What follows the handshake is sent as it is.
const RAW: u8 = 2;
/// Extended headers are asked for.
const EXTENDED: u8 = 4;
/// A metadata context is selected, if replies can tell it.
const CONTEXT: u8 = 8;

const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_SET_META_CONTEXT: u32 = 10;
const OPTION_EXTENDED_HEADERS: u32 = 11;
const OPTION_GO: u32 = 7;
const OPTION_REPLY_MAGIC: [u8; 8] = 0x0003_e889_0455_65a9_u64.to_be_bytes();
const SIMPLE_REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
const CHUNK_MAGIC: [u8; 4] = 0x668e_33ef_u32.to_be_bytes();
const EXTENDED_CHUNK_MAGIC: [u8; 4] = 0x6e8a_278c_u32.to_be_bytes();
/// Bytes that the server sends first.
const GREETING_SIZE: usize = 18;

/// A request that has not been answered.
struct Asked {
    offset: u64,
    /// The length, if it is a read.
    read: Option<u64>,
    /// Bytes of a read that chunks have told.
    told: u64,
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let extended = mode & EXTENDED != 0;
    let mut sent = nbd::CLIENT_FLAGS.to_vec();
    if mode & STRUCTURED != 0 {
        sent.extend(option(OPTION_STRUCTURED_REPLY, &[]));
    }
    if extended {
        sent.extend(option(OPTION_EXTENDED_HEADERS, &[]));
    }
    if mode & CONTEXT != 0 {
        let data = context_data(nbd::EXPORT_NAME.as_bytes(), &["base:allocation"]);
        sent.extend(option(OPTION_SET_META_CONTEXT, &data));
    }
    sent.extend(option(OPTION_GO, &go_data(nbd::EXPORT_NAME.as_bytes(), &[])));
    if mode & RAW != 0 {
        sent.extend(input.rest());
        nbd::exchange(&sent);
        return;
    }
    let mut asked = BTreeMap::new();
    let mut cookie = 0;
    while !input.is_empty() {
        let (flags, command) = (input.u16().swap_bytes(), input.u16().swap_bytes());
        let offset = i64::from(input.u32().swap_bytes() as i32) as u64;
        let len = input.u32().swap_bytes();
        let len_64 = if extended { i64::from(len as i32) as u64 } else { u64::from(len) };
        sent.extend(match extended {
            true => extended_request(flags, command, cookie, offset, len_64),
            false => request(flags, command, cookie, offset, len),
        });
        let read = (command == READ).then_some(len_64);
        asked.insert(cookie, Asked { offset, read, told: 0 });
        if command == WRITE || (extended && flags & PAYLOAD != 0) {
            sent.extend(input.bytes(len as usize));
        }
        cookie += 1;
    }
    let answer = nbd::exchange(&sent);
    replies(after_handshake(&answer), asked, extended);
}

/// What follows the greeting and the option replies.
fn after_handshake(answer: &[u8]) -> &[u8] {
    let mut rest = &answer[GREETING_SIZE..];
    while rest.starts_with(&OPTION_REPLY_MAGIC) {
        let len = u32::from_be_bytes(rest[16..20].try_into().expect("4 bytes"));
        rest = &rest[20 + len as usize..];
    }
    rest
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Takes the replies apart. Each names a request that has not been answered.
fn replies(mut rest: &[u8], mut asked: BTreeMap<u64, Asked>, extended: bool) {
    while !rest.is_empty() {
        let cookie = number(&rest[8..16]);
        let mut request = asked.remove(&cookie).expect("a request that has not been answered");
        if rest.starts_with(&SIMPLE_REPLY_MAGIC) {
            assert!(!extended, "a simple reply to an extended request");
            let failed = rest[4..8] != [0; 4];
            let len = if failed { 0 } else { request.read.unwrap_or(0) };
            rest = &rest[16 + len as usize..];
            continue;
        }
        assert_eq!(rest[..4], if extended { EXTENDED_CHUNK_MAGIC } else { CHUNK_MAGIC });
        let (flags, kind) = (number(&rest[4..6]), number(&rest[6..8]) as u16);
        let head = if extended {
            assert_eq!(number(&rest[16..24]), request.offset);
            32
        } else {
            20
        };
        let len_at = if extended { 24 } else { 16 };
        let len = number(&rest[len_at..head]) as usize;
        let payload = &rest[head..head + len];
        request.told += match kind {
            DATA => len as u64 - 8,
            HOLE => number(&payload[8..]),
            _ => 0,
        };
        if flags & 1 == 0 {
            asked.insert(cookie, request);
        } else if kind != ERROR {
            assert_eq!(request.told, request.read.unwrap_or(0), "a read is told as a whole");
        }
        rest = &rest[head + len..];
    }
}
