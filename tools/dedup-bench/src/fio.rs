//! Running fio, against a server by its nbd engine or on a plain file, and reading its JSON.
//!
//! `end_fsync` makes the engine send a flush when the last write is done and counts the wait as run time, so
//! the rate includes it. `fsync=1` sends one after each write, waits for it, and reports it by itself.

use crate::child::Running;
use crate::server::Mode;
use crate::workload::{Role, Workload};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Beyond its own time limit: connecting, laying out, a last flush of everything.
const GRACE: Duration = Duration::from_secs(120);

/// What a job was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Job {
    /// Reads, writes and trims done, flushes not counted.
    pub(crate) requests: u64,
    /// Bytes read, written or trimmed.
    pub(crate) bytes: u64,
    /// From the first request to the end of the last flush.
    pub(crate) seconds: f64,
    pub(crate) latencies: Latencies,
    /// The client's own user and system time, all its jobs together.
    pub(crate) client_cpu_seconds: f64,
}

/// From handing a request over to its reply, for each kind of request that there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latencies {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) write: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trim: Option<Latency>,
    /// Of the flushes after single writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flush: Option<Latency>,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
}

/// What fio works on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A server's socket.
    Socket(&'a Path),
    /// A file, without any server.
    File(&'a Path, Mode),
}

impl Latencies {
    /// In one order, those there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = Latency> {
        [self.read, self.write, self.trim, self.flush].into_iter().flatten()
    }

    /// By the names that they have in JSON.
    pub(crate) fn of(&self, kind: &str) -> Option<Latency> {
        match kind {
            "read" => self.read,
            "write" => self.write,
            "trim" => self.trim,
            "flush" => self.flush,
            _ => None,
        }
    }
}

impl Target<'_> {
    /// The option that flushes after each write: the nbd engine knows only the one, and on a file a server
    /// would do the other.
    fn flush(self) -> &'static str {
        match self {
            Self::Socket(_) => "fsync",
            Self::File(..) => "fdatasync",
        }
    }

    fn options(self) -> Vec<String> {
        match self {
            Self::Socket(path) => {
                vec!["--ioengine=nbd".to_owned(), format!("--uri=nbd+unix:///?socket={}", path.display())]
            }
            Self::File(path, mode) => {
                let mut options = match mode {
                    // fio's io_uring is slower than a plain call on what the page cache has.
                    Mode::Buffered => vec!["--ioengine=psync".to_owned()],
                    Mode::Direct => vec!["--ioengine=io_uring".to_owned(), "--direct=1".to_owned()],
                };
                // Its default is to drop the file's pages at the beginning, which no server does.
                options.extend([format!("--filename={}", path.display()), "--invalidate=0".to_owned()]);
                options
            }
        }
    }
}

/// Runs one workload; cut off after `limit`.
pub(crate) fn run(
    workload: Workload,
    size: u64,
    target: Target<'_>,
    limit: Duration,
    scratch: &Path,
) -> Result<Job> {
    let (out, log) = (scratch.join("fio.json"), scratch.join("fio.log"));
    let mut command = Command::new("fio");
    command
        .args(["--output-format=json", "--randrepeat=1"])
        .arg(format!("--runtime={}", limit.as_secs()))
        .args(target.options());
    for job in workload.fio_jobs(size, target.flush()) {
        command.arg(format!("--name={}", job.role.name())).args(job.options);
    }
    command
        // fio leaves files of its own in the current directory.
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&log)?);
    let status = Running::spawn(&mut command)?.wait_until(Instant::now() + limit + GRACE)?;
    let text = fs::read_to_string(&out).context("cannot read fio's output")?;
    if !status.success() {
        let log = fs::read_to_string(&log).unwrap_or_default();
        bail!("fio ended with {status}: {}", log.lines().last().unwrap_or("it said nothing"));
    }
    parse(&text)
}

/// fio's JSON, which may follow a line or two of text.
fn parse(text: &str) -> Result<Job> {
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).context("fio's output is no JSON")?;
    let jobs = report["jobs"].as_array().context("fio's output lacks jobs")?;
    let mut total =
        Job { requests: 0, bytes: 0, seconds: 0.0, latencies: Latencies::default(), client_cpu_seconds: 0.0 };
    for job in jobs {
        if job["error"].as_i64() != Some(0) {
            bail!("fio: the job failed with error {}", job["error"]);
        }
        add(&mut total, job)?;
    }
    if total.requests == 0 {
        bail!("fio: the job did nothing");
    }
    // Milliseconds; a run that takes none is no measurement.
    total.seconds = total.seconds.max(1e-3);
    Ok(total)
}

/// Adds a job to those before it, as its role says.
fn add(total: &mut Job, job: &Value) -> Result<()> {
    let number = |value: &Value, name: &str| {
        value[name].as_f64().with_context(|| format!("fio's output lacks {name}"))
    };
    let role = [Role::Main, Role::Beside, Role::After]
        .into_iter()
        .find(|role| job["jobname"].as_str() == Some(role.name()))
        .with_context(|| format!("fio: expected one of its jobs, found {}", job["jobname"]))?;
    let cpu_percent = number(job, "usr_cpu")? + number(job, "sys_cpu")?;
    total.client_cpu_seconds += cpu_percent / 100.0 * number(job, "job_runtime")? / 1e3;
    let mut seconds: f64 = 0.0;
    for (name, place) in [
        ("read", &mut total.latencies.read),
        ("write", &mut total.latencies.write),
        ("trim", &mut total.latencies.trim),
    ] {
        let side = &job[name];
        let requests = number(side, "total_ios")? as u64;
        if requests == 0 {
            continue;
        }
        seconds = seconds.max(number(side, "runtime")? / 1e3);
        if role == Role::Main {
            total.requests += requests;
            total.bytes += number(side, "io_bytes")? as u64;
        }
        if role != Role::After {
            *place = Some(latency(&side["clat_ns"]).context("fio's output lacks latencies")?);
        }
    }
    if role != Role::Beside {
        total.seconds += seconds;
    }
    if role == Role::Main {
        total.latencies.flush = latency(&job["sync"]["lat_ns"]);
    }
    Ok(())
}

fn latency(times: &Value) -> Option<Latency> {
    let percentile = |name| Some(times["percentile"][name].as_f64()? / 1e3);
    Some(Latency {
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        p99_9_us: percentile("99.900000")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One side of a job, in the shape of fio 3.33, its p50 given in microseconds.
    fn side(requests: u64, millis: u64, p50_us: u64) -> String {
        let times = match requests {
            0 => r#"{ "N" : 0 }"#.to_owned(),
            _ => format!(
                r#"{{ "percentile" : {{ "50.000000" : {}, "99.000000" : 9000, "99.900000" : 70000 }} }}"#,
                p50_us * 1000
            ),
        };
        let bytes = requests * 4096;
        format!(
            r#"{{ "io_bytes" : {bytes}, "runtime" : {millis}, "total_ios" : {requests}, "clat_ns" : {times} }}"#
        )
    }

    fn job(name: &str, read: &str, write: &str, trim: &str) -> String {
        format!(
            r#"{{ "jobname" : "{name}", "error" : 0, "read" : {read}, "write" : {write}, "trim" : {trim},
              "sync" : {{ "total_ios" : 0, "lat_ns" : {{ "N" : 0 }} }},
              "job_runtime" : 1000, "usr_cpu" : 4.5, "sys_cpu" : 2.5 }}"#
        )
    }

    fn output(jobs: &[String]) -> String {
        format!("fio: connected to NBD server\n{{ \"jobs\" : [ {} ] }}", jobs.join(", "))
    }

    fn none() -> String {
        side(0, 0, 0)
    }

    #[test]
    fn a_job_is_read_from_fios_json_in_seconds_and_microseconds() {
        let job = parse(&output(&[job("main", &none(), &side(4096, 800, 2), &none())])).unwrap();
        assert_eq!((job.requests, job.bytes, job.seconds), (4096, 16 << 20, 0.8));
        let write = Some(Latency { p50_us: 2.0, p99_us: 9.0, p99_9_us: 70.0 });
        assert_eq!(job.latencies, Latencies { write, ..Latencies::default() });
        assert!((job.client_cpu_seconds - 0.07).abs() < 1e-9);
    }

    #[test]
    fn both_sides_of_a_mix_are_one_rate_and_two_latencies() {
        let job = parse(&output(&[job("main", &side(700, 990, 5), &side(300, 1000, 8), &none())])).unwrap();
        assert_eq!((job.requests, job.bytes, job.seconds), (1000, 1000 * 4096, 1.0));
        let p50: Vec<f64> = job.latencies.all().map(|latency| latency.p50_us).collect();
        assert_eq!(p50, [5.0, 8.0]);
    }

    #[test]
    fn what_runs_beside_counts_by_its_latency_and_what_runs_after_by_its_time() {
        let beside = job("beside", &side(5000, 9000, 3), &none(), &none());
        let pages = parse(&output(&[job("main", &none(), &side(100, 500, 7), &none()), beside])).unwrap();
        assert_eq!((pages.requests, pages.seconds), (100, 0.5));
        assert_eq!(pages.latencies.read.unwrap().p50_us, 3.0);
        let after = job("after", &none(), &side(1, 40, 9), &none());
        let trim = parse(&output(&[job("main", &none(), &none(), &side(64, 10, 1)), after])).unwrap();
        assert_eq!((trim.requests, trim.seconds), (64, 0.05));
        assert_eq!((trim.latencies.write, trim.latencies.trim.unwrap().p50_us), (None, 1.0));
    }

    #[test]
    fn a_job_that_failed_or_did_nothing_is_an_error() {
        let good = output(&[job("main", &none(), &side(4096, 800, 2), &none())]);
        assert!(parse(&good.replace("\"error\" : 0", "\"error\" : 5")).is_err());
        assert!(parse(&good.replace("\"main\"", "\"other\"")).is_err());
        assert!(parse(&output(&[job("main", &none(), &none(), &none())])).is_err());
        assert!(parse("fio: connection refused").is_err());
    }
}
