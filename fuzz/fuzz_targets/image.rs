//! The target `image` on its own, for `cargo fuzz`; see `src/targets/image.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dedup_fuzz::targets::image::run(bytes));
