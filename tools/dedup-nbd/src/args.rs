//! The command line.

use clap::Parser;
use dedup_cli::{LogArgs, OpenArgs, VolumeArgs};
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
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
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
    fn a_host_name_is_an_address_too() {
        assert_eq!(parse_address("127.0.0.1:10809").unwrap().port(), 10809);
        assert!(parse_address("localhost:0").unwrap().ip().is_loopback());
        assert!(parse_address("127.0.0.1").is_err());
    }
}
