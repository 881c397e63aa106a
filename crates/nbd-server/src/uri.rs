//! NBD URIs: where a server is and which export is meant, as the protocol's `doc/uri.md` writes it.
//!
//! ```text
//!  nbd://HOST[:PORT]/EXPORT            nbds://...       over TCP; nbds insists on TLS
//!  nbd+unix:///EXPORT?socket=PATH      nbds+unix://...  over a Unix socket
//! ```
//!
//! The export's name may be empty. Other parameters of a query are for clients; they are read past.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// The port that the protocol has been given.
pub const DEFAULT_PORT: u16 = 10809;

/// What is not encoded: RFC 3986's unreserved characters, and the slash, which is legal in paths and queries.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// An NBD URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Whether nothing but TLS will do.
    pub tls: bool,
    /// Where the server is.
    pub place: UriPlace,
    /// The export's name.
    pub export: String,
}

/// Where the server of an [`NbdUri`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UriPlace {
    /// A host's name or address (IPv6 without brackets), and its port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Why a text is no NBD URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It begins otherwise.
    #[error("expected nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme,
    /// There is no host, or what follows it is no port.
    #[error("expected HOST or HOST:PORT, found {0:?}")]
    Host(String),
    /// A Unix socket without its path.
    #[error("expected ?socket=PATH")]
    Socket,
    /// The export's name is no UTF-8.
    #[error("the export's name is not UTF-8")]
    Export,
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = percent_decode_str(export).decode_utf8().map_err(|_| UriError::Export)?.into_owned();
        let place = if unix {
            let socket = query.split('&').find_map(|parameter| parameter.strip_prefix("socket="));
            let socket = socket.filter(|path| !path.is_empty()).ok_or(UriError::Socket)?;
            UriPlace::Unix(OsString::from_vec(percent_decode_str(socket).collect()).into())
        } else {
            host_and_port(authority)?
        };
        Ok(Self { tls, place, export })
    }
}

fn host_and_port(authority: &str) -> Result<UriPlace, UriError> {
    let wrong = || UriError::Host(authority.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').ok_or_else(wrong)?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port {
        "" => DEFAULT_PORT,
        port => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(wrong)?,
    };
    let host = percent_decode_str(host).decode_utf8().map_err(|_| wrong())?;
    if host.is_empty() { Err(wrong()) } else { Ok(UriPlace::Tcp(host.into_owned(), port)) }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "nbds" } else { "nbd" };
        let export = percent_encode(self.export.as_bytes(), ENCODED);
        match &self.place {
            UriPlace::Unix(path) => {
                let path = percent_encode(path.as_os_str().as_bytes(), ENCODED);
                write!(f, "{scheme}+unix:///{export}?socket={path}")
            }
            // A zone index (`fe80::1%2`) needs its percent sign encoded.
            UriPlace::Tcp(host, port) if host.contains(':') => {
                write!(f, "{scheme}://[{}]:{port}/{export}", host.replace('%', "%25"))
            }
            UriPlace::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}/{export}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16) -> UriPlace {
        UriPlace::Tcp(host.into(), port)
    }

    #[test]
    fn the_forms_of_the_specification_are_understood() {
        let unix = |path: &str| UriPlace::Unix(path.into());
        for (text, tls, place, export) in [
            ("nbd://example.com", false, tcp("example.com", 10809), ""),
            ("nbd://example.com/", false, tcp("example.com", 10809), ""),
            ("nbds://127.0.0.1:7/disk", true, tcp("127.0.0.1", 7), "disk"),
            ("nbd://[::1]:7/a/b%20c", false, tcp("::1", 7), "a/b c"),
            ("nbds://[fe80::1%252]/x?tls-certificates=/pki", true, tcp("fe80::1%2", 10809), "x"),
            ("nbd+unix:///?socket=/run/nbd.sock", false, unix("/run/nbd.sock"), ""),
            ("nbds+unix:///e?a=b&socket=rel%3Fative", true, unix("rel?ative"), "e"),
        ] {
            assert_eq!(text.parse(), Ok(NbdUri { tls, place, export: export.into() }), "{text}");
        }
    }

    #[test]
    fn what_is_no_uri_says_what_was_expected() {
        let host = |text: &str| UriError::Host(text.into());
        for (text, error) in [
            ("http://example.com", UriError::Scheme),
            ("/run/nbd.sock", UriError::Scheme),
            ("nbd:///x", host("")),
            ("nbd://[::1", host("[::1")),
            ("nbd://host:port/", host("host:port")),
            ("nbd://host:65536/", host("host:65536")),
            ("nbd+unix:///x", UriError::Socket),
            ("nbd+unix:///x?socket=", UriError::Socket),
            ("nbd://host/%ff", UriError::Export),
        ] {
            assert_eq!(text.parse::<NbdUri>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(
            tls: bool, export: String, path in "/[^\0]{1,20}", port: u16, unix: bool, v6: std::net::Ipv6Addr
        ) {
            let place = if unix { UriPlace::Unix(path.into()) } else { UriPlace::Tcp(v6.to_string(), port) };
            let uri = NbdUri { tls, place, export };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }
}
