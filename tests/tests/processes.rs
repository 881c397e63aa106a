//! The real programs as processes, on real files: killed, terminated, two at once, out of space, and left by
//! their clients.
//!
//! The loop of kills is short here; `cargo run --release -p dedup-tests --bin kill-loop` runs one of any
//! length.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_nbd_server::test_client::{Client, Command, FUA, WRITE, request};
use dedup_tests::process::{Cramped, KillLoop, Limit, Place, Programs, Writer};
use std::fs;
use std::process::Output;
use std::time::Duration;

/// Blocks that writers use.
const BLOCKS: usize = 1024;
/// What no answer may take, a refusal or not: some twenty times what the slowest does on an idle machine.
const REFUSAL_MAX: Duration = Duration::from_secs(10);

fn place() -> Place {
    Place::new(Programs::built(), None).unwrap()
}

fn formatted() -> Place {
    let place = place();
    place.format("64M").unwrap();
    place
}

fn connect(place: &Place) -> Client {
    Client::connect(&place.socket()).unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn whenever_the_server_is_killed_what_was_answered_is_there_and_the_volume_clean() {
    let place = place();
    let mut killing = KillLoop::new(&place, 1).unwrap();
    for round in 0..6 {
        killing.round().unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
    println!("{killing}");
}

#[test]
fn sigterm_under_load_ends_with_0_and_everything_that_was_answered_is_there() {
    let place = formatted();
    let mut writer = Writer::new(BLOCKS, 7);
    for _ in 0..2 {
        let mut served = place.serve().unwrap();
        let mut client = connect(&place);
        writer.write(&mut client, Limit::Answers(500)).unwrap();
        served.terminate().unwrap();
        // Requests go on coming until the server hangs up.
        assert!(writer.write(&mut client, Limit::Answers(u64::MAX)).unwrap_err().is::<std::io::Error>());
        writer.drain(&mut client).unwrap();
        served.ended().unwrap();
        writer.ledger.all_durable();
        assert_eq!(place.check().unwrap(), 0, "log blocks left to be replayed");
        let _served = place.serve().unwrap();
        writer.verify(&place.socket()).unwrap();
    }
}

#[test]
fn a_served_volume_is_refused_to_everyone_else_who_are_told_by_whom() {
    let place = formatted();
    let mut served = place.serve().unwrap();
    let mut writer = Writer::new(BLOCKS, 8);
    let mut client = connect(&place);
    writer.write(&mut client, Limit::Answers(200)).unwrap();
    let owner = format!("in use by process {} (dedup-nbd)", served.pid());
    let other_socket = place.path("other.sock");
    for (program, args) in [
        ("dedup-nbd", &[][..]),
        ("dedup-nbd", &["--read-only"]),
        ("dedup-check", &[]),
        ("dedup-tool format", &["--logical-size", "64M"]),
        ("dedup-tool format", &["--logical-size", "64M", "--force"]),
        ("dedup-tool dump-superblock", &[]),
    ] {
        let mut words = program.split(' ');
        let mut command = place.program(words.next().unwrap());
        command.args(words).arg(place.volume()).args(args);
        if program == "dedup-nbd" {
            command.arg("--socket").arg(&other_socket);
        }
        let output = command.output().unwrap();
        assert!(
            !output.status.success() && text(&output).contains(&owner),
            "{program} {args:?}: {}",
            text(&output)
        );
    }
    writer.write(&mut client, Limit::Answers(200)).unwrap();
    assert!(writer.drain(&mut client).unwrap());
    served.terminate().unwrap();
    served.ended().unwrap();
    place.check().unwrap();
}

#[test]
fn a_client_that_disappears_takes_nobody_with_it_and_half_a_request_is_none() {
    let place = formatted();
    let _served = place.serve().unwrap();
    let mut writer = Writer::new(BLOCKS, 9);
    let mut client = connect(&place);
    writer.write(&mut client, Limit::Answers(100)).unwrap();
    for round in 0..20_u64 {
        let mut leaver = connect(&place);
        let offset = 32 << 20 | round << 16;
        let write = |fill| Command::Write { offset, data: vec![fill; 8192], fua: true };
        assert_eq!(leaver.run(&write(1)).unwrap(), Ok(vec![]));
        // Some requests whose replies nobody takes, then a write of which only the half is sent.
        (0..round)
            .for_each(|cookie| leaver.submit(cookie, &Command::Read { offset, len: 64 << 10 }).unwrap());
        leaver.send(&[&request(FUA, WRITE, 0, offset, 8192)[..], &[2; 4096]].concat());
        drop(leaver);
        writer.write(&mut client, Limit::Answers(50)).unwrap();
        let read = connect(&place).run(&Command::Read { offset, len: 8192 }).unwrap();
        assert_eq!(read, Ok(vec![1; 8192]), "round {round}");
    }
    assert!(writer.drain(&mut client).unwrap());
    writer.ledger.all_durable();
    writer.verify(&place.socket()).unwrap();
}

#[test]
fn on_a_full_file_system_new_content_is_refused_for_space_and_all_else_goes_on() {
    let Some(cramped) = Cramped::new("data") else { return };
    cramped.leave(1);
    let mut served = cramped.serve();
    let mut writer = Writer::new(BLOCKS, 10);
    writer.may_be_full();
    let mut client = connect(&cramped.place);
    for _ in 0..40 {
        writer.write(&mut client, Limit::Answers(50)).unwrap();
        if writer.tally.refused > 10 {
            break;
        }
    }
    assert!(writer.drain(&mut client).unwrap());
    assert!(writer.tally.refused > 0, "the file system was never full: {:?}", writer.tally);
    assert_eq!(client.run(&Command::Flush).unwrap(), Ok(vec![]), "a flush goes on");
    writer.ledger.all_durable();
    assert!(served.is_running().unwrap());
    writer.verify(&cramped.place.socket()).unwrap();
    // Room again: the same server goes on, and everything outlives a kill.
    cramped.leave(16);
    let refused = writer.tally.refused;
    let mut client = connect(&cramped.place);
    writer.write(&mut client, Limit::Answers(1000)).unwrap();
    assert_eq!(writer.tally.refused, refused, "refused with room enough");
    served.kill().unwrap();
    writer.drain(&mut client).unwrap();
    cramped.check();
    let _served = cramped.serve();
    writer.verify(&cramped.place.socket()).unwrap();
}

/// The metadata had no space set aside: a checkpoint found none, and the volume stopped, after each restart
/// anew.
#[test]
fn a_full_file_system_under_the_metadata_refuses_for_space_and_stops_nothing() {
    for (small, seed) in [("metadata", 11), ("both", 12)] {
        let Some(cramped) = Cramped::new(small) else { return };
        // A copy has not what was set aside for its first checkpoints when it was made. An open gives it what
        // it needs in any case.
        cramped.copy();
        cramped.leave(8);
        let mut served = cramped.serve();
        cramped.leave(0);
        let mut writer = Writer::new(BLOCKS, seed);
        writer.may_be_full();
        let mut client = connect(&cramped.place);
        writer.write(&mut client, Limit::Answers(300)).unwrap();
        assert!(writer.drain(&mut client).unwrap());
        assert!(
            writer.tally.refused > 100 && served.log().contains("is full"),
            "{small}: {:?}",
            writer.tally
        );
        // Some room, of which each may take what it gets, until there is none.
        for mib in [1, 1, 2, 4] {
            cramped.leave(mib);
            let mut client = connect(&cramped.place);
            writer.write(&mut client, Limit::Answers(400)).unwrap();
            assert!(writer.drain(&mut client).unwrap());
            assert_eq!(client.run(&Command::Flush).unwrap(), Ok(vec![]), "{small}: {}", served.log());
            writer.ledger.all_durable();
            writer.verify(&cramped.place.socket()).unwrap();
        }
        assert!(writer.tally.slowest < REFUSAL_MAX, "{small}: an answer took {:?}", writer.tally.slowest);
        cramped.leave(0);
        served.kill().unwrap();
        cramped.check();
        // It is still full, and the volume opens and goes on.
        let mut served = cramped.serve();
        writer.verify(&cramped.place.socket()).unwrap();
        let mut client = connect(&cramped.place);
        writer.write(&mut client, Limit::Answers(300)).unwrap();
        assert!(writer.drain(&mut client).unwrap());
        assert!(served.is_running().unwrap(), "{small}: {}", served.log());
        writer.verify(&cramped.place.socket()).unwrap();
        cramped.leave(16);
        let refused = writer.tally.refused;
        let mut client = connect(&cramped.place);
        writer.write(&mut client, Limit::Answers(500)).unwrap();
        assert_eq!(writer.tally.refused, refused, "{small}: refused with room enough");
        served.kill().unwrap();
        writer.drain(&mut client).unwrap();
        cramped.check();
    }
}

/// A volume was opened by other means after its server had died: what that had answered and not flushed was
/// lost, or had to be forced over newer data.
#[test]
fn what_a_killed_server_has_answered_is_found_by_every_opener_and_missed_by_none() {
    let place = formatted();
    let mut served = place.serve().unwrap();
    let write = Command::Write { offset: 8192, data: vec![7; 4096], fua: false };
    assert_eq!(connect(&place).run(&write).unwrap(), Ok(vec![]));
    served.kill().unwrap();
    // They need not have the server's runtime directory: the volume says where it was.
    let elsewhere = place.path("elsewhere");
    let open = |program: &str, volume: &std::path::Path| {
        let mut words = program.split(' ');
        let mut command = place.program(words.next().unwrap());
        command.args(words).arg(volume).env("DEDUP_RUNTIME_DIR", &elsewhere).output().unwrap()
    };
    let status = open("dedup-tool status --json", &place.volume());
    assert!(status.status.success() && text(&status).contains("\"operations\": 1"), "{}", text(&status));
    let check = open("dedup-check", &place.volume());
    assert!(check.status.success() && text(&check).contains("1 operations"), "{}", text(&check));
    let copy = place.path("copy");
    fs::create_dir(&copy).unwrap();
    for name in ["data", "metadata"] {
        fs::copy(place.volume().join(name), copy.join(name)).unwrap();
    }
    let status = open("dedup-tool status", &copy);
    assert!(!status.status.success() && text(&status).contains("a copy that was made"), "{}", text(&status));
    // Without its journal it is refused, by all of them.
    let is_journal = |path: &std::path::PathBuf| path.to_string_lossy().contains("journal-");
    let mut files = fs::read_dir(place.path("run")).unwrap().map(|entry| entry.unwrap().path());
    let journal = files.find(is_journal).unwrap();
    fs::rename(&journal, place.path("aside")).unwrap();
    for program in ["dedup-tool status", "dedup-check", "dedup-nbd --read-only", "dedup-nbd"] {
        let refused = open(program, &place.volume());
        assert!(
            !refused.status.success() && text(&refused).contains("expected journal"),
            "{program}: {}",
            text(&refused)
        );
    }
    fs::rename(place.path("aside"), &journal).unwrap();
    let mut served = place.serve().unwrap();
    let read = Command::Read { offset: 8192, len: 4096 };
    assert_eq!(connect(&place).run(&read).unwrap(), Ok(vec![7; 4096]));
    served.terminate().unwrap();
    served.ended().unwrap();
    assert!(!journal.exists(), "the journal of a closed volume stays");
}
