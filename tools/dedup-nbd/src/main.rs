//! `dedup-nbd`: serves a volume over NBD.
//!
//! ```text
//!   args ─> open (format, if asked) ─> Volume ─┬─> export ─> NBD server        clients
//!                                              └─> control ─> control socket   dedup-tool status, gc
//!   signal ─> drain the server ─> close the volume ─> 0        second signal ─> 1 at once
//! ```
//!
//! Not here: the protocol (`dedup-nbd-server`), the engine (`dedup-volume`), how devices are opened and made (`dedup-cli`).

mod args;
mod control;
mod export;
mod open;

use anyhow::{Context, Result};
use args::{Args, Backend};
use dedup_cli::control::{ControlServer, runtime_directory};
use dedup_cli::{VolumePaths, exit, human};
use dedup_nbd_server::{Listen, Server, ServerHandle};
use dedup_volume::{Status, Volume};
use export::VolumeExport;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long clients may take to end after a signal: well below the 90 s after which a service manager kills.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How soon a volume that has stopped is reported.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
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
    let stop = signals().context("cannot handle signals")?;
    let paths = args.volume.resolve()?;
    let volume = Arc::new(open::open(args, &paths)?);
    let status = volume.status();
    let server = serve(args, &paths, &volume, &status)?;
    let control = start_control(&volume, &status);
    announce(args, &paths, &server, &status);
    watch(&volume, &status, &stop);
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

/// The first signal comes out of the channel, the second ends the process.
fn signals() -> Result<Receiver<()>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (send, receive) = mpsc::channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(i32::from(exit::FAILURE));
            }
            // The receiver is gone only when the process is about to be.
            let _ = send.send(());
        }
    })?;
    Ok(receive)
}

fn serve(args: &Args, paths: &VolumePaths, volume: &Arc<Volume>, status: &Status) -> Result<ServerHandle> {
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

/// Without a control socket the volume can be served, though not be asked for its status.
fn start_control(volume: &Arc<Volume>, status: &Status) -> Option<ControlServer> {
    let pool = status.pool.parse().ok()?;
    let shared = Arc::clone(volume);
    ControlServer::start(pool, move |request| control::answer(&shared, request))
        .inspect_err(|error| {
            tracing::warn!("`dedup-tool status` and `gc` will not reach this server: {error}")
        })
        .ok()
}

fn announce(args: &Args, paths: &VolumePaths, server: &ServerHandle, status: &Status) {
    tracing::info!(
        "serving {}: {} in blocks of {}, {}{}{}",
        paths.name,
        human(status.logical_size),
        human(status.block_size),
        status.crypto_alg,
        if args.read_only { ", read-only" } else { "" },
        if args.mdbackend == Backend::Inram { ", metadata in memory" } else { "" }
    );
    let uri = server.uris(&args.export_name).remove(0);
    // Whoever closed standard output does not want to know.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{uri}\ntry: nbdinfo '{uri}'").and_then(|()| out.flush());
}

/// Waits for a signal; says so if the volume stops taking writes meanwhile.
fn watch(volume: &Volume, at_start: &Status, stop: &Receiver<()>) {
    let mut healthy = at_start.mode == "read-write";
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(WATCH_INTERVAL) {
        if healthy && volume.is_read_only() {
            healthy = false;
            let reason = volume.status().failure.unwrap_or_default();
            tracing::error!(
                "THE VOLUME HAS STOPPED TAKING WRITES: {reason}. Reads go on. Writes and flushes fail until it is restarted; \
                 what was not acknowledged as durable may be lost"
            );
        }
    }
}
