//! The target `nbd_transmission` on its own, for `cargo fuzz`; see `src/targets/nbd_transmission.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::nbd_transmission::run(bytes));
