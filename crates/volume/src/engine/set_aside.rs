//! Data blocks that are free and not given out, because their write failed.
//!
//! Two reasons, two rules. A place that *failed* (a bad sector) stays aside until a reopen. A place that was
//! *refused* for want of room in the file system below takes no harm: it is a hole in a sparse file, and
//! there may be room later. As long as the file system is known to be full, only places that have space of
//! their own are given out (the device tells: [`dedup_device::BlockDevice::allocated`]); when none of those
//! is left, a hole is tried as a *probe*, and one that is written shows that there is room again.
//!
//! Invariant: refused places and probes are there only while the file system below counts as full.

use dedup_schema::Pbn;
use rustc_hash::FxHashSet;
use std::collections::BTreeSet;

/// Holes tried at a time: where one finds no room, no other will, and each costs a write that fails, and
/// retries of the file system's own before it does.
pub(crate) const PROBE_BLOCKS: usize = 1;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SetAside {
    failed: BTreeSet<Pbn>,
    refused: BTreeSet<Pbn>,
    probes: FxHashSet<Pbn>,
    full_below: bool,
}

/// What became of a set of places, for the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing new.
    Same,
    /// The file system below is full: places without space of their own are of no use from now on.
    Full,
    /// It has room again: every place may be used.
    Roomy,
}

impl SetAside {
    /// The write of a place failed.
    pub(crate) fn failed(&mut self, pbn: Pbn) {
        self.probes.remove(&pbn);
        self.failed.insert(pbn);
    }

    /// There was no room below for these places.
    pub(crate) fn refused(&mut self, pbns: &[Pbn]) -> Turn {
        if pbns.is_empty() {
            return Turn::Same;
        }
        pbns.iter().for_each(|pbn| {
            self.probes.remove(pbn);
        });
        self.refused.extend(pbns);
        match std::mem::replace(&mut self.full_below, true) {
            true => Turn::Same,
            false => Turn::Full,
        }
    }

    /// These places were given out as probes.
    pub(crate) fn probing(&mut self, pbns: &[Pbn]) {
        self.probes.extend(pbns);
    }

    /// A place was written.
    pub(crate) fn written(&mut self, pbn: Pbn) -> Turn {
        match !self.probes.is_empty() && self.probes.remove(&pbn) {
            true => {
                *self = Self { failed: std::mem::take(&mut self.failed), ..Self::default() };
                Turn::Roomy
            }
            false => Turn::Same,
        }
    }

    /// A place was not written after all.
    pub(crate) fn unused(&mut self, pbn: Pbn) {
        self.probes.remove(&pbn);
    }

    /// Every hole has been refused: each may be tried again. `false` if none was.
    pub(crate) fn forget_refusals(&mut self) -> bool {
        !std::mem::take(&mut self.refused).is_empty()
    }

    /// Whether the file system below counts as full.
    pub(crate) fn is_full_below(&self) -> bool {
        self.full_below
    }

    /// All places set aside.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Pbn> + '_ {
        self.failed.iter().chain(&self.refused).copied()
    }

    /// How many.
    pub(crate) fn len(&self) -> u64 {
        (self.failed.len() + self.refused.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_is_written_ends_the_scarcity_and_nothing_else_does() {
        let mut aside = SetAside::default();
        aside.failed(Pbn(9));
        assert_eq!(aside.refused(&[Pbn(1), Pbn(2)]), Turn::Full);
        assert_eq!(aside.refused(&[Pbn(3)]), Turn::Same, "known already");
        assert_eq!(aside.written(Pbn(4)), Turn::Same, "it had space of its own");
        aside.probing(&[Pbn(5), Pbn(6), Pbn(7)]);
        assert_eq!(aside.refused(&[Pbn(5)]), Turn::Same);
        aside.unused(Pbn(6));
        assert_eq!(aside.written(Pbn(5)), Turn::Same, "that probe has failed");
        assert_eq!((aside.len(), aside.is_full_below()), (5, true));
        assert_eq!(aside.written(Pbn(7)), Turn::Roomy);
        assert_eq!(aside.iter().collect::<Vec<_>>(), [Pbn(9)], "a bad place stays aside");
        assert!(!aside.is_full_below());
    }

    #[test]
    fn holes_are_tried_again_when_all_have_been_refused() {
        let mut aside = SetAside::default();
        assert!(!aside.forget_refusals());
        aside.refused(&[Pbn(1)]);
        assert!(aside.forget_refusals());
        assert_eq!((aside.len(), aside.is_full_below()), (0, true));
    }
}
