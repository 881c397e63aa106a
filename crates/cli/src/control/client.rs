//! The asking side.

use super::{ControlError, Hello, PROTOCOL, Request, Response, directory, io_error, line, socket_name};
use serde_json::Value;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// How long the server may take to say hello: it answers one client after the other.
const HELLO_TIME: Duration = Duration::from_secs(60);
/// How long it may take to answer: an estimate of garbage reads a good part of the metadata.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// A connection to the process that has a pool open, for one request.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    path: PathBuf,
    pid: u32,
}

impl ControlClient {
    /// Connects to the server of pool `pool`, run by this user.
    pub fn connect(pool: Uuid) -> Result<Self, ControlError> {
        let directories = directory::candidates();
        for directory in &directories {
            let socket = directory.join(socket_name(pool));
            if !socket.exists() {
                continue;
            }
            directory::check(directory, directory::user())?;
            match Self::connect_to(&socket, pool) {
                // A socket whose process died.
                Err(ControlError::Io { source, .. }) if source.kind() == ErrorKind::ConnectionRefused => {}
                result => return result,
            }
        }
        let looked_in =
            directories.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(ControlError::NotRunning { pool, looked_in })
    }

    /// Connects to the server behind `socket`, which must be that of pool `pool`.
    pub fn connect_to(socket: &Path, pool: Uuid) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(socket).map_err(io_error("connect to", socket))?;
        let hello: Hello = line::receive(&stream, socket, "a server's hello", HELLO_TIME)?;
        if hello.protocol != PROTOCOL {
            let found = format!("version {}: client and server are of different releases", hello.protocol);
            return Err(ControlError::Protocol { expected: "version 1", found });
        }
        if hello.pool != pool {
            let found = format!("pool {}", hello.pool);
            return Err(ControlError::Protocol { expected: "the server of the pool asked for", found });
        }
        Ok(Self { stream, path: socket.to_owned(), pid: hello.pid })
    }

    /// The process that has the pool open.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks, and waits for the answer.
    pub fn request(self, request: &Request) -> Result<Value, ControlError> {
        line::send(&self.stream, &self.path, request, HELLO_TIME)?;
        match line::receive(&self.stream, &self.path, "a response", ANSWER_TIME)? {
            Response::Ok(value) => Ok(value),
            Response::Error(reason) => Err(ControlError::Refused(reason)),
        }
    }
}
