//! Every way to choose an export, and every way to get it wrong.

use crate::fixture::{READ, context_data, go_data, serve, serve_with};
use crate::memory::{Failing, Memory};
use dedup_volume::RequestError;
use std::sync::Arc;

/// has-flags, flush, FUA, trim, write-zeroes, multi-conn, cache, fast-zero.
const WRITABLE: u16 = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048;
/// has-flags, read-only, flush, FUA, multi-conn, cache.
const READ_ONLY: u16 = 1 | 2 | 4 | 8 | 256 | 1024;
const DF: u16 = 128;

fn export_info(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

#[test]
fn go_tells_size_and_flags_and_enters_transmission() {
    let fixture = serve(Memory::new(1 << 20));
    let mut client = fixture.greeted();
    assert_eq!(client.go(b"disk", &[]), [export_info(1 << 20, WRITABLE)]);
    assert_eq!(client.read(0, 16), [0; 16]);
}

#[test]
fn info_answers_what_was_asked_and_stays_in_the_handshake() {
    let fixture = serve(Memory::new(1 << 20));
    let mut client = fixture.greeted();
    // Name, description, block size, and a type that nobody knows.
    client.send_option(6, &go_data(b"", &[1, 2, 3, 999]));
    let block_size = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0].to_vec();
    let expected =
        [export_info(1 << 20, WRITABLE), b"\0\x01disk".to_vec(), b"\0\x02a disk".to_vec(), block_size];
    assert_eq!(client.infos(6), expected);
    client.go(b"disk", &[]);
    assert_eq!(client.read(0, 16), [0; 16]);
}

#[test]
fn a_block_size_above_4_kib_is_the_preferred_one() {
    let fixture = serve(Failing(RequestError::Io));
    let infos = fixture.greeted().go(b"disk", &[3]);
    assert_eq!(infos[1][6..10], (64u32 << 10).to_be_bytes());
}

#[test]
fn a_read_only_export_says_so_and_offers_no_trim() {
    let fixture = serve(Memory { read_only: true, ..Memory::new(4096) });
    assert_eq!(fixture.greeted().go(b"disk", &[]), [export_info(4096, READ_ONLY)]);
}

#[test]
fn df_is_offered_only_after_structured_replies() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.greeted();
    client.send_option(8, b"");
    assert_eq!(client.option_reply(8), (1, vec![]));
    assert_eq!(client.go(b"disk", &[]), [export_info(4096, WRITABLE | DF)]);
}

#[test]
fn export_name_pads_with_zeroes_unless_the_client_declined() {
    let fixture = serve(Memory::new(4096));
    for (client_flags, padding) in [(1, 124), (3, 0), (0, 124), (2, 0)] {
        let mut client = fixture.connect();
        client.greet(client_flags);
        client.send_option(1, b"disk");
        assert_eq!(client.take_u64(), 4096);
        assert_eq!(client.take_u16(), WRITABLE);
        assert_eq!(client.take(padding), vec![0; padding]);
        assert_eq!(client.read(0, 1), [0]);
    }
}

#[test]
fn export_name_of_an_unknown_export_ends_the_connection() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.greeted();
    client.send_option(1, b"nothing");
    client.expect_end();
}

#[test]
fn list_names_every_export() {
    let fixture = serve_with(|builder| {
        builder.export("a", "", Arc::new(Memory::new(1))).export("b", "second", Arc::new(Memory::new(2)))
    });
    let mut client = fixture.greeted();
    client.send_option(3, b"");
    assert_eq!(client.option_reply(3), (2, b"\0\0\0\x01a".to_vec()));
    assert_eq!(client.option_reply(3), (2, b"\0\0\0\x01bsecond".to_vec()));
    assert_eq!(client.option_reply(3), (1, vec![]));
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.greeted();
    client.send_option(2, b"whatever");
    assert_eq!(client.option_reply(2).0, 1);
    client.expect_end();
}

#[test]
fn errors_in_options_leave_the_handshake_going() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.greeted();
    let mut check = |number: u32, data: &[u8], error: u32| {
        client.send_option(number, data);
        assert_eq!(client.option_error(number), error, "option {number}");
    };
    const UNSUP: u32 = 1;
    const INVALID: u32 = 3;
    const UNKNOWN: u32 = 6;
    const TOO_BIG: u32 = 9;
    // PEEK_EXPORT, and some that do not exist.
    for number in [4, 12, 0xdead_beef] {
        check(number, b"some data", UNSUP);
    }
    check(3, b"x", INVALID);
    check(8, b"x", INVALID);
    check(11, b"x", INVALID);
    check(9, &context_data(b"disk", &[]), INVALID);
    check(10, &context_data(b"disk", &["base:allocation"]), INVALID);
    check(7, b"", INVALID);
    check(7, &[0xff; 6], INVALID);
    check(6, &[&go_data(b"disk", &[])[..], b"x"].concat(), INVALID);
    check(7, &go_data(b"nothing", &[]), UNKNOWN);
    check(6, &go_data(&[b'n'; 4097], &[]), TOO_BIG);
    check(6, &go_data(&[b'n'; 100_000], &[]), TOO_BIG);
    assert_eq!(client.go(b"disk", &[]), [export_info(4096, WRITABLE)]);
}

#[test]
fn an_option_with_gigabytes_of_data_ends_the_connection() {
    let fixture = serve(Memory::new(4096));
    for number in [1, 7, 99] {
        let mut client = fixture.greeted();
        client.send(b"IHAVEOPT");
        client.send(&u32::to_be_bytes(number));
        client.send(&u32::MAX.to_be_bytes());
        client.expect_end();
    }
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.connect();
    client.greet(3 | 1 << 7);
    client.expect_end();
}

#[test]
fn without_a_default_an_empty_name_is_unknown() {
    let fixture = serve_with(|builder| {
        builder.export("a", "", Arc::new(Memory::new(1))).export("b", "", Arc::new(Memory::new(2)))
    });
    let mut client = fixture.greeted();
    client.send_option(7, &go_data(b"", &[]));
    assert_eq!(client.option_error(7), 6);
    client.go(b"b", &[]);
    client.request(0, READ, 1, 0, 2);
    assert_eq!(client.simple_reply(), (1, 0));
}
