//! One script, over and over, with one thing going wrong at a time: the harness of the complete sweeps.
//!
//! A [`Scene`] is where a script begins: two device images and what the volume on them holds. A [`Run`] plays
//! steps on a copy of it, with the faults that the caller has ordered, and holds every answer against the
//! [`Ledger`]. Its [`Run::end`] tries all ways in which it can go on: a restart, power cuts that keep
//! nothing, everything, a part.
//!
//! What a run asserts at each step, whatever goes wrong: a request succeeds, or fails and leaves each of its
//! blocks old or new; no read returns other bytes; a stopped volume acknowledges nothing as durable, and goes
//! on reading.

mod ledger;
mod run;
mod scene;
mod script;
pub mod scripts;
mod target;

pub use ledger::{Change, Content, Ledger};
pub use run::Run;
pub use scene::{LBNS, Scene, superblock};
pub use script::Step;
pub use target::{ENDINGS, Ending, KINDS, Target, failures};

use super::*;
use dedup_checker::Report;

/// The checker's report, data included.
pub fn check_all(disks: &Disks) -> Report {
    check(Some(&*disks.data), disks.metadata(), &CheckOptions::tiny(), &mut |_| ()).unwrap()
}
