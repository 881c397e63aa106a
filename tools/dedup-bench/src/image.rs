//! A file system's image, and its copy onto a server by qemu-img.
//!
//! The image is ext4 with files of this machine, in the order of their names, until it is a little more than
//! half full: real content, with the zeros, the duplicates and the holes that come with it. Two runs on one
//! machine differ in time stamps only.

use crate::child::Running;
use crate::fio::{Job, Latencies};
use crate::programs::Programs;
use crate::workload::BLOCK;
use anyhow::{Context, Result, bail};
use dedup_volume::DigestAlgorithm;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where files are taken from: documentation, data and libraries, which every Debian system has.
const SOURCES: [&str; 2] = ["/usr/share", "/usr/lib"];
/// Percentage of the image that files fill: the rest is free space, the journal, a quarter of a small one,
/// and tables of inodes.
const FILLED_PERCENT: u64 = 55;
/// What a directory takes: a block, and an inode and a name as a file does.
const TAKEN_MIN: u64 = BLOCK + 512;
/// Beyond the time limit, for the last flush.
const GRACE: Duration = Duration::from_secs(120);
/// Fixed, so that equal files give equal images: UUID and seed of directory hashes.
const IDENTITY: [&str; 2] = ["6d6b6532-6673-4000-8000-000000000001", "6d6b6532-6673-4000-8000-000000000002"];

/// An image and what it takes.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    path: PathBuf,
    pub(crate) size: u64,
    /// Blocks that are neither zero nor equal to one before.
    pub(crate) distinct_blocks: u64,
}

impl Image {
    /// Makes one of `size` bytes in `dir`.
    pub(crate) fn make(dir: &Path, size: u64, programs: &Programs) -> Result<Self> {
        let (root, path) = (dir.join("files"), dir.join("image"));
        fs::create_dir(&root)?;
        let mut room = size * FILLED_PERCENT / 100;
        let mut files = 0;
        for source in SOURCES {
            copy_tree(
                Path::new(source),
                &root.join(source.trim_start_matches('/').replace('/', "-")),
                &mut room,
                &mut files,
            )
            .with_context(|| format!("cannot copy files of {source}"))?;
        }
        let mut command = Command::new(programs.mke2fs()?);
        command
            .args(["-q", "-t", "ext4", "-b", "4096", "-U", IDENTITY[0]])
            .args(["-E", &format!("hash_seed={},lazy_itable_init=0", IDENTITY[1])])
            // Files and directories, and what the file system keeps for itself.
            .args(["-N", &(files + 1024).to_string(), "-d"])
            .arg(&root)
            .arg(&path)
            .arg(format!("{}k", size >> 10));
        run(&mut command, dir, Duration::ZERO).context("cannot make an image")?;
        fs::remove_dir_all(&root)?;
        let distinct_blocks = distinct_blocks(&path)?;
        Ok(Self { path, size, distinct_blocks })
    }

    /// Copies it to `offset` of what the server at `socket` serves; the last flush is part of the time.
    pub(crate) fn copy_to(&self, socket: &Path, offset: u64, limit: Duration, scratch: &Path) -> Result<Job> {
        let mut command = Command::new("qemu-img");
        command
            // Sixteen requests in flight, in any order; flushed at the end.
            .args(["convert", "-n", "-W", "-m", "16", "-t", "writeback", "-f", "raw", "--target-image-opts"])
            .arg(&self.path)
            .arg(format!(
                "driver=raw,offset={offset},size={},file.driver=nbd,file.server.type=unix,file.server.path={}",
                self.size,
                socket.display()
            ));
        let begin = Instant::now();
        let client_cpu_seconds = run(&mut command, scratch, limit)?;
        Ok(Job {
            requests: self.size >> 20,
            bytes: self.size,
            seconds: begin.elapsed().as_secs_f64(),
            latencies: Latencies::default(),
            client_cpu_seconds,
        })
    }
}

/// Runs a command to its end; gives the CPU time that was last seen.
fn run(command: &mut Command, scratch: &Path, limit: Duration) -> Result<f64> {
    let log = scratch.join("copy.log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
    let mut running = Running::spawn(command)?;
    let (deadline, process) = (Instant::now() + limit + GRACE, running.id().to_string());
    let mut cpu = Duration::ZERO;
    let status = loop {
        if let Some(status) = running.ended()? {
            break status;
        }
        // Gone between the question and this one: what was seen before counts.
        cpu = crate::server::cpu_time(&process).unwrap_or(cpu).max(cpu);
        if Instant::now() > deadline {
            bail!("{} did not end in time", command.get_program().display());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if !status.success() {
        let told = fs::read_to_string(&log).unwrap_or_default();
        bail!("{} ended with {status}: {}", command.get_program().display(), told.trim());
    }
    Ok(cpu.as_secs_f64())
}

/// Copies regular files, depth first in the order of names, as long as there is room; counts files and
/// directories.
fn copy_tree(from: &Path, to: &Path, room: &mut u64, files: &mut u64) -> Result<()> {
    // What cannot be read is left out.
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    if *room < TAKEN_MIN {
        return Ok(());
    }
    *room -= TAKEN_MIN;
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir(to)?;
    *files += 1;
    for entry in entries {
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &target, room, files)?;
        } else if kind.is_file() {
            let taken = entry.metadata()?.len().next_multiple_of(BLOCK) + TAKEN_MIN - BLOCK;
            if taken <= *room && fs::copy(entry.path(), &target).is_ok() {
                *room -= taken;
                *files += 1;
            }
        }
    }
    Ok(())
}

fn distinct_blocks(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK as usize];
    let mut seen = BTreeSet::new();
    while file.read_exact(&mut block).is_ok() {
        if block.iter().any(|byte| *byte != 0) {
            seen.insert(DigestAlgorithm::Sha256.digest(&block).0);
        }
    }
    Ok(seen.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_in_order_until_there_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("b")).unwrap();
        for name in ["a", "b/c", "d"] {
            fs::write(from.join(name), [1; 4096]).unwrap();
        }
        let (mut room, mut files) = (4 * TAKEN_MIN, 0);
        copy_tree(&from, &to, &mut room, &mut files).unwrap();
        assert_eq!((room, files), (0, 4));
        assert!(to.join("a").exists() && to.join("b/c").exists() && !to.join("d").exists());
    }

    #[test]
    fn zeros_and_repeated_blocks_are_not_distinct() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let blocks = [0, 1, 2, 1, 0].map(|byte| [byte; BLOCK as usize]).concat();
        fs::write(&path, blocks).unwrap();
        assert_eq!(distinct_blocks(&path).unwrap(), 2);
    }
}
