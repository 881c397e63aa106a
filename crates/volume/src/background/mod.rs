//! What threads do early that a caller would have to do later: commits and checkpoints that are due, garbage
//! collection, filters, discards.

pub(crate) mod discard;
pub(crate) mod fill;
pub(crate) mod gc;
pub(crate) mod maintenance;
pub(crate) mod recount;
