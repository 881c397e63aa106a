//! The target `sizes` on its own, for `cargo fuzz`; see `src/targets/sizes.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::sizes::run(bytes));
