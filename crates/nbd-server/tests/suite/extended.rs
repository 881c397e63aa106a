//! Extended headers: 64-bit lengths, payloads that a flag announces, and no simple reply any more.

use crate::fixture::*;
use crate::memory::{Failing, Memory};
use dedup_nbd_server::PAYLOAD_LEN_MAX;
use dedup_volume::RequestError;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const DONE: u16 = 1;

fn success(cookie: u64) -> Chunk {
    Chunk { flags: DONE, kind: 0, cookie, payload: vec![] }
}

#[test]
fn every_reply_is_an_extended_one_and_repeats_the_offset() {
    let fixture = serve(Memory::new(1 << 16));
    let mut client = fixture.extended();
    client.extended_request(PAYLOAD | FUA, WRITE, 1, 777, 5);
    client.send(b"hello");
    assert_eq!(client.extended_chunk(777), success(1));
    for (cookie, command) in [(2, FLUSH), (3, TRIM), (4, CACHE), (5, WRITE_ZEROES)] {
        client.extended_request(FUA, command, cookie, 8192, 4096);
        assert_eq!(client.extended_chunk(8192), success(cookie), "command {command}");
    }
    client.extended_request(0, READ, 6, 776, 7);
    let payload = [&776u64.to_be_bytes()[..], b"\0hello\0"].concat();
    assert_eq!(client.extended_chunk(776), Chunk { flags: DONE, kind: DATA, cookie: 6, payload });
    client.extended_request(0, READ, 7, 8192, 8192);
    let payload = [&8192u64.to_be_bytes()[..], &8192u32.to_be_bytes()].concat();
    assert_eq!(client.extended_chunk(8192), Chunk { flags: DONE, kind: HOLE, cookie: 7, payload });
    client.extended_request(0, READ, 8, 5, 0);
    assert_eq!(client.extended_chunk(5), success(8));
}

#[test]
fn lengths_beyond_32_bits_reach_the_export() {
    let fixture = serve(Failing(RequestError::NoSpace));
    let mut client = fixture.extended();
    for command in [TRIM, WRITE_ZEROES, CACHE] {
        client.extended_request(0, command, 1, 1 << 20, 1 << 39);
        assert_eq!(client.extended_chunk(1 << 20).error(1), ENOSPC, "command {command}");
    }
    client.extended_request(0, READ, 2, 0, 1 << 39);
    assert_eq!(client.extended_chunk(0).error(2), EOVERFLOW);
}

#[test]
fn lengths_and_offsets_that_overflow_are_out_of_range() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.with_contexts(11, &["base:allocation"]);
    for (offset, len) in
        [(u64::MAX, u64::MAX), (1, u64::MAX), (u64::MAX, 1), (4096, 1), (4095, 2), (0, 1 << 32)]
    {
        for command in [TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS] {
            client.extended_request(0, command, 1, offset, len);
            let error = if command == WRITE_ZEROES { ENOSPC } else { EINVAL };
            assert_eq!(client.extended_chunk(offset).error(1), error, "command {command}, {offset}+{len}");
        }
    }
}

#[test]
fn a_payload_that_the_command_does_not_take_is_read_past_and_refused() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.extended();
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99] {
        client.extended_request(PAYLOAD, command, 1, 0, 300_000);
        client.send(&vec![0x21; 300_000]);
        assert_eq!(client.extended_chunk(0).error(1), EINVAL, "command {command}");
    }
    client.extended_request(0, READ, 2, 0, 1);
    assert_eq!(client.extended_chunk(0).payload.len(), 9);
}

/// QEMU 10 sends its writes so, though the protocol wants the flag: taken at its word, it would be sending
/// its data as requests.
#[test]
fn a_write_that_does_not_announce_its_payload_has_one_even_so() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.extended();
    client.extended_request(0, WRITE, 1, 0, 512);
    client.send(&[5; 512]);
    assert_eq!(client.extended_chunk(0), success(1));
    client.extended_request(0, READ, 2, 511, 2);
    assert_eq!(client.extended_chunk(511).payload[8..], [5, 0]);
    client.extended_request(0, WRITE, 3, 0, 1 << 32);
    client.expect_end();
}

#[test]
fn a_failed_write_takes_its_payload_with_it() {
    let fixture = serve(Failing(RequestError::Io));
    let mut client = fixture.extended();
    client.extended_request(PAYLOAD, WRITE, 1, 0, 100_000);
    client.send(&vec![1; 100_000]);
    assert_eq!(client.extended_chunk(0).error(1), EIO);
    client.extended_request(PAYLOAD, WRITE, 2, u64::MAX, 100_000);
    client.send(&vec![1; 100_000]);
    assert_eq!(client.extended_chunk(u64::MAX).error(2), ENOSPC);
}

#[test]
fn a_payload_above_the_limit_ends_the_connection() {
    let fixture = serve(Memory::new(4096));
    for len in [u64::from(PAYLOAD_LEN_MAX) + 1, 1 << 32, u64::MAX] {
        let mut client = fixture.extended();
        client.extended_request(PAYLOAD, WRITE, 1, 0, len);
        client.expect_end();
    }
}

#[test]
fn the_largest_payload_goes_both_ways() {
    let len = PAYLOAD_LEN_MAX as usize;
    let fixture = serve(Memory::new(len + 4096));
    let mut client = fixture.extended();
    let data: Vec<u8> = (0..len).map(|i| (i / 4096) as u8 ^ i as u8 | 1).collect();
    client.extended_request(PAYLOAD, WRITE, 1, 4096, len as u64);
    client.send(&data);
    assert_eq!(client.extended_chunk(4096), success(1));
    client.extended_request(0, READ, 2, 4096, len as u64);
    assert!(client.extended_chunk(4096).payload[8..] == data);
}

#[test]
fn compact_requests_end_an_extended_connection() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.extended();
    client.send(&[request(0, FLUSH, 1, 0, 0), vec![0; 4]].concat());
    client.expect_end();
}

#[test]
fn extended_headers_rule_out_structured_replies_and_the_old_way_to_choose() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.greeted();
    for option in [8, 11, 11] {
        client.send_option(option, b"");
        assert_eq!(client.option_reply(option), (1, vec![]));
    }
    client.send_option(8, b"");
    assert_eq!(client.option_error(8), 10);
    client.send_option(1, b"disk");
    client.expect_end();
}
