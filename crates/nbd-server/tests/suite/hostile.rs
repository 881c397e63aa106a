//! Clients that vanish, stall, or send nonsense. What must hold: nothing panics, and the next client is
//! served.

use crate::fixture::*;
use crate::memory::{Gated, Memory};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

fn still_serves(fixture: &Fixture) {
    let mut client = fixture.simple();
    client.write(0, 1, 0, b"alive");
    assert_eq!(client.simple_reply(), (1, 0));
    assert_eq!(client.read(0, 5), b"alive");
}

/// Panics of the server's threads, other than the one that a test asks for.
pub(crate) fn panics() -> &'static AtomicUsize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let asked_for = info.payload().downcast_ref::<&str>() == Some(&"panics as asked");
            let in_server = std::thread::current().name().is_some_and(|name| name.starts_with("nbd-"));
            PANICS.fetch_add(usize::from(in_server && !asked_for), Ordering::Relaxed);
            hook(info);
        }));
    });
    &PANICS
}

/// Waits until no connection is left, and checks that nothing has panicked on the way.
pub(crate) fn settles(fixture: &Fixture) {
    let started = Instant::now();
    while fixture.server.connections() > 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "connections are left");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(panics().load(Ordering::Relaxed), 0, "panics in the server");
}

/// A whole life of a client with simple replies to all but its reads.
fn session() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option(3, b""));
    bytes.extend(option(8, b""));
    bytes.extend(option(7, &go_data(b"disk", &[3])));
    bytes.extend(request(0, WRITE, 1, 0, 100));
    bytes.extend([5; 100]);
    bytes.extend(request(0, READ, 2, 8192, 4096));
    bytes.extend(request(0, FLUSH, 3, 0, 0));
    bytes.extend(request(FUA, TRIM, 4, 0, 4096));
    bytes.extend(request(0, DISC, 5, 0, 0));
    bytes
}

/// As [`session`], with extended headers and metadata contexts.
fn extended_session() -> Vec<u8> {
    let contexts = context_data(b"disk", &["base:allocation", "test:pairs"]);
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option(11, b""));
    bytes.extend(option(9, &contexts));
    bytes.extend(option(10, &contexts));
    bytes.extend(option(6, &go_data(b"", &[1, 2])));
    bytes.extend(option(7, &go_data(b"disk", &[])));
    bytes.extend(extended_request(PAYLOAD | FUA, WRITE, 1, 512, 20));
    bytes.extend([5; 20]);
    bytes.extend(extended_request(DF, READ, 2, 0, 600));
    bytes.extend(extended_request(REQ_ONE, BLOCK_STATUS, 3, 0, 8192));
    bytes.extend(extended_request(PAYLOAD, BLOCK_STATUS, 4, 0, 12));
    bytes.extend(4096u64.to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend(extended_request(FAST_ZERO, WRITE_ZEROES, 5, 0, 4096));
    bytes.extend(extended_request(0, CACHE, 6, 0, 4096));
    bytes.extend(extended_request(0, DISC, 7, 0, 0));
    bytes
}

#[test]
fn a_client_may_vanish_at_every_byte_of_a_session() {
    panics();
    let fixture = serve(Memory::new(1 << 16));
    for session in [session(), extended_session()] {
        for cut in 0..=session.len() {
            let mut client = fixture.connect();
            client.send(&session[..cut]);
        }
        settles(&fixture);
    }
    still_serves(&fixture);
}

/// Sends all, says that nothing more comes, and waits for the server to hang up.
fn exchange(fixture: &Fixture, bytes: &[u8]) {
    let mut client = fixture.connect();
    // It may be cut off before it has sent all.
    if client.stream.write_all(bytes).is_ok() {
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
    }
    let end = std::io::copy(&mut client.stream, &mut std::io::sink());
    let timed_out = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "the server did not hang up");
}

#[test]
fn every_field_of_a_session_may_be_out_of_range() {
    panics();
    let fixture = serve(Memory::new(1 << 16));
    for session in [session(), extended_session()] {
        // Fields lie at even places.
        for at in (0..session.len()).step_by(2) {
            for width in [2, 4, 8] {
                for byte in [0x00, 0x7f, 0x80, 0xff] {
                    let mut changed = session.clone();
                    let end = changed.len().min(at + width);
                    changed[at..end].fill(byte);
                    exchange(&fixture, &changed);
                }
            }
        }
    }
    settles(&fixture);
    still_serves(&fixture);
}

/// The inputs that the fuzz targets begin with, through the same decoding.
#[test]
fn the_corpora_of_the_fuzz_targets_do_no_harm() {
    panics();
    let fixture = serve(Memory::new(1 << 20));
    let corpus = |target: &str| {
        let dir = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut inputs: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty());
        inputs.into_iter().map(|path| std::fs::read(path).unwrap())
    };
    for input in corpus("nbd_handshake") {
        exchange(&fixture, &input);
        exchange(&fixture, &input[1..]);
        let mut bytes = vec![0, 0, 0, input[1]];
        let mut rest = &input[2..];
        while let [number, len, tail @ ..] = rest {
            let (data, tail) = tail.split_at(tail.len().min(usize::from(*len)));
            bytes.extend(option(u32::from(*number), data));
            rest = tail;
        }
        exchange(&fixture, &bytes);
    }
    for input in corpus("nbd_transmission") {
        for headers in [None, Some(8), Some(11)] {
            let mut bytes = 3u32.to_be_bytes().to_vec();
            bytes.extend(headers.into_iter().flat_map(|number| option(number, b"")));
            bytes.extend(option(10, &context_data(b"disk", &["base:allocation"])));
            bytes.extend(option(7, &go_data(b"disk", &[])));
            let mut rest = &input[1..];
            let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            while let Some((head, tail)) = rest.split_at_checked(12) {
                let (flags, command) = (number(&head[..2]) as u16, number(&head[2..4]) as u16);
                let (offset, len) = (number(&head[4..8]), number(&head[8..]));
                bytes.extend(match headers {
                    Some(11) => extended_request(flags, command, 9, offset, len),
                    _ => request(flags, command, 9, offset, len as u32),
                });
                let payload = if command == WRITE { tail.len().min(len as usize) } else { 0 };
                bytes.extend(&tail[..payload]);
                rest = &tail[payload..];
            }
            exchange(&fixture, &bytes);
        }
    }
    settles(&fixture);
    still_serves(&fixture);
}

#[test]
fn a_flood_of_options_whose_answers_nobody_reads_is_cut_off() {
    let fixture = serve_with(|builder| {
        builder.export("disk", "", Arc::new(Memory::new(4096))).handshake_timeout(Duration::from_millis(300))
    });
    let mut flooder = fixture.greeted();
    let options = option(3, b"").repeat(100);
    let started = Instant::now();
    while flooder.stream.write_all(&options).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    assert!(fixture.server.shutdown(Duration::from_secs(20)));
}

#[test]
fn a_session_in_single_bytes_is_a_session() {
    let fixture = serve(Memory::new(1 << 16));
    let mut client = fixture.connect();
    for byte in session() {
        client.send(&[byte]);
    }
    let mut replies = Vec::new();
    std::io::Read::read_to_end(&mut client.stream, &mut replies).unwrap();
    let greeting = 18;
    let list = 20 + 4 + "disk".len() + "a disk".len() + 20;
    let structured_reply = 20;
    let go = 20 + 12 + 20 + 14 + 20;
    let transmission = 16 + (20 + 12) + 16 + 16;
    assert_eq!(replies.len(), greeting + list + structured_reply + go + transmission);
}

#[test]
fn garbage_in_place_of_a_handshake_ends_the_connection() {
    let fixture = serve(Memory::new(4096));
    let long = vec![0x5a; 1 << 16];
    for garbage in [&b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n"[..], &[0; 64], &[0xff; 64], &long] {
        let mut client = fixture.connect();
        // It may be cut off before it has sent all.
        let _ = client.stream.write_all(garbage);
        client.take(18);
        client.expect_end();
    }
    still_serves(&fixture);
}

#[test]
fn garbage_in_place_of_an_option_or_a_request_ends_the_connection() {
    panics();
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.greeted();
    client.send(&[0x11; 16]);
    client.expect_end();
    let mut client = fixture.simple();
    client.send(&[request(0, FLUSH, 1, 0, 0), vec![0x11; 28]].concat());
    assert_eq!(client.simple_reply(), (1, 0));
    client.expect_end();
    settles(&fixture);
    still_serves(&fixture);
}

#[test]
fn a_client_may_vanish_within_a_large_write_or_before_its_replies() {
    panics();
    let fixture = serve(Memory::new(32 << 20));
    for sent in [0, 1, 300_000] {
        let mut client = fixture.simple();
        client.request(0, WRITE, 1, 0, 32 << 20);
        client.send(&vec![1; sent]);
    }
    let mut client = fixture.simple();
    client.request(0, WRITE, 1, 0, u32::MAX);
    drop(client);
    for _ in 0..8 {
        let mut client = fixture.simple();
        (0..8).for_each(|cookie| client.request(0, READ, cookie, 0, 32 << 20));
    }
    settles(&fixture);
    still_serves(&fixture);
}

#[test]
fn a_client_that_reads_no_replies_stalls_itself_only() {
    let fixture = serve(Memory::new(1 << 20));
    let mut stalled = fixture.simple();
    (0..100).for_each(|cookie| stalled.request(0, READ, cookie, 0, 1 << 20));
    still_serves(&fixture);
    for _ in 0..100 {
        assert_eq!(stalled.simple_reply().1, 0);
        stalled.take(1 << 20);
    }
}

#[test]
fn a_handshake_that_drags_on_is_cut_off() {
    let fixture = serve_with(|builder| {
        builder.export("disk", "", Arc::new(Memory::new(4096))).handshake_timeout(Duration::from_millis(100))
    });
    let mut silent = fixture.connect();
    let mut slow = fixture.greeted();
    let started = Instant::now();
    // A byte now and then must not extend it.
    while slow.stream.write_all(b"I").is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    silent.take(18);
    silent.expect_end();
}

#[test]
fn an_export_that_panics_costs_its_connection_only() {
    let (export, _gate) = Gated::new(4096);
    let fixture = serve(export);
    let mut client = fixture.simple();
    client.request(0, TRIM, 1, 0, 4096);
    client.expect_end();
    settles(&fixture);
    still_serves(&fixture);
}
