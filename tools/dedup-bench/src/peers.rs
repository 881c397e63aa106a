//! The rounds: every workload on a raw file, on a peer and right after it on `dedup-nbd`, so that all see
//! about the same load of the machine.
//!
//! ```text
//!   raw files written once
//!   round ─> mode ─> session: both servers started ─┬─> workload: raw file; A, wait until quiet; B, wait until quiet ─┐ ─> both stopped
//!                                                   └────────────────────────── next workload <───────────────────────┘
//! ```
//!
//! Who goes first alternates from round to round. The idle server costs nothing. CPU time is taken when a
//! server has become quiet, so that checkpoints in the background are charged to the workload that caused
//! them.

use crate::args::Measure;
use crate::child;
use crate::fio::{self, Job, Target};
use crate::image::Image;
use crate::machine::{Machine, load_average};
use crate::programs::Programs;
use crate::server::{Kind, Mode, Server, Storage};
use crate::sessions::{self, SESSIONS, Session};
use crate::summary::{self, Summary};
use crate::workload::{Work, Workload};
use anyhow::{Context, Result, bail};
use dedup_cli::human;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Assumed for the estimate of the total time: requests and bytes a second of a small machine with a virtual
/// disk.
const TYPICAL_IOPS: f64 = 20_000.0;
/// See [`TYPICAL_IOPS`].
const TYPICAL_BYTES_PER_SECOND: f64 = 400e6;
/// See [`TYPICAL_IOPS`]: write + flush pairs.
const TYPICAL_FLUSHES: f64 = 500.0;
/// Seconds a run for starting, settling and stopping.
const OVERHEAD_SECONDS: f64 = 1.5;
/// The raw files: fio's own, and the one that peers serve. Two, since one would be in the page cache when the
/// second looks at it.
const RAW_FILES: [&str; 2] = ["raw", "served"];
/// How many standard deviations the number of new blocks may be from what the workload is to make: fio draws
/// at random which blocks are duplicates.
const STORED_DEVIATIONS: f64 = 4.0;

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    size: u64,
    rounds: u32,
    pub(crate) results: Vec<Summary>,
}

/// One workload on one server in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    #[serde(skip)]
    pub(crate) workload: Workload,
    #[serde(skip)]
    pub(crate) mode: Mode,
    #[serde(skip)]
    pub(crate) kind: Kind,
    pub(crate) round: u32,
    pub(crate) job: Job,
    /// Requests that it was to make at least; fewer were made if it ran into the time limit.
    pub(crate) requests_planned: u64,
    /// `None` for a raw file.
    pub(crate) server_cpu_seconds: Option<f64>,
    /// Data blocks that a volume got by it.
    pub(crate) stored: Option<Stored>,
    /// Load average at its end.
    pub(crate) load: f64,
}

/// A check that a workload was what it claims to be.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Stored {
    pub(crate) blocks_expected: i64,
    pub(crate) blocks_found: i64,
}

/// What stays the same during a run.
struct Bench<'a> {
    programs: Programs,
    args: &'a Measure,
    /// What is measured, in this order in even rounds.
    kinds: &'static [Kind],
    dir: TempDir,
    sockets: TempDir,
    /// If a workload needs one.
    image: Option<Image>,
    samples: Vec<Sample>,
}

/// A session that is under way.
#[derive(Clone, Copy)]
struct Place<'a> {
    round: u32,
    mode: Mode,
    /// The file that fio works on without a server.
    raw: &'a Path,
}

/// Runs everything on a raw file, the peers and ours.
pub(crate) fn run(args: &Measure) -> Result<Report> {
    let programs = Programs::with_peers()?;
    let parent = directory(args)?;
    let machine = Machine::describe(Some(&parent), programs.versions.clone());
    let sessions = sessions(args);
    if sessions.is_empty() {
        bail!(
            "no workload is chosen; there are: {}",
            sessions::workloads().map(|w| w.name).collect::<Vec<_>>().join("; ")
        );
    }
    let samples = measure(args, &sessions, programs, &[Kind::Raw, Kind::Peer, Kind::DedupNbd])?;
    let results = summary::summaries(&samples);
    Ok(Report { machine, size: args.size(), rounds: args.rounds(), results })
}

/// The directory in which one to work in is made.
pub(crate) fn directory(args: &Measure) -> Result<PathBuf> {
    args.dir.clone().map_or_else(std::env::current_dir, Ok).context("no directory to work in")
}

/// Runs sessions on servers of these kinds.
pub(crate) fn measure(
    args: &Measure,
    sessions: &[Session],
    programs: Programs,
    kinds: &'static [Kind],
) -> Result<Vec<Sample>> {
    let parent = directory(args)?;
    let dir = TempDir::with_prefix_in("dedup-bench-", &parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    let sockets = tempfile::tempdir()?;
    let mut bench = Bench { programs, args, kinds, dir, sockets, image: None, samples: Vec::new() };
    announce(args, sessions, kinds.len());
    for name in bench.raw_files() {
        write_raw(&name, 2 * args.size())?;
    }
    if sessions.iter().any(|session| session.has(Work::Copy)) {
        bench.image = Some(Image::make(bench.dir.path(), args.size(), &bench.programs)?);
    }
    for round in 0..args.rounds() {
        for mode in Mode::ALL.into_iter().filter(|mode| args.wants_mode(*mode)) {
            for session in sessions {
                bench.session(round, mode, *session)?;
            }
        }
    }
    Ok(bench.samples)
}

/// The sessions to run: each up to the last workload that is wanted.
pub(crate) fn sessions(args: &Measure) -> Vec<Session> {
    let wanted = |workload: &Workload| args.only.as_ref().is_none_or(|text| workload.name.contains(text));
    let sessions = SESSIONS.iter().filter(|session| !session.is_more || args.wants_more());
    sessions
        .filter_map(|session| Some(session.up_to(session.workloads.iter().rposition(wanted)? + 1)))
        .collect()
}

impl Measure {
    fn wants_mode(&self, mode: Mode) -> bool {
        self.mode.is_none_or(|wanted| (wanted == dedup_cli::Io::Direct) == (mode == Mode::Direct))
    }
}

impl Stored {
    pub(crate) fn is_expected(self) -> bool {
        let (expected, found) = (self.blocks_expected as f64, self.blocks_found as f64);
        (found - expected).abs() <= STORED_DEVIATIONS * expected.abs().sqrt()
    }
}

impl Bench<'_> {
    /// The files that are worked on without a volume, if any are.
    fn raw_files(&self) -> Vec<PathBuf> {
        let are_used = self.kinds.iter().any(|kind| !kind.is_ours());
        RAW_FILES.iter().filter(|_| are_used).map(|name| self.dir.path().join(name)).collect()
    }

    fn session(&mut self, round: u32, mode: Mode, session: Session) -> Result<()> {
        let [raw, served] = RAW_FILES.map(|name| self.dir.path().join(name));
        let storage = Storage {
            raw: &served,
            dir: self.dir.path(),
            logical_size: session.logical_size(self.args.size()),
            volume_options: &session.volume_options(self.args.size()),
            sockets: self.sockets.path(),
        };
        // What the last session left to be written, and its deletion, are not for this one to wait for.
        rustix::fs::syncfs(File::open(self.dir.path())?).context("cannot sync the file system")?;
        for file in self.raw_files() {
            // A new volume has nothing in the page cache; overwriting cached pages would be a head start for
            // the others.
            rustix::fs::fadvise(File::open(file)?, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        let mut servers = Vec::new();
        for kind in self.kinds {
            servers.push((*kind, Server::start(*kind, mode, storage, &self.programs)?));
        }
        for server in servers.iter_mut().filter_map(|(_, server)| server.as_mut()) {
            server.settle()?;
        }
        if round % 2 == 1 {
            servers.reverse();
        }
        let place = Place { round, mode, raw: &raw };
        for workload in session.workloads {
            for (kind, server) in &mut servers {
                if *kind == Kind::Raw && !workload.is_for_files() {
                    continue;
                }
                let sample = self.sample(place, *kind, *workload, server.as_mut())?;
                tell(&sample, self.args.rounds());
                self.samples.push(sample);
            }
        }
        servers.into_iter().filter_map(|(_, server)| server).try_for_each(Server::stop)?;
        if session.has(Work::Trim) && self.kinds.contains(&Kind::Peer) {
            // The peer has made holes in it.
            write_raw(&served, 2 * self.args.size())?;
        }
        Ok(())
    }

    fn sample(
        &self,
        place: Place<'_>,
        kind: Kind,
        workload: Workload,
        server: Option<&mut Server>,
    ) -> Result<Sample> {
        child::check_interrupted()?;
        let Place { round, mode, .. } = place;
        let size = self.args.size();
        let used = || kind.is_ours().then(|| self.used_blocks(kind)).transpose();
        let used_before = used()?;
        // It has settled after its start, and after its last workload.
        let cpu_before = server.as_deref().map(Server::cpu_time).transpose()?;
        let job = self
            .job(place, workload, server.as_deref())
            .with_context(|| format!("{} on {}", workload.name, kind.name(mode)))?;
        let cpu_after = server.map(Server::settle).transpose()?;
        let blocks_expected = workload.new_blocks(size, self.image.as_ref().map_or(0, |i| i.distinct_blocks));
        let stored = used_before
            .zip(used()?)
            .map(|(before, after)| Stored { blocks_expected, blocks_found: after - before });
        Ok(Sample {
            workload,
            mode,
            kind,
            round,
            job,
            requests_planned: workload.requests_min(size),
            server_cpu_seconds: cpu_before
                .zip(cpu_after)
                .map(|(before, after)| (after - before).as_secs_f64()),
            stored,
            load: load_average(),
        })
    }

    fn job(&self, place: Place<'_>, workload: Workload, server: Option<&Server>) -> Result<Job> {
        let (size, limit, scratch) = (self.args.size(), self.args.limit(), self.sockets.path());
        let target = match (workload.work, server, &self.image) {
            (Work::Copy, Some(server), Some(image)) => {
                return image.copy_to(&server.socket, workload.range(size).0, limit, scratch);
            }
            (_, Some(server), _) => Target::Socket(&server.socket),
            (_, None, _) => Target::File(place.raw, place.mode),
        };
        fio::run(workload, size, target, limit, scratch)
    }

    fn used_blocks(&self, kind: Kind) -> Result<i64> {
        let volume = kind.volume(self.dir.path());
        let status = self.programs.build(kind).status(&volume, self.sockets.path())?;
        status["data_used_blocks"].as_i64().context("dedup-tool status lacks data_used_blocks")
    }
}

/// Says what is going to be done, and how long it takes.
fn announce(args: &Measure, sessions: &[Session], kinds: usize) {
    let modes = Mode::ALL.into_iter().filter(|mode| args.wants_mode(*mode)).count();
    let runs = f64::from(args.rounds()) * kinds as f64 * modes as f64;
    let workloads: Vec<Workload> = sessions.iter().flat_map(|session| session.workloads).copied().collect();
    let size = args.size();
    let seconds = |workload: &Workload| {
        let requests = workload.requests(size) as f64;
        let work = match workload {
            workload if workload.is_flushed => requests / TYPICAL_FLUSHES,
            workload if workload.is_sequential() => size as f64 / TYPICAL_BYTES_PER_SECOND,
            _ => requests / TYPICAL_IOPS,
        };
        work.min(args.limit().as_secs_f64()) + OVERHEAD_SECONDS
    };
    let expected = workloads.iter().map(seconds).sum::<f64>() * runs;
    let longest = workloads.len() as f64 * (args.limit().as_secs_f64() + OVERHEAD_SECONDS) * runs;
    dedup_cli::say(&format!(
        "{} workloads of {} each, {modes} modes, {} rounds: about {}, at most {}",
        workloads.len(),
        human(size),
        args.rounds(),
        minutes(expected),
        minutes(longest)
    ));
}

fn minutes(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}

/// One line on standard error for each run.
fn tell(sample: &Sample, rounds: u32) {
    dedup_cli::say(&format!(
        "round {}/{rounds}  {:8}  {:11}  {:50}  {}",
        sample.round + 1,
        sample.mode.name(),
        sample.kind.name(sample.mode),
        sample.workload.name,
        summary::rate_text(sample.workload, summary::rate(sample))
    ));
}

/// A file of `size` bytes without two equal blocks, on the disk when this returns.
fn write_raw(path: &Path, size: u64) -> Result<()> {
    let begin = Instant::now();
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        let mut buf = vec![0; 1 << 20];
        let mut state = 1;
        for _ in 0..size / buf.len() as u64 {
            fill(&mut buf, &mut state);
            file.write_all(&buf)?;
        }
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    if begin.elapsed() > Duration::from_secs(5) {
        dedup_cli::say(&format!("raw file written in {:.0} s", begin.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Random bytes by Marsaglia's xorshift64; fast, and free of repetition for 2^64 words.
pub(crate) fn fill(buf: &mut [u8], state: &mut u64) {
    for word in buf.as_chunks_mut::<8>().0 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *word = state.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::BLOCK;

    #[test]
    fn a_raw_file_has_no_two_equal_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        write_raw(&path, 4 << 20).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let blocks: std::collections::BTreeSet<&[u8]> = bytes.chunks(BLOCK as usize).collect();
        assert_eq!(blocks.len() as u64, (4 << 20) / BLOCK);
    }

    #[test]
    fn stored_blocks_may_differ_by_chance_and_not_by_more() {
        let stored = |blocks_found| Stored { blocks_expected: 1000, blocks_found }.is_expected();
        assert!(stored(1000) && stored(900) && !stored(850) && !stored(1150));
        assert!(!Stored { blocks_expected: 0, blocks_found: 1 }.is_expected());
    }
}
