//! The n-th read, write or flush of a device fails, for every n that a history has: the request that needs it
//! fails or does not need it, nothing acknowledged as durable is lost, and after a failed flush or metadata
//! write nothing more is acknowledged as durable.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::IoKind;
use dedup_tests::history::one_failure;

fn every_n(device: usize, kind: IoKind) {
    for seed in 0..6 {
        for keep_unflushed in [false, true] {
            let mut n = 0;
            while one_failure(seed, device, kind, n, keep_unflushed) {
                n += 1;
            }
            assert!(n > 0, "seed {seed} has no {kind:?} on device {device}");
        }
    }
}

#[test]
fn any_failed_data_write_fails_its_own_request_only() {
    every_n(0, IoKind::Write);
}

#[test]
fn any_failed_data_read_is_an_error_and_no_other_bytes() {
    every_n(0, IoKind::Read);
}

#[test]
fn after_any_failed_data_flush_nothing_more_is_acknowledged_as_durable() {
    every_n(0, IoKind::Flush);
}

#[test]
fn after_any_failed_metadata_write_nothing_more_is_acknowledged_as_durable() {
    every_n(1, IoKind::Write);
}

#[test]
fn after_any_failed_metadata_flush_nothing_more_is_acknowledged_as_durable() {
    every_n(1, IoKind::Flush);
}

#[test]
fn any_failed_metadata_read_is_an_error_and_no_other_bytes() {
    every_n(1, IoKind::Read);
}
