//! A running server: accepting connections, and ending in order.
//!
//! One thread waits on all listening sockets and on a pipe whose other end the [`ServerHandle`] holds. Each connection
//! has a thread for its handshake, which then is one of its workers.
//!
//! Shutting down goes through three stages, the last of which always ends: nobody new is let in, and what clients have
//! sent is answered; then whatever still comes is answered with `NBD_ESHUTDOWN`; then connections are cut. Threads are
//! waited for in any case, so afterwards no thread uses an export any more.

use crate::connection::Connection;
use crate::handshake::{Exports, handshake};
use crate::listen::{Listener, Place};
use crate::stats::{Counters, Stats};
use crate::transport::Transport;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long requests already sent are served after a shutdown has begun, before new ones are refused: socket buffers
/// hold a few MiB, which any device takes in that time.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`: without file descriptors or memory, trying again at once would only burn a CPU.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a server lets clients use of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) threads_per_connection: usize,
    pub(crate) handshake_timeout: Duration,
    /// Not zero.
    pub(crate) idle_time: Duration,
}

/// A running server. Dropping it cuts all connections; [`shutdown`](Self::shutdown) is gentler.
pub struct ServerHandle {
    shared: Arc<Shared>,
    places: Vec<Place>,
    /// The accepting thread, and the end of the pipe that wakes it by being closed.
    acceptor: Option<(JoinHandle<()>, UnixStream)>,
}

struct Shared {
    exports: Exports,
    limits: Limits,
    /// No new sessions.
    stopping: AtomicBool,
    /// No new requests.
    refusing: Arc<AtomicBool>,
    connections: Mutex<Connections>,
    /// `Connections::active` went down.
    one_left: Condvar,
    counters: Counters,
}

#[derive(Default)]
struct Connections {
    active: usize,
    /// Also of connections that are over, until the next one comes. The socket is closed by its last user, not kept here.
    threads: Vec<(Weak<Transport>, JoinHandle<()>)>,
}

impl ServerHandle {
    pub(crate) fn start(exports: Exports, listeners: Vec<Listener>, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            exports,
            limits,
            stopping: AtomicBool::new(false),
            refusing: Arc::new(AtomicBool::new(false)),
            connections: Mutex::default(),
            one_left: Condvar::new(),
            counters: Counters::default(),
        });
        let places = listeners.iter().map(|listener| listener.place().clone()).collect();
        let (wake, woken) = UnixStream::pair()?;
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("nbd-accept".into())
                .spawn(move || accept_until_woken(&shared, &listeners, &woken))?
        };
        Ok(Self { shared, places, acceptor: Some((thread, wake)) })
    }

    /// The URI of the default export at the first place listened at.
    pub fn uri(&self) -> String {
        // The builder insists on a listener.
        self.places.first().map(|place| self.shared.uri(place, "")).unwrap_or_default()
    }

    /// The URIs of the export of this name, one for each place listened at.
    pub fn uris(&self, export: &str) -> Vec<String> {
        self.places.iter().map(|place| self.shared.uri(place, export)).collect()
    }

    /// The TCP addresses listened at, with the ports that the system chose.
    pub fn tcp_addrs(&self) -> Vec<SocketAddr> {
        self.places.iter().filter_map(Place::tcp_addr).collect()
    }

    /// Totals since the start.
    pub fn stats(&self) -> Stats {
        self.shared.counters.totals()
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.shared.connections().active
    }

    /// Stops listening, answers what clients have sent, refuses what they send on, and after `deadline` cuts them off.
    /// Returns when no thread of the server is left, whether all clients were gone before the deadline.
    ///
    /// It waits longer than `deadline` only for an export that is still busy with requests.
    pub fn shutdown(mut self, deadline: Duration) -> bool {
        self.stop(deadline)
    }

    fn stop(&mut self, deadline: Duration) -> bool {
        let Some((acceptor, wake)) = self.acceptor.take() else { return true };
        let started = Instant::now();
        self.shared.stopping.store(true, Ordering::Relaxed);
        drop(wake);
        join(acceptor);
        self.shared.for_each_transport(Transport::end_receiving);
        let mut all_gone = self.shared.wait_until_idle(started + DRAIN_MAX.min(deadline / 2));
        if !all_gone {
            self.shared.refusing.store(true, Ordering::Relaxed);
            all_gone = self.shared.wait_until_idle(started + deadline);
        }
        self.shared.for_each_transport(Transport::end);
        let threads = std::mem::take(&mut self.shared.connections().threads);
        threads.into_iter().for_each(|(_, thread)| join(thread));
        all_gone
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// A thread that panicked has reported it, and its connection has ended.
fn join(thread: JoinHandle<()>) {
    let _ = thread.join();
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        // Nothing in its critical sections can panic half-way.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uri(&self, place: &Place, export: &str) -> String {
        place.uri(export, self.exports.tls.is_some()).to_string()
    }

    fn for_each_transport(&self, end: impl Fn(&Transport)) {
        let transports: Vec<_> =
            self.connections().threads.iter().filter_map(|(transport, _)| transport.upgrade()).collect();
        transports.iter().for_each(|transport| end(transport));
    }

    /// Waits until no connection is left; `false` if that is not so by `deadline`.
    fn wait_until_idle(&self, deadline: Instant) -> bool {
        let connections = self.connections();
        let timeout = deadline.saturating_duration_since(Instant::now());
        let (connections, _) = self
            .one_left
            .wait_timeout_while(connections, timeout, |connections| connections.active > 0)
            .unwrap_or_else(PoisonError::into_inner);
        connections.active == 0
    }

    /// From the first byte to the last.
    fn serve(&self, transport: &Arc<Transport>) {
        let deadline = Instant::now() + self.limits.handshake_timeout;
        match handshake(transport, &self.exports, &self.stopping, deadline) {
            Ok(Some(agreed)) => {
                if transport.clear_timeouts().is_ok() {
                    let refusing = Arc::clone(&self.refusing);
                    Connection::new(transport, agreed, refusing, &self.limits, &self.counters).serve();
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "handshake failed"),
        }
        transport.say_goodbye();
    }
}

/// Counts a connection for as long as it lives, also if serving it panics.
struct Active(Arc<Shared>);

impl Active {
    /// `None` if there are as many connections as there may be.
    fn begin(shared: &Arc<Shared>) -> Option<Self> {
        let mut connections = shared.connections();
        connections.threads.retain(|(_, thread)| !thread.is_finished());
        if connections.active >= shared.limits.connections_max {
            return None;
        }
        connections.active += 1;
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.connections().active -= 1;
        self.0.one_left.notify_all();
    }
}

/// Accepts until the other end of `woken` is closed; then the listeners go too.
fn accept_until_woken(shared: &Arc<Shared>, listeners: &[Listener], woken: &UnixStream) {
    let mut pause = None;
    loop {
        let listening = if pause.is_some() { &[] } else { listeners };
        let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
        fds.extend(listening.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        match rustix::event::poll(&mut fds, pause.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "cannot wait for connections"),
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        let ready = listening.iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty());
        pause = None;
        for (listener, _) in ready {
            match listener.accept() {
                Ok(Some(fd)) => admit(shared, fd, listener.place().tcp_addr().is_some()),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    pause = Some(ACCEPT_PAUSE);
                }
            }
        }
    }
}

/// Gives a new connection its thread, or turns it away by closing it.
fn admit(shared: &Arc<Shared>, fd: OwnedFd, tcp: bool) {
    let transport = match Transport::new(fd, tcp) {
        Ok(transport) => Arc::new(transport),
        Err(error) => return tracing::debug!(%error, "connection lost"),
    };
    let Some(active) = Active::begin(shared) else {
        return tracing::warn!(max = shared.limits.connections_max, "too many connections: turned one away");
    };
    let for_ending = Arc::downgrade(&transport);
    let spawned = thread::Builder::new().name("nbd-worker".into()).spawn(move || {
        active.0.counters.add_connection();
        active.0.serve(&transport);
        // The client sees the end before the connection counts as gone.
        drop(transport);
    });
    match spawned {
        Ok(thread) => shared.connections().threads.push((for_ending, thread)),
        Err(error) => tracing::warn!(%error, "no thread for a connection: turned it away"),
    }
}
