//! Clients that go while a device stalls, come back, and write something newer. What must hold: nothing of a
//! connection that has ended is begun any more, so what a later one has written stays; and what a client sent
//! before it took its leave is done, if nobody has come since.

use crate::fixture::*;
use crate::hostile::settles;
use crate::memory::Gated;
use crate::pki::Pki;
use crate::stalling::{Stalled, Stalling};
use dedup_nbd_server::{ClientCertificates, Listen};
use dedup_volume::Op;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Error number of a request that was not begun.
const ESHUTDOWN: u32 = 108;
const BLOCK: u64 = 4096;
/// Blocks that a stalled client writes, and its successor.
const BLOCKS: u64 = 8;
/// How long a stalled server is given to answer what nothing holds up. Too short, a mistake might be missed,
/// and nothing else happens.
const PAUSE: Duration = Duration::from_millis(5);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

/// A write whose data is `tag` over and over.
fn write(flags: u16, tag: u8, offset: u64, len: u64) -> Vec<u8> {
    [request(flags, WRITE, u64::from(tag), offset, len as u32), vec![tag; len as usize]].concat()
}

/// What the client that is to go has sent, each in one piece: something that a device can be slow at, then
/// what has to wait for it.
fn shapes() -> Vec<(&'static str, Vec<u8>)> {
    let range = |flags, command, offset, len| request(flags, command, 99, offset, len);
    let last = (BLOCKS - 1) * BLOCK;
    vec![
        ("writes of one block, and a part that waits for a flush", {
            let waves = (1..4).flat_map(|tag| write(0, tag, 0, BLOCK));
            waves.chain(write(FUA, 4, last, BLOCK)).collect()
        }),
        ("parts of blocks, which are read first", {
            let waves = (1..4).flat_map(|tag| write(0, tag, BLOCK + 100, BLOCK));
            waves.chain(write(FUA, 4, last + 7, 30)).collect()
        }),
        ("writes, then zeroes and trims over them", {
            let zeroes = range(FUA, WRITE_ZEROES, 10, (4 * BLOCK) as u32);
            let trim = range(0, TRIM, 0, (BLOCKS * BLOCK) as u32);
            [write(0, 1, 0, BLOCK), write(0, 2, 0, BLOCK), trim, zeroes].concat()
        }),
        ("a flush between writes", {
            [write(0, 1, 0, BLOCK), range(0, FLUSH, 0, 0), write(FUA, 2, last, BLOCK)].concat()
        }),
        ("more than fits into one batch", {
            (0..200u64).flat_map(|i| write(0, 1 + (i % 90) as u8, i % 3 * BLOCK, BLOCK)).collect()
        }),
    ]
}

/// How a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    Closes,
    /// Ends both directions first, as libraries do.
    ShutsDown,
    /// Takes its leave and does not wait for anything.
    Leaves,
    /// Ends only its own side, and never looks at it again: what a proxy makes of a client that has gone.
    StopsSending,
}

fn go_away(mut client: Client<UnixStream>, going: Going, left_open: &mut Vec<UnixStream>) {
    match going {
        Going::Closes => {}
        Going::ShutsDown => client.stream.shutdown(Shutdown::Both).unwrap(),
        Going::Leaves => client.request(0, DISC, 0, 0, 0),
        Going::StopsSending => {
            client.stream.shutdown(Shutdown::Write).unwrap();
            left_open.push(client.stream);
        }
    }
}

/// The story of one client; whether the device has stalled.
fn newer_data_stays(fixture: &Fixture, device: &Stalling, stall: usize, sent: &[u8], going: Going) -> bool {
    let mut left_open = Vec::new();
    device.stall_at(stall);
    let mut old = fixture.simple();
    old.send(sent);
    let started = Instant::now();
    while !device.stalls() && started.elapsed() < 4 * PAUSE {
        std::thread::yield_now();
    }
    let stalled = device.stalls();
    go_away(old, going, &mut left_open);
    // One connection for each block, so that those which wait for what stalls hold up none of the others.
    let mut successors: Vec<_> = (0..BLOCKS).map(|_| fixture.simple()).collect();
    for (block, client) in successors.iter_mut().enumerate() {
        client.send(&write(0, 200 + block as u8, block as u64 * BLOCK, BLOCK));
    }
    std::thread::sleep(PAUSE);
    device.let_go();
    successors.iter_mut().for_each(|client| assert_eq!(client.simple_reply().1, 0));
    // Half of an ended connection is still open, and gets the rest of its answers.
    for mut stream in left_open {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    until("the old connection ends", || fixture.server.connections() <= BLOCKS as usize);
    for block in 0..BLOCKS {
        let found = successors[0].read(block * BLOCK, BLOCK as u32);
        assert!(found == [200 + block as u8; BLOCK as usize], "block {block} holds {} again", found[100]);
    }
    drop(successors);
    until("all connections end", || fixture.server.connections() == 0);
    stalled
}

/// A client's write stalled in a slow device. The client gave the connection up, came back, wrote the block
/// again and then something newer, which was acknowledged; and when the device went on, the rest of the old
/// connection's batch was carried out over it.
#[test]
fn wherever_a_device_stalls_a_client_that_comes_back_keeps_its_newer_data() {
    let (export, device) = Stalled::new(1 << 20);
    let fixture = serve(export);
    for (shape, sent) in shapes() {
        let mut stalls = 0;
        for going in [Going::Closes, Going::ShutsDown, Going::Leaves, Going::StopsSending] {
            for stall in 0..4 {
                stalls += usize::from(newer_data_stays(&fixture, &device, stall, &sent, going));
            }
        }
        assert!(stalls > 4, "{shape}: the device was to stall, and did {stalls} times");
    }
}

/// The same for a client whose bytes go through something else than a Unix socket.
fn waits_in_vain<S: Read + Write>(fixture: &Fixture, device: &Stalling, mut old: Client<S>) {
    device.stall_at(0);
    old.send(&[write(0, 1, 0, BLOCK), write(0, 2, 0, BLOCK), write(FUA, 3, BLOCK, BLOCK)].concat());
    until("the device stalls", || device.stalls());
    drop(old);
    let mut successor = fixture.simple();
    successor.write(0, 9, BLOCK, &[9; BLOCK as usize]);
    assert_eq!(successor.simple_reply(), (9, 0));
    device.let_go();
    until("the old connection ends", || fixture.server.connections() == 1);
    assert_eq!(successor.read(0, BLOCK as u32), [1; BLOCK as usize], "what had begun is done, and no more");
    assert_eq!(successor.read(BLOCK, BLOCK as u32), [9; BLOCK as usize]);
}

#[test]
fn over_tcp_nothing_is_begun_for_a_client_that_has_gone() {
    let (export, device) = Stalled::new(1 << 20);
    let fixture = serve_with(|builder| {
        builder.export("disk", "", Arc::new(export)).listen(Listen::Tcp("127.0.0.1:0".parse().unwrap()))
    });
    let mut old = Client::new(TcpStream::connect(fixture.server.tcp_addrs()[0]).unwrap());
    old.greet(3);
    old.go(b"disk", &[]);
    waits_in_vain(&fixture, &device, old);
}

#[test]
fn over_tls_nothing_is_begun_for_a_client_that_has_gone() {
    let pki = Pki::new();
    let (export, device) = Stalled::new(1 << 20);
    let fixture = serve_with(|builder| {
        let tls = pki.server(ClientCertificates::Ignored);
        builder.export("disk", "", Arc::new(export)).tls(tls, false)
    });
    let mut old = fixture.encrypted(&pki.client(None));
    old.go(b"disk", &[]);
    waits_in_vain(&fixture, &device, old);
}

/// An encrypted client says that it sends no more, and leaves the socket open.
#[test]
fn over_tls_a_client_that_has_ended_its_stream_has_gone() {
    let pki = Pki::new();
    let (export, device) = Stalled::new(1 << 20);
    let fixture = serve_with(|builder| {
        let tls = pki.server(ClientCertificates::Ignored);
        builder.export("disk", "", Arc::new(export)).tls(tls, false)
    });
    let mut old = fixture.encrypted(&pki.client(None));
    old.go(b"disk", &[]);
    device.stall_at(0);
    old.send(&[write(0, 1, 0, BLOCK), write(0, 2, 0, BLOCK)].concat());
    until("the device stalls", || device.stalls());
    old.stream.conn.send_close_notify();
    old.stream.flush().unwrap();
    // The end of the stream is received by another thread than the one that waits for the device.
    std::thread::sleep(10 * PAUSE);
    device.let_go();
    assert_eq!(old.simple_reply(), (1, 0));
    assert_eq!(old.simple_reply(), (2, ESHUTDOWN));
}

/// A client of a gated disk that takes its leave while a write is under way, and hangs up. Another connection
/// has come before, as of a client that opens several.
fn leaves_in_a_hurry() -> (Fixture, std::sync::mpsc::Sender<()>) {
    let (export, gate) = Gated::slow_at(|op| matches!(op, Op::Write { data, .. } if data[0] == 1), 1 << 16);
    let arrived = Arc::clone(&export.arrived);
    let fixture = serve(export);
    let mut client = fixture.simple();
    // Its reply shows that it has begun.
    fixture.simple().read(0, 4);
    client.write(0, 7, BLOCK, &[7; 4]);
    assert_eq!(client.simple_reply(), (7, 0));
    client.send(&write(0, 1, 0, BLOCK));
    until("the write arrives", || arrived.load(Ordering::SeqCst) == 1);
    client.request(0, DISC, 0, 0, 0);
    (fixture, gate)
}

/// The protocol has the server carry out what was sent before the farewell.
#[test]
fn what_was_sent_before_a_farewell_is_done_although_the_client_has_hung_up() {
    let (fixture, gate) = leaves_in_a_hurry();
    gate.send(()).unwrap();
    settles(&fixture);
    assert_eq!(fixture.simple().read(0, 4), [1; 4]);
}

#[test]
fn what_was_sent_before_a_farewell_is_not_begun_once_somebody_has_come_since() {
    let (fixture, gate) = leaves_in_a_hurry();
    let mut successor = fixture.simple();
    successor.write(0, 9, 0, &[9; 4]);
    assert_eq!(successor.simple_reply(), (9, 0));
    gate.send(()).unwrap();
    until("the old connection ends", || fixture.server.connections() == 1);
    assert_eq!(successor.read(0, 4), [9; 4]);
}

#[test]
fn asking_about_an_export_is_no_connection_to_it() {
    let (fixture, gate) = leaves_in_a_hurry();
    let mut asks = fixture.greeted();
    asks.send_option(6, &go_data(b"disk", &[]));
    asks.infos(6);
    gate.send(()).unwrap();
    until("the old connection ends", || fixture.server.connections() == 1);
    assert_eq!(fixture.simple().read(0, 4), [1; 4]);
}

/// It still reads, and cannot be told from a proxy whose client has gone: what had not begun is refused, not
/// dropped in silence.
#[test]
fn a_client_that_stops_sending_is_told_what_was_not_begun() {
    let (export, device) = Stalled::new(1 << 20);
    let fixture = serve(export);
    let mut client = fixture.simple();
    device.stall_at(0);
    client.send(&[write(0, 1, 0, BLOCK), write(0, 2, 0, BLOCK)].concat());
    until("the device stalls", || device.stalls());
    client.stream.shutdown(Shutdown::Write).unwrap();
    device.let_go();
    assert_eq!([client.simple_reply(), client.simple_reply()], [(1, 0), (2, ESHUTDOWN)]);
    client.expect_end();
}

/// A shutdown ends the server's own receiving, which must not be taken for the client's end.
#[test]
fn a_shutdown_still_begins_what_a_client_that_is_there_has_sent() {
    for leaves in [false, true] {
        let (export, device) = Stalled::new(1 << 20);
        let fixture = serve(export);
        let mut client = fixture.simple();
        device.stall_at(0);
        client.send(&[write(0, 1, 0, BLOCK), write(0, 2, 0, BLOCK)].concat());
        until("the device stalls", || device.stalls());
        let stopping = std::thread::spawn(move || fixture.server.shutdown(PATIENCE));
        // Long enough for the first stage of the shutdown to begin.
        std::thread::sleep(10 * PAUSE);
        if leaves {
            drop(client);
            device.let_go();
        } else {
            device.let_go();
            assert_eq!([client.simple_reply(), client.simple_reply()], [(1, 0), (2, 0)]);
        }
        assert!(stopping.join().unwrap());
    }
}
