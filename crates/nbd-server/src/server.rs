//! A running server: accepting connections, and ending in order.
//!
//! One thread waits on all listening sockets and on a pipe whose other end the [`ServerHandle`] holds. Each
//! connection has a thread for its handshake, which then is one of its workers.
//!
//! Shutting down goes through three stages, the last of which always ends: nobody new is let in, and what
//! clients have sent is answered; then whatever still comes is answered with `NBD_ESHUTDOWN`; then
//! connections are cut. Threads are waited for in any case, so afterwards no thread uses an export any more.

use crate::budget::Budget;
use crate::connection::Connection;
use crate::handshake::{Exports, handshake};
use crate::limits::Limits;
use crate::listen::{Listener, Place};
use crate::peer::Peer;
use crate::places::{self, Address, Places};
use crate::stats::{Counters, Stats};
use crate::transport::Transport;
use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long requests already sent are served after a shutdown has begun, before new ones are refused: socket
/// buffers hold a few MiB, which any device takes in that time.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`: without file descriptors or memory, trying again at once would only burn a
/// CPU.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Longer than anything lasts, and short enough to be added to any moment: a year.
pub(crate) const FAR_AWAY: Duration = Duration::from_secs(365 * 86_400);

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
    places: Arc<Places>,
    budget: Arc<Budget>,
    /// Also of connections that are over, until the next one comes. The socket is closed by its last user,
    /// not kept here.
    threads: Mutex<Vec<(Weak<Transport>, JoinHandle<()>)>>,
    counters: Counters,
}

impl ServerHandle {
    pub(crate) fn start(exports: Exports, listeners: Vec<Listener>, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            exports,
            limits,
            stopping: AtomicBool::new(false),
            refusing: Arc::new(AtomicBool::new(false)),
            places: Places::new(limits.connections_max, limits.connections_per_address_max),
            budget: Budget::new(limits.payload_memory, limits.stall_time),
            threads: Mutex::default(),
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

    /// Connections now, those that have not finished the handshake included.
    pub fn connections(&self) -> usize {
        self.shared.places.taken()
    }

    /// Stops listening, answers what clients have sent, refuses what they send on, and after `deadline` cuts
    /// them off. Returns when no thread of the server is left, whether all clients were gone before the
    /// deadline.
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
        let mut all_gone = self.shared.places.wait_until_empty(started + DRAIN_MAX.min(deadline / 2));
        if !all_gone {
            self.shared.refusing.store(true, Ordering::Relaxed);
            all_gone = self.shared.places.wait_until_empty(after(started, deadline));
        }
        self.shared.for_each_transport(Transport::end);
        let threads = std::mem::take(&mut *self.shared.threads());
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
    /// Whether a client over TCP may come.
    fn is_allowed(&self, peer: Peer) -> bool {
        is_within(&self.exports.allowed, peer)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<(Weak<Transport>, JoinHandle<()>)>> {
        // Nothing in its critical sections can panic half-way.
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uri(&self, place: &Place, export: &str) -> String {
        place.uri(export, self.exports.tls.is_some()).to_string()
    }

    fn for_each_transport(&self, end: impl Fn(&Transport)) {
        let transports: Vec<_> =
            self.threads().iter().filter_map(|(transport, _)| transport.upgrade()).collect();
        transports.iter().for_each(|transport| end(transport));
    }

    /// From the first byte to the last.
    fn serve(&self, transport: &Arc<Transport>, peer: Peer, place: &mut places::Place) {
        let deadline = after(Instant::now(), self.limits.handshake_timeout);
        match handshake(transport, place, &self.exports, &self.stopping, deadline) {
            Ok(Some(agreed)) => {
                let (shown, name) = (shown(transport.certificate()), agreed.name.clone());
                tracing::info!("{peer} is connected to export {name:?}{shown}");
                if transport.clear_timeouts().and_then(|()| transport.send_within(&self.budget)).is_ok() {
                    let refusing = Arc::clone(&self.refusing);
                    let (limits, budget) = (&self.limits, &self.budget);
                    Connection::new(transport, agreed, refusing, limits, budget, &self.counters).serve();
                }
                tracing::info!("{peer} has left export {name:?}");
            }
            Ok(None) => {}
            Err(error) => tracing::info!("{peer} is not connected: its handshake failed: {error}"),
        }
        transport.say_goodbye();
    }
}

/// Whether a client over TCP is in one of these networks, or there are none. Whose address is not known is in
/// none.
fn is_within(networks: &[IpNet], peer: Peer) -> bool {
    let has = |ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
    networks.is_empty() || peer.ip().is_some_and(has)
}

/// What the log says of a certificate. Its name is what somebody has asked the authority to sign, line ends
/// and all.
fn shown(certificate: Option<String>) -> String {
    certificate.map(|name| format!(", certificate of {name:?}")).unwrap_or_default()
}

/// A moment so long after another, or so far away that it makes no difference.
fn after(start: Instant, time: Duration) -> Instant {
    start.checked_add(time).unwrap_or_else(|| start + FAR_AWAY)
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
    let peer = Peer::of(&fd, tcp);
    if tcp && !shared.is_allowed(peer) {
        return tracing::warn!("{peer} is turned away: its address is not among those allowed");
    }
    let address = peer.ip().map(Address::of);
    let transport = match Transport::new(fd, tcp) {
        Ok(transport) => Arc::new(transport),
        Err(error) => return tracing::debug!(%error, "connection lost"),
    };
    shared.threads().retain(|(_, thread)| !thread.is_finished());
    let mut place = match shared.places.admit(address, &transport, Instant::now()) {
        Ok(place) => place,
        Err(refused) => return tracing::warn!("{peer} is turned away: {refused}"),
    };
    let for_ending = Arc::downgrade(&transport);
    let thread = thread::Builder::new().name("nbd-worker".into());
    let of_server = Arc::clone(shared);
    let spawned = thread.spawn(move || {
        of_server.counters.add_connection();
        of_server.serve(&transport, peer, &mut place);
        // The client sees the end before the connection counts as gone.
        drop(transport);
        drop(place);
    });
    match spawned {
        Ok(thread) => shared.threads().push((for_ending, thread)),
        Err(error) => tracing::warn!(%error, "no thread for a connection: turned it away"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_whose_address_is_not_known_is_in_no_network() {
        let networks = ["192.0.2.0/24".parse().unwrap()];
        let at = |text: &str| Peer::Tcp(text.parse().unwrap());
        assert!(is_within(&networks, at("192.0.2.7:1")) && !is_within(&networks, at("192.0.3.7:1")));
        assert!(!is_within(&networks, Peer::Unknown) && is_within(&[], Peer::Unknown));
    }

    #[test]
    fn a_certificates_name_makes_no_line_of_its_own() {
        assert_eq!(shown(None), "");
        let name = "a\nINFO nobody is connected\x1b[2J";
        assert_eq!(shown(Some(name.into())), r#", certificate of "a\nINFO nobody is connected\u{1b}[2J""#);
    }
}
