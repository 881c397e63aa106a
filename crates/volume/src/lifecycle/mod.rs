//! From devices to a volume: format, open, replay.

pub(crate) mod format;
pub mod geometry;
pub(crate) mod journal;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod probe;
pub(crate) mod progress;
pub(crate) mod replay;
pub(crate) mod take_in;
