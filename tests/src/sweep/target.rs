//! What goes wrong, and how it goes on afterwards.

use super::*;
use dedup_device::{IoKind, SimFault};

/// An operation of a device that something is to go wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// 0 data, 1 metadata.
    pub device: usize,
    /// The kind that is counted.
    pub kind: IoKind,
    /// Which one, from the start of the run.
    pub n: u64,
    /// What goes wrong.
    pub fault: SimFault,
    /// Whether it goes wrong with all that come after it, too.
    pub lasting: bool,
}

impl Target {
    /// Whether a volume must stop for it.
    pub(super) fn stops(&self) -> bool {
        match self.kind {
            IoKind::Flush => self.is_reported(),
            IoKind::Write => self.device == 1 && self.is_reported(),
            IoKind::Read | IoKind::Discard => false,
        }
    }

    /// Whether the device says that something went wrong.
    pub(super) fn is_reported(&self) -> bool {
        use SimFault::{LostFlush, LostWrite, MisdirectedWrite, StaleRead};
        !matches!(self.fault, LostFlush | LostWrite { .. } | MisdirectedWrite { .. } | StaleRead { .. })
    }
}

/// All kinds of operations.
pub const KINDS: [IoKind; 4] = [IoKind::Read, IoKind::Write, IoKind::Flush, IoKind::Discard];

/// The ways in which an operation of a kind can fail.
pub fn failures(kind: IoKind) -> &'static [SimFault] {
    match kind {
        IoKind::Read => &[SimFault::Fail(IoKind::Read)],
        IoKind::Write => {
            &[SimFault::Fail(IoKind::Write), SimFault::TornWrite { seed: 5 }, SimFault::FullWrite]
        }
        IoKind::Flush => &[SimFault::Fail(IoKind::Flush), SimFault::TornFlush { seed: 9 }],
        IoKind::Discard => &[SimFault::Fail(IoKind::Discard)],
    }
}

/// How it goes on after a script.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// The power fails and keeps of what was not flushed nothing.
    Lose,
    /// Everything.
    Keep,
    /// The sectors that a seed chooses.
    Part(u64),
    /// The process starts again, the caches are as they were.
    Restart,
}

/// One of each.
pub const ENDINGS: [Ending; 4] = [Ending::Lose, Ending::Keep, Ending::Part(1), Ending::Restart];

impl Ending {
    /// The devices after it. A restart goes on with the same ones.
    pub fn of(self, disks: &Disks) -> Disks {
        match self {
            Self::Lose => disks.crash(|_, _, _| false),
            Self::Keep => disks.crash(|_, _, _| true),
            Self::Part(seed) => disks.crash(|device, write, sector| {
                let place = (device as u64) << 32 ^ (write as u64) << 8 ^ sector as u64;
                rng::Rng::new(seed << 40 ^ place).below(2) == 0
            }),
            Self::Restart => disks.clone(),
        }
    }
}
