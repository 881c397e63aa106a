//! `dedup-nbd`: serves a volume over NBD.
//!
//! ```text
//!   args ─> open (format, if asked) ─> Volume ─┬─> export ─> NBD server        clients
//!                                              └─> control ─> control socket   dedup-tool status, gc
//!   signal ─> drain the server ─> close the volume ─> 0        second signal ─> 1 at once
//! ```
//!
//! Not here: the protocol (`dedup-nbd-server`), the engine (`dedup-volume`), how volumes are opened and made, signals and the control
//! socket (`dedup-cli`).

mod args;
mod export;

use anyhow::{Context, Result};
use args::Args;
use dedup_cli::control::runtime_directory;
use dedup_cli::{Backend, VolumePaths, exit, human, serve};
use dedup_nbd_server::{Listen, Server, ServerHandle};
use dedup_volume::{Status, Volume};
use export::VolumeExport;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How long clients may take to end after a signal: well below the 90 s after which a service manager kills.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Permissions of the socket: who may connect has the whole volume.
const SOCKET_MODE: u32 = 0o600;

fn main() -> ExitCode {
    let args: Args = match dedup_cli::parse(exit::USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    args.log.start(dedup_cli::Level::INFO);
    match run(&args) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(error) => {
            exit::report("dedup-nbd", error.as_ref());
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    // Before anything is opened: a signal during a long replay must not be lost.
    let stop = serve::Stop::on_signals(false).context("cannot handle signals")?;
    let paths = args.volume.resolve()?;
    let volume = Arc::new(args.open.open(&paths)?);
    let status = volume.status();
    let server = start(args, &paths, &volume, &status)?;
    let control = serve::start_control(&volume, &status);
    announce(args, &paths, &server, &status);
    serve::notify_ready(&paths.name);
    stop.watch(&volume, &status);
    serve::notify_stopping();
    tracing::info!("stopping");
    if !server.shutdown(DRAIN_TIME) {
        tracing::warn!("some clients were still connected after {} s", DRAIN_TIME.as_secs());
    }
    drop(control);
    let stats = volume.status();
    let volume = Arc::into_inner(volume).context("the volume is still in use")?;
    volume.close().context("cannot close the volume")?;
    tracing::info!(
        "closed: {} of data in {}, {} operations",
        human(stats.logical_used),
        human(stats.data_used),
        stats.commit.published
    );
    Ok(())
}

fn start(args: &Args, paths: &VolumePaths, volume: &Arc<Volume>, status: &Status) -> Result<ServerHandle> {
    let listen = match (&args.listen, &args.socket, &paths.directory) {
        (Some(address), _, _) => Listen::Tcp(*address),
        (None, Some(socket), _) => Listen::Unix(socket.clone(), SOCKET_MODE),
        (None, None, Some(directory)) => Listen::Unix(directory.join("nbd.sock"), SOCKET_MODE),
        (None, None, None) => {
            let directory = runtime_directory().context("no place for a socket; name one with --socket")?;
            Listen::Unix(directory.join(format!("{}.nbd.sock", status.pool)), SOCKET_MODE)
        }
    };
    let export = Arc::new(VolumeExport(Arc::clone(volume)));
    Ok(Server::builder().export(&args.export_name, &paths.name, export).listen(listen).serve()?)
}

fn announce(args: &Args, paths: &VolumePaths, server: &ServerHandle, status: &Status) {
    tracing::info!(
        "serving {}: {} in blocks of {}, {}{}{}",
        paths.name,
        human(status.logical_size),
        human(status.block_size),
        status.crypto_alg,
        if args.open.read_only { ", read-only" } else { "" },
        if args.open.mdbackend == Backend::Inram { ", metadata in memory" } else { "" }
    );
    let uri = server.uris(&args.export_name).remove(0);
    // Whoever closed standard output does not want to know.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{uri}\ntry: nbdinfo '{uri}'").and_then(|()| out.flush());
}
