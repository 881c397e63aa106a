//! What was aimed for beside what a report directory says was reached: a table, computed from the JSON files there.
//!
//! ```text
//!   peers.json  engine.json  write-budget.json  index.json       as written by the commands of these names
//!   fill*.jsonl  reopen*.json  check*.json                       one for each size of volume
//! ```
//!
//! A figure that no file has is "not measured", never left out. This does not measure anything.

use crate::summary::table;
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::fs;
use std::path::Path;

/// What a volume may take for each TiB stored: 300 MiB, and 320 MiB of filter.
const RAM_PER_TIB: f64 = 620.0 * MIB;
/// Beside that: the default of `--cache-size`.
const RAM_CACHE: f64 = 128.0 * MIB;
/// Server CPU of a unique write beyond the plain digest, in microseconds.
const CPU_BEYOND_DIGEST_US: f64 = 5.0;
/// How much longer than the raw export's a writer's p99.9 may be, in milliseconds.
const STALL_MS: f64 = 50.0;
/// How long an open may take.
const OPEN_SECONDS: f64 = 2.0;
/// A log is full from this part on: a checkpoint begins long before.
const LOG_FULL: f64 = 0.9;
/// What is told of a figure that there is not.
const NOTHING: &str = "?";
const MIB: f64 = (1_u64 << 20) as f64;
const GIB: f64 = (1_u64 << 30) as f64;
const TIB: f64 = (1_u64 << 40) as f64;

/// The goals, in order, and where they stand.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// A goal.
#[derive(Debug, Serialize)]
struct Row {
    goal: String,
    at_least: String,
    figures: Vec<Figure>,
}

/// A measured number, and whether it is good enough.
#[derive(Debug, Serialize)]
struct Figure {
    told: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Met,
    Short,
    /// No goal: told because it is asked for.
    Published,
    #[serde(rename = "not measured")]
    Missing,
}

/// Everything that a directory has; `Null` for what it has not.
struct Files {
    peers: Value,
    engine: Value,
    budget: Value,
    index: Value,
    /// Name behind `fill`, and the lines.
    fills: Vec<(String, Vec<Value>)>,
    reopens: Vec<(String, Value)>,
    checks: Vec<(String, Value)>,
}

/// Reads a directory and judges what is there.
pub(crate) fn run(dir: &Path) -> Result<Report> {
    Ok(Report { rows: rows(&Files::read(dir)?) })
}

impl Files {
    fn read(dir: &Path) -> Result<Self> {
        let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        let values = |name: &str| -> Result<Vec<Value>> {
            let path = dir.join(name);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let values = serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>();
            values.with_context(|| format!("{}: expected JSON", path.display()))
        };
        let one = |name: &str| match names.iter().any(|found| found == name) {
            true => Ok::<_, anyhow::Error>(values(name)?.pop().unwrap_or_default()),
            false => Ok(Value::Null),
        };
        let several = |before: &str, after: &str| -> Result<Vec<(String, Vec<Value>)>> {
            let middle = |name: &String| Some(name.strip_prefix(before)?.strip_suffix(after)?.to_owned());
            names
                .iter()
                .filter_map(|name| Some((middle(name)?, values(name))))
                .map(|(n, v)| Ok((n, v?)))
                .collect()
        };
        let last = |found: Vec<(String, Vec<Value>)>| {
            found.into_iter().map(|(name, mut values)| (name, values.pop().unwrap_or_default())).collect()
        };
        Ok(Self {
            peers: one("peers.json")?,
            engine: one("engine.json")?,
            budget: one("write-budget.json")?,
            index: one("index.json")?,
            fills: several("fill", ".jsonl")?
                .into_iter()
                .map(|(name, lines)| (name, crate::fill::of_first_kind(lines)))
                .collect(),
            reopens: last(several("reopen", ".json")?),
            checks: last(several("check", ".json")?),
        })
    }

    /// A workload on a server.
    fn peer(&self, workload: &str, mode: &str, server: &str) -> &Value {
        let is_it =
            |row: &&Value| row["workload"] == workload && row["mode"] == mode && row["server"] == server;
        self.peers["results"].as_array().and_then(|rows| rows.iter().find(is_it)).unwrap_or(&Value::Null)
    }

    fn ours(&self, workload: &str, mode: &str) -> &Value {
        self.peer(workload, mode, "dedup-nbd")
    }

    /// A median ratio of ours, at least `goal`.
    fn ratio(&self, workload: &str, mode: &str, of: &str, goal: f64) -> Figure {
        at_least(self.ours(workload, mode)[of]["median"].as_f64(), goal, |ratio| format!("{ratio:.2}"))
    }

    /// Blocks a second of the engine in this process.
    fn engine(&self, work: &str, batch: u64, callers: u64) -> Option<f64> {
        let is_it = |row: &&Value| {
            row["work"] == work
                && row["batch"] == batch
                && row["callers"] == callers
                // Else one caller may have several cores.
                && row["digest_threads"] == 1
                // Rows of other devices than memory have the name of theirs.
                && row["device"].as_str().is_none_or(|device| device == "memory")
        };
        self.engine["results"].as_array()?.iter().find(is_it)?["blocks_per_second"]["median"].as_f64()
    }

    /// Microseconds that the default digest takes for a block.
    fn digest_us(&self) -> Option<f64> {
        let digests = self.engine["digests"].as_array()?;
        digests.iter().find(|digest| digest["name"] == "sha256")?["us_per_block"].as_f64()
    }

    /// Inserts a second, and bytes written for each, at 1000 a commit.
    fn inserts(&self, store: &str) -> Option<(f64, f64)> {
        let is_it = |row: &&Value| row["store"] == store && row["work"]["insert"]["commit"] == 1000;
        let outcome = &self.index["rows"].as_array()?.iter().find(is_it)?["outcome"];
        let operations = outcome["operations"].as_f64()?;
        Some((operations / outcome["seconds"].as_f64()?, outcome["written_bytes"].as_f64()? / operations))
    }
}

fn rows(files: &Files) -> Vec<Row> {
    let mut rows = against_peers(files);
    rows.extend(engine(files));
    rows.push(metadata(files));
    rows.extend(index(files));
    rows.extend(at_scale(files));
    rows
}

fn row(goal: impl Into<String>, at_least: impl Into<String>, figures: Vec<Figure>) -> Row {
    // What has several sizes may have none.
    let figures = if figures.is_empty() { vec![missing()] } else { figures };
    Row { goal: goal.into(), at_least: at_least.into(), figures }
}

fn missing() -> Figure {
    Figure { told: NOTHING.to_owned(), verdict: Verdict::Missing }
}

fn figure(value: Option<f64>, met: impl Fn(f64) -> bool, told: impl Fn(f64) -> String) -> Figure {
    match value {
        Some(value) => {
            Figure { told: told(value), verdict: if met(value) { Verdict::Met } else { Verdict::Short } }
        }
        None => missing(),
    }
}

fn at_least(value: Option<f64>, goal: f64, told: impl Fn(f64) -> String) -> Figure {
    figure(value, |value| value >= goal, told)
}

fn at_most(value: Option<f64>, goal: f64, told: impl Fn(f64) -> String) -> Figure {
    figure(value, |value| value <= goal, told)
}

fn against_peers(files: &Files) -> Vec<Row> {
    let mut rows = Vec::new();
    let writes = [
        ("random-unique", "4 KiB random unique write QD32", 0.6, 1.0),
        ("random-duplicate90", "the same, 90 % duplicates", 0.8, 1.5),
        ("random-duplicate100", "the same, 100 % duplicates", 0.9, 2.0),
    ];
    for (of, name) in [("ratio", "`qemu-nbd`"), ("of_raw", "fio on a raw file")] {
        for (workload, goal, _, direct) in writes {
            let figures = vec![files.ratio(workload, "direct", of, direct)];
            rows.push(row(format!("{goal}, direct, of {name}"), direct.to_string(), figures));
        }
    }
    for (workload, goal, buffered, _) in writes {
        let figures = vec![files.ratio(workload, "buffered", "ratio", buffered)];
        rows.push(row(format!("{goal}, buffered, of `nbdkit file`"), buffered.to_string(), figures));
    }
    for (workload, name, goal) in [
        ("sequential-unique", "1 MiB sequential unique, SHA-256", 0.5),
        ("sequential-blake3", "the same with BLAKE3", 0.8),
        ("sequential-duplicate", "1 MiB sequential, all duplicates", 1.0),
        ("random-read", "random read QD32, `check-on-read=crc`", 0.9),
        ("sequential-read", "sequential read, `check-on-read=crc`", 0.8),
        ("write-flush", "4 KiB write + flush, QD1", 0.7),
        ("write-flush-connections", "4 KiB write + flush, QD16 over 4 connections", 1.0),
    ] {
        let figures = ["buffered", "direct"].map(|mode| files.ratio(workload, mode, "ratio", goal));
        rows.push(row(format!("{name}, buffered / direct"), goal.to_string(), figures.into()));
    }
    let digest = files.digest_us();
    let figures = ["buffered", "direct"].map(|mode| {
        let us = files.ours("random-unique", mode)["server_cpu_us_per_request"].as_f64();
        match digest {
            Some(digest) => at_most(us, digest + CPU_BEYOND_DIGEST_US, |us| format!("{us:.1} us")),
            None => missing(),
        }
    });
    let goal = digest.map(|us| format!(" ({us:.1} + 5)")).unwrap_or_default();
    rows.push(row(
        "server CPU per unique 4 KiB write, buffered / direct",
        format!("plain digest + 5 us{goal}"),
        figures.into(),
    ));
    rows
}

fn engine(files: &Files) -> Vec<Row> {
    let plain = files.digest_us().map(|us| 1e6 / us);
    let of_digest = [32, 256].map(|batch| {
        let part = files.engine("unique", batch, 1).zip(plain).map(|(rate, plain)| rate / plain);
        at_least(part, 0.6, |part| format!("{:.0} %", part * 100.0))
    });
    let speedups = ["unique", "duplicate", "read"].map(|work| {
        let of = |batch| Some(files.engine(work, batch, 2)? / files.engine(work, batch, 1)?);
        (work, of(32).zip(of(256)).map(|(first, second)| first.min(second)))
    });
    let scaling =
        speedups.map(|(work, speedup)| at_least(speedup, 1.8, |speedup| format!("{work} {speedup:.2}")));
    // Amdahl's law for two cores: everything that keeps the second from helping is taken for serial.
    let serial = speedups.map(|(work, speedup)| {
        at_most(speedup.map(|speedup| (2.0 / speedup - 1.0).max(0.0)), 0.08, |share| {
            format!("{work} {:.0} %", share * 100.0)
        })
    });
    vec![
        row(
            "engine in process, unique 4 KiB, SHA-256, one core, batches of 32 / 256",
            "60 % of the plain digest rate",
            of_digest.into(),
        ),
        row("scaling on 2 cores, the worse of batches of 32 and 256", "1.8", scaling.into()),
        row(
            "serial share of a request, at most, by Amdahl's law from the scaling",
            "at most 8 %",
            serial.into(),
        ),
    ]
}

fn metadata(files: &Files) -> Row {
    let figures = ["fresh", "aged"].map(|name| {
        let phases = files.budget.as_array();
        let phase = phases.and_then(|phases| phases.iter().find(|phase| phase["name"] == name));
        at_most(phase.and_then(|phase| phase["times_user"].as_f64()), 0.35, |times| format!("{times:.2}"))
    });
    row(
        "metadata per unique random 4 KiB write, as 1 TiB with 64 MiB of delta, fresh / aged",
        "at most 0.35",
        figures.into(),
    )
}

fn index(files: &Files) -> Vec<Row> {
    let ours = files.inserts("dedup");
    let against = |of: fn((f64, f64)) -> f64| {
        ["redb", "lmdb", "fjall"].map(|store| Some(of(ours?) / of(files.inserts(store)?)))
    };
    let [redb, lmdb, fjall] = against(|(rate, _)| rate);
    let mut inserts = vec![
        at_least(redb, 3.0, |times| format!("{times:.1}")),
        at_least(lmdb, 3.0, |times| format!("{times:.1}")),
    ];
    inserts.push(figure(fjall, |_| true, |times| format!("{times:.1}")));
    let [redb, lmdb, fjall] = against(|(_, bytes)| bytes);
    let mut bytes = vec![
        at_most(redb, 0.1, |part| format!("{part:.2}")),
        at_most(lmdb, 0.1, |part| format!("{part:.2}")),
    ];
    bytes.push(figure(fjall, |_| true, |part| format!("{part:.2}")));
    for beside in [inserts.last_mut(), bytes.last_mut()].into_iter().flatten() {
        if beside.verdict == Verdict::Met {
            beside.verdict = Verdict::Published;
        }
    }
    vec![
        row("index: inserts/s at 1,000 a commit, of redb / LMDB / fjall", "3 (fjall: beside it)", inserts),
        row(
            "index: bytes written an insert, of redb / LMDB / fjall",
            "at most 0.1 (fjall: beside it)",
            bytes,
        ),
    ]
}

/// What volumes of some size take.
fn at_scale(files: &Files) -> Vec<Row> {
    let number = |value: &Value, name: &str| value[name].as_f64();
    let ram = files.fills.iter().filter_map(|(_, lines)| {
        let stored = stored_bytes(lines)?;
        let peak = lines.iter().filter_map(|line| number(line, "resident_peak")).max_by(f64::total_cmp);
        let goal = RAM_PER_TIB * stored / TIB + RAM_CACHE;
        let told =
            |peak: f64| format!("{:.0} of {:.0} MiB at {:.0} GiB", peak / MIB, goal / MIB, stored / GIB);
        Some(at_most(peak, goal, told))
    });
    let ram =
        row("RAM a TiB stored, peak, with a cache of 128 MiB", "300 MiB + 320 MiB + cache", ram.collect());
    let mut rows = vec![ram, stalls(files)];
    let opens = files.reopens.iter().map(|(_, reopen)| open(reopen));
    rows.push(row("open after a crash with a full log", "under 2 s", opens.collect()));
    let size = |check: &Value| number(check, "stored_blocks").unwrap_or(0.0) * 4096.0 / GIB;
    let times = files.checks.iter().map(|(_, check)| {
        at_most(number(&check["ratio"], "median"), 2.0, |ratio| {
            format!("{ratio:.2} at {:.0} GiB", size(check))
        })
    });
    rows.push(row(
        "`dedup-check` without data, of reading the metadata sequentially",
        "at most 2",
        times.collect(),
    ));
    let memory = files.checks.iter().map(|(_, check)| {
        let goal = number(check, "stored_blocks").map(|blocks| 100.0 * MIB + blocks);
        match goal {
            Some(goal) => at_most(number(check, "resident_peak"), goal, |peak| {
                format!("{:.0} of {:.0} MiB at {:.0} GiB", peak / MIB, goal / MIB, size(check))
            }),
            None => missing(),
        }
    });
    rows.push(row("its peak RAM", "under 100 MiB + 1 B a block", memory.collect()));
    let fills = files.fills.iter().filter_map(|(_, lines)| {
        let (stored, last) = (stored_bytes(lines)?, lines.last()?);
        let told = format!(
            "{:.0} GiB at {:.0} k blocks/s (median), {} of metadata",
            stored / GIB,
            median(lines, "blocks_per_second")? / 1e3,
            dedup_cli::human(last["metadata_used"].as_u64()?)
        );
        Some(Figure { told, verdict: Verdict::Published })
    });
    rows.push(row("a fill of unique blocks, 1 TiB once", "published", fills.collect()));
    rows
}

/// How much later than the peer's writes ours are done, at the 99.9th percentile: over NBD, and in a fill at full rate. Large requests in
/// a deep queue are left out: how long they take is their rate, which has goals of its own.
fn stalls(files: &Files) -> Row {
    let p99_9 = |row: &Value, kind: &str| row["latencies"][kind]["p99_9_us"].as_f64();
    let figures = [("buffered", "nbdkit file"), ("direct", "qemu-nbd")].map(|(mode, server)| {
        let rows = files.peers["results"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_small = |row: &&Value| {
            row["workload"].as_str().is_some_and(|w| !w.starts_with("sequential") && !w.starts_with("medium"))
        };
        let ours =
            rows.iter().filter(|row| row["mode"] == mode && row["server"] == "dedup-nbd").filter(is_small);
        let later = ours.flat_map(|ours| {
            let peer = files.peer(ours["workload"].as_str().unwrap_or_default(), mode, server);
            ["write", "flush"]
                .into_iter()
                .filter_map(move |kind| Some(p99_9(ours, kind)? - p99_9(peer, kind)?))
        });
        let worst = later.max_by(f64::total_cmp).map(|us| us / 1e3);
        at_most(worst, STALL_MS, |ms| format!("{ms:+.1} ms {mode}"))
    });
    let fills = files.fills.iter().filter_map(|(_, lines)| {
        let stored = stored_bytes(lines)?;
        // A run that went on after an interruption counts by its last part.
        if let Some(ms) = lines.last()?["run_p999_ms"].as_f64() {
            return Some(at_most(Some(ms), STALL_MS, |ms| {
                format!("{ms:.0} ms in a fill of {:.0} GiB", stored / GIB)
            }));
        }
        let worst = lines.iter().filter_map(|line| line["p999_ms"].as_f64()).max_by(f64::total_cmp);
        let told = |ms: f64| format!("{ms:.0} ms in the worst interval of a fill of {:.0} GiB", stored / GIB);
        Some(at_most(worst, STALL_MS, told))
    });
    row(
        "writers' p99.9 while checkpoints and merges run, beyond the raw export's; worst workload of 4 and 8 KiB",
        "at most 50 ms",
        figures.into_iter().chain(fills).collect(),
    )
}

/// An open whose log was not full shows a miss, but not that the goal is met.
fn open(reopen: &Value) -> Figure {
    let number = |name: &str| reopen[name].as_f64();
    let full = number("log_used_blocks").zip(number("log_blocks")).map_or(0.0, |(used, all)| used / all);
    let stored = number("stored").unwrap_or(0.0) / GIB;
    let told = |seconds: f64| format!("{seconds:.2} s at {stored:.0} GiB, log {:.0} % full", full * 100.0);
    let figure = figure(number("seconds"), |seconds| seconds < OPEN_SECONDS, told);
    match figure.verdict {
        Verdict::Met if full < LOG_FULL => Figure { verdict: Verdict::Missing, ..figure },
        _ => figure,
    }
}

fn stored_bytes(lines: &[Value]) -> Option<f64> {
    Some(lines.iter().filter_map(|line| line["blocks"].as_f64()).max_by(f64::total_cmp)? * 4096.0)
}

fn median(lines: &[Value], name: &str) -> Option<f64> {
    Some(crate::summary::Spread::of(lines.iter().filter_map(|line| line[name].as_f64()))?.median)
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Short => "short",
            Self::Published => "published",
            Self::Missing => "not measured",
        }
    }
}

impl Row {
    fn measured(&self) -> String {
        match self.figures.iter().all(|figure| figure.told == NOTHING) {
            true => String::new(),
            false => self.figures.iter().map(|f| f.told.as_str()).collect::<Vec<_>>().join(" / "),
        }
    }

    /// One word if all figures agree, else a word for each.
    fn verdict(&self) -> String {
        let mut words: Vec<&str> = self.figures.iter().map(|figure| figure.verdict.name()).collect();
        if words.iter().all(|word| *word == words[0]) {
            words.truncate(1);
        }
        words.join(" / ")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut goals = table(&["goal", "at least", "measured", "met?"]);
        for row in &self.rows {
            goals.add_row([row.goal.clone(), row.at_least.clone(), row.measured(), row.verdict()]);
        }
        let figures = || self.rows.iter().flat_map(|row| &row.figures);
        let count = |verdict| figures().filter(|figure| figure.verdict == verdict).count();
        writeln!(f, "{goals}\n")?;
        write!(
            f,
            "{} figures met, {} short, {} not measured.",
            count(Verdict::Met),
            count(Verdict::Short),
            count(Verdict::Missing)
        )
    }
}

#[cfg(test)]
mod tests;
