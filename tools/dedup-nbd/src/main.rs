//! `dedup-nbd`: serves volumes over NBD.
//!
//! ```text
//!   args ─> open (format, if asked) ─> volumes ─┬─> exports ─> NBD server        clients
//!                                               └─> control ─> control sockets   dedup-tool status, gc
//!   signal ─> drain the server ─> close the volumes ─> 0        second signal ─> 1 at once
//! ```
//!
//! Not here: the protocol (`dedup-nbd-server`), the engine (`dedup-volume`), how volumes are opened and made,
//! signals and the control socket (`dedup-cli`).

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod args;
mod export;
mod place;
mod served;
mod time;
mod tls;

use anyhow::{Context, Result};
use args::Args;
use dedup_cli::serve::Hangup;
use dedup_cli::{exit, serve};
use dedup_nbd_server::{Listen, Server, ServerHandle, TlsConfig};
use export::VolumeExport;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use served::Served;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use tls::Offer;

fn main() -> ExitCode {
    let args: Args = match dedup_cli::parse(exit::USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    // Before any thread is started, the log's too.
    let inherited = place::inherited();
    let _log = args.log.start(dedup_cli::Level::INFO);
    match inherited.and_then(|inherited| run(&args, inherited)) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(error) => {
            exit::report("dedup-nbd", error.as_ref());
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run(args: &Args, inherited: Vec<Listen>) -> Result<()> {
    // Before anything is opened: a signal during a long replay must not be lost.
    let certificates = Arc::new(OnceLock::new());
    let on_hangup = Hangup::Do(Box::new({
        let certificates = Arc::clone(&certificates);
        move || read_again(certificates.get())
    }));
    let stop = serve::Stop::on_signals(on_hangup).context("cannot handle signals")?;
    let told = place::told_by_uris(&args.serve)?;
    let name = told.export.clone().unwrap_or_else(|| args.export_name.clone());
    let tls = tls::offer(&args.serve, &told)?;
    if let Some(offer) = &tls {
        // It is set once. Its clones are one.
        let _ = certificates.set(offer.config.clone());
    }
    raise_descriptor_limit();
    // Whatever can be found wrong without them is found before volumes are opened, or made.
    served::check(args, &name)?;
    place::check(&args.serve, !inherited.is_empty(), args.volume.resolve().ok().as_ref())?;
    let volumes = served::open_all(args, &name)?;
    let server = match start(args, inherited, tls, &volumes) {
        Ok(server) => server,
        Err(error) => {
            // The error above is the one to tell.
            let _ = served::close_all(volumes);
            return Err(error);
        }
    };
    announce(&server, &volumes);
    let names: Vec<&str> = volumes.iter().map(|served| &*served.paths.name).collect();
    serve::notify_ready(&names.join(", "));
    watch(&stop, &volumes);
    serve::notify_stopping();
    tracing::info!("stopping");
    if !server.shutdown(args.serve.limits.drain_time) {
        tracing::warn!("some clients were still connected after {:?}", args.serve.limits.drain_time);
    }
    served::close_all(volumes)
}

/// What SIGHUP asks for: it comes from a service manager that was asked to reload, or from a terminal that is
/// closed.
fn read_again(certificates: Option<&TlsConfig>) {
    match certificates.map(TlsConfig::reload) {
        None => tracing::info!("SIGHUP: there are no certificates to be read again"),
        Some(Ok(())) => tracing::info!("SIGHUP: the certificates and lists were read again"),
        Some(Err(error)) => tracing::error!("SIGHUP: what was read before stays in force: {error}"),
    }
}

fn start(
    args: &Args,
    inherited: Vec<Listen>,
    tls: Option<Offer>,
    volumes: &[Served],
) -> Result<ServerHandle> {
    let limits = &args.serve.limits;
    // They are within what the parser allows, which fits.
    let connections = limits.connections as usize;
    let per_address = limits.connections_per_address.map_or((connections / 4).max(16), |n| n as usize);
    let mut builder = Server::builder()
        .connections_max(connections)
        .connections_per_address_max(per_address)
        .handshake_timeout(limits.handshake_time)
        .idle_limit(Some(limits.idle_limit).filter(|limit| !limit.is_zero()))
        .payload_memory(usize::try_from(limits.payload_memory.0).unwrap_or(usize::MAX));
    for network in &args.serve.allow {
        builder = builder.allow(*network);
    }
    for served in volumes {
        let export = Arc::new(VolumeExport::new(&served.volume));
        builder = builder.export(&served.name, &served.description, export);
    }
    // Clients that name no export get VOLUME, as they do if it is alone.
    if !args.volume.is_empty() {
        builder = builder.default_export(&volumes[0].name);
    }
    let directory = volumes.first().and_then(|served| served.paths.directory.as_deref());
    let pool = volumes.first().map_or("", |served| &served.status.pool);
    let places = place::places(&args.serve, inherited, directory, pool)?;
    if args.serve.allow.is_empty() {
        tls::warn_of_open_places(&places, tls.as_ref());
    }
    if let Some(Offer { config, required }) = tls {
        builder = builder.tls(config, required);
    }
    for place in places {
        builder = builder.listen(place);
    }
    Ok(builder.serve()?)
}

/// A connection takes one file descriptor, and many systems allow 1024 unless more are asked for.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, connections beyond it will be refused, and that is told then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn announce(server: &ServerHandle, volumes: &[Served]) {
    let uris: Vec<String> = volumes.iter().flat_map(|served| server.uris(&served.name)).collect();
    let first = uris.first().cloned().unwrap_or_default();
    // Whoever closed standard output does not want to know.
    let _ = dedup_cli::tell(|out| writeln!(out, "{}\ntry: nbdinfo '{first}'", uris.join("\n")));
}

fn watch(stop: &serve::Stop, volumes: &[Served]) {
    let name = |served: &Served| match volumes.len() {
        1 => "THE VOLUME".to_owned(),
        _ => format!("THE VOLUME {}", served.paths.name),
    };
    let names: Vec<String> = volumes.iter().map(name).collect();
    let watched = volumes.iter().zip(&names).map(|(served, name)| (&**name, &*served.volume, &served.status));
    stop.watch_all(&watched.collect::<Vec<_>>());
}
