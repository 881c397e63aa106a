//! What every server does around an open volume: signals, the control socket, word to the service manager.
//!
//! ```text
//!   Stop::on_signals ─> open the volume, with its Control ─> serve ─> notify_ready ─> Stop::watch ─> drain, close
//!                       second signal: the process ends at once
//!                       SIGHUP: what was asked for is done on a thread of its own, so that no signal waits for a file
//! ```
//!
//! Not here: what is served, and how it drains.

use crate::control::{ControlServer, DeviceId, GcAction, Request, Response};
use crate::exit;
use dedup_volume::{OpenProgress, Status, Volume};
use sd_notify::NotifyState;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How soon a volume that has stopped is reported.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Why a server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// SIGTERM or SIGINT, or what was served has gone.
    Stop,
    /// SIGHUP, where it was asked for: end, and leave what clients hold to a successor.
    HandOver,
}

/// What SIGHUP means to a server; by default it would kill it.
pub enum Hangup {
    /// [`Reason::HandOver`].
    HandOver,
    /// The server goes on, and does this, on a thread of its own. Signals that come while it is being done
    /// are one.
    Do(Box<dyn FnMut() + Send>),
}

/// The same, as the thread that hears signals sees it.
enum OnHangup {
    HandOver,
    Tell(SyncSender<()>),
}

impl Hangup {
    /// Starts what it needs.
    fn start(self) -> io::Result<OnHangup> {
        let Self::Do(mut act) = self else { return Ok(OnHangup::HandOver) };
        // One that is being done, and one to follow it.
        let (sender, receiver) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("hangup".to_owned())
            .spawn(move || receiver.into_iter().for_each(|()| act()))?;
        Ok(OnHangup::Tell(sender))
    }
}

/// Hears when the server is to end.
#[derive(Debug)]
pub struct Stop {
    sender: Sender<Reason>,
    receiver: Receiver<Reason>,
}

impl Stop {
    /// SIGTERM and SIGINT come out of [`watch`](Self::watch), and so does SIGHUP if it is to hand over; a
    /// second one ends the process. To be called before anything is opened: a signal during a long replay
    /// must not be lost.
    pub fn on_signals(on_hangup: Hangup) -> io::Result<Self> {
        let on_hangup = on_hangup.start()?;
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (sender, receiver) = mpsc::channel();
        let send = sender.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let mut is_ending = false;
            for signal in signals.forever() {
                let reason = match (signal, &on_hangup) {
                    (SIGHUP, OnHangup::Tell(hangups)) => {
                        // If there is no room, one that has not begun yet sees all that this one would.
                        let _ = hangups.try_send(());
                        continue;
                    }
                    (SIGHUP, OnHangup::HandOver) => Reason::HandOver,
                    _ => Reason::Stop,
                };
                if is_ending {
                    tracing::warn!(
                        "a second signal: ending at once; the next start takes in what was acknowledged"
                    );
                    exit::now(exit::FAILURE);
                }
                is_ending = true;
                // The receiver is gone only when the process is about to be.
                let _ = send.send(reason);
            }
        })?;
        Ok(Self { sender, receiver })
    }

    /// For who finds that there is nothing left to serve.
    pub fn sender(&self) -> Sender<Reason> {
        self.sender.clone()
    }

    /// Waits for a reason to end; says so if the volume stops taking writes meanwhile.
    pub fn watch(&self, volume: &Volume, at_start: &Status) -> Reason {
        self.watch_all(&[("THE VOLUME", volume, at_start)])
    }

    /// As [`watch`](Self::watch), for several volumes, each with what to call it.
    pub fn watch_all(&self, volumes: &[(&str, &Volume, &Status)]) -> Reason {
        let mut healthy: Vec<_> =
            volumes.iter().filter(|(_, _, at_start)| at_start.mode == "read-write").collect();
        loop {
            match self.receiver.recv_timeout(WATCH_INTERVAL) {
                Ok(reason) => return reason,
                Err(RecvTimeoutError::Disconnected) => return Reason::Stop,
                Err(RecvTimeoutError::Timeout) => {}
            }
            healthy.retain(|(name, volume, _)| {
                let failed = volume.is_read_only();
                if failed {
                    let reason = volume.status().failure.unwrap_or_default();
                    tracing::error!(
                        "{name} HAS STOPPED TAKING WRITES: {reason}. Reads go on. Writes and flushes fail until it is restarted; \
                         what was not acknowledged as durable may be lost"
                    );
                }
                !failed
            });
        }
    }
}

/// Answers on the volume's control socket until dropped. Without one the volume can be served, though not be
/// asked for its status.
#[derive(Debug)]
pub struct Control {
    /// Also what keeps the volume in use; it goes first.
    server: Option<ControlServer>,
    volume: Arc<OnceLock<Arc<Volume>>>,
}

impl Control {
    /// Begins to answer for the volume whose data device, at `data`, this process has locked: until it is
    /// [`opened`](Self::opened), how far that is, since the log of a large volume takes minutes on a slow
    /// device.
    pub(crate) fn begin(data: &Path, progress: OpenProgress) -> Self {
        let (volume, begin) = (Arc::new(OnceLock::<Arc<Volume>>::new()), Instant::now());
        let shared = Arc::clone(&volume);
        let handler = move |request| match shared.get() {
            Some(volume) => answer(volume, request),
            None => still_opening(progress.percent(), begin.elapsed()),
        };
        let server = DeviceId::of(data)
            .map_err(|error| error.to_string())
            .and_then(|device| ControlServer::start(device, handler).map_err(|error| error.to_string()))
            .inspect_err(|error| {
                tracing::warn!("`dedup-tool status` and `gc` will not reach this server: {error}")
            });
        Self { server: server.ok(), volume }
    }

    /// From here on it is the volume that is spoken of.
    pub(crate) fn opened(&self, volume: &Arc<Volume>) {
        // It is opened once.
        let _ = self.volume.set(Arc::clone(volume));
    }

    /// Whether anybody can ask.
    pub fn is_answering(&self) -> bool {
        self.server.is_some()
    }
}

/// What there is to say of a volume that is not open yet.
fn still_opening(percent: u64, time: Duration) -> Response {
    Response::Error(format!(
        "it is still opening the volume, {percent} % of whose log is replayed, for {} s by now",
        time.as_secs()
    ))
}

/// Answers one request on the control socket.
fn answer(volume: &Volume, request: Request) -> Response {
    let value = match request {
        Request::Status => serde_json::to_value(volume.status()),
        Request::Gc { action: GcAction::Start | GcAction::Stop } if volume.is_read_only() => {
            return Response::Error("the volume takes no writes, so nothing can be collected".to_owned());
        }
        Request::Gc { action: GcAction::Start } => {
            volume.gc_start();
            serde_json::to_value(volume.status().gc)
        }
        Request::Gc { action: GcAction::Stop } => {
            volume.gc_stop();
            serde_json::to_value(volume.status().gc)
        }
        Request::Gc { action: GcAction::Estimate } => match volume.gc_estimate() {
            Ok(estimate) => serde_json::to_value(estimate),
            Err(error) => return Response::Error(exit::chain(&error)),
        },
    };
    response(value)
}

fn response(value: serde_json::Result<Value>) -> Response {
    value.map_or_else(|error| Response::Error(error.to_string()), Response::Ok)
}

/// Tells the service manager, if there is one, that clients may come; `what` is for people.
pub fn notify_ready(what: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("serving {what}"))]);
}

/// Tells the service manager, if there is one, that the server is draining.
pub fn notify_stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager does not hear: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "in use by process N" was all that was said of a server that read a long log.
    #[test]
    fn a_server_that_is_still_opening_says_so_and_how_far_it_is() {
        let Response::Error(text) = still_opening(42, Duration::from_millis(7900)) else {
            panic!("no error")
        };
        assert!(text.contains("still opening the volume, 42 % of whose log is replayed, for 7 s"), "{text}");
    }

    #[test]
    fn whoever_finds_nothing_left_to_serve_can_say_so() {
        let (sender, receiver) = mpsc::channel();
        let stop = Stop { sender, receiver };
        stop.sender().send(Reason::HandOver).unwrap();
        assert_eq!(stop.receiver.recv().unwrap(), Reason::HandOver);
    }
}
