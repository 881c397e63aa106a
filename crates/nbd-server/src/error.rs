//! Why a server could not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What [`ServerBuilder::serve`](crate::ServerBuilder::serve) can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No [`Listen`](crate::Listen) was given.
    #[error("nowhere to listen: give a Unix socket path or a TCP address")]
    NoListener,
    /// Two exports have the same name.
    #[error("two exports are named {name:?}")]
    DuplicateExport {
        /// That name.
        name: String,
    },
    /// A name or description is longer than a protocol string may be.
    #[error("export {what} of {found} bytes, but the protocol allows {max}")]
    StringTooLong {
        /// "name" or "description".
        what: &'static str,
        /// Bytes allowed.
        max: usize,
        /// Bytes found.
        found: usize,
    },
    /// The default export is none of the exports.
    #[error("the default export {name:?} does not exist")]
    UnknownDefault {
        /// The name given.
        name: String,
    },
    /// Another process listens at the socket's path.
    #[error("{} is in use: another server listens there", path.display())]
    SocketInUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not a socket stands at the socket's path; it is left alone.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The Unix socket could not be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The TCP socket could not be made.
    #[error("cannot listen on {addr}: {source}")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// What was handed over as a listening socket is none.
    #[error("cannot listen on the socket handed over: {0}")]
    Inherited(#[source] io::Error),
    /// A thread or the pipe that ends it could not be made.
    #[error("cannot start the server: {0}")]
    Start(#[source] io::Error),
}
