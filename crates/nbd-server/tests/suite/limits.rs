//! Limits: how many clients, of how many addresses, for how long, and how much of the memory each may hold.

use crate::fixture::*;
use crate::memory::{Gated, Memory};
use crate::pki::Pki;
use dedup_nbd_server::{ClientCertificates, Listen, ServerBuilder};
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const POLICY: u32 = 2;
const MIB: usize = 1 << 20;

fn serve_also_over_tcp(configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Fixture {
    serve_with(|builder| {
        let builder = builder.export("disk", "", Arc::new(Memory::new(64 * MIB)));
        configure(builder.listen(Listen::Tcp("127.0.0.1:0".parse().unwrap())))
    })
}

fn over_tcp(fixture: &Fixture) -> Client<TcpStream> {
    let stream = TcpStream::connect(fixture.server.tcp_addrs()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::new(stream)
}

/// A thousand silent sockets of one host took all places there were.
#[test]
fn silent_clients_take_no_seats_and_those_of_one_address_no_places_of_others() {
    let fixture = serve_also_over_tcp(|builder| builder.connections_max(2));
    let mut silent: Vec<_> = (0..60).map(|_| over_tcp(&fixture)).collect();
    // The first of them are at their handshakes; the last were turned away.
    silent[0].greet(3);
    silent[59].expect_end();
    let _seated = [fixture.simple(), fixture.simple()];
    fixture.connect().expect_end();
}

#[test]
fn one_address_gets_a_part_of_the_seats() {
    let fixture = serve_also_over_tcp(|builder| builder.connections_per_address_max(2));
    let mut clients: Vec<_> = (0..3).map(|_| over_tcp(&fixture)).collect();
    clients.iter_mut().for_each(|client| client.greet(3));
    clients[0].go(b"disk", &[]);
    clients[1].go(b"disk", &[]);
    // It has come while there was a seat, and is told why there is none any more.
    clients[2].send_option(7, &go_data(b"disk", &[]));
    let (kind, text) = clients[2].option_reply(7);
    assert_eq!(kind, (1 << 31) + POLICY);
    assert!(String::from_utf8(text).unwrap().contains("2 connections from its address"));
    over_tcp(&fixture).expect_end();
    fixture.simple();
    clients.remove(0);
    while fixture.server.connections() > 2 {
        std::thread::yield_now();
    }
    clients[1].go(b"disk", &[]);
}

#[test]
fn the_old_way_to_choose_an_export_finds_no_seat_either() {
    let fixture = serve_also_over_tcp(|builder| builder.connections_max(1));
    let mut waiting = fixture.greeted();
    let _seated = fixture.simple();
    waiting.send_option(1, b"disk");
    waiting.expect_end();
}

#[test]
fn a_client_that_is_idle_for_longer_than_it_may_be_is_ended() {
    let limit = Duration::from_millis(150);
    let (export, gate) = Gated::new(4096);
    let arrived = Arc::clone(&export.arrived);
    let fixture = serve_with(|builder| builder.export("disk", "", Arc::new(export)).idle_limit(Some(limit)));
    let mut idle = fixture.simple();
    let mut stuck = fixture.simple();
    stuck.request(0, WRITE, 1, 0, 100);
    stuck.send(&[1; 50]);
    let mut waiting = fixture.simple();
    waiting.request(0, FLUSH, 1, 0, 0);
    let started = Instant::now();
    idle.expect_end();
    stuck.expect_end();
    assert!(started.elapsed() >= limit, "{:?}", started.elapsed());
    // Who waits for the server is not idle.
    assert_eq!(arrived.load(Ordering::SeqCst), 1);
    std::thread::sleep(3 * limit);
    gate.send(()).unwrap();
    assert_eq!(waiting.simple_reply(), (1, 0));
    waiting.expect_end();
}

/// Of two requests the first is answered and the second is at work in another thread: the one that receives
/// has nothing to do, the client has.
#[test]
fn a_client_whose_request_another_thread_works_at_is_not_idle() {
    let limit = Duration::from_millis(100);
    let (export, gate) = Gated::new(4096);
    let arrived = Arc::clone(&export.arrived);
    let fixture = serve_with(|builder| builder.export("disk", "", Arc::new(export)).idle_limit(Some(limit)));
    let mut client = fixture.simple();
    for n in 1..3 {
        client.request(0, FLUSH, n, 0, 0);
        while (arrived.load(Ordering::SeqCst) as u64) < n {
            std::thread::yield_now();
        }
    }
    gate.send(()).unwrap();
    let (first, _) = client.simple_reply();
    std::thread::sleep(4 * limit);
    gate.send(()).unwrap();
    assert_eq!(client.simple_reply(), (3 - first, 0));
    client.expect_end();
}

/// Clients that take no replies hold memory; when another needs it, they go.
#[test]
fn who_takes_no_replies_is_ended_when_others_wait_for_the_memory() {
    let stall = Duration::from_millis(100);
    let fixture = serve_with(|builder| {
        builder.export("disk", "", Arc::new(Memory::new(64 * MIB))).payload_memory(0).stall_time(stall)
    });
    let mut client = fixture.simple();
    // It keeps the memory for that, and gives it back before it waits for more.
    client.read(0, 3 * MIB as u32);
    // With one thread each they take nearly all of it; for more there may be no memory.
    let mut stalled: Vec<_> = (0..16).map(|_| fixture.simple()).collect();
    for client in &mut stalled {
        (0..2).for_each(|cookie| client.request(0, READ, cookie, 0, 8 * MIB as u32));
    }
    let begin = Instant::now();
    // Until they have taken it all, and the first has gone.
    while fixture.server.connections() > 16 {
        assert!(begin.elapsed() < PATIENCE, "nobody was ended");
        assert_eq!(client.read(0, 32 * MIB as u32).len(), 32 * MIB);
        assert_eq!(client.read(0, 4096), [0; 4096], "what is small is answered meanwhile");
    }
    // Not all of them had to go, and those that did have not been told anything wrong.
    let mut ended = 0;
    for mut client in stalled {
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = 0;
        let all = 2 * (16 + 8 * MIB);
        let mut buf = vec![0; MIB];
        while bytes < all {
            match client.stream.read(&mut buf) {
                Ok(0) => break,
                Ok(read) => bytes += read,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("after {bytes} bytes: {error}"),
            }
        }
        ended += usize::from(bytes < all);
    }
    assert!(ended > 0, "nobody was ended");
}

/// The same for clients that stop in the middle of a large write.
#[test]
fn who_stops_within_a_request_is_ended_when_others_wait_for_the_memory() {
    let stall = Duration::from_millis(100);
    let fixture = serve_with(|builder| {
        builder.export("disk", "", Arc::new(Memory::new(64 * MIB))).payload_memory(0).stall_time(stall)
    });
    let mut stuck: Vec<_> = (0..6).map(|_| fixture.simple()).collect();
    for client in &mut stuck {
        client.request(0, WRITE, 1, 0, 32 * MIB as u32);
        client.send(&[1; 5000]);
    }
    let mut small = fixture.simple();
    small.request(0, WRITE, 1, 0, 100);
    small.send(&[0; 50]);
    let (mut client, begin) = (fixture.simple(), Instant::now());
    while begin.elapsed() < 4 * stall || fixture.server.connections() > 7 {
        assert!(begin.elapsed() < PATIENCE, "nobody was ended");
        assert_eq!(client.read(0, 32 * MIB as u32), vec![0; 32 * MIB]);
    }
    // One that holds no memory is in nobody's way.
    small.send(&[0; 50]);
    assert_eq!(small.simple_reply(), (1, 0));
}

#[test]
fn who_takes_no_replies_stays_as_long_as_nobody_needs_the_memory() {
    let stall = Duration::from_millis(50);
    let fixture =
        serve_with(|builder| builder.export("disk", "", Arc::new(Memory::new(8 * MIB))).stall_time(stall));
    let mut client = fixture.simple();
    client.request(0, READ, 7, 0, 8 * MIB as u32);
    std::thread::sleep(6 * stall);
    assert_eq!(client.simple_reply(), (7, 0));
    assert_eq!(client.take(8 * MIB).len(), 8 * MIB);
}

/// Each took its time for 64 KiB, which is what goes out encrypted at once, and so it kept 8 MiB for as long
/// as it liked.
#[test]
fn an_encrypted_client_that_takes_little_at_a_time_is_as_slow_as_any_other() {
    let pki = Pki::new();
    let fixture = serve_with(|builder| {
        let export = Arc::new(Memory::new(64 * MIB));
        let builder = builder.export("disk", "", export).tls(pki.server(ClientCertificates::Ignored), false);
        // Longer than it takes each of them to take what goes out at once.
        builder.payload_memory(0).stall_time(Duration::from_millis(200))
    });
    let config = pki.client(None);
    let is_over = AtomicBool::new(false);
    let slow: Vec<_> = (0..16)
        .map(|_| {
            let mut client = fixture.encrypted(&config);
            client.go(b"disk", &[]);
            (0..2).for_each(|cookie| client.request(0, READ, cookie, 0, 8 * MIB as u32));
            client
        })
        .collect();
    std::thread::scope(|scope| {
        for mut client in slow {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut some = [0; 4096];
                while !is_over.load(Ordering::SeqCst)
                    && client.stream.sock.read(&mut some).is_ok_and(|n| n > 0)
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        let (mut client, begin) = (fixture.simple(), Instant::now());
        while fixture.server.connections() > 16 && begin.elapsed() < PATIENCE {
            assert_eq!(client.read(0, 32 * MIB as u32).len(), 32 * MIB);
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(begin.elapsed() < PATIENCE, "nobody was ended");
    });
}

/// Threads took memory for as long as they had something to do now and then, all of it if there were many:
/// large requests waited for ever.
#[test]
fn however_many_threads_wait_for_a_device_a_large_request_finds_memory() {
    let (export, gate) = Gated::new(4 * MIB);
    let arrived = Arc::clone(&export.arrived);
    let fixture = serve_with(|builder| builder.export("disk", "", Arc::new(export)).payload_memory(0));
    let has_arrived = |flushes| {
        let begin = Instant::now();
        while arrived.load(Ordering::SeqCst) < flushes && begin.elapsed() < Duration::from_secs(1) {
            std::thread::yield_now();
        }
        arrived.load(Ordering::SeqCst) >= flushes
    };
    let mut busy: Vec<_> = (0..40).map(|_| fixture.simple()).collect();
    // Each needs a thread more, until there is no memory for another.
    let flushes = (0..40 * 8)
        .take_while(|flush| {
            busy[flush / 8].request(0, FLUSH, *flush as u64, 0, 0);
            has_arrived(flush + 1)
        })
        .count();
    assert!((100..40 * 8).contains(&flushes), "{flushes} threads at work");
    assert_eq!(fixture.simple().read(0, 2 * MIB as u32).len(), 2 * MIB);
    (0..40 * 8).for_each(|_| gate.send(()).unwrap());
    drop(busy);
}

#[test]
fn no_duration_is_too_long() {
    let fixture = serve_with(|builder| {
        let builder = builder.export("disk", "", Arc::new(Memory::new(4096)));
        let longest = Duration::MAX;
        builder
            .handshake_timeout(longest)
            .idle_limit(Some(Duration::from_secs(1 << 40)))
            .stall_time(longest / 4)
    });
    fixture.simple();
    assert!(fixture.server.shutdown(Duration::MAX));
}
