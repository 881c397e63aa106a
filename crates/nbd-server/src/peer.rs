//! Who a client is, as far as it can be told: for the log, and for those that only some addresses may come
//! to.

use rustix::net::SocketAddrAny;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over TCP; an IPv4 address in IPv6's clothes is told as what it is.
    Tcp(SocketAddr),
    /// Over a Unix socket, whose permissions say who comes.
    Unix,
    /// Over TCP, and gone already.
    Unknown,
}

impl Peer {
    /// That of a connected stream.
    pub(crate) fn of(fd: &OwnedFd, tcp: bool) -> Self {
        if !tcp {
            return Self::Unix;
        }
        let address = rustix::net::getpeername(fd).ok().flatten();
        match address.map(|address: SocketAddrAny| SocketAddr::try_from(address)) {
            Some(Ok(address)) => Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port())),
            _ => Self::Unknown,
        }
    }

    /// Its address, if it has one.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix | Self::Unknown => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("a local client"),
            Self::Unknown => f.write_str("a client that is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_client_is_known_by_its_address() {
        assert_eq!(Peer::of(&UnixStream::pair().unwrap().0.into(), false), Peer::Unix);
        // IPv4 clients of a socket that listens to both.
        let listener = TcpListener::bind("[::]:0").unwrap();
        let client = TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
        let peer = Peer::of(&listener.accept().unwrap().0.into(), true);
        assert_eq!(peer, Peer::Tcp(client.local_addr().unwrap()));
        assert_eq!(peer.ip(), Some([127, 0, 0, 1].into()));
    }
}
