//! Devices that run full, and the least of everything: a file system under a device that has no room left, at
//! every point of every script; a data device with no block to spare; the smallest ring, delta and cache.
//!
//! A full data device: the request says no space, and everything else goes on. A full file system under the
//! metadata device: the volume stops, for a log or tree write has failed, and nothing acknowledged as durable
//! is lost. What is full *inside* the metadata device is in `scarcity.rs`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_tests::rng::Rng;
use dedup_tests::sweep::scripts::scripts;
use dedup_tests::sweep::*;
use dedup_tests::*;
use dedup_volume::{FormatOptions, OpenOptions, RequestError, Volume};
use std::collections::BTreeSet;

/// Every script with room for no block more, one block more, and so on until there is enough.
fn every_limit(device: usize) {
    let mut limits = 0;
    for (name, scene, script) in scripts() {
        for blocks in 0.. {
            let mut run = Run::start(&scene);
            run.story = name.into();
            run.limit(device, blocks * 4096);
            run.play(script);
            let refused = run.has_refused(device);
            run.end(&ENDINGS);
            if !refused {
                break;
            }
            limits += 1;
        }
    }
    println!("device {device}: {limits} limits");
}

#[test]
fn a_full_file_system_under_the_data_device_costs_requests_and_nothing_else() {
    every_limit(0);
}

#[test]
fn a_full_file_system_under_the_metadata_device_stops_the_volume_and_loses_nothing() {
    every_limit(1);
}

/// A volume whose data device is often full.
struct Tight {
    lbns: u64,
    data_blocks: usize,
    contents: u64,
}

impl Tight {
    /// Writes, duplicates, overwrites and trims at random. A write fails if and only if its content is not
    /// stored and every block is in use: an overwrite needs a second block, and what was freed before counts
    /// as free.
    fn live(&self, volume: &Volume, model: &mut [u64], rng: &mut Rng, rounds: u64) -> u64 {
        let mut refused = 0;
        for round in 0..rounds {
            let lbn = rng.below(self.lbns);
            let stored: BTreeSet<u64> = model.iter().copied().filter(|content| *content != 0).collect();
            assert_eq!(volume.status().data_used_blocks, stored.len() as u64, "round {round}: blocks in use");
            if rng.below(5) == 0 {
                trim(volume, lbn, 1);
                model[lbn as usize] = 0;
                continue;
            }
            let content = 1 + rng.below(self.contents);
            let fits = stored.contains(&content) || stored.len() < self.data_blocks;
            match try_write(volume, lbn, content, rng.below(4) == 0) {
                Ok(()) => {
                    assert!(fits, "round {round}: more blocks than there are");
                    model[lbn as usize] = content;
                }
                Err(error) => {
                    assert_eq!(error, RequestError::NoSpace, "round {round}");
                    assert!(!fits, "round {round}: no space, with {} blocks in use", stored.len());
                    refused += 1;
                }
            }
            if rng.below(10) == 0 {
                (0..self.lbns).for_each(|lbn| assert_content(volume, lbn, model[lbn as usize]));
            }
        }
        refused
    }

    fn run(&self, options: &OpenOptions, seed: u64) -> u64 {
        let mut disks = Disks::new((self.data_blocks as u64 + 1) * 4096, 4 << 20);
        disks.format(&FormatOptions { log_blocks: Some(16), ..format_options(self.lbns * 4096) });
        let mut rng = Rng::new(seed);
        let (mut model, mut refused) = (vec![0; self.lbns as usize], 0);
        for life in 0..4 {
            let volume = disks.open(options).unwrap();
            (0..self.lbns).for_each(|lbn| assert_content(&volume, lbn, model[lbn as usize]));
            refused += self.live(&volume, &mut model, &mut rng, 150);
            match life % 2 {
                0 => volume.close().unwrap(),
                _ => flush(&volume),
            }
            disks = disks.lose_everything_unflushed();
            disks.assert_clean(&format!("seed {seed}, life {life}"));
        }
        refused
    }
}

#[test]
fn a_full_data_device_refuses_exactly_what_has_no_room_while_trims_and_duplicates_go_on() {
    for (seed, discard) in (0..6).flat_map(|seed| [(seed, false), (seed, true)]) {
        let tight = Tight { lbns: 12, data_blocks: 6 + seed as usize, contents: 20 };
        let refused = tight.run(&OpenOptions { discard, ..options() }, seed);
        assert!(refused > 0 || tight.data_blocks >= 11, "seed {seed}: the device was never full");
    }
}

#[test]
fn the_smallest_ring_delta_and_cache_are_enough() {
    for seed in 0..6 {
        let tight = Tight { lbns: 12, data_blocks: 8, contents: 20 };
        for delta_max in [0, 1, 2] {
            tight.run(&OpenOptions { delta_max, cache_bytes: 0, ..options() }, 100 + seed);
        }
    }
}
