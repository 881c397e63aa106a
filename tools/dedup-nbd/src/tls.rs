//! Whether clients encrypt and what they have to show: what the options say together, and what an
//! administrator is warned of.
//!
//! Not here: the certificates themselves, and sessions (`dedup-nbd-server`).

use crate::args::{ServeArgs, Tls};
use crate::place::Told;
use anyhow::{Context, Result, bail, ensure};
use dedup_nbd_server::{ClientCertificates, Listen, TlsConfig};
use std::time::SystemTime;

/// TLS as it is offered.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) config: TlsConfig,
    /// Unencrypted clients are rejected.
    pub(crate) required: bool,
}

/// What the options say; `None` if no client can encrypt.
///
/// Options that would let in whom others of them are to keep out are refused.
pub(crate) fn offer(args: &ServeArgs, told: &Told) -> Result<Option<Offer>> {
    let Some(directory) = &args.tls_certificates else {
        ensure!(!told.tls, "nbds:// needs --tls-certificates");
        return Ok(None);
    };
    let clients = args.client_certificates();
    let when = match args.tls {
        Some(Tls::Off) if told.tls => bail!("--tls off and nbds:// contradict each other"),
        _ if told.tls => Tls::Require,
        when => when.unwrap_or(Tls::Require),
    };
    match (when, &clients) {
        (Tls::Off, ClientCertificates::Ignored) => return Ok(None),
        (Tls::Off, _) => bail!(
            "--tls off admits every client without a certificate: it cannot be combined with --tls-verify-peer or --tls-allow"
        ),
        (Tls::On, ClientCertificates::Required | ClientCertificates::Named(_)) => bail!(
            "--tls on admits unencrypted clients, which show no certificate: --tls-verify-peer=require and --tls-allow need \
             --tls require (the default)"
        ),
        _ => {}
    }
    let config = TlsConfig::load(directory, clients).context("TLS")?;
    warn(&config);
    Ok(Some(Offer { config, required: when == Tls::Require }))
}

/// Logs what has expired or soon will.
pub(crate) fn warn(config: &TlsConfig) {
    for warning in config.warnings(SystemTime::now()) {
        tracing::warn!("TLS: {warning}");
    }
}

/// Logs which places can be reached from other machines and ask for nothing.
pub(crate) fn warn_of_open_places(places: &[Listen], offer: Option<&Offer>) {
    if offer.is_some_and(|offer| offer.required) {
        return;
    }
    for place in places {
        if let Listen::Tcp(address) = place
            && !address.ip().to_canonical().is_loopback()
        {
            tracing::warn!(
                "listening at {address} without TLS: whoever reaches that address can read and write all exports, and everybody in \
                 between can too (see --tls-certificates, --tls-verify-peer)"
            );
        }
    }
}
