//! Why a request may fail: the power cut, the one device failure of a life, a store that is too small. An
//! error that has none of these causes is a fault of the engine, and so is one that reaches further than its
//! cause.
//!
//! | cause | who may fail |
//! |---|---|
//! | the power is off | everybody |
//! | a read or write of the data device failed, or a discard | requests of one batch, with an I/O error; the volume goes on |
//! | a flush failed, or a read or write of the metadata device | everything that changes something, from then on; reads only if a read failed |
//! | fewer spare blocks than the clients write at once | what writes new content, with \"no space\" |

use crate::Disks;
use crate::rng::Rng;
use dedup_device::{IoKind, SimDevice};
use dedup_volume::{RequestError, VolumeError};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// One operation that fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    /// 0 data, 1 metadata.
    device: usize,
    kind: IoKind,
    /// How many of the kind come before it, counted from the life's open or from its end.
    after: u64,
    in_open: bool,
}

impl Failure {
    /// One that a life is likely to get to.
    pub(super) fn any(rng: &mut Rng) -> Self {
        // How many of its kind a life has, more or less.
        let (device, kind, usual) = [
            (0, IoKind::Flush, 6),
            (0, IoKind::Write, 20),
            (0, IoKind::Read, 20),
            (0, IoKind::Discard, 4),
            (1, IoKind::Flush, 20),
            (1, IoKind::Flush, 20),
            (1, IoKind::Write, 40),
            (1, IoKind::Read, 20),
        ][rng.below(8) as usize];
        Self { device, kind, after: rng.below(usual), in_open: rng.below(6) == 0 }
    }

    /// Whether the volume takes no more writes after it.
    fn stops(&self) -> bool {
        self.device == 1 || self.kind == IoKind::Flush
    }
}

/// The causes of a life.
#[derive(Debug)]
pub(super) struct Causes {
    disks: Disks,
    is_cut: Arc<AtomicBool>,
    failure: Option<Failure>,
    /// The number of the operation that fails, once it is ordered.
    number: AtomicU64,
    /// The batch that had errors of a failure that stops nobody else; 0 for none.
    batch: AtomicU64,
}

impl Causes {
    /// `is_cut` is set before the power fails.
    pub(super) fn new(disks: &Disks, is_cut: Arc<AtomicBool>, failure: Option<Failure>) -> Self {
        let (number, batch) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        Self { disks: disks.clone(), is_cut, failure, number, batch }
    }

    fn device(&self, failure: &Failure) -> &SimDevice {
        [&self.disks.data, &self.disks.metadata][failure.device]
    }

    /// Orders the failure: to be called before the open, and after it.
    pub(super) fn order(&self, in_open: bool) {
        let Some(failure) = self.failure.filter(|failure| failure.in_open == in_open) else { return };
        let device = self.device(&failure);
        self.number.store(device.operations(failure.kind) + failure.after, SeqCst);
        device.fail_nth(failure.kind, failure.after);
    }

    /// Whether the power is off.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(SeqCst)
    }

    /// The failure, if it has come.
    fn failed(&self) -> Option<Failure> {
        let number = self.number.load(SeqCst);
        self.failure.filter(|failure| self.device(failure).operations(failure.kind) > number)
    }

    fn wrong(&self, what: impl Display) -> Result<(), String> {
        Err(format!("an error without a cause: {what}; the failure of this life: {:?}", self.failure))
    }

    /// Whether a request of the batch sent at `batch` may have ended in this error. That there is no space is
    /// none with a cause: the store has more blocks than the volume (I17), also after a failure.
    pub(super) fn allow(&self, error: RequestError, is_read: bool, batch: u64) -> Result<(), String> {
        if self.is_cut() {
            return Ok(());
        }
        match (error, self.failed()) {
            (RequestError::Io | RequestError::ReadOnly, Some(failure)) if failure.stops() => {
                match is_read && failure.kind != IoKind::Read {
                    false => Ok(()),
                    true => self.wrong(format!("{error} to a read")),
                }
            }
            (RequestError::Io, Some(_)) => match self.batch.compare_exchange(0, batch, SeqCst, SeqCst) {
                Ok(_) => Ok(()),
                Err(first) if first == batch => Ok(()),
                Err(first) => self.wrong(format!("{error} to batches {first} and {batch}")),
            },
            (error, _) => self.wrong(error),
        }
    }

    /// Whether an open may have ended in this error.
    pub(super) fn allow_open(&self, error: &VolumeError) -> Result<(), String> {
        match self.is_cut() || self.failed().is_some() {
            true => Ok(()),
            false => self.wrong(error),
        }
    }

    /// Whether a checkpoint or a close may have ended in this error.
    pub(super) fn allow_stop(&self, error: &VolumeError) -> Result<(), String> {
        match self.is_cut() || self.failed().is_some_and(|failure| failure.stops()) {
            true => Ok(()),
            false => self.wrong(error),
        }
    }

    /// Whether a volume may have stopped, if it has.
    pub(super) fn allow_mode(&self, stopped: bool) -> Result<(), String> {
        match !stopped || self.is_cut() || self.failed().is_some_and(|failure| failure.stops()) {
            true => Ok(()),
            false => self.wrong("the volume has stopped"),
        }
    }
}
