//! An NBD server in this process that serves nothing but zeros, and one connection to it for each input.
//!
//! The server is the whole of it: its threads, its sockets, its limits. A panic in any of its threads ends
//! the process, which is what the fuzzer looks for; a reply that does not come within [`PATIENCE`] is a panic
//! here.

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

/// Sends `bytes` on a connection of their own, says that nothing more comes, and returns everything that the
/// server answered.
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
