//! The structure of the sources: what the architecture promises about them is true.
//!
//! - crates stand in an order, and each uses only those before it;
//! - within a crate no two files import each other, in whatever round-about way; folders of the volume stand
//!   in an order, too;
//! - files are short and open with a module doc; comments, and the prose of documents, fit.
//!
//! Imports are read as text: `crate::` and `super::` paths outside of comments, strings that look like paths
//! included. Tests at the end of a file, and files of tests, may use what they like.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up, as in ARCHITECTURE.md: a crate uses only those before it.
const CRATES: [&str; 11] = [
    "sync",
    "request",
    "device",
    "spacemap",
    "meta",
    "btree",
    "schema",
    "volume",
    "checker",
    "nbd-server",
    "cli",
];
/// Pairs of the order that must not be used all the same.
const APART: [(&str, &str); 4] =
    [("checker", "volume"), ("nbd-server", "volume"), ("nbd-server", "meta"), ("volume", "nbd-server")];
/// What the volume consists of, in order: what an operation changes stands below what it does, and that below
/// how a volume is opened.
const VOLUME: [&str; 11] = [
    "error",
    "trees",
    "journal",
    "state",
    "engine",
    "durability",
    "io",
    "background",
    "lifecycle",
    "volume",
    "status",
];
/// Lines of a file: what is longer holds more than one thing.
const LINES_MAX: usize = 600;
/// Columns of a line, as `rustfmt.toml` has it; what cannot be broken may be longer.
const COLUMNS_MAX: usize = 110;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_path_buf()]);
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
    found.sort();
    found
}

/// The text without its tests and comments.
fn code(text: &str) -> String {
    // What follows is a module in the file, not the name of one beside it.
    let is_inside =
        |at: &usize| text[*at..].find(['{', ';']).is_some_and(|end| text[at + end..].starts_with('{'));
    let tests = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(is_inside);
    let lines = text[..tests.unwrap_or(text.len())].lines();
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths that begin behind `prefix`: `crate::a::{b, c::D}` gives `a::b` and `a::c::D` for `crate::`.
fn paths_behind(code: &str, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let is_inside = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        if !is_inside {
            expand(&code[at + prefix.len()..], "", &mut paths);
        }
    }
    paths
}

/// Reads a path, or a tree of them in braces, behind `stem`; returns what follows.
fn expand<'a>(text: &'a str, stem: &str, paths: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, stem, paths).trim_start();
            match rest.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => rest = more,
                Some(more) => return more.trim_start().strip_prefix('}').unwrap_or_default(),
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match rest.strip_prefix("::") {
        Some(rest) => expand(rest, &format!("{stem}{name}::"), paths),
        None => {
            paths.push(format!("{stem}{name}"));
            rest
        }
    }
}

/// The modules of a crate, by their path (`trees::runs`; `lib` is the root), and the modules that each
/// imports.
fn imports(files: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let module_of = |path: &str| {
        let parts: Vec<&str> = path.split("::").collect();
        (1..=parts.len()).rev().map(|n| parts[..n].join("::")).find(|module| files.contains_key(module))
    };
    let of = |(module, text): (&String, &String)| {
        let code = code(text);
        let parent = module.rsplit_once("::").map_or(String::new(), |(parent, _)| format!("{parent}::"));
        let from_parent = paths_behind(&code, "super::").into_iter().map(|path| parent.clone() + &path);
        let paths = paths_behind(&code, "crate::").into_iter().chain(from_parent);
        let imported = paths.filter_map(|path| module_of(&path)).filter(|other| other != module).collect();
        (module.clone(), imported)
    };
    files.iter().map(of).collect()
}

/// A way from a module back to itself, if there is one.
fn circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit<'a>(
        module: &'a str,
        imports: &'a BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = way.iter().position(|on| *on == module) {
            return Some(way[begin..].iter().map(|on| (*on).to_owned()).collect());
        }
        if !done.insert(module) {
            return None;
        }
        way.push(module);
        let found = imports.get(module)?.iter().find_map(|next| visit(next, imports, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|module| visit(module, imports, &mut Vec::new(), &mut done))
}

/// Imports that go from a folder to one that stands behind it in `order`.
fn backwards(imports: &BTreeMap<String, BTreeSet<String>>, order: &[&str]) -> Vec<String> {
    let place = |module: &str| {
        let folder = module.split("::").next().unwrap_or_default();
        order
            .iter()
            .position(|name| *name == folder)
            .unwrap_or_else(|| panic!("{folder} has no place in the order"))
    };
    let pairs = imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| place(from) < place(to)).map(|(from, to)| format!("{from} uses {to}")).collect()
}

/// What is wrong with a file by itself.
fn untidy(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        wrong.push(format!("{name}: {lines} lines, expected at most {LINES_MAX}"));
    }
    if !text.starts_with("//!") {
        wrong.push(format!("{name}: expected a module doc (//!) first"));
    }
    let mut in_block = false;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        in_block ^= trimmed.starts_with("//") && trimmed.contains("```");
        let is_comment = trimmed.starts_with("//") && !in_block && !trimmed.contains('|');
        if is_comment && line.chars().count() > COLUMNS_MAX {
            wrong.push(format!("{name}:{}: a comment of more than {COLUMNS_MAX} columns", number + 1));
        }
    }
    wrong
}

/// Lines of prose in Markdown that are too long; tables and code are as long as they are.
fn wide_prose(name: &str, text: &str) -> Vec<String> {
    let (mut wide, mut in_block) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        in_block ^= line.trim_start().starts_with("```");
        let is_prose = !in_block && !line.starts_with('|') && !line.starts_with("    ");
        if is_prose && line.chars().count() > COLUMNS_MAX {
            wide.push(format!("{name}:{}: more than {COLUMNS_MAX} columns", number + 1));
        }
    }
    wide
}

/// A crate's modules.
fn modules(folder: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for path in sources(folder) {
        let relative = path.strip_prefix(folder).unwrap().with_extension("");
        let parts: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        let is_test = parts.iter().any(|part| part.ends_with("tests") || *part == "loom_models");
        let parts = parts.strip_suffix(&["mod"]).unwrap_or(&parts);
        if !is_test && parts != ["lib"] && parts != ["main"] {
            files.insert(parts.join("::"), fs::read_to_string(&path).unwrap());
        }
    }
    files
}

/// The project's crates that a manifest depends on, but for those of its tests.
fn dependencies(manifest: &str) -> Vec<&str> {
    let normal = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    let names = normal.lines().filter_map(|line| line.strip_prefix("dedup-")?.split(['.', ' ']).next());
    names.collect()
}

#[test]
fn each_crate_uses_only_those_before_it() {
    let mut there: Vec<String> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    let mut expected = CRATES;
    expected.sort_unstable();
    assert_eq!(there, expected, "crates without a place in the order");
    for (place, name) in CRATES.iter().enumerate() {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        for used in dependencies(&manifest) {
            assert!(CRATES[..place].contains(&used), "{name} uses {used}, which stands behind it");
            assert!(!APART.contains(&(*name, used)), "{name} is to know nothing of {used}");
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for name in CRATES {
        let circle = circle(&imports(&modules(&root().join("crates").join(name).join("src"))));
        assert_eq!(circle, None, "in {name}");
    }
}

#[test]
fn the_folders_of_the_volume_stand_in_the_order_of_dependency() {
    let imports = imports(&modules(&root().join("crates/volume/src")));
    assert_eq!(backwards(&imports, &VOLUME), Vec::<String>::new());
}

#[test]
fn every_file_is_short_and_says_first_what_it_is() {
    let mut wrong = Vec::new();
    for path in ["crates", "tools", "tests", "fuzz"].iter().flat_map(|folder| sources(&root().join(folder))) {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        wrong.extend(untidy(&name, &fs::read_to_string(&path).unwrap()));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_documents_fit_as_well() {
    let mut documents = vec!["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .into_iter()
        .map(|name| root().join(name))
        .collect::<Vec<_>>();
    documents.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(documents.len() > 10, "{documents:?}");
    let wide = documents
        .iter()
        .flat_map(|path| wide_prose(&path.display().to_string(), &fs::read_to_string(path).unwrap()));
    assert_eq!(wide.collect::<Vec<_>>(), Vec::<String>::new());
}

fn made_up(files: &[(&str, &str)]) -> BTreeMap<String, BTreeSet<String>> {
    imports(&files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
}

#[test]
fn a_circle_is_found_however_its_imports_are_written() {
    let apart = [("a", "use crate::b::c::D;"), ("b::c", "// crate::a\nuse std::fmt;"), ("b", "")];
    assert_eq!(circle(&made_up(&apart)), None);
    for back in [
        "use crate::a;",
        "use crate::a::{B, C};",
        "use crate::{\n    a::X,\n    b,\n};",
        "fn f() -> crate::a::X {}",
        "use super::d;",
    ] {
        let files = [
            ("a", "use crate::b::c::D;"),
            ("b", ""),
            ("b::c", back),
            ("b::d", "use crate::{b, a::{self, Y}};"),
        ];
        assert!(circle(&made_up(&files)).is_some(), "{back}");
    }
    let in_tests = "#[cfg(test)]\nmod tests {\n    use crate::a;\n}";
    assert_eq!(circle(&made_up(&[("a", "use crate::b;"), ("b", in_tests)])), None);
}

#[test]
fn an_import_of_what_stands_behind_is_found() {
    let files = [("low::x", "use crate::high::y::Z;"), ("high::y", "use crate::low::w;"), ("low::w", "")];
    assert_eq!(backwards(&made_up(&files), &["low", "high"]), ["low::x uses high::y"]);
}

#[test]
fn an_untidy_file_is_told() {
    assert_eq!(untidy("a", "//! What it is.\n"), Vec::<String>::new());
    assert_eq!(untidy("a", "fn f() {}\n").len(), 1);
    assert_eq!(untidy("a", &format!("//! A\n// {}\n", "b".repeat(COLUMNS_MAX))).len(), 1);
    assert_eq!(untidy("a", &format!("//! A\n{}", "\n".repeat(LINES_MAX))).len(), 1);
}

#[test]
fn long_prose_is_found_and_a_long_table_is_none() {
    let long = "a".repeat(COLUMNS_MAX + 1);
    assert_eq!(
        wide_prose("a", &format!("{long}\n| {long} |\n```\n{long}\n```\n    {long}\n")),
        ["a:1: more than 110 columns"]
    );
}

#[test]
fn a_dependency_of_tests_alone_is_none() {
    let manifest =
        "[dependencies]\ndedup-meta.workspace = true\n\n[dev-dependencies]\ndedup-volume.workspace = true\n";
    assert_eq!(dependencies(manifest), ["meta"]);
}
