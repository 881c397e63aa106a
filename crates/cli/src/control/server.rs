//! The answering side: a thread that takes connections, and one for each of them.

use super::clients::{Client, Clients};
use super::{
    ControlClient, ControlError, DeviceId, Hello, PROTOCOL, Request, Response, directory, io_error, line,
};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a client may take for its request, and to take its answer. Requests are short and typed by no
/// one.
const PEER_TIME: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors), so that it does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers [`Request`]s about a volume until it is dropped; then its socket is removed.
#[derive(Debug)]
pub struct ControlServer {
    socket: PathBuf,
    listener: Arc<UnixListener>,
    clients: Arc<Clients>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Begins to answer for the volume on `device`, which this process has locked. The handler runs on a
    /// thread for each request, several at once; if it panics, the client gets an error and the server goes
    /// on.
    pub fn start(
        device: DeviceId,
        handler: impl Fn(Request) -> Response + Send + Sync + 'static,
    ) -> Result<Self, ControlError> {
        Self::start_in(&directory::create()?, device, handler)
    }

    /// [`start`](Self::start) with the socket in `directory`, which the caller vouches for.
    pub fn start_in(
        directory: &Path,
        device: DeviceId,
        handler: impl Fn(Request) -> Response + Send + Sync + 'static,
    ) -> Result<Self, ControlError> {
        let socket = directory.join(device.socket_name());
        remove_stale(&socket, &device)?;
        let listener = Arc::new(UnixListener::bind(&socket).map_err(io_error("create socket", &socket))?);
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&socket, owner_only).map_err(io_error("restrict socket", &socket))?;
        let mut server = Self { socket, listener, clients: Arc::default(), thread: None };
        let hello = Hello { protocol: PROTOCOL, device, pid: std::process::id() };
        let (listener, clients) = (server.listener.clone(), server.clients.clone());
        let socket = server.socket.clone();
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                accept_loop(&listener, &clients, &|client| answer(client, &socket, &hello, &handler))
            })
            .map_err(io_error("start a thread for", &server.socket))?;
        server.thread = Some(thread);
        Ok(server)
    }

    /// Where the socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for ControlServer {
    /// Waits for the requests being answered, if there are any.
    fn drop(&mut self) {
        self.clients.end();
        // Wakes the accept; a connection to oneself would not, if someone has removed the socket.
        let woken = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both).is_ok();
        if let Some(thread) = self.thread.take()
            && woken
        {
            // The loop does not panic, and a drop could not tell anyone.
            let _ = thread.join();
        }
        // It may be gone already.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Returns when the last client has gone.
fn accept_loop(listener: &UnixListener, clients: &Clients, answer: &(impl Fn(&Client<'_>) + Sync)) {
    thread::scope(|scope| {
        while !clients.are_over() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let Some(client) = clients.enter(stream) else { return };
                    let thread = thread::Builder::new().name("control-client".to_owned());
                    // One for whom there is no thread is hung up on, and may try again.
                    let _ = thread.spawn_scoped(scope, move || answer(&client));
                }
                Err(_) if clients.are_over() => return,
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    });
}

/// One connection. A peer that does not keep to the protocol is told so if it listens, and forgotten.
fn answer(client: &Client<'_>, socket: &Path, hello: &Hello, handler: &dyn Fn(Request) -> Response) {
    let stream = &*client.stream;
    if !allowed(stream) || line::send(stream, socket, hello, PEER_TIME).is_err() {
        return;
    }
    let request = line::receive(stream, socket, "a request", PEER_TIME);
    client.has_asked();
    let response = match request {
        Ok(request) => catch_unwind(AssertUnwindSafe(|| handler(request)))
            .unwrap_or_else(|_| Response::Error("internal error; see the server's log".to_owned())),
        Err(error) => Response::Error(error.to_string()),
    };
    if let Err(ControlError::Protocol { found, .. }) = line::send(stream, socket, &response, PEER_TIME) {
        let _ = line::send(
            stream,
            socket,
            &Response::Error(format!("the answer is too long: {found}")),
            PEER_TIME,
        );
    }
}

/// Whether the peer is the same user or root. The socket's mode says so too, but not between its making and
/// the change of mode.
fn allowed(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid.as_raw() == directory::user())
}

/// Removes the socket that a dead process left. The device's lock keeps a second server from doing so at the
/// same time.
fn remove_stale(socket: &Path, device: &DeviceId) -> Result<(), ControlError> {
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("look at", socket)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let error = std::io::Error::other("expected a socket or nothing, found another file");
            return Err(io_error("replace", socket)(error));
        }
        Ok(_) => {}
    }
    match ControlClient::connect_to(socket, device) {
        Ok(client) => Err(ControlError::Running { device: device.clone(), pid: client.pid() }),
        Err(ControlError::Io { operation: "connect to", source, .. })
            if source.kind() == ErrorKind::ConnectionRefused =>
        {
            fs::remove_file(socket).map_err(io_error("remove stale socket", socket))
        }
        Err(error) => Err(error),
    }
}
