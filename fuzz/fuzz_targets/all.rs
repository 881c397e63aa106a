//! All targets in one program, which is built once where nine would be: `FUZZ_TARGET` names the one that
//! runs. `fuzz/run` uses it.

#![no_main]

use dedup_fuzz::targets::{ALL, Target};
use std::sync::LazyLock;

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = ALL.iter().find(|(known, _)| *known == name);
    let known: Vec<_> = ALL.iter().map(|(known, _)| *known).collect();
    found.unwrap_or_else(|| panic!("FUZZ_TARGET={name}: expected one of {}", known.join(", "))).1
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| CHOSEN(bytes));
