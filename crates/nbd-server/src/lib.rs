//! An NBD server: block devices for anything that speaks the Network Block Device protocol (Linux's `nbd`
//! driver, QEMU, libnbd, fio), over Unix sockets and TCP.
//!
//! Three types make it up. An [`Export`] is what is served; a [`Server`] is configured with exports and
//! places to [`Listen`] at; a [`ServerHandle`] is a server that runs.
//!
//! ```
//! use dedup_nbd_server::{Listen, NullExport, Server};
//! use std::{sync::Arc, time::Duration};
//!
//! let server = Server::builder()
//!     .export("scratch", "one GiB of zeros", Arc::new(NullExport::new(1 << 30)))
//!     .listen(Listen::Tcp("127.0.0.1:0".parse()?))
//!     .serve()?;
//! println!("qemu-img info {}", server.uri());
//! server.shutdown(Duration::from_secs(5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it works
//!
//! ```text
//!  listen -> server (accept) -> handshake -> connection: receive -> command (check) -> Export::execute -> reply
//! ```
//!
//! The unit of work is a *batch*: whatever a client has in flight is received by one system call, handed to
//! the export by one call, and answered by one system call. A connection's threads take turns, so that
//! batches overlap; it begins with one thread and gets more as requests have to wait.
//!
//! # What it speaks
//!
//! Fixed newstyle handshake with `NBD_OPT_GO`, `INFO`, `LIST`, `EXPORT_NAME`, `ABORT`, `STRUCTURED_REPLY`,
//! `LIST_META_CONTEXT`, `SET_META_CONTEXT` and `EXTENDED_HEADERS`, `STARTTLS`; commands READ, WRITE, FLUSH,
//! TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS and DISC, with all their flags. Requests need no alignment; READ
//! and WRITE take up to 32 MiB, the others as much as fits their length field. One export may be used over
//! several connections. TLS, with certificates that clients must show if so configured, is one way to say who
//! may connect; a Unix socket's permissions are another.
//!
//! # What holds
//!
//! - Nothing a client sends can panic the server, or make it hold more than about 96 MiB of that client's
//!   payload, or more than a budget for all clients together.
//! - A client that is slow, silent or gone costs its own connection only; an idle one costs no CPU.
//! - Nothing of a connection that has ended is begun: a client that comes back is not overtaken by itself.
//! - Replies may overtake each other; a reply to FLUSH or FUA is sent only after the export has reported it
//!   done.

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod baton;
mod budget;
mod buffer;
mod builder;
mod command;
mod connection;
mod contexts;
mod error;
mod export;
mod handshake;
mod limits;
mod listen;
mod peer;
mod places;
mod presence;
mod protocol;
mod receive;
mod reply;
mod server;
mod socket;
mod stats;
#[cfg(feature = "test-client")]
pub mod test_client;
mod tls;
mod transport;
mod turns;
mod uri;

pub use builder::{PAYLOAD_MEMORY_MIN, Server, ServerBuilder, check_exports};
pub use command::PAYLOAD_LEN_MAX;
pub use error::ServeError;
pub use export::{BASE_ALLOCATION, Export, Extent, NullExport, STATE_HOLE, STATE_ZERO};
pub use ipnet::IpNet;
pub use listen::{Listen, UnixSocket};
pub use server::ServerHandle;
pub use stats::Stats;
pub use tls::{ClientCertificates, TlsConfig, TlsError};
pub use uri::{DEFAULT_PORT, NbdUri, UriError, UriPlace};
