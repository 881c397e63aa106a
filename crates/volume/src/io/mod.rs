//! What an operation does: batches, admission, lookup, writes, reads, trims, block status.

pub(crate) mod admission;
pub(crate) mod allocate;
pub(crate) mod batch;
pub(crate) mod block_write;
pub(crate) mod compare;
pub(crate) mod extents;
pub(crate) mod lookup;
pub(crate) mod outgoing;
pub(crate) mod present;
pub(crate) mod read;
pub(crate) mod reclaim;
pub(crate) mod unmap;
pub(crate) mod write;
