//! The command line.

use crate::place::{Owner, Place, parse_mode, socket_parser};
use crate::time::{at_least, at_most_a_day, or_none};
use clap::{Parser, ValueEnum};
use dedup_cli::{LogArgs, OpenArgs, Size, SizeError, VolumeArgs};
use dedup_nbd_server::{ClientCertificates, IpNet, PAYLOAD_MEMORY_MIN};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Serve deduplicated volumes over NBD
///
/// Serves until SIGTERM or SIGINT; then answers what clients have sent, makes everything durable and exits. A
/// second signal exits at once; what was acknowledged as durable (FLUSH, FUA) is there at the next start even
/// so, as after kill -9.
#[derive(Parser, Debug)]
#[command(name = "dedup-nbd", version)]
#[command(mut_arg("volume", |arg| arg.required_unless_present("exports")))]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) volume: VolumeArgs,
    /// Serve a volume that exists, also several, each as an export:
    /// `name=NAME,volume=DIR[,read-only=on][,description=TEXT]`
    ///
    /// A comma within a value is written twice. The options for opening, but not those for making a volume,
    /// hold for each.
    #[arg(long = "export", id = "exports", value_name = "KEY=VALUE,...")]
    pub(crate) exports: Vec<ExportArg>,
    /// Name of VOLUME's export; clients that name none get it too
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) export_name: String,
    /// What clients are told about VOLUME's export [default: the volume's name]
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Where, to whom and within which limits to serve.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Unix socket to serve at [default, unless there is another place: nbd.sock in VOLUME, if that is short
    /// enough for a socket; else one in the runtime directory]
    #[arg(long, value_name = "PATH", value_parser = socket_parser())]
    pub(crate) socket: Vec<PathBuf>,
    /// Permissions of Unix sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
    pub(crate) socket_mode: u32,
    /// Who Unix sockets belong to, by names or numbers [default: this process's user and group]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) socket_owner: Option<Owner>,
    /// TCP address and port to serve at, or a URI: nbd://, nbds://, nbd+unix:// or nbds+unix://; may be
    /// repeated
    ///
    /// Over TCP whoever reaches the port has the volume, unless --tls require and --tls-verify-peer say
    /// otherwise. A name in a URI is that of VOLUME's export; nbds means --tls require.
    #[arg(long, value_name = "ADDR:PORT|URI")]
    pub(crate) listen: Vec<Place>,
    /// Whether clients may, or must, encrypt [default: require if there are certificates]
    #[arg(long, value_name = "WHEN", value_enum, requires = "tls_certificates")]
    pub(crate) tls: Option<Tls>,
    /// Directory of server-cert.pem and server-key.pem, and for clients' certificates of ca-cert.pem and
    /// ca-crl.pem
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Ask clients for a certificate that ca-cert.pem has signed
    #[arg(
        long, value_name = "HOW", value_enum, num_args = 0..=1, require_equals = true,
        default_missing_value = "require", requires = "tls_certificates",
    )]
    pub(crate) tls_verify_peer: Option<VerifyPeer>,
    /// Admit only clients whose certificate has this name, as its subject's common name, or as a DNS name,
    /// email address or URI among its alternative names; may be repeated. Implies --tls-verify-peer=require
    #[arg(long, value_name = "NAME", requires = "tls_certificates")]
    pub(crate) tls_allow: Vec<String>,
    /// Serve clients over TCP only from this network, or from this address; may be repeated
    #[arg(long, value_name = "ADDR[/PREFIX]", value_parser = parse_network)]
    pub(crate) allow: Vec<IpNet>,
    /// Limits.
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// Within which limits to serve.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LimitArgs {
    /// Connections at once; beyond them clients are turned away. Those that have not finished the handshake
    /// do not count
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = connections_parser())]
    pub(crate) connections: u64,
    /// Those of one IPv4 address, or IPv6 network of 64 bits [default: a quarter of --connections, but at
    /// least 16]
    #[arg(long, value_name = "N", value_parser = connections_parser())]
    pub(crate) connections_per_address: Option<u64>,
    /// How long a client may take for its handshake
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = at_least(0.1))]
    pub(crate) handshake_time: Duration,
    /// End connections that have sent nothing, and waited for nothing, for so long; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = or_none(1.0))]
    pub(crate) idle_limit: Duration,
    /// How long clients may take to end after a signal
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = at_most_a_day())]
    pub(crate) drain_time: Duration,
    /// Memory for what clients send and read, all connections together, beyond what each needs for small
    /// requests
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    pub(crate) payload_memory: Size,
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    let expected =
        || "expected an address or a network, as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32".to_owned();
    let network: IpNet = match text.contains('/') {
        true => text.parse().map_err(|_| expected())?,
        false => text.parse::<IpAddr>().map_err(|_| expected())?.into(),
    };
    if network.trunc() != network {
        return Err(format!(
            "expected {}, or the prefix of a smaller network, found {text}",
            network.trunc()
        ));
    }
    Ok(network)
}

/// More than any system has file descriptors.
const CONNECTIONS_MAX: u64 = 1 << 20;

fn connections_parser() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=CONNECTIONS_MAX)
}

/// At least what two of the largest requests take, and room beside them.
fn parse_memory(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: SizeError| error.to_string())?;
    let least = Size(PAYLOAD_MEMORY_MIN);
    if size < least { Err(format!("expected at least {least}, found {text}")) } else { Ok(size) }
}

/// Whether clients encrypt.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// No client can encrypt
    Off,
    /// Clients may encrypt
    On,
    /// Clients must encrypt; unencrypted clients are rejected
    Require,
}

/// Whether clients show certificates.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VerifyPeer {
    /// A client may show none; a wrong one is refused
    Optional,
    /// A client must show one
    Require,
}

impl ServeArgs {
    /// What clients have to show.
    pub(crate) fn client_certificates(&self) -> ClientCertificates {
        match self.tls_verify_peer {
            _ if !self.tls_allow.is_empty() => ClientCertificates::Named(self.tls_allow.clone()),
            None => ClientCertificates::Ignored,
            Some(VerifyPeer::Optional) => ClientCertificates::Optional,
            Some(VerifyPeer::Require) => ClientCertificates::Required,
        }
    }
}

/// An export of a volume that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportArg {
    pub(crate) name: String,
    pub(crate) volume: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) description: Option<String>,
}

impl FromStr for ExportArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut name, mut volume, mut read_only, mut description) = (None, None, false, None);
        for part in split_at_single_commas(text) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("expected KEY=VALUE, found {part:?}"))?;
            match (key, value) {
                ("name", _) => name = Some(value.to_owned()),
                ("volume", _) => volume = Some(PathBuf::from(value)),
                ("description", _) => description = Some(value.to_owned()),
                ("read-only", "on") => read_only = true,
                ("read-only", "off") => read_only = false,
                ("read-only", _) => return Err(format!("read-only: expected on or off, found {value:?}")),
                _ => return Err(format!("expected name, volume, read-only or description, found {key:?}")),
            }
        }
        let name = name.ok_or("expected name=NAME, found none")?;
        let volume = volume.ok_or("expected volume=DIR, found none")?;
        Ok(Self { name, volume, read_only, description })
    }
}

/// The parts between commas; two commas are one that belongs to its part.
fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let separates = char == ',' && chars.next_if_eq(&',').is_none();
        match parts.last_mut() {
            Some(part) if !separates => part.push(char),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["dedup-nbd"].iter().chain(args))
    }

    #[test]
    fn an_export_is_made_of_keys_and_values() {
        let text = "name=db,volume=/srv/a,,b,read-only=on,description=the, database";
        let error = text.parse::<ExportArg>().unwrap_err();
        assert!(error.contains("\" database\""), "{error}");
        let export: ExportArg = text.replace(", ", ",, ").parse().unwrap();
        let expected = ExportArg {
            name: "db".into(),
            volume: "/srv/a,b".into(),
            read_only: true,
            description: Some("the, database".into()),
        };
        assert_eq!(export, expected);
        for wrong in
            ["name=x", "volume=x", "name=x,volume=y,read-only=maybe", "name=x,volume=y,colour=red", ""]
        {
            assert!(wrong.parse::<ExportArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_volume_or_an_export_is_needed() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["v"]).is_ok());
        assert!(parse(&["--data-dev", "a", "--metadata-dev", "b"]).is_ok());
        let args = parse(&["--export", "name=a,volume=b", "--export", "name=c,volume=d"]).unwrap();
        assert!(args.volume.is_empty() && args.exports.len() == 2);
        assert_eq!(parse(&["v", "--export", "name=a,volume=b"]).unwrap().exports.len(), 1);
    }

    /// Some of these made the server abort, one made it serve nobody.
    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let number = [
            "--handshake-time=1e19",
            "--handshake-time=0",
            "--handshake-time=nan",
            "--handshake-time=-1",
            "--drain-time=1e19",
            "--drain-time=-1",
            "--idle-limit=1e300",
            "--idle-limit=0.5",
            "--connections=0",
            "--connections-per-address=0",
            "--payload-memory=1M",
        ];
        for option in number {
            let message = parse(&["v", option]).unwrap_err().to_string();
            let (name, found) = option.split_once('=').unwrap();
            assert!(message.contains(name) && message.contains(found), "{option}: {message}");
        }
        let limits = parse(&["v", "--handshake-time", "0.1", "--drain-time", "0", "--idle-limit", "86400"]);
        let limits = limits.unwrap().serve.limits;
        assert_eq!(limits.handshake_time, Duration::from_millis(100));
        assert_eq!((limits.drain_time, limits.idle_limit), (Duration::ZERO, Duration::from_secs(86_400)));
    }

    #[test]
    fn tls_needs_certificates() {
        assert!(parse(&["v", "--tls", "require"]).is_err());
        assert!(parse(&["v", "--tls-verify-peer"]).is_err());
        let clients = |extra: &[&str]| {
            let args = parse(&[&["v", "--tls-certificates", "d"], extra].concat()).unwrap();
            args.serve.client_certificates()
        };
        assert_eq!(clients(&[]), ClientCertificates::Ignored);
        assert_eq!(clients(&["--tls-verify-peer"]), ClientCertificates::Required);
        assert_eq!(clients(&["--tls-verify-peer=optional"]), ClientCertificates::Optional);
        let named = ClientCertificates::Named(vec!["a".into(), "b".into()]);
        assert_eq!(clients(&["--tls-allow", "a", "--tls-allow", "b"]), named);
        assert!(parse(&["v", "--tls-allow", "a"]).is_err());
    }
}
