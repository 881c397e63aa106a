//! The `damage` tool from outside, on a volume in files, and what the checker then says of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use dedup_checker::{CheckOptions, Report, check};
use dedup_device::{FileDevice, IoMode, OpenMode};
use dedup_tests::damage::{Image, sample};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// A volume in a directory of its own.
fn volume() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    fs::create_dir(&path).unwrap();
    let Image { data, metadata } = sample::wide().image;
    for (image, name) in [(data, "data"), (metadata, "metadata")] {
        let mut bytes = vec![0; image.size() as usize];
        image.read(0, &mut bytes).unwrap();
        File::create(path.join(name)).unwrap().write_all_at(&bytes, 0).unwrap();
    }
    (dir, path)
}

fn damage(command: &str, volume: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_damage")).arg(command).arg(volume).args(args).output().unwrap()
}

fn done(command: &str, volume: &Path, args: &[&str]) -> String {
    let output = damage(command, volume, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(command: &str, volume: &Path, args: &[&str]) -> String {
    let output = damage(command, volume, args);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn checked(volume: &Path) -> Report {
    let open = |name| FileDevice::open(volume.join(name), OpenMode::ReadOnly, IoMode::Buffered).unwrap();
    check(Some(&open("data")), Arc::new(open("metadata")), &CheckOptions::tiny(), &mut |_| ()).unwrap()
}

/// The device block of a name, from the list.
fn at(volume: &Path, name: &str) -> String {
    let list = done("list", volume, &[]);
    let line = list.lines().find(|line| line.starts_with(&format!("{name}\t"))).unwrap();
    line.split('\t').nth(2).unwrap().to_string()
}

#[test]
fn each_damage_that_is_asked_for_is_the_one_that_the_checker_finds() {
    let cases: [(&str, &[&str], &str, &str); 6] = [
        ("flip", &["--block", "mapping:0:3", "--field", "crc"], "mapping:0:3", "checksum"),
        (
            "flip",
            &["--block", "digest:1:0", "--field", "level", "--bit", "1", "--reseal"],
            "digest:1:0",
            "level",
        ),
        (
            "flip",
            &["--block", "overflow:0:0", "--field", "block number", "--reseal"],
            "overflow:0:0",
            "block number",
        ),
        ("zero", &["--block", "hint:0:1"], "hint:0:1", "checksum"),
        (
            "swap",
            &["--block", "bad:0:0", "--with", "bad:0:1", "--renumber", "--reseal"],
            "bad:0:0",
            "first key",
        ),
        ("older", &["--block", "metamap:0:0"], "metamap:0:0", "checksum"),
    ];
    for (command, args, block, field) in cases {
        let (_dir, volume) = volume();
        let place = format!("metadata block {} (", at(&volume, block));
        done(command, &volume, args);
        let report = checked(&volume);
        let found = report.findings.iter().any(|f| f.place.starts_with(&place) && f.field == field);
        assert!(found, "{command} {args:?}: {:?}", report.findings.first());
    }
}

#[test]
fn the_fields_of_a_block_are_listed_with_their_places() {
    let (_dir, volume) = volume();
    let fields = done("list", &volume, &["--fields", "log:1"]);
    assert!(fields.lines().any(|line| line == "prev_crc\t64\t32"), "{fields}");
    assert!(fields.lines().any(|line| line.starts_with("record[0].allocate pbn\t")), "{fields}");
}

#[test]
fn what_cannot_be_done_says_what_was_expected_and_changes_nothing() {
    let (_dir, volume) = volume();
    let before = (fs::read(volume.join("data")).unwrap(), fs::read(volume.join("metadata")).unwrap());
    let cases: [(&str, &[&str], &str); 6] = [
        ("flip", &["--block", "mapping:7:7", "--field", "crc"], "no block mapping:7:7: expected a name"),
        ("flip", &["--block", "label", "--field", "colour"], "label has no field colour: expected one"),
        ("flip", &["--block", "label", "--field", "version", "--bit", "32"], "bit 32: expected one below 32"),
        ("swap", &["--block", "label", "--with", "log:0"], "expected two blocks of one device"),
        ("older", &["--block", "digest:0:0"], "no other version"),
        ("truncate", &["--device", "data", "--bytes", "999999999"], "expected fewer than"),
    ];
    for (command, args, reason) in cases {
        let told = refused(command, &volume, args);
        assert!(told.contains(reason), "{command} {args:?}: {told}");
    }
    let held = FileDevice::open(volume.join("metadata"), OpenMode::ReadWrite, IoMode::Buffered).unwrap();
    assert!(refused("zero", &volume, &["--block", "label"]).contains("in use by process"));
    drop(held);
    assert!(before == (fs::read(volume.join("data")).unwrap(), fs::read(volume.join("metadata")).unwrap()));
}

#[test]
fn a_device_that_was_cut_is_told_by_the_checker() {
    let (_dir, volume) = volume();
    done("truncate", &volume, &["--device", "data", "--bytes", "4096"]);
    let report = checked(&volume);
    assert_eq!((&*report.findings[0].field, &*report.findings[0].found), ("bytes", "4096"));
}
