//! Configuring a server: what it serves, where, and within which limits.

use crate::error::ServeError;
use crate::export::Export;
use crate::handshake::{Exports, Named};
use crate::limits::Limits;
use crate::listen::{Listen, Listener};
use crate::presence::Entries;
use crate::protocol::STRING_LEN_MAX;
use crate::server::{FAR_AWAY, ServerHandle};
use crate::tls::TlsConfig;
use ipnet::IpNet;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// The least memory for payloads that makes sense, in bytes: two of the largest requests, and as much beside
/// them.
pub const PAYLOAD_MEMORY_MIN: u64 = 128 << 20;
/// Memory for payloads, unless configured: ten clients that are busy with large requests.
const PAYLOAD_MEMORY: usize = 1 << 30;
/// How long a client may move nothing although others wait for its memory, unless configured: longer than
/// networks pause.
const STALL_TIME: Duration = Duration::from_secs(5);

/// Connections served at once, unless configured: a rack's worth of virtual machines with several connections
/// each. An idle one costs about 30 KiB and a sleeping thread, if it has not been busy just before: see
/// [`ServerBuilder::idle_time`].
const CONNECTIONS_MAX: usize = 1024;
/// Threads a connection may come to have, unless configured: one receives while others work, or wait for a
/// device.
const THREADS_PER_CONNECTION: usize = 8;
/// Time for a handshake, unless configured: generous for a few round trips across the world.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for which an idle connection keeps what it has, unless configured: longer than the pauses of a client
/// at work.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// An NBD server; see [`Server::builder`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A server that serves nothing yet.
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            exports: Exports::default(),
            listen: Vec::new(),
            limits: Limits {
                connections_max: CONNECTIONS_MAX,
                connections_per_address_max: CONNECTIONS_MAX / 4,
                payload_memory: PAYLOAD_MEMORY,
                stall_time: STALL_TIME,
                idle_limit: None,
                threads_per_connection: THREADS_PER_CONNECTION,
                handshake_timeout: HANDSHAKE_TIMEOUT,
                idle_time: IDLE_TIME,
            },
        }
    }
}

/// A server being configured.
#[must_use = "it serves nothing before `serve`"]
pub struct ServerBuilder {
    exports: Exports,
    listen: Vec<Listen>,
    limits: Limits,
}

impl ServerBuilder {
    /// Adds an export. Clients that name none get the one named `""`, else the
    /// [default](Self::default_export), else the only one. The description is for people and may be empty.
    pub fn export(
        mut self,
        name: impl Into<String>,
        description: impl Into<String>,
        export: Arc<dyn Export>,
    ) -> Self {
        self.exports.list.push(Named {
            name: name.into(),
            description: description.into(),
            export,
            entries: Entries::default(),
        });
        self
    }

    /// Which export clients get that name none.
    pub fn default_export(mut self, name: impl Into<String>) -> Self {
        self.exports.default = Some(name.into());
        self
    }

    /// Offers TLS, and with `required` serves nobody without it.
    pub fn tls(mut self, config: TlsConfig, required: bool) -> Self {
        self.exports.tls = Some(config);
        self.exports.tls_required = required;
        self
    }

    /// Serves clients over TCP only if they come from this network, or from others that are allowed; they are
    /// closed before a byte is sent otherwise. Unix sockets have permissions.
    pub fn allow(mut self, network: IpNet) -> Self {
        self.exports.allowed.push(network);
        self
    }

    /// Adds a place to listen at.
    pub fn listen(mut self, listen: Listen) -> Self {
        self.listen.push(listen);
        self
    }

    /// Connections served at once (1024 by default); beyond them a client is turned away at once. Those that
    /// have not finished the handshake do not count: for them there are places apart.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.limits.connections_max = connections;
        self
    }

    /// Those of one IPv4 address, or IPv6 network of 64 bits (256 by default). Unix sockets have no
    /// addresses.
    pub fn connections_per_address_max(mut self, connections: usize) -> Self {
        self.limits.connections_per_address_max = connections;
        self
    }

    /// Ends a connection on which the client sends nothing, and waits for nothing, for about so long, or
    /// stops in the middle of a request (by default never).
    pub fn idle_limit(mut self, time: Option<Duration>) -> Self {
        self.limits.idle_limit = time.map(within_bounds);
        self
    }

    /// Bytes for what clients send and read, all connections together (1 GiB by default, at least
    /// [`PAYLOAD_MEMORY_MIN`]), beyond what each connection takes for requests of up to 256 KiB. Requests
    /// wait when it is used up.
    pub fn payload_memory(mut self, bytes: usize) -> Self {
        self.limits.payload_memory = bytes.max(PAYLOAD_MEMORY_MIN as usize);
        self
    }

    /// How long a client may take no replies, or stop in the middle of a request, while others wait for the
    /// memory that it holds (5 s by default); then its connection is ended.
    pub fn stall_time(mut self, time: Duration) -> Self {
        self.limits.stall_time = within_bounds(time);
        self
    }

    /// Threads that serve one connection at most (8 by default, at least 1). It begins with one.
    pub fn threads_per_connection(mut self, threads: usize) -> Self {
        self.limits.threads_per_connection = threads.max(1);
        self
    }

    /// How long a client may take to choose an export (10 s by default).
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.limits.handshake_timeout = within_bounds(timeout);
        self
    }

    /// How long a connection without requests keeps the threads and the memory it came to have (10 s by
    /// default; at least 1 ms).
    ///
    /// A thread keeps up to 12 MiB between batches: 4 MiB for what it receives, 8 MiB for what it reads. With
    /// 8 threads, two of which may be at a request of up to 32 MiB, a busy connection takes up to 152 MiB.
    /// Some three times this long after the last reply, one thread and about 30 KiB are left (with TLS, 128
    /// KiB more); the rest has gone back to the allocator. A client that stops in the middle of a request is
    /// not idle.
    pub fn idle_time(mut self, time: Duration) -> Self {
        self.limits.idle_time = within_bounds(time);
        self
    }

    /// Listens, and serves from then on in threads of its own.
    ///
    /// # Errors
    /// If the configuration contradicts itself, or a place cannot be listened at; then nothing is left
    /// behind.
    pub fn serve(self) -> Result<ServerHandle, ServeError> {
        self.check()?;
        let listeners = self.listen.into_iter().map(Listener::bind).collect::<Result<Vec<_>, _>>()?;
        ServerHandle::start(self.exports, listeners, self.limits).map_err(ServeError::Start)
    }

    fn check(&self) -> Result<(), ServeError> {
        if self.listen.is_empty() {
            return Err(ServeError::NoListener);
        }
        check_exports(self.exports.list.iter().map(|named| (&*named.name, &*named.description)))?;
        match &self.exports.default {
            Some(name) if !self.exports.list.iter().any(|named| named.name == *name) => {
                Err(ServeError::UnknownDefault { name: name.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// What the system takes for a timeout: not zero, which would be none, and no more than a year.
fn within_bounds(time: Duration) -> Duration {
    time.clamp(Duration::from_millis(1), FAR_AWAY)
}

/// Whether exports with these names and descriptions can be served side by side.
///
/// # Errors
/// As those of [`ServerBuilder::serve`], for whoever wants to know before there is anything to serve.
pub fn check_exports<'n>(exports: impl IntoIterator<Item = (&'n str, &'n str)>) -> Result<(), ServeError> {
    let mut names = HashSet::new();
    for (name, description) in exports {
        for (what, text) in [("name", name), ("description", description)] {
            if text.len() > STRING_LEN_MAX {
                return Err(ServeError::StringTooLong { what, max: STRING_LEN_MAX, found: text.len() });
            }
        }
        if !names.insert(name) {
            return Err(ServeError::DuplicateExport { name: name.to_owned() });
        }
    }
    Ok(())
}
