//! The command line.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, ValueEnum};
use dedup_cli::format::yes_no_parser;
use dedup_cli::{FormatArgs, Io, LogArgs, Size, VolumeArgs};
use dedup_volume::{CheckOnRead, OpenOptions};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Serve a deduplicated volume over NBD
///
/// Serves until SIGTERM or SIGINT; then answers what clients have sent, makes everything durable and exits. A second signal
/// exits at once; what was acknowledged as durable (FLUSH, FUA) is there at the next start even so, as after kill -9.
#[derive(Parser, Debug)]
#[command(name = "dedup-nbd", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) volume: VolumeArgs,
    /// Unix socket to serve at [default: nbd.sock in VOLUME; for two devices, one named after the pool in the runtime directory]
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub(crate) socket: Option<PathBuf>,
    /// TCP address and port to serve at; there is no authentication: whoever reaches it has the volume
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Name of the export; clients that name none get it too
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) export_name: String,
    /// Serve for reading only; writes nothing, and other readers may open the volume too
    #[arg(long, conflicts_with_all = ["create", "discard"])]
    pub(crate) read_only: bool,
    /// Format the volume first, if both devices are empty or missing
    #[arg(long, requires = "logical_size")]
    pub(crate) create: bool,
    /// Bytes that clients see, for a volume that is made; on one that exists, it must be what was given then
    #[arg(long, value_name = "SIZE")]
    pub(crate) logical_size: Option<Size>,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// yes: open what is there; no: start empty, by formatting anew (refused if the volume holds data, unless --force is given)
    #[arg(long, value_name = "yes|no", default_value = "yes", action = ArgAction::Set, value_parser = yes_no_parser())]
    pub(crate) reconstruct: bool,
    /// Where metadata is kept
    #[arg(long, value_name = "BACKEND", value_enum, default_value_t = Backend::Cowbtree)]
    pub(crate) mdbackend: Backend,
    /// How every read is verified
    #[arg(long, value_name = "HOW", default_value = "crc", value_parser = check_on_read_parser())]
    pub(crate) check_on_read: CheckOnRead,
    /// How the data device is used [default: direct, if the file system and the block size allow it]
    #[arg(long, value_name = "HOW", value_enum)]
    pub(crate) io: Option<Io>,
    /// Memory for metadata blocks
    #[arg(long, value_name = "SIZE", default_value = "128M")]
    pub(crate) cache_size: Size,
    /// Pass freed blocks down to the data device: files give the space back, SSDs are told
    #[arg(long)]
    pub(crate) discard: bool,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// The metadata backends, with dm-dedup's names.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// On the metadata device, crash-consistent
    Cowbtree,
    /// In memory: the volume is formatted at each start and gone at its end
    Inram,
}

impl Args {
    /// How to open the volume.
    pub(crate) fn open_options(&self) -> OpenOptions {
        OpenOptions {
            read_only: self.read_only,
            check_on_read: self.check_on_read,
            verify_match: self.format.verify_match,
            flushrq: self.format.flushrq,
            block_size: self.format.block_size,
            algorithm: self.format.crypto_alg,
            cache_bytes: self.cache_size.0,
            discard: self.discard,
            in_ram: self.mdbackend == Backend::Inram,
            ..OpenOptions::default()
        }
    }
}

fn check_on_read_parser() -> impl TypedValueParser<Value = CheckOnRead> {
    PossibleValuesParser::new(["crc", "digest", "off"]).map(|name| match &*name {
        "digest" => CheckOnRead::Digest,
        "off" => CheckOnRead::Off,
        _ => CheckOnRead::Crc,
    })
}

/// An address and port, or a host name and port.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_volume() {
        let args = Args::try_parse_from(["dedup-nbd", "v"]).unwrap();
        let (options, defaults) = (args.open_options(), OpenOptions::default());
        assert_eq!(format!("{options:?}"), format!("{defaults:?}"));
        assert!(args.reconstruct);
    }

    #[test]
    fn each_name_of_a_check_means_what_it_says() {
        for (name, expected) in
            [("crc", CheckOnRead::Crc), ("digest", CheckOnRead::Digest), ("off", CheckOnRead::Off)]
        {
            let args = Args::try_parse_from(["dedup-nbd", "v", "--check-on-read", name]).unwrap();
            assert_eq!(args.open_options().check_on_read, expected);
        }
    }

    #[test]
    fn a_host_name_is_an_address_too() {
        assert_eq!(parse_address("127.0.0.1:10809").unwrap().port(), 10809);
        assert!(parse_address("localhost:0").unwrap().ip().is_loopback());
        assert!(parse_address("127.0.0.1").is_err());
    }
}
