//! Two builds beside one another, on the same machine in the same run: every workload on both servers, and
//! both engines by themselves.
//!
//! ```text
//!   round ─> mode ─> session: both servers started ─> workload: before, after ─> ... ─> both stopped      as against peers
//!   round ─> BEFORE/dedup-bench engine, AFTER/dedup-bench engine                                          each a process
//! ```
//!
//! The order changes from round to round. Builds must know the options and the JSON of this one's.

use crate::args::{Compare, Measure};
use crate::child::Running;
use crate::engine::{Rate, Rates};
use crate::machine::Machine;
use crate::peers::{self, Sample};
use crate::programs::Programs;
use crate::server::Kind;
use crate::summary::{self, Spread, table};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of a round of the engine at most: what it measures by default.
const ENGINE_SIZE_MAX: u64 = 256 << 20;
/// What names of the engine's work begin with.
const ENGINE: &str = "engine";
/// Longest time for a round of the engine, some 20 s, before it is taken for hanging.
const ENGINE_PATIENCE: Duration = Duration::from_secs(600);

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    rows: Vec<Row>,
}

/// One kind of work on both builds, over all rounds.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Mode of a server, devices of an engine.
    on: &'static str,
    unit: &'static str,
    before: Side,
    after: Side,
    /// Rate after by rate before, in the same round.
    ratio: Spread,
}

/// One build.
#[derive(Debug, Serialize)]
struct Side {
    rate: Spread,
    /// CPU time of a request or block; of the server, or of the whole process with an engine in it.
    cpu_us: Spread,
}

/// One kind of work on one build in one round.
#[derive(Debug)]
struct Point {
    name: String,
    on: &'static str,
    unit: &'static str,
    is_after: bool,
    rate: f64,
    cpu_us: f64,
}

/// Runs everything.
pub(crate) fn run(args: &Compare) -> Result<Report> {
    let measure = &args.measure;
    let programs = Programs::of_builds(&args.before, &args.after)?;
    let machine = Machine::describe(Some(&peers::directory(measure)?), programs.versions.clone());
    let sessions = peers::sessions(measure);
    let with_engine = measure.only.as_ref().is_none_or(|text| text.contains(ENGINE));
    if sessions.is_empty() && !with_engine {
        bail!("--only: expected a part of a workload's name, or {ENGINE:?}");
    }
    let mut points = Vec::new();
    if !sessions.is_empty() {
        let samples = peers::measure(measure, &sessions, programs, &[Kind::Before, Kind::After])?;
        points.extend(samples.iter().map(Point::of_server));
    }
    if with_engine {
        points.extend(engines(args)?);
    }
    Ok(Report { machine, rounds: measure.rounds(), rows: rows(&points) })
}

/// Both engines by themselves, in turns.
fn engines(args: &Compare) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for round in 0..args.measure.rounds() {
        let mut builds = [(false, &args.before), (true, &args.after)];
        if round % 2 == 1 {
            builds.reverse();
        }
        for (is_after, build) in builds {
            dedup_cli::say(&format!(
                "round {}/{}  engine of {}",
                round + 1,
                args.measure.rounds(),
                build.display()
            ));
            let rates = engine(build, &args.measure)?;
            points.extend(rates.iter().map(|rate| Point::of_engine(rate, is_after)));
        }
    }
    Ok(points)
}

/// One round of a build's engine.
fn engine(build: &Path, args: &Measure) -> Result<Vec<Rate>> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("engine.json");
    let mut command = Command::new(build.join("dedup-bench"));
    command.args(["engine", "--rounds", "1", "--size"]).arg(args.size().min(ENGINE_SIZE_MAX).to_string());
    command.arg("--json").arg(&json).stdin(Stdio::null()).stdout(Stdio::null());
    let status = Running::spawn(&mut command)?.wait_until(Instant::now() + ENGINE_PATIENCE)?;
    if !status.success() {
        bail!("{} engine ended with {status}", command.get_program().display());
    }
    let text = fs::read_to_string(&json).context("cannot read what the engine's run has written")?;
    let Rates { results } = serde_json::from_str(&text).with_context(|| {
        format!("{} engine wrote what this build cannot read", command.get_program().display())
    })?;
    Ok(results)
}

impl Point {
    fn of_server(sample: &Sample) -> Self {
        let (unit, scale) = if sample.workload.is_sequential() { ("MB/s", 1e6) } else { ("IOPS", 1.0) };
        Self {
            name: sample.workload.name.to_owned(),
            on: sample.mode.name(),
            unit,
            is_after: sample.kind == Kind::After,
            rate: summary::rate(sample) / scale,
            cpu_us: sample.server_cpu_seconds.unwrap_or(0.0) * 1e6 / sample.job.requests.max(1) as f64,
        }
    }

    fn of_engine(rate: &Rate, is_after: bool) -> Self {
        Self {
            name: format!("{ENGINE}: {}", rate.name()),
            on: rate.device(),
            unit: "blocks/s",
            is_after,
            rate: rate.blocks_per_second.median,
            cpu_us: rate.cpu_us_per_block.median,
        }
    }
}

/// What was measured on both builds, in the order in which it first was.
fn rows(points: &[Point]) -> Vec<Row> {
    let mut keys: Vec<_> = Vec::new();
    for point in points {
        if !keys.contains(&(&point.name, point.on)) {
            keys.push((&point.name, point.on));
        }
    }
    let row = |(name, on): (&String, &'static str)| {
        let of =
            |is_after| points.iter().filter(move |p| (&p.name, p.on, p.is_after) == (name, on, is_after));
        let side = |is_after| {
            Some(Side {
                rate: Spread::of(of(is_after).map(|point| point.rate))?,
                cpu_us: Spread::of(of(is_after).map(|point| point.cpu_us))?,
            })
        };
        Some(Row {
            name: name.clone(),
            on,
            unit: of(true).next()?.unit,
            before: side(false)?,
            after: side(true)?,
            // Each has one in each round.
            ratio: Spread::of(of(false).zip(of(true)).map(|(before, after)| after.rate / before.rate))?,
        })
    };
    keys.into_iter().filter_map(row).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = table(&[
            "workload",
            "on",
            "unit",
            "before",
            "after",
            "ratio",
            "min-max",
            "us CPU before",
            "after",
        ]);
        for Row { name, on, unit, before, after, ratio } in &self.rows {
            table.add_row([
                name.clone(),
                (*on).to_owned(),
                (*unit).to_owned(),
                format!("{:.0}", before.rate.median),
                format!("{:.0}", after.rate.median),
                format!("{:.2}", ratio.median),
                format!("{:.2}-{:.2}", ratio.min, ratio.max),
                format!("{:.1}", before.cpu_us.median),
                format!("{:.1}", after.cpu_us.median),
            ]);
        }
        write!(f, "{}\n{table}", self.machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, is_after: bool, rate: f64) -> Point {
        Point { name: name.to_owned(), on: "memory", unit: "blocks/s", is_after, rate, cpu_us: 1e6 / rate }
    }

    #[test]
    fn builds_are_compared_within_rounds_whoever_was_first_so_that_load_cancels() {
        let points = [
            point("write", false, 100.0),
            point("write", true, 50.0),
            // Another process has the machine; the second build is first.
            point("write", true, 10.0),
            point("write", false, 20.0),
            point("read of a newer build", true, 1.0),
        ];
        let rows = rows(&points);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ratio, Spread { median: 0.5, min: 0.5, max: 0.5 });
        assert_eq!((rows[0].before.rate.median, rows[0].after.rate.median), (60.0, 30.0));
    }

    #[test]
    fn a_report_of_the_engine_is_read_back_by_what_compares_builds() {
        let row = r#"{"work": "write-flush", "device": "memory", "batch": 1, "callers": 2, "digest_threads": 1,
            "blocks_per_second": {"median": 5, "min": 5, "max": 5}, "of_one_caller": null,
            "cpu_us_per_block": {"median": 2, "min": 2, "max": 2}}"#;
        let Rates { results } = serde_json::from_str(&format!(r#"{{"results": [{row}]}}"#)).unwrap();
        let point = Point::of_engine(&results[0], true);
        assert_eq!(point.name, "engine: write + flush, batches of 1, callers 2, digest threads 1");
        assert_eq!((point.on, point.rate, point.cpu_us), ("memory", 5.0, 2.0));
    }
}
