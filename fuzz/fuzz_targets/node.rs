//! The target `node` on its own, for `cargo fuzz`; see `src/targets/node.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::node::run(bytes));
