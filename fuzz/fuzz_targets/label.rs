//! The target `label` on its own, for `cargo fuzz`; see `src/targets/label.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::label::run(bytes));
