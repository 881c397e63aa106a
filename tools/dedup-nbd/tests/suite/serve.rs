//! The usual life of a volume.

use crate::support::{Place, contains};
use std::fs;
use std::process::Command;
use std::time::Duration;

#[test]
fn what_was_written_is_there_after_a_stop_and_the_status_says_what_it_took() {
    let place = Place::new();
    let served = place.create("v");
    let volume = place.volume("v");
    served.io(&["write -P 7 0 1M", "write -P 7 1M 1M", "write -P 9 2M 4K", "flush", "read -P 7 0 2M"]);
    let status = place.status(&volume);
    assert_eq!(status["served_by_pid"], served.pid());
    assert_eq!((&status["mode"], &status["mdbackend"]), (&"read-write".into(), &"cowbtree".into()));
    served.stop();
    let at_rest = place.status(&volume);
    for status in [&status, &at_rest] {
        assert_eq!(status["counters"]["writes"], 513);
        assert_eq!(status["counters"]["uniqwrites"], 2);
        assert_eq!(status["data_used"], 8192);
        assert_eq!(status["logical_used"], (2 << 20) + 4096);
    }
    assert!(at_rest["served_by_pid"].is_null());
    assert!(!place.path("v/nbd.sock").exists());
    let served = place.serve(&[&volume]);
    served.io(&["read -P 7 0 2M", "read -P 9 2M 4K", "read -P 0 3M 1M"]);
    served.stop();
}

/// A unit names a directory of its own in the environment of its server, and who asked for the status looked
/// elsewhere.
#[test]
fn who_asks_looks_where_the_server_was_told_to_have_its_socket() {
    let place = Place::new();
    let served = place.create("v");
    let mut elsewhere = place.tool_command(&["status", &place.volume("v"), "--json"]);
    let output = elsewhere.env_remove("DEDUP_RUNTIME_DIR").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    contains(&told, &[&format!("\"served_by_pid\": {}", served.pid())]);
    served.stop();
}

#[test]
fn a_flushed_write_outlives_a_kill() {
    let place = Place::new();
    let volume = place.volume("v");
    let served = place.create("v");
    served.io(&["write -P 1 64K 256K", "flush", "write -f -P 2 1M 64K"]);
    served.kill();
    assert_eq!(place.status(&volume)["logical_used"], 320 << 10, "the log is replayed for a status");
    let served = place.serve(&[&volume]);
    served.io(&["read -P 1 64K 256K", "read -P 2 1M 64K"]);
    assert_eq!(place.status(&volume)["served_by_pid"], served.pid(), "the dead server's socket is replaced");
    served.stop();
}

#[test]
fn a_whole_image_comes_back_as_it_was() {
    let place = Place::new();
    let served = place.create("v");
    // Every 4 KiB block five times, none of them zero.
    let image: Vec<u8> = (0..64u32 << 20)
        .step_by(4)
        .flat_map(|i| ((i / 5 / 4096 + 1).wrapping_mul(0x9e37_79b9) ^ (i % 4096)).to_le_bytes())
        .collect();
    let (from, to) = (place.path("from"), place.path("to"));
    fs::write(&from, &image).unwrap();
    let info = Command::new("nbdinfo").args(["--size", &served.uri]).output().expect("nbdinfo is installed");
    assert_eq!(String::from_utf8_lossy(&info.stdout).trim(), (64 << 20).to_string());
    for (a, b) in [(from.to_str().unwrap(), &*served.uri), (&*served.uri, to.to_str().unwrap())] {
        let copied = Command::new("nbdcopy").args(["--flush", a, b]).output().expect("nbdcopy is installed");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    assert!(fs::read(&to).unwrap() == image);
    let status = place.status(&place.volume("v"));
    assert_eq!(status["counters"]["writes"], 16384);
    served.stop();
}

#[test]
fn garbage_is_collected_on_request_while_serving() {
    let place = Place::new();
    let volume = place.volume("v");
    let served = place.create("v");
    served.io(&["write -P 3 0 64K", "flush"]);
    for (action, field) in [("start", "examined"), ("stop", "running"), ("estimate", "stale")] {
        let output = place.tool(&["gc", &volume, action, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        contains(&String::from_utf8_lossy(&output.stdout), &[field]);
    }
    served.stop();
}

#[test]
fn a_volume_that_cannot_write_says_so_goes_on_reading_and_recovers_what_was_durable() {
    let place = Place::new();
    let volume = place.volume("v");
    let mut served = place.create("v");
    served.io(&["write -P 1 0 1M", "flush"]);
    served.break_disks();
    // A discard needs no data write, so what fails is the log.
    assert!(
        served.try_io(&["discard 0 64K", "flush"]).is_err(),
        "a flush must not claim what it could not do"
    );
    let status = place.status(&volume);
    assert_eq!(status["mode"], "failed", "{status:#}");
    assert!(status["failure"].is_string());
    served.read(&["read -P 1 64K 960K"]);
    std::thread::sleep(Duration::from_millis(1500));
    let (exit, message) = served.end("-TERM");
    assert_eq!(exit.code(), Some(1));
    contains(&message, &["THE VOLUME HAS STOPPED TAKING WRITES", "cannot close the volume"]);
    let served = place.serve(&[&volume]);
    served.io(&["read -P 1 64K 960K"]);
    served.stop();
}

/// Each client that was turned away, before it had said who it is, made a line: 60,000 in 25 s.
#[test]
fn a_flood_of_clients_that_are_turned_away_is_no_flood_of_lines() {
    let place = Place::new();
    let mut served = place.create("v");
    let socket = place.path("v/nbd.sock");
    // More than there are places for handshakes, none of which takes long enough to make room for another.
    let clients: Vec<_> =
        (0..600).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    // All have been looked at when the last one has been hung up on.
    let mut greeting = Vec::new();
    std::io::Read::read_to_end(&mut &clients[599], &mut greeting).unwrap();
    assert!(greeting.is_empty(), "there was a place for it");
    drop(clients);
    let (exit, message) = served.end("-TERM");
    assert_eq!(exit.code(), Some(0), "{message}");
    let lines = message.lines().filter(|line| line.contains("turned away")).count();
    assert!((1..40).contains(&lines), "{lines} lines for hundreds of clients");
    contains(&message, &["more of this kind"]);
}
