//! The documentation names tests, planted faults and files as evidence: they exist.
//!
//! A word in backticks with three underscores and more is taken for a test's name, one that ends in `.rs` for
//! a file, the names behind "planted" for faults.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// All Rust files of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        ["crates", "tools", "tests", "fuzz"].map(|folder| root().join(folder)).into();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_fault_and_file_that_the_architecture_names_exists() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = &text[text.find("## Invariants").unwrap()..];
    let code: String = sources().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let faults = dedup_tests::planted::faults().unwrap();
    let mut missing = Vec::new();
    for word in quoted(table) {
        let is_name = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if is_name && word.matches('_').count() >= 3 && !code.contains(&format!("fn {word}(")) {
            missing.push(word);
        }
        let path = word.replacen("V/", "volume/src/", 1);
        if path.ends_with(".rs") && path.contains('/') && !root().join("crates").join(&path).exists() {
            missing.push(word);
        }
    }
    for list in table.split("lanted ").skip(1) {
        let end = list.find([';', '|', '*']).unwrap();
        let names =
            list[..end].split(", ").map(str::trim).filter(|name| name.starts_with(char::is_uppercase));
        let is_fault = |name: &&str| faults.iter().any(|fault| fault.name == *name);
        missing.extend(names.filter(|name| *name != "X" && !is_fault(name)));
    }
    assert!(missing.is_empty(), "ARCHITECTURE.md names what is not there: {missing:?}");
}
