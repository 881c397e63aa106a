//! Any requests from a client that has chosen an export: each is answered at most once, with a well-formed reply, and the server
//! hangs up at the end.
//!
//! ```text
//!  input:  mode 1 | for each request: flags 2 | command 2 | offset 4 | length 4, big-endian | data of a write
//! ```
//!
//! Cookies are the requests' numbers. Offsets are signed, so that both ends of their range are near.

#![no_main]

use dedup_fuzz::{Input, nbd};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

/// Structured replies are asked for.
const STRUCTURED: u8 = 1;
/// What follows the handshake is sent as it is.
const RAW: u8 = 2;

const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_GO: u32 = 7;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const OPTION_REPLY_MAGIC: [u8; 8] = 0x0003_e889_0455_65a9_u64.to_be_bytes();
const SIMPLE_REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
const CHUNK_MAGIC: [u8; 4] = 0x668e_33ef_u32.to_be_bytes();
/// Bytes that the server sends first.
const GREETING_SIZE: usize = 18;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let mut sent = nbd::CLIENT_FLAGS.to_vec();
    if mode & STRUCTURED != 0 {
        sent.extend(nbd::option(OPTION_STRUCTURED_REPLY, &[]));
    }
    sent.extend(nbd::option(OPTION_GO, &nbd::go_data(nbd::EXPORT_NAME, &[])));
    if mode & RAW != 0 {
        sent.extend(input.rest());
        nbd::exchange(&sent);
        return;
    }
    let mut reads = BTreeMap::new();
    let mut cookie = 0;
    while !input.is_empty() {
        let (flags, command) = (input.u16().swap_bytes(), input.u16().swap_bytes());
        let offset = i64::from(input.u32().swap_bytes() as i32) as u64;
        let len = input.u32().swap_bytes();
        sent.extend(nbd::request(flags, command, cookie, offset, len));
        reads.insert(cookie, (command == COMMAND_READ).then_some(len));
        if command == COMMAND_WRITE {
            sent.extend(input.bytes(len as usize));
        }
        cookie += 1;
    }
    let answer = nbd::exchange(&sent);
    replies(after_handshake(&answer), reads);
});

/// What follows the greeting and the option replies.
fn after_handshake(answer: &[u8]) -> &[u8] {
    let mut rest = &answer[GREETING_SIZE..];
    while rest.starts_with(&OPTION_REPLY_MAGIC) {
        let len = u32::from_be_bytes(rest[16..20].try_into().expect("4 bytes"));
        rest = &rest[20 + len as usize..];
    }
    rest
}

/// Takes the replies apart. Each names a request that has not been answered; `asked` has the length of those that are reads.
fn replies(mut rest: &[u8], mut asked: BTreeMap<u64, Option<u32>>) {
    while !rest.is_empty() {
        let cookie = u64::from_be_bytes(rest[8..16].try_into().expect("8 bytes"));
        let read = asked.remove(&cookie).expect("a request that has not been answered");
        if rest.starts_with(&SIMPLE_REPLY_MAGIC) {
            let failed = rest[4..8] != [0; 4];
            let len = if failed { 0 } else { read.unwrap_or(0) };
            rest = &rest[16 + len as usize..];
        } else {
            assert_eq!(rest[..4], CHUNK_MAGIC);
            assert_eq!(rest[4..6], [0, 1], "the only chunk is the last one");
            let len = u32::from_be_bytes(rest[16..20].try_into().expect("4 bytes"));
            rest = &rest[20 + len as usize..];
        }
    }
}
