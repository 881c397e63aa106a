//! `dedup-check` from outside: exit codes, text, JSON, and that it writes nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use dedup_device::{BlockDevice, FileDevice, IoMode, OpenMode};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, Volume};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

const BLOCK: usize = 4096;

/// One test at a time: a process that another thread is about to start has copies of all open files, and with
/// them their locks.
static ALONE: Mutex<()> = Mutex::new(());

type Alone = (MutexGuard<'static, ()>, tempfile::TempDir);

/// A closed volume with 100 blocks in a directory of its own.
fn volume() -> (Alone, PathBuf) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive");
    fs::create_dir(&path).unwrap();
    let data: Arc<dyn BlockDevice> =
        Arc::new(FileDevice::create(path.join("data"), 2 << 20, IoMode::Buffered).unwrap());
    let metadata: Arc<dyn BlockDevice> =
        Arc::new(FileDevice::create(path.join("metadata"), 8 << 20, IoMode::Buffered).unwrap());
    let options = FormatOptions::new(1 << 20, Uuid::from_u128(1), Uuid::from_u128(2));
    dedup_volume::format(&*data, &metadata, &options).unwrap();
    let volume =
        Volume::open(data, metadata, &OpenOptions { background: false, ..Default::default() }).unwrap();
    for i in 0..100_u8 {
        let content = [i / 2 + 1; BLOCK];
        let op = Op::Write { offset: u64::from(i) * BLOCK as u64, data: &content, fua: false };
        volume.execute(vec![Request { tag: 0, op }], &mut |_, result| result.unwrap());
    }
    volume.close().unwrap();
    ((alone, dir), path)
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dedup-check"))
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .expect("dedup-check runs")
}

/// Exit code, standard output, standard error.
fn told(args: &[&str]) -> (i32, String, String) {
    let output = run(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

fn damage(path: &Path, offset: u64) {
    let device = FileDevice::open(path, OpenMode::ReadWrite, IoMode::Buffered).unwrap();
    let mut byte = [0];
    device.read(offset, &mut byte).unwrap();
    device.write(offset, &[byte[0] ^ 1]).unwrap();
    device.flush().unwrap();
}

#[test]
fn a_clean_volume_is_one_line_and_0_and_stays_as_it_is() {
    let (_alone, path) = volume();
    let volume = path.to_str().unwrap();
    let before = (fs::read(path.join("data")).unwrap(), fs::read(path.join("metadata")).unwrap());
    for (io, read) in [
        (&[][..], "data not read"),
        (&["--data"], "200 KiB of data compared"),
        (&["--data", "--io", "buffered"], "200 KiB"),
    ] {
        let (code, out, err) = told(&[&[volume], io].concat());
        assert_eq!((code, &*err), (0, ""), "{out}");
        assert!(
            out.starts_with("archive: clean; 400 KiB mapped to 200 KiB of data, ") && out.contains(read),
            "{out}"
        );
        assert_eq!(out.lines().count(), 1);
    }
    assert_eq!(told(&[volume, "-q"]), (0, String::new(), String::new()));
    assert!(before == (fs::read(path.join("data")).unwrap(), fs::read(path.join("metadata")).unwrap()));
}

#[test]
fn damage_is_named_with_4_and_the_same_in_json() {
    let (_alone, path) = volume();
    let volume = path.to_str().unwrap();
    let superblock = {
        let device = FileDevice::open(path.join("metadata"), OpenMode::ReadOnly, IoMode::Buffered).unwrap();
        dedup_meta::load_superblocks(&device).newest(None).unwrap().clone()
    };
    let at = superblock.volumes[0].mapping.base.node.unwrap().block;
    damage(&path.join("metadata"), at.0 * 4096 + 77);

    let (code, out, _) = told(&[volume]);
    assert_eq!(code, 4);
    assert!(out.starts_with("error: tree_node: 1\n"), "{out}");
    assert!(
        out.contains(&format!("  metadata block {at} (mapping tree, level 0): checksum: expected 0x")),
        "{out}"
    );
    assert!(out.contains("\n  -> "), "{out}");
    assert!(out.lines().last().unwrap().starts_with("archive: 1 error, "), "{out}");

    let (code, out, _) = told(&[volume, "--json"]);
    assert_eq!(code, 4);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["clean"], false);
    assert_eq!(json["counts"]["tree_node"], 1);
    let finding = &json["findings"][0];
    assert_eq!(
        (&finding["kind"], &finding["severity"], &finding["field"]),
        (&"tree_node".into(), &"error".into(), &"checksum".into())
    );
    assert_eq!(json["summary"]["metadata_blocks"], 2048);
}

#[test]
fn damaged_data_is_found_if_it_is_asked_for() {
    let (_alone, path) = volume();
    let volume = path.to_str().unwrap();
    (1..20).for_each(|pbn| damage(&path.join("data"), pbn * BLOCK as u64));
    assert_eq!(told(&[volume]).0, 0);
    let (code, out, _) = told(&[volume, "--data", "--quiet"]);
    assert_eq!(code, 4);
    assert!(out.contains("error: data_mismatch: ") && out.contains("PBN 1: digest: expected "), "{out}");
    assert!(!out.contains("archive:"), "{out}");
}

#[test]
fn what_cannot_be_checked_is_8_and_names_the_reason() {
    let ((_alone, dir), path) = volume();
    let volume = path.to_str().unwrap();
    let held = FileDevice::open(path.join("metadata"), OpenMode::ReadWrite, IoMode::Buffered).unwrap();
    let (code, out, err) = told(&[volume]);
    assert_eq!((code, &*out), (8, ""));
    assert!(
        err.starts_with("dedup-check: error: ")
            && err.contains(&format!("in use by process {}", std::process::id())),
        "{err}"
    );
    drop(held);

    let none = dir.path().join("none");
    assert_eq!(told(&[none.to_str().unwrap()]).0, 8);
    fs::write(path.join("metadata"), vec![0; 8 << 20]).unwrap();
    let (code, _, err) = told(&[volume]);
    assert!(code == 8 && err.contains("no volume to check"), "{err}");
}

#[test]
fn a_reader_does_not_keep_another_reader_out() {
    let (_alone, path) = volume();
    let _held = FileDevice::open(path.join("metadata"), OpenMode::ReadOnly, IoMode::Buffered).unwrap();
    assert_eq!(told(&[path.to_str().unwrap()]).0, 0);
}

#[test]
fn wrong_arguments_are_16() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for args in [&[][..], &["a", "b"], &["a", "--cache-size", "many"], &["a", "--repair"]] {
        assert_eq!(told(args).0, 16, "{args:?}");
    }
    assert_eq!(told(&["--help"]).0, 0);
}
