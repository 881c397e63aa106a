//! Where to serve: what the command line says, what a service manager hands over, or a socket beside the
//! volume.

use crate::args::ServeArgs;
use anyhow::{Context, Result, bail};
use clap::builder::{PathBufValueParser, TypedValueParser};
use dedup_cli::VolumePaths;
use dedup_cli::control::runtime_directory;
use dedup_nbd_server::{Listen, NbdUri, ServeError, UnixSocket, UriPlace};
use listenfd::ListenFd;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes of the longest name of a Unix socket: `sun_path` has 108, with a zero at the end.
const SOCKET_LEN_MAX: usize = 107;

/// An address, or a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Uri(NbdUri),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains("://") {
            true => {
                let uri: NbdUri =
                    text.parse().map_err(|error: dedup_nbd_server::UriError| error.to_string())?;
                if let UriPlace::Unix(path) = &uri.place {
                    check_socket(path.clone())?;
                }
                Ok(Self::Uri(uri))
            }
            false => resolve(text).map(Self::Tcp).map_err(|reason| {
                format!(
                    "expected ADDR:PORT, as 127.0.0.1:10809, [::1]:10809 or a name and a port, or a URI, as nbd://localhost: {reason}"
                )
            }),
        }
    }
}

/// An address and port, or a host name and port.
fn resolve(target: impl ToSocketAddrs) -> Result<SocketAddr, String> {
    let mut addresses = target.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

/// Who a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let number = |name: &str, what, by_name: &dyn Fn(&str) -> Option<u32>| match name {
            "" => Ok(None),
            _ => match name.parse().ok().or_else(|| by_name(name)) {
                Some(id) => Ok(Some(id)),
                None => Err(format!("no {what} is called {name:?}")),
            },
        };
        let user = number(user, "user", &|name| uzers::get_user_by_name(name).map(|user| user.uid()))?;
        let group = number(group, "group", &|name| uzers::get_group_by_name(name).map(|group| group.gid()))?;
        if user.is_none() && group.is_none() {
            return Err("expected USER, USER:GROUP or :GROUP".to_owned());
        }
        Ok(Self { user, group })
    }
}

/// Permission bits, in octal.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected three octal digits, as 600".to_owned()),
    }
}

/// Takes the sockets that a service manager has handed over. To be called before any thread is started: it
/// reads and changes the environment.
pub(crate) fn inherited() -> Result<Vec<Listen>> {
    let mut fds = ListenFd::from_env();
    let mut sockets = Vec::new();
    for i in 0..fds.len() {
        let socket = match fds.take_unix_listener(i) {
            Ok(unix) => unix.map(Into::into),
            Err(_) => fds.take_tcp_listener(i).context("LISTEN_FDS")?.map(Into::into),
        };
        sockets.extend(socket.map(Listen::Inherited));
    }
    Ok(sockets)
}

/// What URIs on the command line say besides where to listen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The export's name.
    pub(crate) export: Option<String>,
    /// Some place is for encrypted connections only.
    pub(crate) tls: bool,
}

/// Gathers it. Two names contradict each other.
pub(crate) fn told_by_uris(args: &ServeArgs) -> Result<Told> {
    let mut told = Told::default();
    for place in &args.listen {
        let Place::Uri(uri) = place else { continue };
        told.tls |= uri.tls;
        if uri.export.is_empty() {
            continue;
        }
        match &told.export {
            Some(other) if *other != uri.export => {
                bail!("--listen names two exports, {other:?} and {:?}; use --export for several", uri.export)
            }
            _ => told.export = Some(uri.export.clone()),
        }
    }
    Ok(told)
}

/// Everywhere to listen: `inherited`, and what the arguments say; or, if that is nothing, a socket in the
/// volume's `directory`, or else one of this `name` in the runtime directory.
pub(crate) fn places(
    args: &ServeArgs,
    inherited: Vec<Listen>,
    directory: Option<&Path>,
    name: &str,
) -> Result<Vec<Listen>> {
    let unix = |path: PathBuf| {
        let (user, group) = args.socket_owner.map_or((None, None), |owner| (owner.user, owner.group));
        Listen::Unix(UnixSocket { path, mode: args.socket_mode, user, group })
    };
    let mut places = inherited;
    places.extend(args.socket.iter().cloned().map(unix));
    for place in &args.listen {
        places.push(match place {
            Place::Tcp(address) => Listen::Tcp(*address),
            Place::Uri(NbdUri { place: UriPlace::Unix(path), .. }) => unix(path.clone()),
            Place::Uri(NbdUri { place: UriPlace::Tcp(host, port), .. }) => {
                let address = resolve((host.as_str(), *port)).map_err(anyhow::Error::msg);
                Listen::Tcp(address.with_context(|| format!("cannot listen at {host}"))?)
            }
        });
    }
    if places.is_empty() {
        places.push(unix(default_socket(directory, name, || Ok(runtime_directory()?))?));
    }
    Ok(places)
}

/// The socket in the volume's `directory`, or, if it has none or that is too long for a socket's name, one of
/// this `name` in the runtime directory.
fn default_socket(
    directory: Option<&Path>,
    name: &str,
    runtime: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    let beside = directory.map(|directory| directory.join("nbd.sock"));
    if let Some(beside) = beside.filter(|socket| fits(socket)) {
        return Ok(beside);
    }
    let directory = runtime().context("no place for a socket; name one with --socket")?;
    Ok(directory.join(format!("{name}.nbd.sock")))
}

/// Whether the kernel takes it as the name of a socket, and clients with it.
fn fits(socket: &Path) -> bool {
    socket.as_os_str().len() <= SOCKET_LEN_MAX
}

/// The parser of paths of sockets to be made.
pub(crate) fn socket_parser() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(check_socket)
}

fn check_socket(path: PathBuf) -> Result<PathBuf, String> {
    match fits(&path) {
        true => Ok(path),
        false => Err(format!(
            "expected a path of at most {SOCKET_LEN_MAX} bytes, which is what Linux takes as the name of a socket, found {}",
            path.as_os_str().len()
        )),
    }
}

/// As long as the name of any pool.
const SOME_POOL: &str = "00000000-0000-0000-0000-000000000000";

/// Whether it can be listened at all the places that the arguments name, and at the default one: to be asked
/// before the volume at `paths` is opened, or made. Where sockets are `handed_over`, there is no default one.
pub(crate) fn check(args: &ServeArgs, handed_over: bool, paths: Option<&VolumePaths>) -> Result<()> {
    let directory = paths.and_then(|paths| paths.directory.as_deref());
    let is_default = args.socket.is_empty() && args.listen.is_empty();
    if is_default && handed_over {
        return Ok(());
    }
    for place in places(args, Vec::new(), directory, SOME_POOL)? {
        let is_made_later = match (&place, directory) {
            (Listen::Unix(socket), Some(directory)) => {
                !directory.exists() && socket.path.parent() == Some(directory)
            }
            _ => false,
        };
        // The directory of a volume that is made; what is in the way of a socket there is in the way of the
        // volume.
        match place.check() {
            _ if is_made_later => {}
            // Somebody serves the volume; who it is will be told when it is opened.
            Err(ServeError::SocketInUse { .. }) if is_default => {}
            checked => checked?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_an_address_too() {
        let tcp = |text: &str| match text.parse() {
            Ok(Place::Tcp(address)) => address,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(tcp("127.0.0.1:10809").port(), 10809);
        assert!(tcp("[::1]:10809").is_ipv6());
        assert!(tcp("localhost:0").ip().is_loopback());
        for wrong in ["127.0.0.1", "", "1"] {
            let error = wrong.parse::<Place>().unwrap_err();
            assert!(error.contains("expected ADDR:PORT, as 127.0.0.1:10809"), "{wrong:?}: {error}");
        }
        assert!(matches!("nbds://[::1]/x".parse(), Ok(Place::Uri(uri)) if uri.tls && uri.export == "x"));
        assert!("http://localhost".parse::<Place>().is_err());
    }

    #[test]
    fn a_name_that_is_too_long_for_a_socket_is_refused_before_anything_is_done_and_has_another_default() {
        let long = format!("/{}", "x".repeat(107));
        assert_eq!(check_socket(long[1..].into()), Ok(long[1..].into()));
        assert!(check_socket(long.clone().into()).unwrap_err().contains("at most 107 bytes"));
        assert!(format!("nbd+unix:///?socket={long}").parse::<Place>().unwrap_err().contains("at most 107"));
        let volume = Path::new("/srv").join("x".repeat(100));
        let default = |volume| default_socket(volume, "p", || Ok("/run/dedup".into())).unwrap();
        assert_eq!(default(Some("/srv/v".as_ref())), Path::new("/srv/v/nbd.sock"));
        assert_eq!(default(Some(&volume)), Path::new("/run/dedup/p.nbd.sock"));
        assert_eq!(default(None), Path::new("/run/dedup/p.nbd.sock"));
    }

    #[test]
    fn owners_are_names_or_numbers() {
        let root = Owner { user: Some(0), group: Some(0) };
        assert_eq!("root:root".parse(), Ok(root));
        assert_eq!("0:0".parse(), Ok(root));
        assert_eq!("1234".parse(), Ok(Owner { user: Some(1234), group: None }));
        assert_eq!(":7".parse(), Ok(Owner { user: None, group: Some(7) }));
        for wrong in ["", ":", "nobody knows:0", "0:nobody knows"] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn modes_are_three_octal_digits() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        for wrong in ["", "8", "1777", "rw"] {
            assert!(parse_mode(wrong).is_err(), "{wrong:?}");
        }
    }
}
