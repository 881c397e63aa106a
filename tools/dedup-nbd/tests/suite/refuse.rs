//! What is not served, with messages that name the cause.

use crate::support::{Place, contains};
use std::fs;

#[test]
fn a_second_server_is_refused_and_told_the_first_ones_process() {
    let place = Place::new();
    let volume = place.volume("v");
    let served = place.create("v");
    let owner = format!("process {}", served.pid());
    for args in [&[&*volume][..], &[&volume, "--read-only"], &[&volume, "--create", "--logical-size", "64M"]]
    {
        contains(&place.refused(args), &["in use by", &owner, "dedup-nbd"]);
    }
    served.io(&["write -P 1 0 4K", "read -P 1 0 4K"]);
    served.stop();
}

#[test]
fn parameters_other_than_those_recorded_are_refused() {
    let place = Place::new();
    let volume = place.volume("v");
    place.create("v").stop();
    for (option, value, recorded) in [
        ("--block-size", "8K", "4096"),
        ("--crypto-alg", "md5", "sha256"),
        ("--logical-size", "32M", "64M"),
        ("--metadata-size", "1G", "formatted with"),
    ] {
        let message = place.refused(&[&volume, option, value]);
        contains(
            &message,
            &[option, "was asked for, but the volume was formatted with", recorded, "leave the option away"],
        );
        // Who has mistyped an option is not to be told to give up the volume.
        assert!(!message.contains("format anew"), "{message}");
    }
    let same = ["--create", "--block-size", "4K", "--crypto-alg", "sha256", "--logical-size", "64M"];
    place.serve(&[&[&*volume], &same[..]].concat()).stop();
}

/// It was found in use by a process that was this very one, and formatted before it was found that no socket
/// has such a name.
#[test]
fn a_volume_that_is_exported_already_and_a_socket_with_too_long_a_name_are_told_as_that() {
    let place = Place::new();
    place.create("v").stop();
    let volume = place.volume("v");
    let link = place.path("link");
    std::os::unix::fs::symlink(&volume, &link).unwrap();
    let message = place.refused(&[&volume, "--export", &format!("name=b,volume={}", link.display())]);
    contains(&message, &["export \"b\"", "exported already, as \"\""]);
    let (long, other) = (place.volume(&"x".repeat(107)), place.volume("other"));
    let new = [&*other, "--create", "--logical-size", "64M", "--socket", &long];
    let message = place.try_serve(&new).err().unwrap();
    contains(&message, &["--socket", "at most 107 bytes"]);
    assert!(!place.path("other").exists());
    // Its default would be too long too, so it has another one.
    let served = place.serve(&[&long, "--create", "--logical-size", "64M"]);
    contains(&served.uri, &[&place.volume("run")]);
    served.io(&["write 0 4K", "read 0 4K"]);
    served.stop();
}

#[test]
fn devices_of_different_volumes_are_refused() {
    let place = Place::new();
    place.create("a").stop();
    place.create("b").stop();
    let (data, metadata) = (place.volume("a/data"), place.volume("b/metadata"));
    let message = place.refused(&["--data-dev", &data, "--metadata-dev", &metadata]);
    contains(&message, &["data and metadata devices do not belong together"]);
    let message = place.refused(&["--data-dev", &metadata, "--metadata-dev", &data]);
    contains(&message, &["no label", "mixed up"]);
}

#[test]
fn what_is_no_volume_is_refused_and_left_alone_also_by_create() {
    let place = Place::new();
    let volume = place.volume("v");
    contains(&place.refused(&[&volume]), &["v/data", "is the volume formatted?"]);
    fs::create_dir(&volume).unwrap();
    fs::write(place.path("v/data"), [7; 100_000]).unwrap();
    fs::write(place.path("v/metadata"), [7; 100_000]).unwrap();
    for create in [&[][..], &["--create", "--logical-size", "64M"]] {
        contains(&place.refused(&[&[&*volume], create].concat()), &["no label"]);
        assert!(fs::read(place.path("v/data")).unwrap() == [7; 100_000]);
    }
}

#[test]
fn a_volume_whose_metadata_is_garbage_is_refused() {
    let place = Place::new();
    let volume = place.volume("v");
    place.create("v").stop();
    let metadata = place.path("v/metadata");
    let size = fs::metadata(&metadata).unwrap().len();
    fs::write(&metadata, vec![0xa5; size as usize]).unwrap();
    contains(&place.refused(&[&volume]), &["the metadata device holds no volume"]);
}

#[test]
fn a_device_that_was_cut_short_is_refused() {
    let place = Place::new();
    for (device, role) in [("data", "data"), ("metadata", "metadata")] {
        let volume = place.volume(role);
        place.create(role).stop();
        let file = fs::File::options().write(true).open(place.path(role).join(device)).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        contains(&place.refused(&[&volume]), &[role, "too small"]);
    }
}

#[test]
fn combinations_that_contradict_themselves_are_refused() {
    let place = Place::new();
    let volume = place.volume("v");
    contains(
        &place.refused(&[&volume, "--read-only", "--reconstruct", "no"]),
        &["--read-only serves what is there"],
    );
    contains(&place.refused(&[&volume, "--mdbackend", "inram"]), &["needs --logical-size"]);
    contains(&place.refused(&[&volume, "--reconstruct", "no"]), &["--logical-size is needed"]);
}

/// What was wrong with a socket or another export was told after the volume had been made.
#[test]
fn nothing_is_made_or_opened_if_it_cannot_be_served_in_the_end() {
    let place = Place::new();
    place.create("there").stop();
    let (volume, there) = (place.volume("v"), place.volume("there"));
    let export = |name: &str, volume: &str| format!("name={name},volume={}", place.volume(volume));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let elsewhere = place.volume("no/such/socket");
    let (same, other) = (export("x", "there"), export("y", "there"));
    for (args, parts) in [
        (&["--socket", &elsewhere][..], &["cannot listen", "No such file"][..]),
        (&["--socket", &there], &["there", "not a socket"]),
        (&["--listen", &taken], &["cannot listen on", &*taken, "in use"]),
        (&["--export", "name=,volume=/none"], &["/none/data", "nothing"]),
        (&["--export-name", "x", "--export", &same], &["two exports are named \"x\""]),
        (&["--export", &same, "--export", &other], &["export \"y\"", "exported already, as \"x\""]),
    ] {
        let message = place.refused(&[&[&*volume, "--create", "--logical-size", "64M"], args].concat());
        contains(&message, parts);
        assert!(!message.contains("serving"), "{args:?}: opened before it was refused: {message}");
        assert!(!place.path("v").exists(), "{args:?}: made before it was refused");
    }
    place.serve(&[&volume, "--create", "--logical-size", "64M", "--export", &same]).stop();
}
