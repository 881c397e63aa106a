//! Clients that vanish, stall, or send nonsense. What must hold: nothing panics, and the next client is served.

use crate::client::*;
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

#[test]
fn a_client_may_vanish_at_every_byte_of_a_session() {
    panics();
    let fixture = serve(Memory::new(1 << 16));
    let session = session();
    for cut in 0..=session.len() {
        let mut client = fixture.connect();
        client.send(&session[..cut]);
    }
    settles(&fixture);
    still_serves(&fixture);
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
    client.request(0, TRIM, 1, 0, 512);
    client.expect_end();
    settles(&fixture);
    still_serves(&fixture);
}
