//! Where a server listens: at sockets that it makes, or that a service manager has made for it.
//!
//! A Unix socket is made so that there is no moment at which anyone may connect whom its mode or owner
//! excludes: it is bound, given both, and only then listened on. Both are given to the file that was bound,
//! and to none that somebody who may write to the directory has put in its place meanwhile: mode and owner of
//! somebody else's file would be changed. A socket file that an earlier server left behind is replaced; one
//! at which a server answers, or a file that is not a socket, is not. The file is removed at the end, if it
//! is still ours.

use crate::error::ServeError;
use crate::uri::{NbdUri, UriPlace};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A place to listen at.
#[derive(Debug)]
pub enum Listen {
    /// A Unix stream socket, to be made.
    Unix(UnixSocket),
    /// A TCP port; port 0 lets the system choose one. Without TLS there is no authentication: whoever reaches
    /// it has the export.
    Tcp(SocketAddr),
    /// A listening socket that somebody else has made, and, if it is a Unix socket, will remove.
    Inherited(OwnedFd),
}

/// A Unix stream socket that a server makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Where.
    pub path: PathBuf,
    /// Permission bits (`0o600`: only the owner may connect).
    pub mode: u32,
    /// The owner's number, if it is not to be the server's own user.
    pub user: Option<u32>,
    /// The group's number, if it is not to be the server's own.
    pub group: Option<u32>,
}

impl Listen {
    /// A Unix socket of the server's own user, with these permission bits.
    pub fn unix(path: impl Into<PathBuf>, mode: u32) -> Self {
        Self::Unix(UnixSocket { path: path.into(), mode, user: None, group: None })
    }

    /// Whether it can be listened here: makes what [`ServerBuilder::serve`](crate::ServerBuilder::serve) will
    /// make, and removes it again.
    ///
    /// # Errors
    /// As those of `serve`. What somebody else has made is not looked at.
    pub fn check(&self) -> Result<(), ServeError> {
        match self {
            Self::Unix(socket) => Listener::bind_unix(socket).map(drop),
            Self::Tcp(addr) => {
                Listener::bind_tcp(*addr).map(drop).map_err(|source| ServeError::Tcp { addr: *addr, source })
            }
            Self::Inherited(_) => Ok(()),
        }
    }
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
    Unix {
        path: PathBuf,
        /// The device and inode of the file there, if we made it.
        file: Option<(u64, u64)>,
    },
    Tcp(SocketAddr),
}

impl Place {
    /// The URI of the export of this name here; with `tls`, one that insists on it.
    pub(crate) fn uri(&self, export: &str, tls: bool) -> NbdUri {
        let place = match self {
            Self::Unix { path, .. } => {
                UriPlace::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
            }
            // A wildcard is no address that one can connect to.
            Self::Tcp(addr) if addr.ip().is_unspecified() => UriPlace::Tcp("localhost".into(), addr.port()),
            Self::Tcp(SocketAddr::V6(addr)) if addr.scope_id() != 0 => {
                UriPlace::Tcp(format!("{}%{}", addr.ip(), addr.scope_id()), addr.port())
            }
            Self::Tcp(addr) => UriPlace::Tcp(addr.ip().to_string(), addr.port()),
        };
        NbdUri { tls, place, export: export.to_owned() }
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
    pub(crate) fn bind(listen: Listen) -> Result<Self, ServeError> {
        match listen {
            Listen::Unix(socket) => Self::bind_unix(&socket),
            Listen::Tcp(addr) => Self::bind_tcp(addr).map_err(|source| ServeError::Tcp { addr, source }),
            Listen::Inherited(fd) => Self::inherit(fd).map_err(ServeError::Inherited),
        }
    }

    fn inherit(fd: OwnedFd) -> io::Result<Self> {
        if !sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "nobody has called listen() on it"));
        }
        let address = rustix::net::getsockname(&fd)?;
        let place = match address.address_family() {
            AddressFamily::UNIX => {
                let address = SocketAddrUnix::try_from(address)?;
                let path = address.path_bytes().ok_or_else(|| io::Error::other("it has no path"))?;
                Place::Unix { path: OsStr::from_bytes(path).into(), file: None }
            }
            _ => Place::Tcp(address.try_into()?),
        };
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd, place })
    }

    fn bind_tcp(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let place = Place::Tcp(listener.local_addr()?);
        Ok(Self { fd: listener.into(), place })
    }

    fn bind_unix(socket: &UnixSocket) -> Result<Self, ServeError> {
        let path = &*socket.path;
        remove_stale(path)?;
        let bind = || -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
            let file =
                rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let stat = rustix::fs::fstat(&file)?;
            if !is_own_socket(&stat) {
                return Err(io::Error::other("somebody else has put a file in its place"));
            }
            let identity = (stat.st_dev, stat.st_ino);
            let listener = Self { fd, place: Place::Unix { path: path.into(), file: Some(identity) } };
            give(&file, socket)?;
            rustix::net::listen(&listener.fd, BACKLOG)?;
            Ok(listener)
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
        if let Place::Unix { path, file: Some(file) } = &self.place
            && identity(path).is_ok_and(|found| found == *file)
        {
            // If it cannot be removed, the next server finds it stale.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether it can be the socket that this process has just made.
fn is_own_socket(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && stat.st_nlink == 1
}

/// Gives a socket's file, opened as a path, its mode and owner. The owner comes last: who is not root may not
/// change what it gave away.
fn give(file: &OwnedFd, socket: &UnixSocket) -> io::Result<()> {
    // A mode cannot be set through such a descriptor itself before Linux 6.6, through its name in /proc it
    // can.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::chmod(name, Mode::from_raw_mode(socket.mode))?;
    if socket.user.is_some() || socket.group.is_some() {
        let (user, group) = (socket.user.map(Uid::from_raw), socket.group.map(Gid::from_raw));
        rustix::fs::chownat(file, "", user, group, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> Result<Listener, ServeError> {
        Listener::bind(Listen::unix(path, 0o600))
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
    fn a_check_finds_what_is_in_the_way_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| Listen::unix(dir.path().join(name), 0o600);
        place("socket").check().unwrap();
        assert!(!dir.path().join("socket").exists());
        let long = place(&"x".repeat(108)).check().unwrap_err().to_string();
        assert!(long.contains("cannot listen"), "{long}");
        let _listener = Listener::bind(place("socket")).unwrap();
        assert!(matches!(place("socket").check(), Err(ServeError::SocketInUse { .. })));
        assert!(dir.path().join("socket").exists());
        let tcp = Listener::bind(Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let taken = Listen::Tcp(tcp.place().tcp_addr().unwrap());
        assert!(matches!(taken.check(), Err(ServeError::Tcp { .. })));
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
        let _listener = Listener::bind(Listen::unix(&path, 0o640)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn the_socket_has_the_owner_asked_for_or_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let ours = UnixSocket { path: path.clone(), mode: 0o600, user: Some(user), group: Some(group) };
        drop(Listener::bind(Listen::Unix(ours)).unwrap());
        let others = UnixSocket { path: path.clone(), mode: 0o600, user: Some(12345), group: None };
        match Listener::bind(Listen::Unix(others)) {
            Ok(_listener) => assert_eq!(rustix::fs::stat(&path).unwrap().st_uid, 12345),
            // Only root may give files away.
            Err(_) => assert!(user != 0 && !path.exists()),
        }
    }

    /// A directory like /tmp: what another user's link leads to was given the mode and the owner meant for
    /// the socket.
    #[test]
    fn a_file_put_in_the_sockets_place_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (link, precious) = (dir.path().join("link"), dir.path().join("precious"));
        std::fs::write(&precious, "data").unwrap();
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        let of = |path: &Path| is_own_socket(&rustix::fs::lstat(path).unwrap());
        assert!(!of(&link) && !of(&precious));
        let socket = dir.path().join("socket");
        let _listener = unix(&socket).unwrap();
        assert!(of(&socket));
        std::fs::hard_link(&socket, dir.path().join("second name")).unwrap();
        assert!(!of(&socket), "whose second name this is, nobody knows");
    }

    #[test]
    fn an_inherited_socket_is_used_and_its_file_left_to_whoever_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let made = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let inherited = Listener::bind(Listen::Inherited(made.into())).unwrap();
        assert!(inherited.accept().unwrap().is_none(), "accepting does not wait");
        let _client = UnixStream::connect(&path).unwrap();
        assert!(inherited.accept().unwrap().is_some());
        assert!(inherited.place().uri("", false).to_string().contains("/socket"));
        drop(inherited);
        assert!(path.exists());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        let inherited = Listener::bind(Listen::Inherited(tcp.into())).unwrap();
        assert_eq!(inherited.place().tcp_addr(), Some(addr));
        let (connected, _) = UnixStream::pair().unwrap();
        let error = Listener::bind(Listen::Inherited(connected.into())).unwrap_err();
        assert!(error.to_string().contains("listen()"), "{error}");
    }

    #[test]
    fn uris_are_percent_encoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b?&ü");
        let listener = unix(&path).unwrap();
        let uri = listener.place().uri("disk 1", false).to_string();
        assert!(uri.starts_with("nbd+unix:///disk%201?socket=/"), "{uri}");
        assert!(uri.ends_with("/a%20b%3F%26%C3%BC"), "{uri}");
        let tcp = Listener::bind(Listen::Tcp("[::1]:0".parse().unwrap())).unwrap();
        let port = tcp.place().tcp_addr().unwrap().port();
        assert_eq!(tcp.place().uri("", false).to_string(), format!("nbd://[::1]:{port}/"));
        assert_eq!(tcp.place().uri("x", true).to_string(), format!("nbds://[::1]:{port}/x"));
    }
}
