//! What makes operations durable: commits to the log, checkpoints to the trees, the journal that outlives the
//! process.

pub(crate) mod backing;
pub(crate) mod checkpoint;
pub(crate) mod commit;
pub(crate) mod journal;
pub(crate) mod pace;
