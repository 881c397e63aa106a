//! Explorers of crash states: scripts run on simulated devices, and at every event what a power cut would
//! leave is reopened, compared with an oracle and checked with data.
//!
//! ```text
//!   exhaustive ┐             ┌─> tap: every write, flush, discard ──> captures: pairs of images ┐
//!   random     ├─ script ─> run                                                                 ├─> verify ──> allowed?
//!   replay     ┘             └─> oracle: what was acknowledged, what was durable ───────────────┘
//!                                                                          a failure ──> shrink ──> a line of text
//! ```
//!
//! A *crash state* is a pair of images, of the data and of the metadata device, and the set of states that
//! the volume may recover to. The volume runs once; the images of a crash at one of its events are snapshots
//! that share their pages. What a pair recovers to is found once: it is [verified](mod@verify) and
//! remembered, and when the same pair comes up again, with more acknowledged since, only compared. [Counted
//! as distinct](Tally::distinct) are pairs of images, each reopened for reading and for writing, compared and
//! checked with data.
//!
//! Everything follows from a seed or from a script's text; nothing here knows time, but the [campaign
//! command](crate), which stops by it.
//!
//! Not here: requests in flight together, and devices that lie (`tests/tests/faults.rs`, `media.rs`).

pub mod exhaustive;
pub mod formatting;
pub mod oracle;
pub mod random;
pub mod run;
pub mod script;
pub mod shrink;
pub mod tally;
pub mod tap;
pub mod verify;

pub use run::{Failure, Session, running};
pub use script::Script;
pub use tally::Tally;
pub use tap::{Policy, Torn};
