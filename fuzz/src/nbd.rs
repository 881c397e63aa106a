//! An NBD server in this process that serves nothing but zeros, and one connection to it for each input.
//!
//! The server is the whole of it: its threads, its sockets, its limits. A panic in any of its threads ends the process, which is
//! what the fuzzer looks for; a reply that does not come within [`PATIENCE`] is a panic here.

use dedup_nbd_server::{Listen, NullExport, Server, ServerHandle};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of the export: so few that no read of it costs time.
pub const EXPORT_SIZE: u64 = 1 << 20;
/// The export's name.
pub const EXPORT_NAME: &str = "disk";
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a client says first: fixed newstyle, no zeroes.
pub const CLIENT_FLAGS: [u8; 4] = [0, 0, 0, 3];

struct Fixture {
    _server: ServerHandle,
    path: PathBuf,
    _dir: TempDir,
}

static SERVER: LazyLock<Fixture> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("socket");
    let server = Server::builder()
        .export(EXPORT_NAME, "zeros", Arc::new(NullExport::new(EXPORT_SIZE)))
        .listen(Listen::unix(path.clone(), 0o600))
        .serve()
        .expect("a server");
    Fixture { _server: server, path, _dir: dir }
});

/// Sends `bytes` on a connection of their own, says that nothing more comes, and returns everything that the server answered.
pub fn exchange(bytes: &[u8]) -> Vec<u8> {
    let stream = UnixStream::connect(&SERVER.path).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answer = Vec::new();
    thread::scope(|scope| {
        // Beside, since a server whose answers nobody reads stops reading.
        scope.spawn(|| {
            let sent = (&stream).write_all(bytes);
            assert!(
                !sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "the server stopped reading"
            );
            let _ = stream.shutdown(Shutdown::Write);
        });
        let read = (&stream).read_to_end(&mut answer);
        assert!(
            !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "the server did not hang up"
        );
    });
    answer
}

/// An option of the handshake.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of the options INFO and GO.
pub fn go_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// The data of the options that list and select metadata contexts.
pub fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// The header of an extended request.
pub fn extended_request(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The header of a request.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}
