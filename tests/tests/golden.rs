//! Golden images are opened, checked, read and used; today's code writes what it wrote yesterday; damaged
//! fixtures are found as they were.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use dedup_meta::BlockType;
use dedup_tests::damage::judge::{Model, Reads, checked, read_only, used};
use dedup_tests::damage::{Atlas, What};
use dedup_tests::golden::{Fixture, directory, load, plans, today};
use std::collections::BTreeMap;
use std::fs;

/// Version and name of every golden image.
fn images() -> Vec<(String, String)> {
    let versions =
        fs::read_dir(directory()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir());
    let mut images = Vec::new();
    for version in versions {
        for file in fs::read_dir(version.path()).unwrap() {
            let file = file.unwrap().file_name().into_string().unwrap();
            if let Some(name) = file.strip_suffix(".image.gz") {
                images.push((version.file_name().into_string().unwrap(), name.to_string()));
            }
        }
    }
    images.sort();
    images
}

#[test]
fn every_golden_image_is_clean_reads_as_it_was_written_and_can_be_used() {
    let images = images();
    assert!(images.len() >= plans().len(), "golden images are missing: {images:?}");
    for (version, name) in images {
        let sample = load(&version, &name).unwrap();
        let (model, what) = (Model::now(&sample), format!("{version}/{name}"));
        let report = checked(&sample.image).unwrap();
        assert!(report.is_clean(), "{what}: {report}");
        assert!(report.summary.data_checked > 0 && report.summary.log_records > 0, "{what}: {report}");
        let all = Reads { right: sample.now.len(), ..Reads::default() };
        assert_eq!(read_only(&sample.image, &model).unwrap(), all, "{what}");
        let used = used(&sample.image, &model).unwrap();
        assert_eq!((used.reads.right, used.stopped), (3 * sample.now.len(), false), "{what}");
    }
}

#[test]
fn the_golden_image_with_runs_in_its_index_says_so_to_older_programs() {
    let sample = load("v1", "index-runs").unwrap();
    let survey = dedup_meta::load_superblocks(&*sample.image.memory().devices().metadata);
    let newest = survey.newest(None).unwrap();
    assert!(newest.hint.base.node.is_some() && newest.hint.runs.len() >= 2, "{:?}", newest.hint);
    assert!(newest.features.incompat & dedup_meta::Features::INDEX_RUNS > 0, "{:?}", newest.features);
}

#[test]
fn the_golden_image_with_runs_of_its_mapping_says_so_to_older_programs() {
    let sample = load("v1", "runs").unwrap();
    let survey = dedup_meta::load_superblocks(&*sample.image.memory().devices().metadata);
    let newest = survey.newest(None).unwrap();
    let mapping = &newest.volumes[0].mapping;
    assert!(mapping.base.node.is_some() && !mapping.runs.is_empty(), "{mapping:?}");
    assert_eq!(newest.features.incompat & dedup_meta::Features::RUNS, dedup_meta::Features::RUNS);
}

#[test]
fn every_golden_image_has_every_type_of_block() {
    for (version, name) in images() {
        let sample = load(&version, &name).unwrap();
        let atlas = Atlas::of(&sample.image.memory().devices()).unwrap();
        use BlockType::*;
        for kind in [Superblock, Log, Mapping, Digest, RefCount, Overflow, Hint, Bad, MetaMap] {
            let has = atlas.sites.iter().any(|site| site.what == What::Meta(kind));
            assert!(has, "{version}/{name} has no {kind:?}");
        }
    }
}

#[test]
fn todays_code_writes_the_same_bytes_as_yesterdays() {
    let recorded: BTreeMap<String, [String; 2]> =
        serde_json::from_slice(&fs::read(directory().join("today.json")).unwrap()).unwrap();
    assert_eq!(
        today(),
        recorded,
        "\nThe same history now leaves other bytes on the devices (CRC32C of data and metadata device).\n\
         - If what a block looks like has changed on purpose: give the format a new version or a feature flag, say so in \
         docs/format.md, keep the golden images of the old version, and add new ones: \
         cargo run -p dedup-tests --bin golden -- images\n\
         - If only what is written where, or when, has changed on purpose (allocation, order, sizes): \
         cargo run -p dedup-tests --bin golden -- today"
    );
}

#[test]
fn every_damaged_fixture_is_found_as_it_was_and_gives_no_other_bytes() {
    let fixtures = Fixture::all().unwrap();
    assert!(fixtures.len() >= 12);
    for fixture in fixtures {
        let name = &fixture.name;
        assert_eq!(
            fixture.found().unwrap(),
            fixture.findings,
            "{name}: if the checker says something else on purpose: cargo run -p dedup-tests --bin golden -- fixtures"
        );
        let sample = fixture.make().unwrap();
        if let Ok(reads) = read_only(&sample.image, &Model::now(&sample)) {
            // A log with a hole shows, for reading only, the volume as of before it; see the damage sweep.
            let excused = name.ends_with("(forged)") || name.ends_with("(shows the past)");
            assert!(reads.other.is_empty() || excused, "{name}: {reads:?}");
        }
    }
}
