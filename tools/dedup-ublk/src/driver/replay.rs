//! What a server that is gone had acknowledged and not flushed, done again in its volume.
//!
//! Mostly for a device that waits for a server, before that begins. But the device may be gone too: its server was asked to make everything
//! durable, could not (a device had failed), and so its changes were kept. Then `recover` replays them, closes the volume, and that is all.
//! It takes no driver.

use super::manage;
use super::serve::as_added;
use anyhow::{Context, Result, bail, ensure};
use dedup_cli::human;
use dedup_ublk::record::{self, Record};
use dedup_ublk::unflushed::{self, OpenedSince};
use dedup_volume::{Op, Request, Volume};
use std::io;
use std::path::Path;

/// The record of device `id` if there is no such device any more, and changes of it are left.
pub(crate) fn left_over(runtime: &Path, id: u32) -> Result<Option<Record>> {
    if manage::ids().contains(&id) || unflushed::left(&record::stem(runtime, id))? == 0 {
        return Ok(None);
    }
    Ok(Record::load(runtime, id)?)
}

/// Makes durable what a device that is gone has left, and forgets the device. If it fails, all stays for another attempt.
pub(crate) fn into_the_volume(record: Record, runtime: &Path, force: bool) -> Result<()> {
    let args = as_added(&record)?;
    let paths = args.volume.resolve()?;
    let volume = args.open.open(&paths)?;
    let outcome = replay(&volume, &record, runtime, force);
    let closed = volume.close().context("cannot close the volume");
    outcome.and(closed)?;
    manage::forget(runtime, record.id)?;
    tracing::info!("device {} is gone; what it had acknowledged is in {}", record.id, paths.name);
    Ok(())
}

/// Does again, in the order of their acknowledgements, what is recorded of the device, and flushes it.
///
/// # Errors
/// Also if something else has opened the volume for writing in between, unless `force`: then the changes may be older than what is there.
pub(crate) fn replay(volume: &Volume, record: &Record, runtime: &Path, force: bool) -> Result<()> {
    let status = volume.status();
    let pool = status.pool;
    ensure!(
        record.pool == pool,
        "device {} is of pool {}, and its volume is now pool {pool}",
        record.id,
        record.pool
    );
    let stem = record::stem(runtime, record.id);
    let epoch = status.commit.epoch;
    if let Err(OpenedSince { recorded }) = unflushed::take_over(&stem, epoch, force)? {
        bail!(
            "the volume of device {id} was opened for writing by something else after the device's server died (expected epoch {}, \
             found {epoch}): what that server had acknowledged and not flushed may be older than what is there now, and is not laid \
             over it; `dedup-ublk recover {id} --force` does so, `dedup-ublk del {id} --force` drops it",
            recorded.saturating_add(1),
            id = record.id
        );
    }
    run(volume, &stem).context("cannot replay what was acknowledged and not flushed")
}

/// What device `id` has left, if it is of this volume, can be replayed by the next server that opens it as if this one had not.
pub(crate) fn not_touched(volume: &Volume, runtime: &Path, id: u32) {
    let status = volume.status();
    if Record::load(runtime, id).ok().flatten().is_some_and(|record| record.pool == status.pool)
        && let Err(error) = unflushed::take_over(&record::stem(runtime, id), status.commit.epoch, false)
    {
        tracing::warn!("what device {id} has left cannot be marked: {error}");
    }
}

fn run(volume: &Volume, stem: &Path) -> Result<()> {
    let replayed = unflushed::replay(stem, |mut changes| {
        // One after the other where they touch the same blocks; the engine sees to it within a batch in the order given.
        for (command, data) in &mut changes {
            let request = Request { tag: 0, op: command.op(data) };
            execute(volume, request)?;
        }
        Ok(())
    })?;
    if replayed.damaged > 0 {
        tracing::warn!(
            "{} of what had been acknowledged and not flushed is damaged and lost: check the file system",
            human(replayed.damaged)
        );
    }
    if replayed.changes > 0 {
        execute(volume, Request { tag: 0, op: Op::Flush })?;
        tracing::info!("replayed {} changes that had not been flushed", replayed.changes);
    }
    Ok(())
}

fn execute(volume: &Volume, request: Request<'_>) -> io::Result<()> {
    let mut outcome = Ok(());
    volume.execute(vec![request], &mut |_, result| outcome = result);
    outcome.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use dedup_ublk::args::{Args, Command as Subcommand};
    use dedup_ublk::command::{Command, Kind};
    use dedup_ublk::unflushed::Unflushed;

    /// `del` kept what a server could not make durable, and no command could replay it: only a device that waits was recovered. Adding the
    /// next device of that number removed it.
    #[test]
    fn what_a_device_that_is_gone_has_left_can_be_had_and_is_not_removed_by_the_next_device() {
        let dir = tempfile::tempdir().unwrap();
        // No machine has a device of so high a number.
        let id = 4_000_000;
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        let arguments = |options: &[&str]| {
            let all = [&["dedup-ublk", "add", volume.to_str().unwrap()], options].concat();
            all.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let add = |options: &[&str]| match Args::try_parse_from(arguments(options)).unwrap().command {
            Subcommand::Add(args) => args,
            other => panic!("{other:?}"),
        };
        let open = |options: &[&str]| {
            let args = add(options);
            args.open.open(&args.volume.resolve().unwrap()).unwrap()
        };
        let made = ["--create", "--logical-size", "16M"];
        let opened = open(&made);
        let (pool, epoch) = (opened.status().pool, opened.status().commit.epoch);
        opened.close().unwrap();
        let record = Record {
            id,
            boot: record::this_boot(),
            pid: 1,
            volume: "v".to_owned(),
            pool,
            recoverable: true,
            directory: dir.path().to_owned(),
            // As it was added: the volume must not be made again.
            arguments: arguments(&made),
        };
        record.save(dir.path()).unwrap();
        let unflushed = Unflushed::create(&record::stem(dir.path(), id), epoch, 1 << 20).unwrap();
        assert!(left_over(dir.path(), id).unwrap().is_none(), "nothing is recorded yet");
        let write = Command { kind: Kind::Write, offset: 8192, len: 4096, fua: false };
        assert!(unflushed.append(&write, &[7; 4096]).unwrap());

        let refused = manage::nothing_left_over(dir.path(), id).unwrap_err();
        let refused = format!("{refused:#}");
        assert!(refused.contains("recover 4000000") && refused.contains("would be lost"), "{refused}");
        let left = left_over(dir.path(), id).unwrap().expect("the record of what is left");
        let other = Record { pool: "another".to_owned(), ..left.clone() };
        into_the_volume(other, dir.path(), false).unwrap_err();
        // That has opened the volume for writing, as another server does, which may have written what is newer.
        let late = into_the_volume(left.clone(), dir.path(), false).unwrap_err();
        let late = format!("{late:#}");
        assert!(late.contains("by something else") && late.contains("--force"), "{late}");
        let again = open(&[]);
        let read = |volume: &Volume| {
            let mut found = vec![0; 4096];
            execute(volume, Request { tag: 0, op: Op::Read { offset: 8192, buf: &mut found } }).unwrap();
            found
        };
        assert_eq!(read(&again), [0; 4096], "older changes were laid over newer ones");
        // As if it had died with these changes; then a device was to be added in its place, which was refused.
        let epoch = again.status().commit.epoch;
        drop(again);
        let unflushed = Unflushed::create(&record::stem(dir.path(), id), epoch, 1 << 20).unwrap();
        assert!(unflushed.append(&write, &[7; 4096]).unwrap());
        let refused = open(&[]);
        not_touched(&refused, dir.path(), id);
        drop(refused);
        into_the_volume(left, dir.path(), false).unwrap();

        manage::nothing_left_over(dir.path(), id).unwrap();
        assert_eq!(Record::load(dir.path(), id).unwrap(), None);
        let again = open(&[]);
        assert_eq!(read(&again), [7; 4096]);
        again.close().unwrap();
    }
}
