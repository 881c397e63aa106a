//! Many clients in flight on a schedule that a seed fixes, power cuts, and what may be there afterwards.
//!
//! ```text
//!   seed ──> the clients' requests   (clients)
//!        ──> the schedule            (shuttle: which thread runs next, at every lock, wait and device operation)
//!        ──> one failure of a device   (causes: an error needs one)
//!        ──> the moment of the cut, and what the devices keep of what was not flushed
//!   then: crash image ──> checker ──> reopen ──> all blocks read ──> may this be there? (oracle) ──> the next life
//! ```
//!
//! The whole engine runs, background threads included, on simulated devices. A device operation takes a
//! while: other threads get a number of turns before and after it, and a flush covers nothing that completes
//! meanwhile. Nothing else is chosen by chance, so a seed reproduces a run exactly, a deadlock included.
//! [`oracle`] can be had without the feature `shuttle`; the rest needs it.

pub mod oracle;

#[cfg(feature = "shuttle")]
mod causes;
#[cfg(feature = "shuttle")]
mod clients;
#[cfg(feature = "shuttle")]
mod life;

#[cfg(feature = "shuttle")]
pub use life::{Outcome, run, run_with};
