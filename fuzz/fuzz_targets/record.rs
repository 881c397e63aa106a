//! The target `record` on its own, for `cargo fuzz`; see `src/targets/record.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::record::run(bytes));
