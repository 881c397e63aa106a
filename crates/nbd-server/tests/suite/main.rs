//! The server from outside: through its sockets, byte by byte.
//!
//! - `fixture`: a server to connect to; the client is `dedup_nbd_server::test_client`
//! - `memory`: exports to serve: plain memory, and one that fails on demand
//! - `pki`: certificates
//! - `handshake`: every way to choose an export, and every way to get it wrong
//! - `commands`: each command, its limits and its errors
//! - `extended`: the same with extended headers, and what only they can say
//! - `status`: metadata contexts and block status
//! - `tls`: encryption, certificates, and what must not leak from before
//! - `hostile`: clients that vanish, stall, or send nonsense
//! - `stalling`: a volume on a device that stalls
//! - `reconnect`: clients that go while a device stalls, and come back
//! - `limits`: how many clients, for how long, and how much memory they hold
//! - `lifecycle`: starting, limits, shutting down
//! - `trims`: what a volume makes of them
//! - `programs`: qemu-io, qemu-img, nbdinfo and nbdcopy as clients

// The helpers are test code too, which clippy does not see outside `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod commands;
mod extended;
mod fixture;
mod handshake;
mod hostile;
mod lifecycle;
mod limits;
mod memory;
mod pki;
mod programs;
mod reconnect;
mod stalling;
mod status;
mod tls;
mod trims;
