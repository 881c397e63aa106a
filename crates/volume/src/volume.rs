//! [`Volume`]: what front ends link. A batch of requests goes in, completions come back one by one.
//! Everything happens below: in `io` what an operation does, in `durability` what makes it durable, in
//! `background` what threads do, in `lifecycle` how it is opened.

use crate::background::gc::GcEstimate;
use crate::background::maintenance::Threads;
use crate::engine::Engine;
use crate::error::VolumeError;
use crate::io::extents::{Detail, Extent};
use crate::lifecycle::open;
use crate::lifecycle::options::OpenOptions;
use crate::state::Mode;
use dedup_device::BlockDevice;
use dedup_request::{Done, Request, RequestError, Wanted};
use dedup_schema::{Digest, Pbn};
use dedup_sync::Arc;

/// An open volume. Shared by reference between any number of threads; dropped without [`Volume::close`], it
/// is as if the power had failed: everything acknowledged as durable is there at the next open.
#[derive(Debug)]
pub struct Volume {
    pub(crate) engine: Arc<Engine>,
    pub(crate) threads: Option<Threads>,
}

impl Volume {
    /// Opens the volume on these two devices, which the caller has locked (exclusively unless read-only).
    pub fn open(
        data: Arc<dyn BlockDevice>,
        metadata: Arc<dyn BlockDevice>,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let (engine, threads) = open::open(data, metadata, options)?;
        Ok(Self { engine, threads })
    }

    /// Bytes of the logical device.
    pub fn logical_size(&self) -> u64 {
        self.engine.lbns * self.engine.block_size
    }

    /// Bytes in a block: the preferred size and alignment of requests.
    pub fn block_size(&self) -> u32 {
        self.engine.block_size as u32
    }

    /// Whether writes are refused, by choice or after a failure.
    pub fn is_read_only(&self) -> bool {
        self.engine.state.lock().writable().is_err()
    }

    /// Runs a batch; calls `done` once for each request, as it completes, from this thread. Returns when all
    /// are done.
    pub fn execute<'a>(&self, batch: Vec<Request<'a>>, done: Done<'_, 'a>) {
        self.execute_while(&|| true, batch, done);
    }

    /// As [`execute`](Self::execute), for a caller that may lose interest: changes that were not begun while
    /// they were `wanted` fail with [`RequestError::Abandoned`] and have no effect. It is asked while the
    /// blocks in question are locked, by this thread, and must not wait: what it finds holds until the blocks
    /// are free for others.
    pub fn execute_while<'a>(&self, wanted: Wanted<'_>, batch: Vec<Request<'a>>, done: Done<'_, 'a>) {
        self.engine.execute(wanted, batch, done);
    }

    /// Describes `len` bytes from `offset` on: at most `extents_max` extents, in order and without gaps from
    /// `offset` on. They may end before the range does.
    ///
    /// # Errors
    /// If the range is empty or not within the device, or the mapping cannot be read.
    pub fn extents(
        &self,
        offset: u64,
        len: u64,
        detail: Detail,
        extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        self.engine.extents(offset, len, detail, extents_max)
    }

    /// The block that holds content of each of these digests, if one does. It may be freed right after. For
    /// measuring the index: writes do the same, and more.
    #[doc(hidden)]
    pub fn find(&self, digests: &[Digest]) -> Result<Vec<Option<Pbn>>, VolumeError> {
        self.engine.find(digests)
    }

    /// Starts removing stale entries from the digest index.
    pub fn gc_start(&self) {
        self.engine.gc_start();
    }

    /// Stops that.
    pub fn gc_stop(&self) {
        self.engine.gc_stop();
    }

    /// How many entries are stale, by a sample.
    pub fn gc_estimate(&self) -> Result<GcEstimate, VolumeError> {
        self.engine.gc_estimate()
    }

    /// Does one slice of collection or rebuilding, for a volume without threads of its own. `false` when
    /// there is nothing to do.
    pub fn collect_some(&self) -> Result<bool, VolumeError> {
        self.engine.collect_some()
    }

    /// Writes everything into the trees now.
    pub fn checkpoint(&self) -> Result<(), VolumeError> {
        self.engine.checkpoint()
    }

    /// Refuses new changes, makes everything durable, marks the volume clean and closes it.
    pub fn close(mut self) -> Result<(), VolumeError> {
        if let Some(threads) = self.threads.take() {
            threads.stop(&self.engine);
        }
        let mode = self.engine.state.lock().mode.clone();
        match mode {
            Mode::ReadOnly => return Ok(()),
            Mode::Failed(reason) => return Err(VolumeError::Stopped { reason }),
            Mode::ReadWrite | Mode::Closed => {}
        }
        self.engine.checkpoint()?;
        self.engine.discard_largest();
        self.engine.mark_clean()?;
        self.engine.journal.remove();
        Ok(())
    }
}

impl Drop for Volume {
    /// Ends the threads; writes nothing.
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.stop(&self.engine);
        }
    }
}
