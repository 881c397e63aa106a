//! Running fio's nbd engine, and reading its JSON.
//!
//! `end_fsync` makes the engine send a flush when the last write is done and counts the wait as run time, so the rate
//! includes it. `fsync=1` sends one after each write, waits for it, and reports it by itself.

use crate::child::Running;
use crate::workload::Workload;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Beyond its own time limit: connecting, laying out, a last flush of everything.
const GRACE: Duration = Duration::from_secs(120);

/// What fio says of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Job {
    /// Reads or writes done.
    pub(crate) requests: u64,
    /// Bytes read or written.
    pub(crate) bytes: u64,
    /// From the first request to the end of the last flush.
    pub(crate) seconds: f64,
    /// From handing a request over to its reply.
    pub(crate) latency: Latency,
    /// Of the flushes after single writes.
    pub(crate) flush_latency: Option<Latency>,
    /// fio's own user and system time.
    pub(crate) client_cpu_seconds: f64,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
}

/// Runs one workload against the server at `socket`; cut off after `limit`.
pub(crate) fn run(
    workload: Workload,
    size: u64,
    socket: &Path,
    limit: Duration,
    scratch: &Path,
) -> Result<Job> {
    let (out, log) = (scratch.join("fio.json"), scratch.join("fio.log"));
    let mut command = Command::new("fio");
    command
        .args(["--name=job", "--ioengine=nbd", "--output-format=json", "--randrepeat=1"])
        .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
        .arg(format!("--runtime={}", limit.as_secs()))
        .args(workload.fio_options(size))
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
    parse(&text, workload.is_read())
}

/// fio's JSON, which may follow a line or two of text.
fn parse(text: &str, is_read: bool) -> Result<Job> {
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).context("fio's output is no JSON")?;
    let job = &report["jobs"][0];
    let side = &job[if is_read { "read" } else { "write" }];
    if job["error"].as_i64() != Some(0) {
        bail!("fio: the job failed with error {}", job["error"]);
    }
    let number = |value: &Value, name: &str| {
        value[name].as_f64().with_context(|| format!("fio's output lacks {name}"))
    };
    // Milliseconds; a run that takes none is no measurement.
    let seconds = number(side, "runtime")?.max(1.0) / 1e3;
    let cpu_percent = number(job, "usr_cpu")? + number(job, "sys_cpu")?;
    Ok(Job {
        requests: number(side, "total_ios")? as u64,
        bytes: number(side, "io_bytes")? as u64,
        seconds,
        latency: latency(&side["clat_ns"]).context("fio's output lacks latencies")?,
        flush_latency: latency(&job["sync"]["lat_ns"]),
        client_cpu_seconds: cpu_percent / 100.0 * number(job, "job_runtime")? / 1e3,
    })
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

    /// Shortened output of fio 3.33.
    const OUTPUT: &str = r#"fio: connected to NBD server
{ "jobs" : [ { "error" : 0,
  "read" : { "io_bytes" : 0, "runtime" : 0, "total_ios" : 0, "clat_ns" : { "N" : 0 } },
  "write" : { "io_bytes" : 16777216, "runtime" : 800, "total_ios" : 4096,
    "clat_ns" : { "percentile" : { "50.000000" : 2000, "99.000000" : 9000, "99.900000" : 70000 } } },
  "sync" : { "total_ios" : 0, "lat_ns" : { "N" : 0 } },
  "job_runtime" : 1000, "usr_cpu" : 4.5, "sys_cpu" : 2.5 } ] }"#;

    #[test]
    fn a_job_is_read_from_fios_json_in_seconds_and_microseconds() {
        let job = parse(OUTPUT, false).unwrap();
        assert_eq!((job.requests, job.bytes, job.seconds), (4096, 16 << 20, 0.8));
        assert_eq!(job.latency, Latency { p50_us: 2.0, p99_us: 9.0, p99_9_us: 70.0 });
        assert_eq!(job.flush_latency, None);
        assert!((job.client_cpu_seconds - 0.07).abs() < 1e-9);
    }

    #[test]
    fn a_job_that_failed_or_did_nothing_is_an_error() {
        assert!(parse(&OUTPUT.replace("\"error\" : 0", "\"error\" : 5"), false).is_err());
        assert!(parse(OUTPUT, true).is_err());
        assert!(parse("fio: connection refused", false).is_err());
    }
}
