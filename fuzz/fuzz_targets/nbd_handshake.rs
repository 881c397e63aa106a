//! The target `nbd_handshake` on its own, for `cargo fuzz`; see `src/targets/nbd_handshake.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::nbd_handshake::run(bytes));
