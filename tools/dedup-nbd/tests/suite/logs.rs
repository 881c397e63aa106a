//! What becomes of a server whose log goes nowhere, and of one whose terminal does.

use crate::support::Place;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// Connections that say nothing of use: at `-vv` a line each, more than a pipe and the queue in front of it
/// hold.
const CONNECTIONS: usize = 3000;

/// Where a log may go, and what keeps it from being read.
fn places_to_log() -> Vec<(&'static str, Stdio, Option<PipeReader>)> {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (_, closed) = std::io::pipe().unwrap();
    let (unread, open) = std::io::pipe().unwrap();
    vec![
        ("a full disk", full.into(), None),
        ("a pipe whose reader has gone", closed.into(), None),
        ("a pipe that nobody reads", open.into(), Some(unread)),
    ]
}

/// A line that could not be written ended the process, and one that nobody read stopped the volume; SIGTERM
/// then aborted before the volume was closed.
#[test]
fn a_log_that_cannot_be_written_or_is_not_read_holds_up_no_client_and_no_end() {
    for (what, log, _unread) in places_to_log() {
        let place = Place::new();
        let (volume, socket) = (place.volume("v"), place.path("v/nbd.sock"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_dedup-nbd"))
            .args([&*volume, "--create", "--logical-size", "64M", "-vv"])
            .env("DEDUP_RUNTIME_DIR", place.path("run"))
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut uri = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut uri).unwrap();
        assert!(uri.starts_with("nbd+unix:"), "{what}: {uri:?}");
        for _ in 0..CONNECTIONS {
            // The server closes as soon as it has seen through it.
            drop(UnixStream::connect(&socket).unwrap().write_all(&[0; 16]));
        }
        let io = Command::new("timeout")
            .args([
                "60",
                "qemu-io",
                "-f",
                "raw",
                "-c",
                "write -P 5 0 1M",
                "-c",
                "flush",
                "-c",
                "read -P 5 0 1M",
            ])
            .arg(uri.trim())
            .output()
            .unwrap();
        assert!(io.status.success(), "{what}: {}", String::from_utf8_lossy(&io.stdout));
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{what}");
        let dump = place.tool(&["dump-superblock", &volume, "--json"]);
        let dump: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
        let newest = dump["copies"]
            .as_array()
            .unwrap()
            .iter()
            .max_by_key(|copy| copy["superblock"]["transaction"].as_u64());
        assert_eq!(newest.unwrap()["superblock"]["clean"], true, "{what}: the volume was not closed: {dump}");
    }
}

/// It was killed, by the terminal that it was started from.
#[test]
fn a_server_whose_terminal_goes_serves_on() {
    let place = Place::new();
    let mut served = place.create("v");
    let pid = served.pid().to_string();
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        served.io(&["write -P 5 0 1M", "read -P 5 0 1M"]);
    }
    let (status, message) = served.end("-TERM");
    assert_eq!(status.code(), Some(0), "{message}");
    assert!(message.contains("SIGHUP") && message.contains("closed: "), "{message}");
}
