//! The target `log` on its own, for `cargo fuzz`; see `src/targets/log.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::log::run(bytes));
