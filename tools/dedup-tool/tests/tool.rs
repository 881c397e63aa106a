//! `dedup-tool` from outside, on volumes at rest: what it makes, shows and refuses. Served volumes are tested
//! with `dedup-nbd`.

// The helpers stand outside test functions, where the lint does not see that they are tests.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

const LOGICAL: &str = "64M";

/// A directory for volumes, and one for sockets, in which there is none.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dedup-tool"));
        command.args(args).env("DEDUP_RUNTIME_DIR", self.0.path().join("run")).env_remove("RUST_LOG");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("dedup-tool runs")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with `code`, in one line of the usual form or clap's; gives the message.
    fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        if code == 1 {
            let line = message.lines().last().unwrap_or_default();
            assert!(line.starts_with("dedup-tool: error: "), "{message}");
        }
        message
    }

    fn format(&self, name: &str) -> String {
        let volume = self.volume(name).display().to_string();
        self.ok(&["format", &volume, "--logical-size", LOGICAL]);
        volume
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).expect("JSON")
    }
}

fn contains(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "{part:?} is not in: {message}"));
}

fn overwrite(path: &Path, bytes: &[u8], offsets: &[u64]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    offsets.iter().for_each(|offset| file.write_all_at(bytes, *offset).unwrap());
}

#[test]
fn a_new_volume_has_the_parameters_that_it_was_given() {
    let place = Place::new();
    let volume = place.volume("v").display().to_string();
    let options = ["--block-size", "8K", "--crypto-alg", "blake3", "--flushrq", "9", "--verify-match", "yes"];
    place.ok(&[&["format", &volume, "--logical-size", LOGICAL], &options[..]].concat());
    let status = place.json(&["status", &volume, "--json"]);
    for (field, expected) in [
        ("block_size", Value::from(8192)),
        ("crypto_alg", "blake3".into()),
        ("flushrq", 9.into()),
        ("verify_match", true.into()),
        ("logical_size", (64 << 20).into()),
        ("logical_used", 0.into()),
        ("data_total_blocks", (80 * 128).into()),
        ("dedup_ratio", 1.0.into()),
        ("served_by_pid", Value::Null),
    ] {
        assert_eq!(status[field], expected, "{field}");
    }
    contains(&place.ok(&["status", &volume]), &["not being served", "64 MiB", "blake3", "dupwrites"]);
}

#[test]
fn the_json_has_exactly_the_fields_that_are_documented() {
    let place = Place::new();
    let volume = place.format("v");
    let documented = include_str!("../../../docs/status.md");
    let status = place.json(&["status", &volume, "--json"]);
    let mut count = 0;
    for (name, value) in status.as_object().unwrap() {
        let inner: Vec<String> = match value.as_object() {
            Some(fields) => fields.keys().map(|field| format!("{name}.{field}")).collect(),
            None => vec![name.clone()],
        };
        for name in inner {
            assert!(documented.contains(&format!("| `{name}` |")), "{name} is not documented");
            count += 1;
        }
    }
    let rows = documented.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, count, "docs/status.md names fields that do not exist");
}

#[test]
fn every_superblock_copy_is_shown() {
    let place = Place::new();
    let volume = place.format("v");
    let pool = place.json(&["status", &volume, "--json"])["pool"].clone();
    let dump = place.json(&["dump-superblock", &volume, "--json"]);
    assert_eq!(dump["data_label"]["pool"], pool);
    let states: Vec<_> = dump["copies"].as_array().unwrap().iter().map(|copy| &copy["state"]).collect();
    assert_eq!(states, ["empty", "valid", "empty", "valid"], "{dump:#}");
    assert_eq!(dump["copies"][1]["superblock"]["pool"], pool);
    let block = dump["copies"][1]["block"].as_u64().unwrap();
    overwrite(&place.volume("v").join("metadata"), &[0xff; 16], &[block * 4096 + 1000]);
    let dump = place.json(&["dump-superblock", &volume, "--json"]);
    assert_eq!(dump["copies"][1]["state"], "damaged");
    contains(&place.ok(&["dump-superblock", &volume]), &["copies.1.state", "copies.3.superblock.pool"]);
}

#[test]
fn a_volume_is_not_formatted_again_without_force() {
    let place = Place::new();
    let volume = place.format("v");
    let pool = |place: &Place| place.json(&["status", &volume, "--json"])["pool"].clone();
    let before = pool(&place);
    let message = place.refused(1, &["format", &volume, "--logical-size", LOGICAL]);
    contains(&message, &["data device", "the data label of a deduplicated volume", "use --force"]);
    assert_eq!(pool(&place), before);
    place.ok(&["format", &volume, "--logical-size", LOGICAL, "--force"]);
    assert_ne!(pool(&place), before);
}

#[test]
fn devices_that_are_too_small_are_told_with_what_is_needed() {
    let place = Place::new();
    let volume = place.volume("v").display().to_string();
    let format = |option: &str, size: &str| {
        place.refused(1, &["format", &volume, "--logical-size", LOGICAL, option, size])
    };
    contains(&format("--data-size", "4K"), &["data device is too small", "needs 8192 bytes", "has 4096"]);
    contains(&format("--metadata-size", "1M"), &["metadata device is too small", "4194304", "1048576"]);
}

#[test]
fn values_that_cannot_be_are_usage_errors() {
    let place = Place::new();
    let volume = place.volume("v").display().to_string();
    let format = |option: &str, value: &str| {
        place.refused(2, &["format", &volume, "--logical-size", LOGICAL, option, value])
    };
    contains(&format("--block-size", "5000"), &["a power of two from 512 to 1048576 bytes", "found 5000"]);
    contains(&format("--crypto-alg", "crc32"), &["md5, sha1, sha256, sha512, blake3"]);
    contains(&format("--verify-match", "maybe"), &["yes, no"]);
    contains(&format("--data-size", "5KB"), &["powers of 1024"]);
    contains(&place.refused(2, &["format", &volume]), &["--logical-size"]);
    assert!(!place.volume("v").exists(), "a usage error makes nothing");
    let message = place.refused(1, &["format", &volume, "--logical-size", "1000"]);
    contains(&message, &["logical size", "a multiple of the block size (4096 bytes)", "1000 bytes"]);
}

#[test]
fn what_is_no_volume_is_told_from_one() {
    let place = Place::new();
    let none = place.volume("none").display().to_string();
    contains(&place.refused(1, &["status", &none]), &["data", "is the volume formatted?"]);
    let volume = place.volume("zeros");
    fs::create_dir(&volume).unwrap();
    for device in ["data", "metadata"] {
        fs::File::create(volume.join(device)).unwrap().set_len(8 << 20).unwrap();
    }
    let message = place.refused(1, &["status", volume.to_str().unwrap()]);
    contains(&message, &["holds no label of a volume"]);
}

#[test]
fn garbage_in_place_of_metadata_is_reported() {
    let place = Place::new();
    let volume = place.format("v");
    let metadata = place.volume("v").join("metadata");
    let size = fs::metadata(&metadata).unwrap().len();
    fs::write(&metadata, (0..size / 8).flat_map(|i| (i * 0x9e37_79b9).to_le_bytes()).collect::<Vec<u8>>())
        .unwrap();
    let message = place.refused(1, &["status", &volume]);
    contains(&message, &["the metadata device holds no volume", "check that the paths are right"]);
}

#[test]
fn data_of_one_volume_with_metadata_of_another_is_refused() {
    let place = Place::new();
    let (a, b) = (place.format("a"), place.format("b"));
    let pool = |volume: &str| place.json(&["status", volume, "--json"])["pool"].as_str().unwrap().to_owned();
    let (data, metadata) = (format!("{a}/data"), format!("{b}/metadata"));
    let message = place.refused(1, &["status", "--data-dev", &data, "--metadata-dev", &metadata]);
    contains(&message, &["do not belong together", &pool(&a), &pool(&b)]);
    let message = place.refused(1, &["status", "--data-dev", &metadata, "--metadata-dev", &data]);
    contains(&message, &["no label", "mixed up"]);
}

#[test]
fn garbage_is_not_collected_at_rest() {
    let place = Place::new();
    let volume = place.format("v");
    for action in ["start", "stop", "estimate"] {
        contains(
            &place.refused(1, &["gc", &volume, action]),
            &["while a volume is served", "no process serves"],
        );
    }
    let (data, metadata) = (format!("{volume}/data"), format!("{volume}/metadata"));
    place.refused(1, &["gc", "--data-dev", &data, "--metadata-dev", &metadata, "stop"]);
    contains(&place.refused(2, &["gc", &volume, "restart"]), &["start, stop, estimate"]);
}

/// A format that is killed after any time leaves the old volume, none, or the new one: never one that opens
/// half.
#[test]
fn a_killed_format_leaves_no_volume_or_a_whole_one() {
    let place = Place::new();
    let volume = place.format("v");
    let (mut whole, mut none) = (0, 0);
    for delay_us in (0..24).map(|i| i * 700) {
        let mut child = place
            .command(&["format", &volume, "--logical-size", LOGICAL, "--force"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_micros(delay_us));
        child.kill().unwrap();
        child.wait().unwrap();
        let output = place.run(&["status", &volume, "--json"]);
        if output.status.success() {
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(status["logical_size"], 64 << 20);
            whole += 1;
        } else {
            contains(&String::from_utf8_lossy(&output.stderr), &["holds no volume"]);
            none += 1;
        }
    }
    assert_eq!(whole + none, 24);
    place.ok(&["format", &volume, "--logical-size", LOGICAL, "--force"]);
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

/// A volume was made, and the tool that had made it aborted because nobody read what it had to say of it.
#[test]
fn a_tool_whose_output_nobody_reads_ends_as_it_would_have_and_a_full_disk_is_an_error() {
    let place = Place::new();
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let code = |args: &[&str], out: Stdio, err: Stdio| {
        place.command(args).stdout(out).stderr(err).status().unwrap().code()
    };
    for (name, out) in [("a", closed_pipe()), ("b", full())] {
        let volume = place.volume(name).display().to_string();
        let format = ["format", &*volume, "--logical-size", LOGICAL];
        assert_eq!(code(&format, out, closed_pipe()), Some(0), "{name}");
        place.ok(&["status", &volume]);
        for json in [&[][..], &["--json"]] {
            let status = [&["status", &*volume], json].concat();
            assert_eq!(code(&status, closed_pipe(), closed_pipe()), Some(0));
            assert_eq!(code(&status, full(), Stdio::null()), Some(1));
        }
    }
    let missing = place.volume("missing").display().to_string();
    assert_eq!(code(&["status", &missing], closed_pipe(), closed_pipe()), Some(1));
    assert_eq!(code(&["status", &missing, "--no-such-option"], full(), full()), Some(2));
    for output in [closed_pipe(), full()] {
        assert!(code(&["--help"], output, closed_pipe()).is_some(), "no signal ended it");
    }
}

/// `cp -r` of a volume has its UUID: it was taken for the original, whose server answered for it.
#[test]
fn a_copy_of_a_volume_is_another_one() {
    let place = Place::new();
    let volume = place.format("v");
    let copy = place.volume("copy").display().to_string();
    assert!(Command::new("cp").args(["-r", &volume, &copy]).status().unwrap().success());
    let data = place.volume("v").join("data");
    let id = dedup_cli::control::DeviceId::of(&data).unwrap();
    let run = place.0.path().join("run");
    fs::create_dir(&run).unwrap();
    let answer = |_| {
        dedup_cli::control::Response::Ok(serde_json::json!({"mode": "read-write", "data_used_blocks": 4711}))
    };
    let _server = dedup_cli::control::ControlServer::start_in(&run, id, answer).unwrap();
    assert_eq!(place.json(&["status", &volume, "--json"])["data_used_blocks"], 4711);
    let status = place.json(&["status", &copy, "--json"]);
    assert_eq!((&status["data_used_blocks"], &status["served_by_pid"]), (&0.into(), &Value::Null));
    contains(&place.refused(1, &["gc", &copy, "start"]), &["while a volume is served", "no process serves"]);
}

#[test]
fn a_copy_is_given_a_uuid_of_its_own_and_is_as_whole_as_before() {
    let place = Place::new();
    let volume = place.volume("v").display().to_string();
    place.ok(&["format", &volume, "--logical-size", LOGICAL, "--block-size", "512", "--force"]);
    let uuid = |volume: &str| place.json(&["status", volume, "--json"])["uuid"].clone();
    let copy = place.volume("copy").display().to_string();
    assert!(Command::new("cp").args(["-r", &volume, &copy]).status().unwrap().success());
    let (before, label) =
        (uuid(&volume), fs::read(place.volume("copy").join("data")).unwrap()[..4096].to_vec());
    assert_eq!(uuid(&copy), before);
    contains(&place.ok(&["new-uuid", &copy]), &[before.as_str().unwrap()]);
    let after = uuid(&copy);
    assert!(after.is_string() && after != before);
    assert_eq!(uuid(&volume), before);
    place.ok(&["new-uuid", &copy]);
    assert_ne!(uuid(&copy), after);
    let changed = fs::read(place.volume("copy").join("data")).unwrap()[..4096].to_vec();
    let differing = label.iter().zip(&changed).rposition(|(old, new)| old != new);
    assert!(differing.is_some_and(|at| at < 512), "one sector is written");
    let (data, metadata) = (place.volume("v").join("data"), place.volume("copy").join("metadata"));
    // The copy's halves are still those of one pool, as the original's are.
    place.ok(&["status", "--data-dev", data.to_str().unwrap(), "--metadata-dev", metadata.to_str().unwrap()]);
}
