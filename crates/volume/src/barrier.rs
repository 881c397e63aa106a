//! The flushes of a device, which commits and checkpoints both wait for.
//!
//! A device tells of lost writes once: the first flush after the loss fails, and the next one may well succeed, although
//! what it should have covered is gone. A kernel does the same for two flushes of one file that run side by side. So a flush whose
//! neighbour failed proves nothing, even if it says that it succeeded: a checkpoint that believed it would write a superblock
//! over trees that are not there (I6).
//!
//! Invariant: of two flushes, one begins after the other has ended; after the first failure none is tried.

use crate::error::VolumeError;
use crate::sync::Mutex;

/// Flushes of one device, one after the other, up to the first that fails.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    failure: Mutex<Option<String>>,
}

impl Barrier {
    /// Runs `flush`, unless one has failed before.
    pub(crate) fn run<E>(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<(), VolumeError>
    where
        VolumeError: From<E>,
    {
        let mut failure = self.failure.lock();
        if let Some(reason) = &*failure {
            return Err(VolumeError::Stopped { reason: reason.clone() });
        }
        let result = flush().map_err(VolumeError::from);
        if let Err(error) = &result {
            *failure = Some(error.to_string());
        }
        result
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_flush_none_is_tried() {
        let barrier = Barrier::default();
        barrier.run(|| Ok::<(), VolumeError>(())).unwrap();
        barrier.run(|| Err(VolumeError::Closed)).unwrap_err();
        let error = barrier.run::<VolumeError>(|| panic!("tried again")).unwrap_err();
        assert!(matches!(error, VolumeError::Stopped { .. }), "{error}");
    }
}
