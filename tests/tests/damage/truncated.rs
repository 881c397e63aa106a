//! Devices cut short, at every size at which something begins or ends.

use super::*;
use dedup_tests::damage::sample;
use std::collections::BTreeSet;

/// Sizes around every boundary of what stands on a device, and every 64 KiB.
fn sizes(size: u64, unit: u64, places: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    let edges = places.flat_map(|at| [at * unit, at * unit + unit / 2, (at + 1) * unit]);
    let around = [0, 1, 511, 512, 4095, 4096, size - 1, size.saturating_sub(512), size.saturating_sub(unit)];
    edges.chain(around).chain((0..size).step_by(64 << 10)).filter(|cut| *cut < size).collect()
}

#[test]
fn a_device_cut_short_anywhere_is_told_with_both_sizes_and_no_read_gives_other_bytes() {
    let mut tally = Tally::new();
    let subject = Subject::new(sample::wide());
    let image = &subject.sample.image;
    let (data, metadata) = (image.data.size(), image.metadata.size());
    let places = |on_metadata| {
        let sites = subject.atlas.sites.iter().filter(move |site| site.meta().is_some() == on_metadata);
        sites.map(|site| site.at)
    };
    let cuts = sizes(metadata, 4096, places(true)).into_iter().map(|cut| (data, cut));
    let data_cuts = sizes(data, 512, places(false)).into_iter().map(|cut| (cut, metadata));
    for (data_cut, metadata_cut) in cuts.chain(data_cuts) {
        let what = format!("cut to {data_cut} and {metadata_cut} bytes");
        tally.begin(if data_cut < data { "data device" } else { "metadata device" }, &what);
        let seen = look(&image.truncated(data_cut, metadata_cut), &subject.now, ALL);
        assert!(seen.read_only.is_err() && seen.used.as_ref().unwrap().is_err(), "{what}: opened");
        let told = match &seen.report {
            Ok(report) => report.findings.iter().map(|f| format!("{}: {f}\n", f.kind.name())).collect(),
            Err(error) => error.to_string(),
        };
        let named = match () {
            () if metadata_cut == metadata => {
                told.contains(&format!("expected at least {data}, found {data_cut}"))
            }
            // Too little is left to see that it was a volume.
            () if metadata_cut < 4096 => told.contains("not formatted"),
            () => told.contains("metadata device is too small") || told.contains("no valid superblock"),
        };
        assert!(named, "{what}: {told}");
    }
    tally.tell("cut devices");
}
