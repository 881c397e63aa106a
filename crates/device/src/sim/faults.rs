//! What goes wrong with a simulated device, and when.
//!
//! Faults are counted, never drawn: the n-th operation of a kind, all from the n-th on, every operation that
//! touches a range, the power from the n-th event on. An event is an operation that can change what the
//! medium holds: a write, a flush or a discard. Reads are none, so a program that reads more does not shift
//! its crash points.
//!
//! This page decides *whether* something goes wrong with an operation, and what. How it is done is the
//! medium's matter.

use std::io;
use std::ops::Range;

/// The operations of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// A read, each of a batch counted by itself.
    Read,
    /// A write, each of a batch counted by itself.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
}

impl IoKind {
    const COUNT: usize = 4;

    /// Whether it can change what the medium holds.
    fn is_event(self) -> bool {
        match self {
            Self::Read => false,
            Self::Write | Self::Flush | Self::Discard => true,
        }
    }
}

/// The source inside the `io::Error`s of a simulated device that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The power is off since [`set_cut_after`](crate::SimDevice::set_cut_after) was reached.
    #[error("simulated device has no power")]
    PowerOff,
    /// A fault injected for this operation or this place.
    #[error("injected {0:?} failure")]
    Injected(IoKind),
    /// The file system under the device has no room. Its error has the kind [`io::ErrorKind::StorageFull`].
    #[error("no space left on the simulated device")]
    Full,
}

impl From<SimError> for io::Error {
    fn from(error: SimError) -> Self {
        match error {
            SimError::Full => Self::new(io::ErrorKind::StorageFull, error),
            SimError::PowerOff | SimError::Injected(_) => Self::other(error),
        }
    }
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimFault {
    /// It fails. A write or discard may be on the medium in part if the power is cut before the next flush;
    /// reads return the old bytes. A flush loses what it should have made durable, in whole or in part as
    /// [`crash`](crate::SimDevice::crash) chooses, though reads go on to return it.
    Fail(IoKind),
    /// A write fails halfway: the sectors that the seed chooses are written, for reads too.
    TornWrite {
        /// Chooses the sectors.
        seed: u64,
    },
    /// A write fails as on a full file system ([`SimError::Full`]), else as with [`Self::Fail`].
    FullWrite,
    /// A write is acknowledged and never reaches the medium.
    LostWrite {
        /// Whether reads return it until the power is cut or the cache bypassed.
        cached: bool,
    },
    /// A write is acknowledged and goes to another place; its own keeps the old bytes.
    MisdirectedWrite {
        /// Byte offset of that place. Where the write does not fit it is lost.
        to: u64,
        /// Whether reads of its own place return it until the power is cut or the cache bypassed.
        cached: bool,
    },
    /// A read returns what each sector held before the last changes to it; ordered for a range, only the
    /// sectors in that. The device must have been told to [`keep_history`](crate::SimDevice::keep_history); a
    /// sector without that many changes since then reads as before the first.
    StaleRead {
        /// How many changes back, at least 1.
        age: usize,
    },
    /// A flush fails, and of the writes before it the sectors that the seed chooses are durable, the others
    /// lost. Reads go on to return them all until the power is cut or the cache bypassed.
    TornFlush {
        /// Chooses the sectors.
        seed: u64,
    },
    /// A flush is acknowledged and makes nothing durable.
    LostFlush,
}

impl SimFault {
    fn kind(self) -> IoKind {
        match self {
            Self::Fail(kind) => kind,
            Self::StaleRead { .. } => IoKind::Read,
            Self::TornFlush { .. } | Self::LostFlush => IoKind::Flush,
            Self::TornWrite { .. }
            | Self::FullWrite
            | Self::LostWrite { .. }
            | Self::MisdirectedWrite { .. } => IoKind::Write,
        }
    }
}

/// Which operations of its kind a fault meets. Where several faults meet one operation, the first ordered
/// wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// The n-th from now on (0: the next), once.
    Nth(u64),
    /// The n-th from now on and all after it.
    From(u64),
    /// All that touch this range of bytes. A flush touches none.
    Touching(Range<u64>),
}

/// What becomes of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It succeeds.
    Proceed,
    /// This goes wrong with it.
    Fault(SimFault),
    /// A read returns old bytes from one offset to another.
    Stale {
        /// How many changes back.
        age: usize,
        /// First byte.
        from: u64,
        /// Behind the last.
        to: u64,
    },
    /// The power fails while it is under way: it fails, and may have been done in part.
    Cut,
    /// The power was off before it began: nothing of it happens.
    Dead,
}

/// The faults that wait for their operation, and the counts that they wait by.
#[derive(Debug, Default)]
pub(super) struct Faults {
    begun: [u64; IoKind::COUNT],
    events: u64,
    cut_at: Option<u64>,
    power_off: bool,
    /// Numbers count from the device's first operation of the kind.
    waiting: Vec<(When, SimFault)>,
    trace: Option<Vec<(IoKind, Range<u64>)>>,
}

impl Faults {
    /// Events begun so far, those after a cut not counted.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Operations of a kind begun so far, those after a cut not counted.
    pub(super) fn begun(&self, kind: IoKind) -> u64 {
        self.begun[kind as usize]
    }

    /// Lets `n` more events happen; the next one finds the power failing.
    pub(super) fn cut_after(&mut self, n: u64) {
        self.cut_at = Some(self.events.saturating_add(n));
    }

    /// Has `fault` wait for its operations.
    pub(super) fn add(&mut self, when: When, fault: SimFault) {
        let begun = self.begun(fault.kind());
        let when = match when {
            When::Nth(n) => When::Nth(begun.saturating_add(n)),
            When::From(n) => When::From(begun.saturating_add(n)),
            When::Touching(range) => When::Touching(range),
        };
        self.waiting.push((when, fault));
    }

    /// Remembers operations from now on.
    pub(super) fn keep_trace(&mut self) {
        self.trace.get_or_insert_default();
    }

    /// What has been remembered.
    pub(super) fn trace(&self) -> &[(IoKind, Range<u64>)] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Takes back every fault but a power cut.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Whether the power is on.
    pub(super) fn has_power(&self) -> bool {
        !self.power_off
    }

    /// Counts an operation and says what becomes of it.
    pub(super) fn begin(&mut self, kind: IoKind, range: Range<u64>) -> Verdict {
        if self.power_off {
            return Verdict::Dead;
        }
        if kind.is_event() {
            if self.cut_at == Some(self.events) {
                self.power_off = true;
                return Verdict::Cut;
            }
            self.events += 1;
        }
        if let Some(trace) = &mut self.trace {
            trace.push((kind, range.clone()));
        }
        let number = self.begun(kind);
        self.begun[kind as usize] += 1;
        let meets = |when: &When| match when {
            When::Nth(n) => *n == number,
            When::From(n) => *n <= number,
            When::Touching(r) => r.start < range.end && range.start < r.end,
        };
        let met = self.waiting.iter().find(|(when, fault)| fault.kind() == kind && meets(when));
        let verdict = met.map_or(Verdict::Proceed, |(when, fault)| match (when, *fault) {
            (When::Touching(r), SimFault::StaleRead { age }) => {
                Verdict::Stale { age, from: r.start.max(range.start), to: r.end.min(range.end) }
            }
            (_, SimFault::StaleRead { age }) => Verdict::Stale { age, from: range.start, to: range.end },
            (_, fault) => Verdict::Fault(fault),
        });
        self.waiting.retain(|(when, fault)| fault.kind() != kind || *when != When::Nth(number));
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_of_a_kind_fails_once_and_other_kinds_do_not_count() {
        let mut faults = Faults::default();
        faults.add(When::Nth(1), SimFault::Fail(IoKind::Write));
        let write = |f: &mut Faults| f.begin(IoKind::Write, 0..512);
        assert_eq!(write(&mut faults), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Read, 0..512), Verdict::Proceed);
        assert_eq!(write(&mut faults), Verdict::Fault(SimFault::Fail(IoKind::Write)));
        assert_eq!(write(&mut faults), Verdict::Proceed);
    }

    #[test]
    fn a_region_fails_what_touches_it_and_not_its_neighbours() {
        let mut faults = Faults::default();
        faults.add(When::Touching(512..1024), SimFault::Fail(IoKind::Read));
        assert_eq!(faults.begin(IoKind::Read, 0..512), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Read, 1024..1536), Verdict::Proceed);
        assert_ne!(faults.begin(IoKind::Read, 0..4096), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Write, 0..4096), Verdict::Proceed);
        faults.clear();
        assert_eq!(faults.begin(IoKind::Read, 0..4096), Verdict::Proceed);
    }

    #[test]
    fn the_first_ordered_of_two_faults_wins_and_a_lasting_one_goes_on() {
        let mut faults = Faults::default();
        faults.begin(IoKind::Write, 0..512);
        faults.add(When::Nth(1), SimFault::FullWrite);
        faults.add(When::From(0), SimFault::Fail(IoKind::Write));
        let verdicts: Vec<Verdict> = (0..4).map(|_| faults.begin(IoKind::Write, 0..512)).collect();
        let fails = Verdict::Fault(SimFault::Fail(IoKind::Write));
        assert_eq!(verdicts, [fails, Verdict::Fault(SimFault::FullWrite), fails, fails]);
        assert_eq!(faults.begun(IoKind::Write), 5);
        assert_eq!(faults.begin(IoKind::Flush, 0..0), Verdict::Proceed);
    }

    #[test]
    fn reads_do_not_move_the_power_cut() {
        let mut faults = Faults::default();
        faults.cut_after(1);
        assert_eq!(faults.begin(IoKind::Read, 0..1), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Flush, 0..0), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Read, 0..1), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Write, 0..1), Verdict::Cut);
        assert_eq!(faults.begin(IoKind::Read, 0..1), Verdict::Dead);
        assert_eq!(faults.events(), 1);
    }
}
