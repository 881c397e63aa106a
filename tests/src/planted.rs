//! Planted faults: ways to break the engine on purpose, to prove that the tests would notice.
//!
//! ```text
//!   tests/planted/*.toml ──┐
//!   the sources ───────────┴─> a copy of the sources, every fault in it, each behind a condition of its name ──> tests/tests/planted.rs
//! ```
//!
//! A fault is data: the text at each place that it breaks, what stands there in the copy, what that would
//! cost, and the [property](crate::properties) that catches it. So the sources, and with them a release, know
//! nothing of any fault, and one build of the copy is enough to try them all. `cargo run -p dedup-tests --bin
//! planted` makes the copy and tries them.
//!
//! Invariants: each text stands exactly once in its file, and no two overlap. Else the source has changed
//! under a fault, and its author is asked to say what the mistake looks like now.

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The function that asks whether a fault is the planted one, as the copy has it. Crates above `device` reach
/// it by this path.
const SWITCH: &str = "dedup_device::planted::is(";
/// What the copy gets beyond the sources: the switch, and the line that makes it part of its crate.
const SWITCH_FILE: (&str, &str) = ("crates/device/src/planted.rs", include_str!("../planted/switch.rs"));
const SWITCH_LINE: (&str, &str) = ("crates/device/src/lib.rs", "\npub mod planted;\n");
/// What precedes the version of the copy's packages. Cargo tells packages of one name and version apart by
/// their place within a workspace only: in a target directory that both share, the copy's would be taken for
/// those without faults.
const VERSION: &str = "999.0.0-planted.";
/// What is copied of a workspace.
const COPIED: [&str; 5] = ["Cargo.toml", "Cargo.lock", "crates", "tools", "tests"];
/// What is not: the programs of the tests, which would be built in the place of those without faults; but for
/// the one that a manifest names.
const PROGRAMS: &str = "tests/src/bin";
const NAMED_PROGRAM: &str = "tests/src/bin/schedules.rs";

/// One thing done wrong.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// How the documentation calls it, and the copy's conditions.
    pub name: String,
    /// What is done wrong, and what it would cost.
    pub harm: String,
    /// The property that catches it, as `module::name`.
    pub caught_by: String,
    /// Part of the message with which that fails.
    pub says: String,
    /// Whether ordinary use with power cuts shows it, so that the random explorer has to come upon it. Others
    /// need damage, several clients at one moment, or a full device.
    #[serde(default)]
    pub found_by_chance: bool,
    /// The places; none if another fault's edit has this one's condition too.
    #[serde(default)]
    edit: Vec<Edit>,
}

/// What the copy has in place of a text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: String,
    text: String,
    becomes: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Faults {
    fault: Vec<Fault>,
}

/// The workspace that this crate belongs to.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All faults, in the order of their files.
pub fn faults() -> anyhow::Result<Vec<Fault>> {
    let folder = workspace().join("tests/planted");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let parsed: Faults = toml::from_str(&fs::read_to_string(&file)?)
            .with_context(|| format!("{} is no list of faults", file.display()))?;
        all.extend(parsed.fault);
    }
    Ok(all)
}

/// The files that the faults break, as the copy has them.
pub fn broken(faults: &[Fault]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut edits: BTreeMap<&str, Vec<(&str, &Edit)>> = BTreeMap::new();
    for fault in faults {
        for edit in &fault.edit {
            edits.entry(&edit.file).or_default().push((&fault.name, edit));
        }
    }
    let mut files = BTreeMap::new();
    for (file, edits) in edits {
        let path = workspace().join(file);
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        files.insert(file.to_owned(), edited(&source, file, &edits)?);
    }
    let names: BTreeSet<&str> = faults.iter().map(|fault| fault.name.as_str()).collect();
    ensure!(names.len() == faults.len(), "two faults of one name");
    let asked: BTreeSet<&str> = files.values().flat_map(|text| conditions(text)).collect();
    ensure!(
        asked == names,
        "faults without a condition, or conditions without a fault: {:?}",
        &asked ^ &names
    );
    Ok(files)
}

/// The names that a text of the copy asks for.
fn conditions(text: &str) -> impl Iterator<Item = &str> {
    text.split(SWITCH).skip(1).filter_map(|rest| rest.split('"').nth(1))
}

fn edited(source: &str, file: &str, edits: &[(&str, &Edit)]) -> anyhow::Result<String> {
    let mut places = Vec::new();
    for (name, edit) in edits {
        let found: Vec<usize> = source.match_indices(&edit.text).map(|(at, _)| at).collect();
        let [at] = found[..] else {
            bail!("{name}: expected its text once in {file}, found it {} times:\n{}", found.len(), edit.text);
        };
        places.push((at, *name, *edit));
    }
    places.sort_by_key(|(at, ..)| *at);
    let (mut text, mut end) = (String::new(), 0);
    for (at, name, edit) in places {
        ensure!(at >= end, "{name}: its text in {file} overlaps that of another fault:\n{}", edit.text);
        text += &source[end..at];
        text += &edit.becomes;
        end = at + edit.text.len();
    }
    Ok(text + &source[end..])
}

/// The manifest or lock file of the copy: packages of the workspace have a version of their own.
fn renamed(text: &str) -> String {
    let own = |part: &str| {
        part.starts_with("workspace.package]")
            || part.starts_with("[package]]") && !part.contains("\nsource = ")
    };
    let parts = text.split_inclusive("\n[").map(|part| match own(part) {
        true => part.replacen("\nversion = \"", &format!("\nversion = \"{VERSION}"), 1),
        false => part.to_owned(),
    });
    parts.collect()
}

/// Makes the copy in `to`, or brings it up to date: files that are as they should be are left alone, so that
/// only what has changed is built anew.
pub fn copy(faults: &[Fault], to: &Path) -> anyhow::Result<()> {
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for name in COPIED {
        gather(&workspace(), Path::new(name), &mut files)?;
    }
    files.retain(|file, _| !file.starts_with(PROGRAMS) || file == Path::new(NAMED_PROGRAM));
    for name in ["Cargo.toml", "Cargo.lock"] {
        let text = fs::read_to_string(workspace().join(name))?;
        files.insert(name.into(), renamed(&text).into_bytes());
    }
    let mut broken = broken(faults)?;
    let (switch, line) = SWITCH_LINE;
    let library = match broken.remove(switch) {
        Some(text) => text,
        None => fs::read_to_string(workspace().join(switch))?,
    };
    broken.insert(switch.to_owned(), library + line);
    broken.insert(SWITCH_FILE.0.to_owned(), SWITCH_FILE.1.to_owned());
    files.extend(broken.into_iter().map(|(file, text)| (file.into(), text.into_bytes())));
    let mut there = BTreeMap::new();
    for name in COPIED.iter().filter(|name| to.join(name).exists()) {
        gather(to, Path::new(name), &mut there)?;
    }
    for (file, content) in &files {
        let path = to.join(file);
        if there.remove(file).as_ref() != Some(content) {
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(&path, content).with_context(|| path.display().to_string())?;
        }
    }
    for gone in there.keys() {
        fs::remove_file(to.join(gone))?;
    }
    Ok(())
}

fn gather(root: &Path, at: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> anyhow::Result<()> {
    let path = root.join(at);
    if !path.is_dir() {
        files.insert(at.to_owned(), fs::read(&path).with_context(|| path.display().to_string())?);
        return Ok(());
    }
    for entry in fs::read_dir(&path)? {
        let name = entry?.file_name();
        if name != "target" {
            gather(root, &at.join(name), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::properties;

    #[test]
    fn every_fault_has_its_places_in_the_sources_and_a_property_that_catches_it() {
        let faults = faults().unwrap();
        broken(&faults).unwrap();
        for fault in &faults {
            let is_there = properties::ALL.iter().any(|(name, _)| *name == fault.caught_by);
            assert!(
                is_there && !fault.says.is_empty(),
                "{} is to be caught by {}",
                fault.name,
                fault.caught_by
            );
        }
    }
}
