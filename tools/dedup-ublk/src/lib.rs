//! A volume as a local block device, as far as that can be said without the kernel: what `dedup-ublk` does
//! between the driver's commands and the engine. The program (`main.rs` and what it names) adds the driver,
//! and is built with the feature `driver`.
//!
//! ```text
//!   kernel ─> queue thread ─ all commands of one wakeup ─> worker ─ one batch ─> Volume::execute
//!                 ▲                                           │
//!                 └──────────── completions, as they come ────┘
//! ```
//!
//! - [`command`]: a command of the driver, and the engine's request that it is; pure.
//! - [`limits`]: what the kernel is told of the device; pure.
//! - [`batch`]: a batch of commands run against a [`Target`]; [`workers`]: the threads that do it.
//! - [`record`]: which volume a device is of, for `recover` and `list`.
//!
//! Invariants: a flush is acknowledged only after the volume's; a change is acknowledged only after it is in
//! the volume, which keeps it over the end of the process: so a server that dies can be replaced while the
//! device stays, whose file system has not lost power and takes for granted what it was told; no command
//! waits for another batch than its own.

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod args;
pub mod batch;
pub mod command;
pub mod limits;
pub mod record;
pub mod workers;

pub use batch::{Target, Window};
