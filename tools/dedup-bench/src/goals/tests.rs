//! Tests of the goals: how measured figures are held against them.

use super::*;
use serde_json::json;

fn peer_row(workload: &str, mode: &str, server: &str, ratio: f64, p99_9_us: f64) -> Value {
    json!({
        "workload": workload, "mode": mode, "server": server,
        "ratio": {"median": ratio}, "of_raw": {"median": ratio / 2.0},
        "server_cpu_us_per_request": 7.5,
        "latencies": {"write": {"p99_9_us": p99_9_us}},
    })
}

fn report(files: &[(&str, Value)]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in files {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    run(dir.path()).unwrap()
}

fn find<'a>(report: &'a Report, goal: &str) -> &'a Row {
    report.rows.iter().find(|row| row.goal.starts_with(goal)).unwrap_or_else(|| panic!("no row '{goal}'"))
}

#[test]
fn an_empty_directory_has_every_goal_and_none_measured() {
    let report = report(&[]);
    assert!(report.rows.iter().all(|row| row.verdict() == "not measured" && row.measured().is_empty()));
    assert_eq!(report.rows.len(), 29, "{report}");
    assert!(run(Path::new("/no/such/directory")).is_err());
}

#[test]
fn a_ratio_is_held_against_the_goal_of_its_own_mode() {
    let report = report(&[(
        "peers.json",
        json!({"results": [
            peer_row("random-unique", "direct", "dedup-nbd", 1.2, 1000.0),
            peer_row("random-unique", "buffered", "dedup-nbd", 0.59, 1000.0),
            peer_row("sequential-blake3", "buffered", "dedup-nbd", 0.8, 1.0),
            peer_row("sequential-blake3", "direct", "dedup-nbd", 0.79, 1.0),
        ]}),
    )]);
    let verdict = |goal| find(&report, goal).verdict();
    assert_eq!(verdict("4 KiB random unique write QD32, direct, of `qemu-nbd`"), "met");
    assert_eq!(verdict("4 KiB random unique write QD32, direct, of fio"), "short");
    assert_eq!(verdict("4 KiB random unique write QD32, buffered"), "short");
    assert_eq!(verdict("the same with BLAKE3"), "met / short");
    assert_eq!(find(&report, "the same with BLAKE3").measured(), "0.80 / 0.79");
}

#[test]
fn the_cpu_of_a_write_is_held_against_the_digest_of_the_same_machine() {
    let peers = json!({"results": [peer_row("random-unique", "buffered", "dedup-nbd", 1.0, 1.0)]});
    let engine = |us: f64| json!({"digests": [{"name": "sha256", "us_per_block": us}], "results": []});
    let verdict = |us| {
        let report = report(&[("peers.json", peers.clone()), ("engine.json", engine(us))]);
        find(&report, "server CPU").verdict()
    };
    assert_eq!(verdict(2.5), "met / not measured");
    assert_eq!(verdict(2.4), "short / not measured");
}

#[test]
fn scaling_is_the_worse_of_both_batches_and_the_digest_share_that_of_one_core() {
    let row = |work: &str, batch: u64, threads: u64, rate: f64| {
        json!({"work": work, "batch": batch, "callers": threads, "digest_threads": 1,
               "blocks_per_second": {"median": rate}})
    };
    let engine = json!({
        "digests": [{"name": "sha256", "us_per_block": 2.0}],
        "results": [
            row("unique", 32, 1, 310_000.0), row("unique", 32, 2, 600_000.0),
            row("unique", 256, 1, 290_000.0), row("unique", 256, 2, 300_000.0),
        ],
    });
    let report = report(&[("engine.json", engine)]);
    assert_eq!(find(&report, "engine in process").measured(), "62 % / 58 %");
    assert_eq!(find(&report, "engine in process").verdict(), "met / short");
    assert_eq!(find(&report, "scaling").figures[0].told, "unique 1.03");
    assert_eq!(find(&report, "serial share").figures[0].told, "unique 93 %");
    assert_eq!(find(&report, "scaling").verdict(), "short / not measured / not measured");
}

#[test]
fn the_stall_is_that_of_the_worst_workload_beyond_its_own_peer() {
    let report = report(&[
        (
            "peers.json",
            json!({"results": [
                peer_row("random-unique", "direct", "qemu-nbd", 0.0, 90_000.0),
                peer_row("random-unique", "direct", "dedup-nbd", 1.0, 100_000.0),
                peer_row("sequential-unique", "direct", "qemu-nbd", 0.0, 1_000.0),
                peer_row("sequential-unique", "direct", "dedup-nbd", 1.0, 99_000.0),
                peer_row("write-flush", "direct", "qemu-nbd", 0.0, 1_000.0),
                peer_row("write-flush", "direct", "dedup-nbd", 1.0, 61_000.0),
            ]}),
        ),
        (
            "fill-8G.jsonl",
            json!({"blocks": 2_097_152, "p999_ms": 12.0, "resident_peak": 200_000_000, "blocks_per_second": 1.0, "metadata_used": 1}),
        ),
    ]);
    let stalls = find(&report, "writers' p99.9");
    assert_eq!(stalls.verdict(), "not measured / short / met");
    assert_eq!(stalls.figures[2].told, "12 ms in the worst interval of a fill of 8 GiB");
    assert_eq!(stalls.figures[1].told, "+60.0 ms direct");
    // 620 MiB / 128 + 128 MiB = 132.8 MiB.
    assert_eq!(find(&report, "RAM").measured(), "191 of 133 MiB at 8 GiB");
    assert_eq!(find(&report, "RAM").verdict(), "short");
}

#[test]
fn a_fill_that_tells_of_its_whole_run_is_held_against_that() {
    let line = |run: f64| json!({"blocks": 2_097_152, "p999_ms": 90.0, "run_p999_ms": run});
    let verdict = |run| find(&report(&[("fill-8G.jsonl", line(run))]), "writers' p99.9").figures[2].verdict;
    assert_eq!((verdict(49.0), verdict(51.0)), (Verdict::Met, Verdict::Short));
}

#[test]
fn the_index_is_held_against_each_store_at_a_thousand_a_commit() {
    let row = |store: &str, commit: u64, seconds: f64, bytes: u64| {
        json!({"store": store, "work": {"insert": {"commit": commit}},
               "outcome": {"operations": 1000, "seconds": seconds, "written_bytes": bytes}})
    };
    let report = report(&[(
        "index.json",
        json!({"rows": [
            row("dedup", 1, 9.0, 9), row("dedup", 1000, 1.0, 100_000),
            row("redb", 1000, 4.0, 2_000_000), row("lmdb", 1000, 2.0, 500_000),
            row("fjall", 1000, 0.5, 50_000),
        ]}),
    )]);
    assert_eq!(find(&report, "index: inserts/s").measured(), "4.0 / 2.0 / 0.5");
    assert_eq!(find(&report, "index: inserts/s").verdict(), "met / short / published");
    assert_eq!(find(&report, "index: bytes").verdict(), "met / short / published");
}

#[test]
fn volumes_of_several_sizes_are_told_each_by_itself() {
    let report = report(&[
        (
            "reopen-1T.json",
            json!({"seconds": 2.5, "stored": 1_u64 << 40, "log_used_blocks": 50, "log_blocks": 100}),
        ),
        (
            "reopen-4G.json",
            json!({"seconds": 0.1, "stored": 4_u64 << 30, "log_used_blocks": 20, "log_blocks": 100}),
        ),
        (
            "reopen-8G.json",
            json!({"seconds": 0.5, "stored": 8_u64 << 30, "log_used_blocks": 95, "log_blocks": 100}),
        ),
        (
            "check-8G.json",
            json!({"ratio": {"median": 2.2}, "stored_blocks": 2_097_152, "resident_peak": 50 << 20}),
        ),
    ]);
    assert_eq!(
        find(&report, "open after").measured(),
        "2.50 s at 1024 GiB, log 50 % full / 0.10 s at 4 GiB, log 20 % full / 0.50 s at 8 GiB, log 95 % full"
    );
    // Fast, but with little to replay: this shows nothing.
    assert_eq!(find(&report, "open after").verdict(), "short / not measured / met");
    assert_eq!(find(&report, "`dedup-check`").verdict(), "short");
    assert_eq!(find(&report, "its peak RAM").verdict(), "met");
}
