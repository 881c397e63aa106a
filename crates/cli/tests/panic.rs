//! What is left of a log when its process panics: in a process of its own, which is this program once more.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_cli::{Level, LogArgs};
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// In the environment of the process that is to panic.
const ASKED: &str = "DEDUP_TEST_PANICS";

/// Logs, and ends as a server does in which a thread panics.
#[test]
fn panics_if_asked() {
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let _log = LogArgs::default().start(Level::DEBUG);
    // More than a pipe holds, and fewer than the queue in front of it has room for, even if its thread does
    // not run meanwhile.
    (0..900).for_each(|i| tracing::debug!("step {i:0200}"));
    tracing::error!("what led to it");
    let _ = thread::Builder::new().name("worker".into()).spawn(|| panic!("on purpose")).unwrap().join();
    std::process::exit(3);
}

fn panicking(stderr: Stdio) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "panics_if_asked", "--nocapture"]).env(ASKED, "yes").env("RUST_BACKTRACE", "0");
    command.env_remove("RUST_LOG").stdout(Stdio::null()).stderr(stderr);
    command
}

/// The last lines before a panic, which matter most, were lost with the process.
#[test]
fn a_panic_is_told_behind_the_lines_that_led_to_it() {
    let child = panicking(Stdio::piped()).spawn().unwrap();
    // Who reads takes his time.
    thread::sleep(Duration::from_millis(200));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let log = String::from_utf8(output.stderr).unwrap();
    let (before, panic) = log.split_once("thread worker: panicked at ").unwrap_or_else(|| panic!("{log}"));
    assert!(before.ends_with("ERROR what led to it\n"), "{log}");
    assert!(panic.contains("panic.rs:") && panic.contains("on purpose"), "{log}");
}

/// The library writes it itself, and waits until it can: the process would hang in place of ending.
#[test]
fn a_panic_whose_message_nobody_reads_ends_all_the_same() {
    let (mut unread, full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while rustix::io::write(&full, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let begin = Instant::now();
    let mut child = panicking(full.into()).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    unread.read_exact(&mut [0; 4096]).unwrap();
}
