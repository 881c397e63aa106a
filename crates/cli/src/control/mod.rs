//! Talking to the process that has a volume open: a line of JSON each way over a Unix socket.
//!
//! The devices of an open volume are locked, so `dedup-tool status` cannot read them; it asks their owner
//! instead. A connection is one question and one answer:
//!
//! ```text
//!   server -> client   {"protocol":2,"device":"file-8-1-4711","pid":815}     hello
//!   client -> server   {"command":"status"}                                  request
//!   server -> client   {"ok":{...}}  or  {"error":"..."}                     response; the server closes
//! ```
//!
//! The socket is named after the data device ([`DeviceId`]), in the first of these directories that the
//! server's user can use:
//!
//! 1. `$DEDUP_RUNTIME_DIR`, if that is set, and then no other;
//! 2. `/run/dedup`, where root makes it;
//! 3. `$XDG_RUNTIME_DIR/dedup`;
//! 4. `/tmp/dedup-<uid>`.
//!
//! Invariants: the directory belongs to the server's user and nobody else can write to it, so nobody can put
//! another socket in its place; the server answers only the same user and root, and root asks those of other
//! users too. A line is at most [`LINE_BYTES_MAX`], and no peer can keep the other waiting for longer than
//! the times stated in [`ControlServer`] and [`ControlClient`].
//!
//! Not here: what the answers mean; that two processes never have one volume open for writing (the devices'
//! locks).

mod client;
mod clients;
mod device;
mod directory;
mod line;
mod server;

pub use client::ControlClient;
pub use device::DeviceId;
pub use directory::create as runtime_directory;
pub use server::ControlServer;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io;
use std::path::PathBuf;

/// Version of the protocol, in the hello.
pub const PROTOCOL: u32 = 2;
/// Bytes in a line, its end included. A status is about 2 KiB.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Parameters, sizes and counters.
    Status,
    /// Garbage collection.
    Gc {
        /// What to do about it.
        action: GcAction,
    },
}

/// What to do about garbage collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GcAction {
    /// Begin, or say that it runs already.
    Start,
    /// End it early.
    Stop,
    /// Say what it would free.
    Estimate,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Done; the value depends on the request.
    Ok(Value),
    /// Not done, and why.
    Error(String),
}

/// The server's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    device: DeviceId,
    pid: u32,
}

/// Why there is no server, or no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody has the volume open, as far as this user can see.
    #[error(
        "no process serves the data device {device} (looked in {looked_in}); is its server running, and run by this user?"
    )]
    NotRunning {
        /// The data device.
        device: DeviceId,
        /// The directories.
        looked_in: String,
    },
    /// A server for this device is there already.
    #[error("the data device {device} is already served by process {pid}")]
    Running {
        /// The data device.
        device: DeviceId,
        /// The server.
        pid: u32,
    },
    /// A directory for sockets is not safe to use.
    #[error("{}: expected a directory of user {uid} that nobody else can write to, found {found}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The user that it should belong to.
        uid: u32,
        /// What is there.
        found: String,
    },
    /// The system refused something.
    #[error("{operation} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which socket or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The peer said something that is not of this protocol.
    #[error("control protocol: expected {expected}, found {found}")]
    Protocol {
        /// What should have come.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// The server answered that it did not do what was asked.
    #[error("{0}")]
    Refused(String),
}

fn io_error(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> ControlError {
    let path = path.to_owned();
    move |source| ControlError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_responses_have_the_documented_text() {
        let cases = [
            (Request::Status, r#"{"command":"status"}"#),
            (Request::Gc { action: GcAction::Start }, r#"{"command":"gc","action":"start"}"#),
            (Request::Gc { action: GcAction::Stop }, r#"{"command":"gc","action":"stop"}"#),
            (Request::Gc { action: GcAction::Estimate }, r#"{"command":"gc","action":"estimate"}"#),
        ];
        for (request, text) in cases {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        assert_eq!(serde_json::to_string(&Response::Ok(7.into())).unwrap(), r#"{"ok":7}"#);
        assert_eq!(serde_json::to_string(&Response::Error("no".into())).unwrap(), r#"{"error":"no"}"#);
    }
}
