//! Other people's clients: qemu-io, qemu-img (qemu-utils), nbdinfo and nbdcopy (libnbd).

use crate::fixture::{Fixture, serve};
use crate::memory::Memory;
use std::process::Command;

/// Runs a program to its end and returns what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("this test needs {program} (qemu-utils, libnbd-bin): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?} failed:\n{text}\n{errors}");
    text
}

fn server() -> (Fixture, String) {
    let fixture = serve(Memory::new(8 << 20));
    let uri = fixture.server.uri();
    (fixture, uri)
}

#[test]
fn qemu_io_reads_back_what_it_wrote() {
    let (_fixture, uri) = server();
    let commands = [
        "write -P 0xab 0 1M",
        "write -f -P 0xcd 1000 5000",
        "flush",
        "read -P 0xcd 1000 5000",
        "read -P 0xab 6000 1000000",
        "write -z 64k 64k",
        "discard 256k 64k",
        "read -P 0 64k 64k",
    ];
    let mut args = vec!["-f", "raw", &uri];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let text = run("qemu-io", &args);
    assert!(!text.contains("verification failed") && !text.contains("error"), "{text}");
}

#[test]
fn qemu_img_and_nbdinfo_see_the_export() {
    let (_fixture, uri) = server();
    assert!(run("qemu-img", &["info", "-f", "raw", &uri]).contains("8 MiB (8388608 bytes)"));
    let text = run("nbdinfo", &["--json", &uri]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-size\": 8388608",
        "\"can_df\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_multi_conn\": true",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    assert!(run("nbdinfo", &["--list", &uri]).contains("disk"));
}

#[test]
fn nbdcopy_brings_a_file_in_and_out_unchanged() {
    let (fixture, uri) = server();
    let path = |name: &str| fixture.dir.path().join(name).to_str().unwrap().to_owned();
    let content: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(path("in"), &content).unwrap();
    run("nbdcopy", &["--connections=4", "--flush", &path("in"), &uri]);
    run("nbdcopy", &["--connections=4", &uri, &path("out")]);
    assert!(std::fs::read(path("out")).unwrap() == content);
}
