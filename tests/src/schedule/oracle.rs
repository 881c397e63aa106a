//! The oracle for many clients at once: may this be there after the power cut?
//!
//! A history is a list of *events*, each on one block, each with the moments of its request and of its reply.
//! What is found after the cut must be the result of a *prefix* of one order of these events that
//!
//! - respects which reply came before which request,
//! - explains what every read returned,
//!
//! and the prefix must hold every event acknowledged as durable, and all that was answered before a flush
//! that succeeded was requested.
//!
//! ```text
//!  a prefix of such an order:   replies < T      T       requests > T
//!                               all of them      some    none             T = the latest request in the prefix
//! ```
//!
//! So the search tries each T. With T fixed, what must and what may be in the prefix is known for each block
//! by itself, and orders of single blocks that respect the moments fit together into one (linearizability is
//! local, Herlihy and Wing 1990). For one block all orders are searched, with what has been tried remembered.
//! The search is exact: it accepts if and only if there is such an order.
//!
//! A block is two halves, so that one written in part and one that is torn can be told from a whole one.

use rustc_hash::FxHashSet;

/// What a block holds: the content of either half, by number (0: zeros).
pub type Value = [u64; 2];

/// What an event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets the halves that are given.
    Write([Option<u64>; 2]),
    /// Has returned this.
    Read(Value),
}

/// Something done to one block, or meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which block.
    pub lbn: usize,
    /// What was done.
    pub action: Action,
    /// When it was requested.
    pub request: u64,
    /// When it was answered well; `None` if it was not, or with an error: then a write may have happened or
    /// not.
    pub reply: Option<u64>,
    /// Whether the reply says that it is durable.
    pub durable: bool,
}

/// What happened between an open and a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// What the blocks held at first.
    pub initial: Vec<Value>,
    /// What was done to blocks, in any order.
    pub events: Vec<Event>,
    /// Requests of flushes and checkpoints that were answered well.
    pub flushes: Vec<u64>,
}

/// Why a history cannot have led to what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuted {
    /// The blocks that have no explanation by the latest prefix that explains most.
    pub lbns: Vec<usize>,
    /// Where that prefix ends.
    pub at: u64,
}

/// Events of a block that one search can hold.
const EVENTS_MAX: usize = 128;

impl History {
    /// Whether `found`, a value for each block, may be there after a power cut at the end of this history.
    /// `None` for a block that was not looked at.
    pub fn explain(&self, found: &[Option<Value>]) -> Result<(), Refuted> {
        let per_block: Vec<Vec<Event>> = (0..self.initial.len())
            .map(|lbn| {
                let mut events: Vec<Event> = self.events.iter().filter(|e| e.lbn == lbn).copied().collect();
                events.retain(|e| e.reply.is_some() || matches!(e.action, Action::Write(_)));
                events.sort_by_key(|e| e.request);
                assert!(events.len() <= EVENTS_MAX, "too many events for one block");
                events
            })
            .collect();
        let mut best: Option<Refuted> = None;
        for end in self.possible_ends() {
            let wrong: Vec<usize> = (0..self.initial.len())
                .filter(|lbn| !explains(&per_block[*lbn], self.initial[*lbn], end, found[*lbn]))
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            if best.as_ref().is_none_or(|best| wrong.len() < best.lbns.len()) {
                best = Some(Refuted { lbns: wrong, at: end });
            }
        }
        Err(best.unwrap_or_else(|| unreachable!("there is always an end")))
    }

    /// The moments at which the prefix may end, latest first: those of requests, from the last that must be
    /// in it.
    fn possible_ends(&self) -> Vec<u64> {
        let durable = self.events.iter().filter(|e| e.durable && e.reply.is_some()).map(|e| e.request);
        let least = durable.chain(self.flushes.iter().copied()).max().unwrap_or(0);
        let mut ends: Vec<u64> = self.events.iter().map(|e| e.request).filter(|at| *at > least).collect();
        ends.push(least);
        ends.sort_unstable();
        ends.dedup();
        ends.reverse();
        ends
    }
}

/// Whether one block's events have an order with a prefix that leaves `found` and ends at `end`.
fn explains(events: &[Event], initial: Value, end: u64, found: Option<Value>) -> bool {
    let mut search = Search { events, end, found, tried: FxHashSet::default() };
    search.go(0, initial, false)
}

struct Search<'a> {
    events: &'a [Event],
    end: u64,
    found: Option<Value>,
    /// (Events ordered, value, whether the prefix is over) that lead nowhere.
    tried: FxHashSet<(u128, Value, bool)>,
}

impl<'a> Search<'a> {
    /// Whether the events in `done`, which left `value`, can be continued. `cut`: the prefix is over.
    fn go(&mut self, done: u128, value: Value, cut: bool) -> bool {
        if cut && self.left(done).all(|(_, e)| e.reply.is_none()) {
            return true;
        }
        if !self.tried.insert((done, value, cut)) {
            return false;
        }
        if !cut && self.may_cut(done, value) && self.go(done, value, true) {
            return true;
        }
        // What is left may be next if nothing else that is left was answered before it was requested. Of two
        // that do the same, the one that is due first goes first: the other way round explains nothing more.
        let first_reply = self.left(done).filter_map(|(_, e)| e.reply).min().unwrap_or(u64::MAX);
        let next: Vec<(usize, &Event)> = self
            .left(done)
            .filter(|(_, e)| e.request <= first_reply && (cut || e.request <= self.end))
            .collect();
        let goes_before = |(i, a): (usize, &Event), (j, b): (usize, &Event)| {
            let due = |e: &Event| e.reply.unwrap_or(u64::MAX);
            a.action == b.action && a.durable >= b.durable && (due(a), i) < (due(b), j)
        };
        let candidates: Vec<usize> = next
            .iter()
            .filter(|b| !next.iter().any(|a| goes_before(*a, **b)))
            .map(|(place, _)| *place)
            .collect();
        candidates.into_iter().any(|place| match apply(value, self.events[place].action) {
            Some(next) => self.go(done | 1 << place, next, cut),
            None => false,
        })
    }

    fn left(&self, done: u128) -> impl Iterator<Item = (usize, &'a Event)> + use<'a> {
        self.events.iter().enumerate().filter(move |(place, _)| done & (1 << place) == 0)
    }

    /// Whether the prefix may be over here.
    fn may_cut(&self, done: u128, value: Value) -> bool {
        let must_be_in = |e: &Event| e.reply.is_some_and(|reply| reply < self.end || e.durable);
        self.found.is_none_or(|found| found == value) && !self.left(done).any(|(_, e)| must_be_in(e))
    }
}

/// The value after an event; `None` if a read cannot have returned what it did.
fn apply(value: Value, action: Action) -> Option<Value> {
    match action {
        Action::Read(seen) => (seen == value).then_some(value),
        Action::Write([first, second]) => Some([first.unwrap_or(value[0]), second.unwrap_or(value[1])]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(lbn: usize, content: u64, request: u64, reply: u64) -> Event {
        let action = Action::Write([Some(content); 2]);
        Event { lbn, action, request, reply: Some(reply), durable: false }
    }

    fn read(lbn: usize, content: u64, request: u64, reply: u64) -> Event {
        Event { action: Action::Read([content; 2]), ..write(lbn, 0, request, reply) }
    }

    fn durable(event: Event) -> Event {
        Event { durable: true, ..event }
    }

    fn unanswered(event: Event) -> Event {
        Event { reply: None, ..event }
    }

    fn accepts(events: &[Event], flushes: &[u64], found: &[u64]) -> bool {
        let history = History {
            initial: vec![[0; 2]; found.len()],
            events: events.to_vec(),
            flushes: flushes.to_vec(),
        };
        history.explain(&found.iter().map(|content| Some([*content; 2])).collect::<Vec<_>>()).is_ok()
    }

    #[test]
    fn a_lost_write_is_fine_unless_it_was_durable() {
        assert!(accepts(&[write(0, 1, 1, 2)], &[], &[0]));
        assert!(accepts(&[write(0, 1, 1, 2)], &[], &[1]));
        assert!(accepts(&[unanswered(write(0, 1, 1, 2))], &[], &[1]));
        assert!(!accepts(&[durable(write(0, 1, 1, 2))], &[], &[0]));
        assert!(!accepts(&[write(0, 1, 1, 2)], &[3], &[0]), "answered before a flush was requested");
        assert!(accepts(&[write(0, 1, 1, 3)], &[2], &[0]), "answered after it");
        assert!(!accepts(&[write(0, 1, 1, 2)], &[], &[7]), "never written");
    }

    #[test]
    fn a_later_event_is_not_there_without_one_that_was_over_before_it_began() {
        let events = [write(0, 1, 1, 2), write(1, 2, 3, 4)];
        assert!(!accepts(&events, &[], &[0, 2]));
        assert!(accepts(&events, &[], &[1, 0]));
        assert!(accepts(&[write(0, 1, 1, 5), write(1, 2, 3, 4)], &[], &[0, 2]), "at the same time");
        assert!(!accepts(&[write(0, 1, 1, 2), unanswered(write(1, 2, 3, 4))], &[], &[0, 2]));
        assert!(!accepts(&[write(0, 1, 1, 2), write(1, 2, 3, 4), write(2, 3, 3, 9)], &[], &[0, 0, 3]));
        assert!(accepts(&[write(0, 1, 1, 3), write(1, 2, 2, 5), write(2, 3, 4, 9)], &[], &[1, 0, 3]));
    }

    #[test]
    fn of_two_writes_the_later_one_stays_and_of_two_at_once_either() {
        assert!(!accepts(&[write(0, 1, 1, 2), write(0, 2, 3, 4)], &[5], &[1]));
        assert!(accepts(&[write(0, 1, 1, 3), write(0, 2, 2, 4)], &[5], &[1]));
        assert!(accepts(&[write(0, 1, 1, 3), write(0, 2, 2, 4)], &[5], &[2]));
        assert!(accepts(&[write(0, 1, 1, 2), write(0, 2, 3, 4), write(0, 1, 5, 6)], &[7], &[1]), "twice");
    }

    #[test]
    fn a_durable_write_may_be_hidden_only_by_one_that_may_come_after_it() {
        let (first, second) = (write(0, 1, 1, 2), write(0, 2, 5, 6));
        assert!(accepts(&[durable(second), write(0, 3, 4, 8)], &[], &[3]));
        assert!(!accepts(&[first, durable(second)], &[], &[1]));
        assert!(accepts(&[durable(first), unanswered(second)], &[], &[2]));
    }

    #[test]
    fn a_read_returns_nothing_that_was_overwritten_before_it_began() {
        let events = [write(0, 1, 1, 2), write(0, 2, 3, 4)];
        assert!(accepts(&[events[0], events[1], read(0, 2, 5, 6)], &[7], &[2]));
        assert!(!accepts(&[events[0], events[1], read(0, 1, 5, 6)], &[7], &[2]));
        assert!(accepts(&[events[0], write(0, 2, 3, 9), read(0, 1, 5, 6)], &[7], &[2]));
        assert!(!accepts(&[read(0, 3, 5, 6)], &[], &[0]), "never written");
        assert!(
            !accepts(&[write(0, 1, 1, 9), read(0, 1, 2, 3), read(0, 0, 4, 5)], &[], &[1]),
            "back in time"
        );
    }

    /// A client saw a value, and what it wrote thereafter is durable: then so is what it saw.
    #[test]
    fn what_was_read_before_a_durable_write_is_there() {
        let seen = unanswered(write(0, 1, 1, 0));
        let after = durable(write(1, 2, 4, 5));
        assert!(!accepts(&[seen, read(0, 1, 2, 3), after], &[], &[0, 2]));
        assert!(accepts(&[seen, read(0, 1, 2, 3), after], &[], &[1, 2]));
        assert!(accepts(&[seen, read(0, 0, 2, 3), after], &[], &[1, 2]));
        assert!(accepts(&[seen, read(0, 1, 2, 6), after], &[], &[0, 2]), "the read was not over");
    }

    /// Two writes at once, and a read tells which was first: the cut cannot turn them round.
    #[test]
    fn what_a_read_saw_holds_after_the_cut() {
        let events = [write(0, 1, 1, 4), write(0, 2, 2, 5), read(0, 2, 6, 7)];
        assert!(accepts(&events, &[8], &[2]));
        assert!(!accepts(&events, &[8], &[1]));
    }

    #[test]
    fn a_torn_block_needs_a_write_in_part() {
        let history = |events: &[Event]| History {
            initial: vec![[0; 2]],
            events: events.to_vec(),
            flushes: Vec::new(),
        };
        let half = Event { action: Action::Write([None, Some(2)]), ..write(0, 0, 3, 4) };
        assert!(history(&[write(0, 1, 1, 2), half]).explain(&[Some([1, 2])]).is_ok());
        assert!(history(&[write(0, 1, 1, 2), write(0, 2, 3, 4)]).explain(&[Some([1, 2])]).is_err());
        assert!(history(&[write(0, 1, 1, 2), half]).explain(&[Some([0, 2])]).is_err());
        let refuted = history(&[durable(write(0, 1, 1, 2))]).explain(&[Some([0, 0])]);
        assert_eq!(refuted, Err(Refuted { lbns: vec![0], at: 1 }));
    }

    #[test]
    fn many_events_at_once_are_searched_in_no_time() {
        let mut events: Vec<Event> = (0..24).map(|i| write(0, 1 + i % 3, 1, 100)).collect();
        events.push(read(0, 2, 101, 102));
        assert!(accepts(&events, &[103], &[2]));
        assert!(!accepts(&events, &[103], &[1]));
    }
}
