//! What goes wrong with a simulated device, and when.
//!
//! Faults are counted, never drawn: the n-th operation of a kind, every operation that touches a range, the power
//! from the n-th event on. An event is an operation that can change what the medium holds: a write, a flush or a
//! discard. Reads are none, so a program that reads more does not shift its crash points.
//!
//! This page decides only *whether* an operation fails. What a failed one leaves behind is the medium's matter.

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
}

impl From<SimError> for io::Error {
    fn from(error: SimError) -> Self {
        Self::other(error)
    }
}

/// What becomes of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It succeeds.
    Proceed,
    /// It fails, and may have been done in part.
    Fail(SimError),
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
    nth: Vec<(IoKind, u64)>,
    regions: Vec<(IoKind, Range<u64>)>,
}

impl Faults {
    /// Events begun so far, those after a cut not counted.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Lets `n` more events happen; the next one finds the power failing.
    pub(super) fn cut_after(&mut self, n: u64) {
        self.cut_at = Some(self.events.saturating_add(n));
    }

    /// Makes the `n`-th operation of a kind from now on (0: the next) fail, once.
    pub(super) fn fail_nth(&mut self, kind: IoKind, n: u64) {
        self.nth.push((kind, self.begun[kind as usize].saturating_add(n)));
    }

    /// Makes every operation of a kind that touches `range` fail.
    pub(super) fn fail_region(&mut self, kind: IoKind, range: Range<u64>) {
        self.regions.push((kind, range));
    }

    /// Takes back every fault but a power cut.
    pub(super) fn clear(&mut self) {
        self.nth.clear();
        self.regions.clear();
    }

    /// Whether a call that is no operation can be answered: not without power.
    pub(super) fn power(&self) -> Verdict {
        if self.power_off { Verdict::Dead } else { Verdict::Proceed }
    }

    /// Counts an operation and says what becomes of it.
    pub(super) fn begin(&mut self, kind: IoKind, range: Range<u64>) -> Verdict {
        if self.power_off {
            return Verdict::Dead;
        }
        if kind.is_event() {
            if self.cut_at == Some(self.events) {
                self.power_off = true;
                return Verdict::Fail(SimError::PowerOff);
            }
            self.events += 1;
        }
        let number = self.begun[kind as usize];
        self.begun[kind as usize] += 1;
        let waiting = self.nth.len();
        self.nth.retain(|fault| *fault != (kind, number));
        let due = self.nth.len() < waiting;
        let bad = self.regions.iter().any(|(k, r)| *k == kind && r.start < range.end && range.start < r.end);
        if due || bad { Verdict::Fail(SimError::Injected(kind)) } else { Verdict::Proceed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_of_a_kind_fails_once_and_other_kinds_do_not_count() {
        let mut faults = Faults::default();
        faults.fail_nth(IoKind::Write, 1);
        let write = |f: &mut Faults| f.begin(IoKind::Write, 0..512);
        assert_eq!(write(&mut faults), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Read, 0..512), Verdict::Proceed);
        assert_eq!(write(&mut faults), Verdict::Fail(SimError::Injected(IoKind::Write)));
        assert_eq!(write(&mut faults), Verdict::Proceed);
    }

    #[test]
    fn a_region_fails_what_touches_it_and_not_its_neighbours() {
        let mut faults = Faults::default();
        faults.fail_region(IoKind::Read, 512..1024);
        assert_eq!(faults.begin(IoKind::Read, 0..512), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Read, 1024..1536), Verdict::Proceed);
        assert_ne!(faults.begin(IoKind::Read, 0..4096), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Write, 0..4096), Verdict::Proceed);
        faults.clear();
        assert_eq!(faults.begin(IoKind::Read, 0..4096), Verdict::Proceed);
    }

    #[test]
    fn reads_do_not_move_the_power_cut() {
        let mut faults = Faults::default();
        faults.cut_after(1);
        assert_eq!(faults.begin(IoKind::Read, 0..1), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Flush, 0..0), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Read, 0..1), Verdict::Proceed);
        assert_eq!(faults.begin(IoKind::Write, 0..1), Verdict::Fail(SimError::PowerOff));
        assert_eq!(faults.begin(IoKind::Read, 0..1), Verdict::Dead);
        assert_eq!(faults.events(), 1);
    }
}
