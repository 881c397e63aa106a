//! Who is let in, and what the log says of it.

use crate::support::{Place, contains};
use std::io::Read;
use std::net::TcpStream;
use std::process::Command;

/// The bytes that a server greets a client with; none if it turns the client away.
fn greeting(uri: &str) -> usize {
    let address = uri.strip_prefix("nbd://").unwrap().split('/').next().unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut greeting = Vec::new();
    // A client that is turned away sees an end, or a reset.
    let _ = Read::take(&stream, 18).read_to_end(&mut greeting);
    greeting.len()
}

#[test]
fn only_clients_from_allowed_networks_are_served_and_the_log_tells_who_came() {
    let place = Place::new();
    place.create("v").stop();
    let volume = place.volume("v");
    let listen = [&*volume, "--listen", "127.0.0.1:0"];
    let mut served =
        place.serve(&[&listen[..], &["--allow", "192.0.2.0/24", "--allow", "2001:db8::1"]].concat());
    assert_eq!(greeting(&served.uri), 0, "from 127.0.0.1");
    let (_, log) = served.end("-TERM");
    contains(&log, &["127.0.0.1:", "is turned away: its address is not among those allowed"]);
    let mut served =
        place.serve(&[&listen[..], &["--allow", "192.0.2.7", "--allow", "127.0.0.0/8"]].concat());
    served.io(&["read 0 4K"]);
    assert_eq!(greeting(&served.uri), 18);
    let (_, log) = served.end("-TERM");
    contains(&log, &["is connected to export \"\"", "has left export", "its handshake failed"]);
    for wrong in ["192.0.2.7/24", "192.0.2", "192.0.2.0/33", "localhost", ""] {
        let output = Command::new(env!("CARGO_BIN_EXE_dedup-nbd")).args([&volume, "--allow", wrong]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        contains(&String::from_utf8_lossy(&output.stderr), &["expected"]);
    }
}

/// Each of these served clients that had shown no certificate, in the clear.
#[test]
fn options_that_admit_whom_others_keep_out_are_refused() {
    let place = Place::new();
    place.create("v").stop();
    let volume = place.volume("v");
    let with =
        |options: &[&str]| place.refused(&[&[&*volume, "--tls-certificates", "nowhere"], options].concat());
    for options in [
        &["--tls", "off", "--tls-verify-peer"][..],
        &["--tls", "off", "--tls-verify-peer=optional"],
        &["--tls", "off", "--tls-allow", "somebody"],
    ] {
        contains(&with(options), &["--tls off admits every client"]);
    }
    for options in
        [&["--tls", "on", "--tls-verify-peer=require"][..], &["--tls", "on", "--tls-allow", "somebody"]]
    {
        contains(&with(options), &["--tls on admits unencrypted clients"]);
    }
    contains(&with(&["--tls", "off", "--listen", "nbds://localhost:0"]), &["contradict each other"]);
}

#[test]
fn a_port_that_other_machines_reach_without_tls_is_warned_of() {
    let place = Place::new();
    place.create("v").stop();
    let volume = place.volume("v");
    let log = |options: &[&str]| place.serve(&[&[&*volume], options].concat()).end("-TERM").1;
    contains(&log(&["--listen", "0.0.0.0:0"]), &["0.0.0.0:0 without TLS"]);
    assert!(!log(&["--listen", "127.0.0.1:0"]).contains("without TLS"));
    assert!(!log(&["--listen", "0.0.0.0:0", "--allow", "192.0.2.1"]).contains("without TLS"));
}
