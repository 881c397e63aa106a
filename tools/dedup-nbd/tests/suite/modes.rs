//! Ways to serve that are not the usual one.

use crate::support::{Place, contains};

#[test]
fn metadata_in_memory_is_said_and_gone_at_the_end() {
    let place = Place::new();
    let volume = place.volume("v");
    let args = [&*volume, "--mdbackend", "inram", "--logical-size", "64M"];
    let served = place.serve(&args);
    served.io(&["write -P 5 0 1M", "flush", "read -P 5 0 1M"]);
    let status = place.status(&volume);
    assert_eq!((&status["mdbackend"], &status["counters"]["dupwrites"]), (&"inram".into(), &255.into()));
    let table = place.tool(&["status", &volume]).stdout;
    contains(&String::from_utf8_lossy(&table), &["inram: in memory only"]);
    assert!(!place.path("v/metadata").exists());
    served.stop();
    contains(&place.refused(&args), &["the data label of a deduplicated volume", "--force"]);
    let served = place.serve(&[&args[..], &["--force"]].concat());
    served.io(&["read -P 0 0 1M"]);
    served.stop();
}

#[test]
fn metadata_in_memory_does_not_take_the_data_device_of_a_pool_unless_forced() {
    let place = Place::new();
    let volume = place.volume("v");
    let served = place.create("v");
    served.io(&["write -P 5 0 1M"]);
    served.stop();
    let args = [&*volume, "--mdbackend", "inram", "--logical-size", "64M"];
    contains(&place.refused(&args), &["the data label of a deduplicated volume", "--force"]);
    place.serve(&[&args[..], &["--force"]].concat()).stop();
    // The pool has lost its data device, and is told so instead of reading what is not its own.
    contains(&place.refused(&[&volume]), &["do not belong together"]);
}

#[test]
fn starting_empty_needs_force_if_there_is_data_and_keeps_the_parameters() {
    let place = Place::new();
    let volume = place.volume("v");
    place.serve(&[&volume, "--create", "--logical-size", "64M", "--block-size", "8K"]).stop();
    let empty = [&*volume, "--reconstruct", "no"];
    let served = place.serve(&empty);
    served.io(&["write -P 5 0 1M"]);
    served.stop();
    contains(&place.refused(&empty), &["cannot start empty", "holds 1 MiB of data", "--force"]);
    let served = place.serve(&[&empty[..], &["--force"]].concat());
    served.io(&["read -P 0 0 64M"]);
    let status = place.status(&volume);
    assert_eq!((&status["block_size"], &status["logical_size"]), (&8192.into(), &(64 << 20).into()));
    served.stop();
}

#[test]
fn readers_share_a_volume_and_cannot_write() {
    let place = Place::new();
    let volume = place.volume("v");
    let served = place.create("v");
    served.io(&["write -P 5 0 1M", "flush"]);
    served.kill();
    let metadata = std::fs::read(place.path("v/metadata")).unwrap();
    let first = place.serve(&[&volume, "--read-only"]);
    let socket = place.volume("second.sock");
    let second = place.serve(&[&volume, "--read-only", "--socket", &socket]);
    for served in [&first, &second] {
        served.read(&["read -P 5 0 1M"]);
        assert!(served.try_io(&["write -P 6 0 4K"]).is_err());
    }
    first.stop();
    second.stop();
    assert!(std::fs::read(place.path("v/metadata")).unwrap() == metadata, "reading changed something");
}

#[test]
fn blocks_of_a_sector_and_of_a_mebibyte_work() {
    let place = Place::new();
    for (name, block_size) in [("small", "512"), ("large", "1M")] {
        let volume = place.volume(name);
        let size = ["--create", "--logical-size", "64M", "--force", "--block-size", block_size];
        let served = place.serve(&[&[&*volume], &size[..]].concat());
        served.io(&[
            "write -P 5 1536 3M",
            "write -P 6 1M 512",
            "flush",
            "read -P 5 1536 512",
            "read -P 6 1M 512",
        ]);
        served.stop();
        let served = place.serve(&[&volume]);
        served.io(&["read -P 0 0 1536", "read -P 6 1M 512", "read -P 5 2M 1M"]);
        served.stop();
    }
}

#[test]
fn two_devices_are_served_at_a_socket_in_the_runtime_directory_or_over_tcp() {
    let place = Place::new();
    place.create("v").stop();
    let (data, metadata) = (place.volume("v/data"), place.volume("v/metadata"));
    let devices = ["--data-dev", &*data, "--metadata-dev", &metadata];
    let served = place.serve(&devices);
    contains(&served.uri, &["nbd+unix:///?socket=", ".nbd.sock", &place.volume("run")]);
    served.io(&["write -P 5 0 1M", "read -P 5 0 1M"]);
    served.stop();
    let tcp = ["--listen", "127.0.0.1:0", "--export-name", "disk 1"];
    let served = place.serve(&[&devices[..], &tcp].concat());
    contains(&served.uri, &["nbd://127.0.0.1:", "/disk%201"]);
    served.io(&["read -P 5 0 1M"]);
    served.stop();
}

#[test]
fn buffered_io_and_every_way_of_checking_reads_serve() {
    let place = Place::new();
    place.create("v").stop();
    let volume = place.volume("v");
    for (io, check) in [("buffered", "digest"), ("direct", "off"), ("buffered", "crc")] {
        let served =
            place.serve(&[&volume, "--io", io, "--check-on-read", check, "--flushrq", "7", "--discard"]);
        served.io(&["write -P 5 0 1M", "discard 0 512K", "read -P 0 0 512K", "read -P 5 512K 512K"]);
        assert_eq!(place.status(&volume)["check_on_read"], check);
        served.stop();
    }
}
