//! Medians, spreads and ratios over the rounds, and the table that shows them.

use crate::fio::{Latencies, Latency};
use crate::peers::Sample;
use crate::server::{Kind, Mode};
use crate::sessions::workloads;
use crate::workload::{BLOCK, Work, Workload};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// A workload on a server, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) workload: Workload,
    pub(crate) mode: Mode,
    server: &'static str,
    /// Requests a second; bytes a second if the workload is sequential.
    rate: Spread,
    /// Rate as a part of the peer's, in the same round. Not for the peer.
    pub(crate) ratio: Option<Spread>,
    /// Rate as a part of what fio has on a raw file, in the same round. Not for that file.
    of_raw: Option<Spread>,
    pub(crate) latencies: Latencies,
    server_cpu_us_per_request: Option<f64>,
    client_cpu_us_per_request: f64,
    /// Data blocks that the volume got, in the last round.
    stored_blocks: Option<i64>,
    /// What is wrong with the numbers.
    remarks: Vec<String>,
    samples: Vec<Sample>,
}

/// The middle and the extremes of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    pub(crate) fn is_peer(&self) -> bool {
        self.server == Kind::Peer.name(self.mode)
    }
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// One summary for each workload, mode and server that there are samples of, in the table's order.
pub(crate) fn summaries(samples: &[Sample]) -> Vec<Summary> {
    let mut all = Vec::new();
    for workload in workloads() {
        for mode in Mode::ALL {
            let of = |kind| -> Vec<Sample> {
                let same = |s: &&Sample| (s.workload, s.mode, s.kind) == (workload, mode, kind);
                samples.iter().filter(same).cloned().collect()
            };
            let (raw, peer, ours) = (of(Kind::Raw), of(Kind::Peer), of(Kind::DedupNbd));
            let (ratio, peers_of_raw, of_raw) =
                (ratios(&ours, &peer), ratios(&peer, &raw), ratios(&ours, &raw));
            all.extend(summary(raw, None, None));
            all.extend(summary(peer, None, peers_of_raw));
            all.extend(summary(ours, ratio, of_raw));
        }
    }
    all
}

/// The rate of a run: requests a second, or bytes a second if it is sequential.
pub(crate) fn rate(sample: &Sample) -> f64 {
    let amount = if sample.workload.is_sequential() { sample.job.bytes } else { sample.job.requests };
    amount as f64 / sample.job.seconds
}

/// A rate with its unit.
pub(crate) fn rate_text(workload: Workload, rate: f64) -> String {
    if workload.is_sequential() { format!("{:.0} MB/s", rate / 1e6) } else { format!("{rate:.0} IOPS") }
}

/// The table, as Markdown.
pub(crate) fn peers_table(summaries: &[Summary]) -> Table {
    let mut table = table(&[
        "workload",
        "mode",
        "server",
        "median",
        "min-max",
        "of peer",
        "min-max",
        "of raw",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "server us/req",
        "client us/req",
        "remarks",
    ]);
    for s in summaries {
        let ratio = |f: &dyn Fn(&Spread) -> String| s.ratio.as_ref().map(f).unwrap_or_default();
        let range = match s.workload.is_sequential() {
            true => format!("{:.0}-{:.0}", s.rate.min / 1e6, s.rate.max / 1e6),
            false => format!("{:.0}-{:.0}", s.rate.min, s.rate.max),
        };
        let latency = |of: fn(&Latency) -> f64| {
            let all: Vec<String> = s.latencies.all().map(|latency| format!("{:.0}", of(&latency))).collect();
            all.join(" + ")
        };
        table.add_row([
            s.workload.name.to_owned(),
            s.mode.name().to_owned(),
            s.server.to_owned(),
            rate_text(s.workload, s.rate.median),
            range,
            ratio(&|r| format!("{:.2}", r.median)),
            ratio(&|r| format!("{:.2}-{:.2}", r.min, r.max)),
            s.of_raw.map(|r| format!("{:.2}", r.median)).unwrap_or_default(),
            latency(|l| l.p50_us),
            latency(|l| l.p99_us),
            latency(|l| l.p99_9_us),
            s.server_cpu_us_per_request.map(|us| format!("{us:.1}")).unwrap_or_default(),
            format!("{:.1}", s.client_cpu_us_per_request),
            s.remarks.join("; "),
        ]);
    }
    table
}

/// An empty table whose columns from the fourth on are numbers.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn ratios(ours: &[Sample], peer: &[Sample]) -> Option<Spread> {
    let pairs =
        ours.iter().filter_map(|ours| Some((ours, peer.iter().find(|peer| peer.round == ours.round)?)));
    Spread::of(pairs.map(|(ours, peer)| rate(ours) / rate(peer)))
}

fn summary(samples: Vec<Sample>, ratio: Option<Spread>, of_raw: Option<Spread>) -> Option<Summary> {
    let first = samples.first()?;
    let (workload, mode, kind) = (first.workload, first.mode, first.kind);
    let per_request = |of: fn(&Sample) -> Option<f64>| {
        let each = samples.iter().filter_map(|s| Some(of(s)? * 1e6 / s.job.requests.max(1) as f64));
        Spread::of(each).map(|spread| spread.median)
    };
    let latency =
        |of: fn(&Latencies) -> Option<Latency>| latency(samples.iter().filter_map(|s| of(&s.job.latencies)));
    Some(Summary {
        workload,
        mode,
        server: kind.name(mode),
        rate: Spread::of(samples.iter().map(rate))?,
        ratio,
        of_raw,
        latencies: Latencies {
            read: latency(|l| l.read),
            write: latency(|l| l.write),
            trim: latency(|l| l.trim),
            flush: latency(|l| l.flush),
        },
        server_cpu_us_per_request: per_request(|s| s.server_cpu_seconds),
        client_cpu_us_per_request: per_request(|s| Some(s.job.client_cpu_seconds))?,
        stored_blocks: samples.iter().filter_map(|s| s.stored).map(|stored| stored.blocks_found).next_back(),
        remarks: remarks(&samples),
        samples,
    })
}

/// The median of each percentile.
fn latency(of: impl IntoIterator<Item = Latency>) -> Option<Latency> {
    let all: Vec<Latency> = of.into_iter().collect();
    let median = |f: fn(&Latency) -> f64| Some(Spread::of(all.iter().map(f))?.median);
    Some(Latency {
        p50_us: median(|l| l.p50_us)?,
        p99_us: median(|l| l.p99_us)?,
        p99_9_us: median(|l| l.p99_9_us)?,
    })
}

fn remarks(samples: &[Sample]) -> Vec<String> {
    let mut remarks = Vec::new();
    let cut = samples.iter().filter(|s| s.job.requests < s.requests_planned).count();
    if cut > 0 {
        remarks.push(format!("cut off in {cut} of {} rounds", samples.len()));
    }
    // A cut run stores less, which the remark above explains.
    let found = samples.iter().filter_map(|s| s.stored).next_back();
    if let Some(stored) = found.filter(|_| samples.iter().any(|s| s.workload.work == Work::Copy)) {
        let bytes = samples.first().map_or(0, |s| s.job.bytes);
        let taken = stored.blocks_found.unsigned_abs() * BLOCK;
        remarks.push(format!("{} took {}", dedup_cli::human(bytes), dedup_cli::human(taken)));
    }
    let whole = samples.iter().filter(|s| s.job.requests >= s.requests_planned);
    if let Some(stored) = whole.filter_map(|s| s.stored).find(|stored| !stored.is_expected()) {
        remarks.push(format!(
            "NOT THE WORKLOAD: {} new blocks, not {}",
            stored.blocks_found, stored.blocks_expected
        ));
    }
    remarks
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fio::Job;
    use crate::peers::Stored;

    fn sample(kind: Kind, round: u32, seconds: f64) -> Sample {
        let job = Job {
            requests: 1000,
            bytes: 4_096_000,
            seconds,
            latencies: Latencies {
                write: Some(Latency { p50_us: 100.0, p99_us: 200.0, p99_9_us: 300.0 }),
                ..Latencies::default()
            },
            client_cpu_seconds: 0.005,
        };
        Sample {
            workload: workloads().next().unwrap(),
            mode: Mode::Direct,
            kind,
            round,
            job,
            requests_planned: 1000,
            server_cpu_seconds: Some(0.02),
            stored: None,
            load: 0.0,
        }
    }

    #[test]
    fn a_spread_has_the_middle_of_any_number_of_values() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    /// Random unique writes with direct I/O: ours takes twice as long as the peer.
    pub(crate) fn samples_of_two_rounds() -> [Sample; 4] {
        [
            sample(Kind::Peer, 0, 1.0),
            sample(Kind::DedupNbd, 0, 2.0),
            sample(Kind::Peer, 1, 10.0),
            sample(Kind::DedupNbd, 1, 20.0),
        ]
    }

    #[test]
    fn ratios_are_taken_within_rounds_so_that_load_that_comes_and_goes_cancels() {
        let summaries = summaries(&samples_of_two_rounds());
        assert_eq!(summaries.len(), 2);
        assert_eq!(summaries[1].ratio, Some(Spread { median: 0.5, min: 0.5, max: 0.5 }));
        assert!((summaries[1].server_cpu_us_per_request.unwrap() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_server_reaches_is_told_as_a_part_of_what_the_raw_file_does() {
        let samples = [
            sample(Kind::Raw, 0, 0.5),
            sample(Kind::Peer, 0, 1.0),
            sample(Kind::DedupNbd, 0, 2.0),
            sample(Kind::Raw, 1, 1.0),
            sample(Kind::DedupNbd, 1, 4.0),
        ];
        let summaries = summaries(&samples);
        let of_raw: Vec<_> = summaries.iter().map(|s| s.of_raw.map(|r| r.median)).collect();
        assert_eq!(of_raw, [None, Some(0.5), Some(0.25)]);
        assert_eq!(summaries[2].ratio.unwrap().median, 0.5);
    }

    #[test]
    fn a_run_that_was_cut_off_or_stored_something_else_is_remarked_upon() {
        let mut cut = sample(Kind::DedupNbd, 0, 1.0);
        cut.requests_planned = 2000;
        let mut other = sample(Kind::DedupNbd, 1, 1.0);
        other.stored = Some(Stored { blocks_expected: 1000, blocks_found: 10 });
        let remarks = remarks(&[cut, other]);
        assert_eq!(remarks, ["cut off in 1 of 2 rounds", "NOT THE WORKLOAD: 10 new blocks, not 1000"]);
    }
}
