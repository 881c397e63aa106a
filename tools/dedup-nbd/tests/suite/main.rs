//! `dedup-nbd` from outside, with other people's clients (`qemu-io`, `nbdinfo`, `nbdcopy`).
//!
//! - `serve`: written, read, stopped, killed, asked for its status;
//! - `access`: who is let in, and what the log says of it;
//! - `refuse`: what it will not open, and how it says so;
//! - `places`: sockets, URIs, several volumes, what a service manager hears and hands over;
//! - `modes`: metadata in memory, starting empty, reading only, other block sizes, other sockets.

// The helpers stand outside test functions, where the lint does not see that they are tests.
#![allow(clippy::unwrap_used)]

mod access;
mod logs;
mod modes;
mod places;
mod refuse;
mod serve;
mod signals;
mod support;
