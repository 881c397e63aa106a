//! Models of what threads wait for, explored by `loom`: every interleaving of two or three threads, up to a
//! bound of preemptions, on the very types that the engine uses.
//!
//!     cargo test -p dedup-sync --features loom
//!
//! A model holds the property that its name states. That it would notice is shown in two ways: where the
//! mistake can be made by who *uses* the type, a second test makes it and [`finds`] it; where it would be in
//! the type, the comment names the change of one line that turns the model red. A lost wakeup shows as a
//! deadlock, which loom reports.
//!
//! The bound is 3 preemptions, more with `LOOM_MAX_PREEMPTIONS`; switches at a wait are free. Only these
//! tests can run with the feature on: outside of a model loom's primitives panic.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

mod claims;
mod layers;
mod pins;
mod ranges;
mod turns;
mod waits;

use loom::model::Builder;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `model` in every interleaving within the bound.
fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
}

/// There is an interleaving in which this broken model fails.
#[track_caller]
fn finds(model: impl Fn() + Send + Sync + 'static) {
    let outcome = catch_unwind(AssertUnwindSafe(|| explore(model)));
    assert!(outcome.is_err(), "the mistake was not found");
}
