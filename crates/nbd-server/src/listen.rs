//! Where a server listens, and the URI under which clients find it.
//!
//! A Unix socket is made so that there is no moment at which anyone may connect whom its mode excludes: it is bound,
//! given its mode, and only then listened on. A socket file that an earlier server left behind is replaced; one at
//! which a server answers, or a file that is not a socket, is not. The file is removed at the end, if it is still ours.

use crate::error::ServeError;
use rustix::fs::{FileType, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix stream socket at this path, with these permission bits (`0o600`: only the server's own user).
    Unix(PathBuf, u32),
    /// A TCP port; port 0 lets the system choose one. There is no authentication: whoever reaches it has the export.
    Tcp(SocketAddr),
}

/// A socket being listened on.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    place: Place,
}

/// Where a [`Listener`] really listens: with the port that the system chose.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The path, and the device and inode of the file that we made there.
    Unix {
        path: PathBuf,
        file: (u64, u64),
    },
    Tcp(SocketAddr),
}

impl Place {
    /// The URI of the export of this name here, as the NBD URI specification has it; with `tls`, one that insists on it.
    pub(crate) fn uri(&self, export: &str, tls: bool) -> String {
        let scheme = if tls { "nbds" } else { "nbd" };
        let export = percent_encode(export.as_bytes());
        match self {
            Self::Unix { path, .. } => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("{scheme}+unix:///{export}?socket={}", percent_encode(path.as_os_str().as_bytes()))
            }
            // A wildcard is no address that one can connect to.
            Self::Tcp(addr) if addr.ip().is_unspecified() => {
                format!("{scheme}://localhost:{}/{export}", addr.port())
            }
            // A zone index (`fe80::1%2`) needs its percent sign encoded.
            Self::Tcp(addr) => format!("{scheme}://{}/{export}", addr.to_string().replace('%', "%25")),
        }
    }

    /// The address, if it is TCP.
    pub(crate) fn tcp_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) => Some(*addr),
            Self::Unix { .. } => None,
        }
    }
}

/// Connections that may wait to be accepted: what Linux allows by default (`net.core.somaxconn` before 5.4).
const BACKLOG: i32 = 128;

impl Listener {
    /// Starts listening.
    pub(crate) fn bind(listen: &Listen) -> Result<Self, ServeError> {
        match listen {
            Listen::Unix(path, mode) => Self::bind_unix(path, *mode),
            Listen::Tcp(addr) => {
                Self::bind_tcp(*addr).map_err(|source| ServeError::Tcp { addr: *addr, source })
            }
        }
    }

    fn bind_tcp(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let place = Place::Tcp(listener.local_addr()?);
        Ok(Self { fd: listener.into(), place })
    }

    fn bind_unix(path: &Path, mode: u32) -> Result<Self, ServeError> {
        remove_stale(path)?;
        let bind = || -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
            rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
            rustix::net::listen(&fd, BACKLOG)?;
            Ok(Self { fd, place: Place::Unix { path: path.into(), file: identity(path)? } })
        };
        bind().map_err(|source| ServeError::Unix { path: path.into(), source })
    }

    /// The next waiting connection; `None` if there is none.
    pub(crate) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Where it listens.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Unix { path, file } = &self.place
            && identity(path).is_ok_and(|found| found == *file)
        {
            // If it cannot be removed, the next server finds it stale.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::lstat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes a socket file at which nobody listens.
fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Unix { path: path.into(), source };
    match rustix::fs::lstat(path) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(ServeError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::SocketInUse { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        // A full backlog, or no permission: somebody is, or may be, there.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ServeError::SocketInUse { path: path.into() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Keeps what RFC 3986 calls unreserved, and the slash, which is legal in paths and queries.
fn percent_encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> Result<Listener, ServeError> {
        Listener::bind(&Listen::Unix(path.into(), 0o600))
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = unix(&path).unwrap();
        assert!(matches!(unix(&path), Err(ServeError::SocketInUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(unix(&path), Err(ServeError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_socket_file_that_another_server_has_replaced_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let ours = unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn the_socket_has_the_mode_asked_for() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = Listener::bind(&Listen::Unix(path.clone(), 0o640)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn uris_are_percent_encoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b?&ü");
        let listener = unix(&path).unwrap();
        let uri = listener.place().uri("disk 1", false);
        assert!(uri.starts_with("nbd+unix:///disk%201?socket=/"), "{uri}");
        assert!(uri.ends_with("/a%20b%3F%26%C3%BC"), "{uri}");
        let tcp = Listener::bind(&Listen::Tcp("[::1]:0".parse().unwrap())).unwrap();
        let port = tcp.place().tcp_addr().unwrap().port();
        assert_eq!(tcp.place().uri("", false), format!("nbd://[::1]:{port}/"));
        assert_eq!(tcp.place().uri("x", true), format!("nbds://[::1]:{port}/x"));
    }
}
