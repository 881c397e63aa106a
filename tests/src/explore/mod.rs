//! Explorers of crash states: scripts run on simulated devices, and at every event what a power cut would leave is reopened,
//! compared with the oracle and checked.

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
