//! Places: how many clients there may be, all together and of one address, and who has to go when there are
//! too many.
//!
//! ```text
//!   accepted ── place for a handshake ── chooses an export ── seat ── leaves
//!               few, for a short time     Place::take_seat     as many as configured
//! ```
//!
//! Who has not finished the handshake takes none of the seats, so silent sockets keep nobody out who is
//! served already, nor anybody who finds a seat. When the places for handshakes are all taken, whoever has
//! been at it for long goes: a handshake takes milliseconds. Clients of one address share what is a part of
//! the whole; a Unix socket has no addresses, and its permissions say who comes.

use crate::transport::Transport;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Places for handshakes: each is a thread, for a few round trips.
const HANDSHAKES_MAX: usize = 128;
/// Those of one address: several clients that each open their connections at once.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// How long a handshake is left in peace when others want its place: some round trips across the world.
const HANDSHAKE_PEACE: Duration = Duration::from_secs(1);

/// Where a client comes from, as far as its numbers are limited together: an IPv4 address, or an IPv6 network
/// of 64 bits, all of which one host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address(IpAddr);

impl Address {
    /// That of a client at `ip`.
    pub(crate) fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        })
    }
}

/// Why a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// All seats are taken.
    #[error("{0} connections, which is all there may be")]
    Seats(usize),
    /// All of its address are.
    #[error("{0} connections from its address, which is all that one may have")]
    SeatsOfAddress(usize),
    /// All places for handshakes are, by clients that have only just come.
    #[error("{0} clients at their handshakes, and none of them for long")]
    Handshakes(usize),
}

/// The places of a server.
#[derive(Debug)]
pub(crate) struct Places {
    seats_max: usize,
    seats_per_address_max: usize,
    state: Mutex<State>,
    /// Somebody has left.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    /// Those at their handshakes, the oldest first.
    handshakes: BTreeMap<u64, Handshake>,
    /// Those that had to go and are not gone yet.
    leaving: usize,
    seats: usize,
    seats_of: HashMap<Address, usize>,
}

#[derive(Debug)]
struct Handshake {
    since: Instant,
    address: Option<Address>,
    transport: Weak<Transport>,
}

/// One client's place. It is given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    ticket: u64,
    address: Option<Address>,
    is_seat: bool,
}

impl Places {
    /// Nobody is there.
    pub(crate) fn new(seats_max: usize, seats_per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { seats_max, seats_per_address_max, state: Mutex::default(), left: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in its critical sections can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client begin its handshake, at `now`.
    pub(crate) fn admit(
        self: &Arc<Self>,
        address: Option<Address>,
        transport: &Arc<Transport>,
        now: Instant,
    ) -> Result<Place, Refused> {
        let mut state = self.lock();
        self.find_seat(&state, address)?;
        let at_it = |handshake: &Handshake| address.is_some() && handshake.address == address;
        let of_address = state.handshakes.values().filter(|handshake| at_it(handshake)).count();
        let full = state.handshakes.len() >= HANDSHAKES_MAX;
        if full || of_address >= HANDSHAKES_PER_ADDRESS_MAX {
            let oldest = state.handshakes.iter().find(|(_, handshake)| full || at_it(handshake));
            let late = oldest
                .filter(|(_, handshake)| now.saturating_duration_since(handshake.since) >= HANDSHAKE_PEACE);
            let Some(ticket) = late.map(|(ticket, _)| *ticket).filter(|_| state.leaving < HANDSHAKES_MAX)
            else {
                return Err(Refused::Handshakes(if full { HANDSHAKES_MAX } else { of_address }));
            };
            if let Some(transport) =
                state.handshakes.remove(&ticket).and_then(|late| late.transport.upgrade())
            {
                transport.end();
            }
            state.leaving += 1;
        }
        let ticket = state.tickets;
        state.tickets += 1;
        state
            .handshakes
            .insert(ticket, Handshake { since: now, address, transport: Arc::downgrade(transport) });
        Ok(Place { places: Arc::clone(self), ticket, address, is_seat: false })
    }

    fn find_seat(&self, state: &State, address: Option<Address>) -> Result<(), Refused> {
        if state.seats >= self.seats_max {
            return Err(Refused::Seats(self.seats_max));
        }
        let of_address = address.and_then(|address| state.seats_of.get(&address));
        match of_address.is_some_and(|seats| *seats >= self.seats_per_address_max) {
            true => Err(Refused::SeatsOfAddress(self.seats_per_address_max)),
            false => Ok(()),
        }
    }

    /// Clients now, those at their handshakes included.
    pub(crate) fn taken(&self) -> usize {
        self.lock().taken()
    }

    /// Waits until nobody is left; `false` if that is not so by `deadline`.
    pub(crate) fn wait_until_empty(&self, deadline: Instant) -> bool {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let waited = self.left.wait_timeout_while(self.lock(), timeout, |state| state.taken() > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.taken() == 0
    }
}

impl State {
    fn taken(&self) -> usize {
        self.handshakes.len() + self.leaving + self.seats
    }
}

impl Place {
    /// The handshake is over: gives back its place for a seat, if there is one.
    pub(crate) fn take_seat(&mut self) -> Result<(), Refused> {
        let mut state = self.places.lock();
        self.places.find_seat(&state, self.address)?;
        if state.handshakes.remove(&self.ticket).is_none() {
            // It had to go, and has not noticed.
            state.leaving -= 1;
        }
        state.seats += 1;
        if let Some(address) = self.address {
            *state.seats_of.entry(address).or_default() += 1;
        }
        drop(state);
        self.is_seat = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if self.is_seat {
            state.seats -= 1;
            if let Some(address) = self.address
                && let Some(seats) = state.seats_of.get_mut(&address)
            {
                *seats -= 1;
                if *seats == 0 {
                    state.seats_of.remove(&address);
                }
            }
        } else if state.handshakes.remove(&self.ticket).is_none() {
            state.leaving -= 1;
        }
        drop(state);
        self.places.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn transport() -> Arc<Transport> {
        connected().0
    }

    /// One whose client is there.
    fn connected() -> (Arc<Transport>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Arc::new(Transport::new(ours.into(), false).unwrap()), theirs)
    }

    fn address(n: u8) -> Option<Address> {
        Some(Address::of(IpAddr::from([192, 0, 2, n])))
    }

    #[test]
    fn one_address_gets_a_part_of_the_seats_and_others_find_the_rest() {
        let places = Places::new(3, 2);
        let now = Instant::now();
        let transport = transport();
        let seat = |n| {
            let mut place = places.admit(address(n), &transport, now)?;
            place.take_seat().map(|()| place)
        };
        let first = [seat(1).unwrap(), seat(1).unwrap()];
        assert_eq!(seat(1).unwrap_err(), Refused::SeatsOfAddress(2));
        let second = seat(2).unwrap();
        assert_eq!(seat(3).unwrap_err(), Refused::Seats(3));
        drop(first);
        let again = seat(1).unwrap();
        drop((second, again));
        assert_eq!(places.taken(), 0);
        assert!(places.lock().seats_of.is_empty(), "addresses of clients that have gone are remembered");
    }

    /// Both have come when there was one seat left.
    #[test]
    fn who_finishes_the_handshake_last_finds_no_seat() {
        let places = Places::new(1, 1);
        let transport = transport();
        let [mut first, mut last] =
            [1, 2].map(|n| places.admit(address(n), &transport, Instant::now()).unwrap());
        first.take_seat().unwrap();
        assert_eq!(last.take_seat(), Err(Refused::Seats(1)));
        assert_eq!(places.taken(), 2);
        drop((first, last));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn silent_clients_of_one_address_take_no_places_of_others() {
        let places = Places::new(1024, 1024);
        let (transport, now) = (transport(), Instant::now());
        let silent: Vec<_> = (0..HANDSHAKES_PER_ADDRESS_MAX)
            .map(|_| places.admit(address(1), &transport, now).unwrap())
            .collect();
        assert_eq!(places.admit(address(1), &transport, now).unwrap_err(), Refused::Handshakes(silent.len()));
        places.admit(address(2), &transport, now).unwrap();
    }

    #[test]
    fn silent_clients_of_many_addresses_make_room_when_they_have_been_so_for_long() {
        let places = Places::new(1024, 1024);
        let start = Instant::now();
        let silent: Vec<_> = (0..HANDSHAKES_MAX)
            .map(|n| {
                let (transport, client) = connected();
                let place = places.admit(address(n as u8), &transport, start).unwrap();
                (place, transport, client)
            })
            .collect();
        let newcomer = transport();
        let refused = places.admit(address(200), &newcomer, start).unwrap_err();
        assert_eq!(refused, Refused::Handshakes(HANDSHAKES_MAX));
        let later = start + HANDSHAKE_PEACE;
        let mut place = places.admit(address(200), &newcomer, later).unwrap();
        assert!(!silent[0].1.is_open(), "the one that has been there for longest goes");
        assert!(silent[1].1.is_open(), "and no other");
        place.take_seat().unwrap();
        drop((silent, place));
        assert_eq!(places.taken(), 0);
    }

    /// A host may have as many addresses as it likes in its network.
    #[test]
    fn addresses_are_told_apart_as_far_as_hosts_are() {
        let of = |text: &str| Address::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::2"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
