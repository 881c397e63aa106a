//! The asking side.

use super::{ControlError, DeviceId, Hello, PROTOCOL, Request, Response, directory, io_error, line};
use serde_json::Value;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the server may take to say hello: as long as a machine that is short of memory takes to wake a
/// thread.
const HELLO_TIME: Duration = Duration::from_secs(60);
/// How long it may take to answer: an estimate of garbage reads a good part of the metadata.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// A connection to the process that has a volume open, for one request.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    path: PathBuf,
    pid: u32,
}

impl ControlClient {
    /// Connects to the server of the volume whose data device is at `data`, run by this user or, if this is
    /// root, by any.
    pub fn connect(data: &Path) -> Result<Self, ControlError> {
        let device = DeviceId::of(data).map_err(io_error("look at", data))?;
        let directories = directory::to_look_in(data);
        for (directory, owner) in &directories {
            let socket = directory.join(device.socket_name());
            if !socket.exists() {
                continue;
            }
            let owner = directory::check(directory, *owner)?;
            match Self::connect_to(&socket, &device).and_then(|client| client.run_by(owner)) {
                // A socket whose process died.
                Err(ControlError::Io { source, .. }) if source.kind() == ErrorKind::ConnectionRefused => {}
                result => return result,
            }
        }
        let looked_in =
            directories.iter().map(|(dir, _)| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(ControlError::NotRunning { device, looked_in })
    }

    /// Connects to the server behind `socket`, which must be that of `device`.
    pub fn connect_to(socket: &Path, device: &DeviceId) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(socket).map_err(io_error("connect to", socket))?;
        let hello: Hello = line::receive(&stream, socket, "a server's hello", HELLO_TIME)?;
        if hello.protocol != PROTOCOL {
            let found = format!("version {}: client and server are of different releases", hello.protocol);
            return Err(ControlError::Protocol { expected: "version 2", found });
        }
        if hello.device != *device {
            let found = format!("that of {}", hello.device);
            return Err(ControlError::Protocol { expected: "the server of the device asked for", found });
        }
        Ok(Self { stream, path: socket.to_owned(), pid: hello.pid })
    }

    /// The client, if its server is a process of user `owner` or of root.
    fn run_by(self, owner: u32) -> Result<Self, ControlError> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream);
        let peer = peer.map_err(|error| io_error("ask for the owner of", &self.path)(error.into()))?.uid;
        if peer.is_root() || peer.as_raw() == owner {
            return Ok(self);
        }
        let found = format!("one of user {peer}");
        Err(ControlError::Protocol {
            expected: "a server of the user whose directory the socket is in",
            found,
        })
    }

    /// The process that has the volume open.
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
