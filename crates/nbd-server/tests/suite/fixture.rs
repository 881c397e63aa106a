//! A server to connect to.

pub(crate) use dedup_nbd_server::test_client::*;
use dedup_nbd_server::{Export, Listen, Server, ServerBuilder, ServerHandle};
use rustls::ClientConfig;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Longer than any step of any test takes; a test that would hang fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a Unix socket of its own.
pub(crate) struct Fixture {
    pub(crate) server: ServerHandle,
    pub(crate) path: PathBuf,
    pub(crate) dir: TempDir,
}

pub(crate) fn serve(export: impl Export + 'static) -> Fixture {
    serve_with(|builder| builder.export("disk", "a disk", Arc::new(export)))
}

pub(crate) fn serve_with(configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let builder = Server::builder().listen(Listen::unix(path.clone(), 0o600));
    Fixture { server: configure(builder).serve().unwrap(), path, dir }
}

impl Fixture {
    /// A connection on which nothing has been said.
    pub(crate) fn connect(&self) -> Client<UnixStream> {
        Client::dial(&self.path, PATIENCE).unwrap()
    }

    /// A connection that has become encrypted.
    pub(crate) fn encrypted(&self, config: &Arc<ClientConfig>) -> Client<TlsStream> {
        self.greeted().start_tls(config)
    }

    /// A connection past the greeting.
    pub(crate) fn greeted(&self) -> Client<UnixStream> {
        let mut client = self.connect();
        client.greet(3);
        client
    }

    /// A connection in transmission, with simple replies.
    pub(crate) fn simple(&self) -> Client<UnixStream> {
        let mut client = self.greeted();
        client.go(b"disk", &[]);
        client
    }

    /// A connection in transmission, with structured replies.
    pub(crate) fn structured(&self) -> Client<UnixStream> {
        self.with_contexts(8, &[])
    }

    /// A connection in transmission, with extended headers.
    pub(crate) fn extended(&self) -> Client<UnixStream> {
        self.with_contexts(11, &[])
    }

    /// A connection in transmission after this option, with these metadata contexts, whose numbers are 1, 2
    /// and so on.
    pub(crate) fn with_contexts(&self, option: u32, contexts: &[&str]) -> Client<UnixStream> {
        let mut client = self.greeted();
        client.send_option(option, b"");
        assert_eq!(client.option_reply(option), (1, vec![]));
        if !contexts.is_empty() {
            assert_eq!(client.select(b"disk", contexts).len(), contexts.len());
        }
        client.go(b"disk", &[]);
        client
    }
}
