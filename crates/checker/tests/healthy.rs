//! What a volume leaves behind, closed, killed or after a power cut at any moment, is clean; and a check
//! changes no byte of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

mod support;

use dedup_checker::Kind;
use support::*;

#[track_caller]
fn assert_clean(disks: &Disks, story: &str) {
    let report = disks.image().check();
    assert!(report.is_clean(), "{story}:\n{report}");
}

#[test]
fn a_fresh_volume_is_clean_and_empty() {
    let report = Disks::formatted(LBNS).image().check();
    assert!(report.is_clean() && report.findings.is_empty(), "{report}");
    assert_eq!((report.summary.mapped, report.summary.data_used, report.summary.log_blocks), (0, 0, 0));
    assert!(report.summary.clean_shutdown);
}

#[test]
fn a_closed_volume_is_clean_and_its_summary_says_what_is_in_it() {
    let report = sample().check();
    assert!(report.is_clean(), "{report}");
    let summary = &report.summary;
    assert_eq!((summary.mapped, summary.data_used, summary.data_checked), (60, 49, 49));
    assert_eq!((summary.hint_entries, summary.hint_stale, summary.hint_missing), (49, 0, 0));
    assert_eq!(summary.tree_blocks["mapping tree"], 1);
}

#[test]
fn records_behind_the_last_checkpoint_are_part_of_the_volume() {
    let report = sample_with_log().check();
    assert!(report.is_clean(), "{report}");
    // 30 pairs and 4 more of the last; LBN 0 and 1 share new content, LBN 4 to 12 are trimmed.
    let summary = &report.summary;
    assert_eq!((summary.mapped, summary.data_used), (55, 30 - 4));
    assert_eq!(summary.log_blocks, 3);
    assert!(summary.log_records >= 4, "one to allocate, two to map, one to trim");
}

#[test]
fn a_volume_with_many_leaves_in_each_tree_is_clean() {
    let disks = Disks::formatted(2000);
    let volume = disks.open(0);
    (0..2000).for_each(|lbn| write(&volume, lbn, 1 + lbn % 700));
    volume.checkpoint().unwrap();
    (0..300).for_each(|lbn| write(&volume, lbn * 5, 5000 + lbn));
    volume.close().unwrap();
    let report = disks.image().check();
    assert!(report.is_clean(), "{report}");
    assert!(report.summary.tree_blocks["digest tree"] > 2 && report.summary.tree_blocks["mapping tree"] > 2);
    assert_eq!(report.summary.mapped, 2000);
}

#[test]
fn stale_and_missing_index_entries_are_counted_and_no_error() {
    let disks = Disks::formatted(LBNS);
    let volume = disks.open(0);
    (0..40).for_each(|lbn| write(&volume, lbn, 1 + lbn));
    volume.checkpoint().unwrap();
    trim(&volume, 0, 10);
    volume.close().unwrap();
    let image = disks.image();
    let report = image.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.summary.hint_entries, report.summary.hint_stale, report.summary.hint_missing),
        (40, 10, 0)
    );

    image.edit_superblock(|sb| *hints(sb) = dedup_meta::Root::EMPTY);
    let report = image.check();
    assert_eq!(
        (report.summary.hint_entries, report.summary.hint_stale, report.summary.hint_missing),
        (0, 0, 30)
    );
    assert!(report.has(Kind::HintMissing));
}

/// Runs random operations, and a check after each of them: on the disks as they are, and after a power cut
/// that keeps a random part of what was not flushed, from which some runs go on.
fn random_life(seed: u64) {
    let mut random = Random(seed);
    let mut disks = Disks::formatted(LBNS);
    let flushrq = [0, 0, 1, 5][random.below(4) as usize];
    let mut volume = disks.open(flushrq);
    let mut story = String::new();
    for step in 0..60 {
        let (lbn, choice) = (random.below(LBNS), random.below(100));
        match choice {
            0..60 => {
                (0..1 + random.below(6)).for_each(|i| write(&volume, (lbn + i) % LBNS, random.below(40)))
            }
            60..70 => trim(&volume, lbn, 1 + random.below(LBNS - lbn)),
            70..82 => flush(&volume),
            82..90 => volume.checkpoint().unwrap(),
            90..94 => {
                volume.close().unwrap();
                assert_clean(&disks, &format!("seed {seed}, {story} closed at step {step}"));
                volume = disks.open(flushrq);
            }
            _ => {
                drop(volume);
                disks = disks.crash(|| random.below(3) > 0);
                assert_clean(&disks, &format!("seed {seed}, {story} crashed at step {step}"));
                volume = disks.open(flushrq);
            }
        }
        story += &format!("{choice} ");
        let cut = disks.crash(|| random.below(2) > 0);
        assert_clean(&cut, &format!("seed {seed}, {story} cut after step {step}"));
    }
}

#[test]
fn whatever_a_volume_lives_through_it_is_clean_after_every_step_and_every_power_cut() {
    (0..24).for_each(random_life);
}

/// Cuts the power at every single write of an open, a checkpoint and a close, with different parts of the
/// cache kept.
#[test]
fn a_power_cut_at_any_event_of_open_checkpoint_and_close_leaves_a_clean_volume() {
    let life = |disks: &Disks| -> Option<()> {
        let options =
            dedup_volume::OpenOptions { background: false, digest_threads: 1, ..Default::default() };
        let volume = dedup_volume::Volume::open(disks.data.clone(), disks.metadata.clone(), &options).ok()?;
        let op = dedup_volume::Op::Write { offset: 0, data: &content(99), fua: true };
        let mut ok = true;
        volume.execute(vec![dedup_volume::Request { tag: 0, op }], &mut |_, result| ok = result.is_ok());
        volume.checkpoint().ok().filter(|()| ok)?;
        volume.close().ok()
    };
    let start = || {
        let disks = Disks::formatted(LBNS);
        let volume = disks.open(0);
        (0..50).for_each(|lbn| write(&volume, lbn, 1 + lbn % 30));
        volume.checkpoint().unwrap();
        (0..20).for_each(|lbn| write(&volume, lbn, 60 + lbn));
        flush(&volume);
        drop(volume);
        disks.crash(|| true)
    };
    let mut cuts = 0;
    for n in 0.. {
        let disks = start();
        disks.metadata.set_cut_after(n);
        let finished = life(&disks).is_some();
        let mut random = Random(n);
        for kept in 0..8 {
            let mut keep = || match kept {
                0 => false,
                1 => true,
                _ => random.below(8) >= kept,
            };
            assert_clean(&disks.crash(&mut keep), &format!("cut after {n} events, variant {kept}"));
        }
        cuts += 1;
        if finished {
            break;
        }
    }
    assert!(cuts > 10, "the story has {cuts} events only");
}
