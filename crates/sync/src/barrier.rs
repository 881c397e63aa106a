//! The flushes of a device, which commits and checkpoints both wait for.
//!
//! A device tells of lost writes once: the first flush after the loss fails, and the next one may well
//! succeed, although what it should have covered is gone. A kernel does the same for two flushes of one file
//! that run side by side. So a flush whose neighbour failed proves nothing, even if it says that it
//! succeeded: a checkpoint that believed it would write a superblock over trees that are not there (I6).
//!
//! Invariant: of two flushes, one begins after the other has ended; after the first failure none is tried,
//! and whoever could still acknowledge something is stopped before anybody else hears of the failure.

use crate::Mutex;
use std::fmt::Display;

/// Flushes of one device, one after the other, up to the first that fails.
#[derive(Debug, Default)]
pub struct Barrier {
    /// Held over a flush.
    running: Mutex<()>,
    failure: Mutex<Option<String>>,
}

/// Why a flush is not known to have covered anything.
#[derive(Debug, PartialEq, Eq)]
pub enum FlushError<E> {
    /// It failed.
    Failed(E),
    /// An earlier one failed, for this reason, and it was not tried.
    NotTried(String),
}

impl Barrier {
    /// Runs `flush`, unless one has failed before. If it fails, `failed` is called at once, before anybody
    /// can see that the flush has ended.
    pub fn run<E>(
        &self,
        flush: impl FnOnce() -> Result<(), E>,
        failed: impl FnOnce(),
    ) -> Result<(), FlushError<E>>
    where
        E: Display,
    {
        let _running = self.running.lock();
        if let Some(reason) = self.failure() {
            return Err(FlushError::NotTried(reason));
        }
        let result = flush();
        if let Err(error) = &result {
            *self.failure.lock() = Some(error.to_string());
            failed();
        }
        result.map_err(FlushError::Failed)
    }

    /// Why a flush has failed, if one has. Waits for none.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_flush_none_is_tried() {
        let barrier = Barrier::default();
        barrier.run(|| Ok::<(), &str>(()), || panic!("it did not fail")).unwrap();
        assert_eq!(barrier.failure(), None);
        let told = std::cell::Cell::new(false);
        let failed = barrier.run(|| Err("no answer"), || told.set(barrier.failure().is_some()));
        assert_eq!(failed, Err(FlushError::Failed("no answer")));
        assert!(told.get(), "whoever is stopped can ask why");
        let again = barrier.run::<&str>(|| panic!("tried again"), || panic!("told twice"));
        assert_eq!(again, Err(FlushError::NotTried("no answer".into())));
    }
}
