//! Starting, limits, shutting down.

use crate::fixture::*;
use crate::memory::{Gated, Memory};
use dedup_nbd_server::{Listen, ServeError, Server, Stats};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

const ESHUTDOWN: u32 = 108;

#[test]
fn tcp_serves_over_both_address_families() {
    let fixture = serve_with(|builder| {
        builder
            .export("disk", "", Arc::new(Memory::new(4096)))
            .listen(Listen::Tcp("127.0.0.1:0".parse().unwrap()))
            .listen(Listen::Tcp("[::1]:0".parse().unwrap()))
    });
    let addrs = fixture.server.tcp_addrs();
    assert_eq!(addrs.len(), 2);
    for addr in addrs {
        let mut client = Client::new(TcpStream::connect(addr).unwrap());
        client.greet(3);
        client.go(b"disk", &[]);
        client.write(0, 1, 1, b"tcp");
        assert_eq!(client.simple_reply(), (1, 0));
        assert_eq!(client.read(0, 5), b"\0tcp\0");
    }
}

#[test]
fn connections_beyond_the_limit_are_turned_away_until_one_leaves() {
    let fixture =
        serve_with(|builder| builder.export("disk", "", Arc::new(Memory::new(4096))).connections_max(2));
    let (mut first, _second) = (fixture.simple(), fixture.simple());
    fixture.connect().expect_end();
    first.request(0, DISC, 1, 0, 0);
    first.expect_end();
    while fixture.server.connections() > 1 {
        std::thread::yield_now();
    }
    fixture.simple();
}

#[test]
fn requests_are_counted() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    client.write(0, 1, 0, &[1; 100]);
    client.simple_reply();
    client.read(0, 50);
    client.request(0, 99, 1, 0, 0);
    client.simple_reply();
    let expected = Stats { connections: 1, requests: 3, errors: 1, read_bytes: 50, written_bytes: 100 };
    client.request(0, DISC, 1, 0, 0);
    client.expect_end();
    assert_eq!(fixture.server.stats(), expected);
}

#[test]
fn a_shutdown_of_an_idle_server_is_immediate_and_removes_the_socket() {
    let fixture = serve(Memory::new(4096));
    let mut idle = fixture.simple();
    let mut handshaking = fixture.greeted();
    assert!(fixture.path.exists());
    assert!(fixture.server.shutdown(Duration::from_secs(20)));
    assert!(!fixture.path.exists());
    idle.expect_end();
    handshaking.expect_end();
}

#[test]
fn a_shutdown_answers_what_has_been_sent() {
    let (export, gate) = Gated::new(4096);
    let fixture = serve(export);
    let mut client = fixture.simple();
    client.request(0, FLUSH, 1, 0, 0);
    client.write(0, 2, 0, b"late");
    let stopping = std::thread::spawn(move || fixture.server.shutdown(Duration::from_secs(20)));
    assert_eq!(client.simple_reply(), (2, 0));
    gate.send(()).unwrap();
    assert_eq!(client.simple_reply(), (1, 0));
    client.expect_end();
    assert!(stopping.join().unwrap());
}

/// More than can be served in the time for that: the rest is answered too, with ESHUTDOWN, and after one that
/// was refused none is served.
#[test]
fn a_shutdown_refuses_what_it_has_no_time_for_and_answers_every_request() {
    const REQUESTS: u64 = 3000;
    let (export, gate) = Gated::new(4096);
    let fixture =
        serve_with(|builder| builder.export("disk", "", Arc::new(export)).threads_per_connection(1));
    let mut client = fixture.simple();
    let flushes: Vec<u8> = (0..REQUESTS).flat_map(|cookie| request(0, FLUSH, cookie, 0, 0)).collect();
    client.send(&flushes);
    let stopping = std::thread::spawn(move || fixture.server.shutdown(Duration::from_secs(60)));
    // A device that takes its time over each of some fifty batches. Requests are refused after a second of
    // the shutdown.
    let device = std::thread::spawn(move || {
        while gate.send(()).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let errors: Vec<u32> = (0..REQUESTS)
        .map(|expected| {
            let (cookie, error) = client.simple_reply();
            // A batch is answered in any order, and batches one after the other.
            assert!(cookie.abs_diff(expected) < 64, "{cookie} after {expected} others");
            error
        })
        .collect();
    client.expect_end();
    let served = errors.iter().take_while(|error| **error == 0).count();
    assert!(served > 0 && errors[served..].iter().all(|error| *error == ESHUTDOWN), "{served} served");
    assert!(served < errors.len(), "nothing was refused");
    assert!(stopping.join().unwrap());
    device.join().unwrap();
}

#[test]
fn a_client_that_never_pauses_cannot_hold_up_a_shutdown() {
    let fixture = serve_with(|builder| {
        builder
            .export("disk", "", Arc::new(Memory::new(4096)))
            .listen(Listen::Tcp("127.0.0.1:0".parse().unwrap()))
    });
    let stream = TcpStream::connect(fixture.server.tcp_addrs()[0]).unwrap();
    let mut sender = Client::new(stream.try_clone().unwrap());
    let mut client = Client::new(stream);
    client.greet(3);
    client.go(b"disk", &[]);
    // A flood, so that the server's socket is hardly ever found empty.
    let flood = request(0, READ, 1, 0, 1).repeat(10_000);
    std::thread::scope(|scope| {
        scope.spawn(move || while std::io::Write::write_all(&mut sender.stream, &flood).is_ok() {});
        scope.spawn(move || {
            let _ = std::io::copy(&mut client.stream, &mut std::io::sink());
            // Or the sender would wait for a window that nobody opens any more.
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
        });
        std::thread::sleep(Duration::from_millis(50));
        let started = std::time::Instant::now();
        fixture.server.shutdown(Duration::from_millis(200));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    });
}

#[test]
fn a_contradictory_configuration_is_refused() {
    let export = || Arc::new(Memory::new(1));
    let dir = tempfile::tempdir().unwrap();
    let listening = || Server::builder().listen(Listen::unix(dir.path().join("socket"), 0o600));
    let error = |builder: dedup_nbd_server::ServerBuilder| builder.serve().err().unwrap();
    assert!(matches!(error(Server::builder().export("a", "", export())), ServeError::NoListener));
    let twice = listening().export("a", "", export()).export("a", "", export());
    assert!(matches!(error(twice), ServeError::DuplicateExport { .. }));
    let unknown = listening().export("a", "", export()).default_export("b");
    assert!(matches!(error(unknown), ServeError::UnknownDefault { .. }));
    let long = listening().export("a".repeat(4097), "", export());
    assert!(matches!(error(long), ServeError::StringTooLong { found: 4097, max: 4096, .. }));
}
