//! The target `superblock` on its own, for `cargo fuzz`; see `src/targets/superblock.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::superblock::run(bytes));
