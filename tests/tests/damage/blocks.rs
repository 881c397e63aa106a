//! Every block as a whole: zeroed, swapped with others, lost to an older version.

use super::*;
use dedup_tests::damage::{Age, Devices, sample};
use std::io;

/// One block damaged as a whole by accident: found, and no read gives other bytes.
struct Accident<'a> {
    subject: &'a Subject,
    tally: &'a mut Tally,
}

impl Accident<'_> {
    /// `harmed` are the blocks that are not what they were.
    fn try_it(&mut self, title: &str, harmed: &[&Site], change: impl Fn(&Devices) -> io::Result<()>) {
        let names: Vec<_> = harmed.iter().map(|site| &*site.name).collect();
        let what = format!("{title} {}", names.join(" "));
        let image = self.subject.sample.image.changed(change);
        if image == self.subject.sample.image {
            return;
        }
        self.tally.begin(harmed[0].kind(), &what);
        let used = harmed.iter().any(|site| site.what != What::Data);
        let seen = look(&image, &self.subject.now, Look { data: true, used });
        let (read_only, used) = seen.other();
        if harmed.iter().any(|site| self.subject.is_last_group(site)) {
            assert!(Model::read_only_is(&self.subject.ever, &image), "{what}");
            return;
        }
        self.assert_named(&what, harmed, &seen);
        assert!(!used, "{what}: other bytes after an open for writing");
        assert!(!read_only, "{what}: other bytes after an open for reading");
    }

    /// Each harmed block is named, those that a crash may leave so at least as info; but for what only a
    /// block that is itself harmed leads to.
    fn assert_named(&self, what: &str, harmed: &[&Site], seen: &Seen) {
        let Ok(report) = &seen.report else {
            assert!(seen.read_only.is_err(), "{what}: not checked, but opened");
            return;
        };
        let older_gone =
            harmed.iter().any(|site| site.name == "superblock:slot" || site.name == "superblock:older-slot");
        for site in harmed {
            let log_seq = self.subject.log_seq(site);
            let named = report.findings.iter().any(|finding| names(finding, site, log_seq));
            // Behind the first hole in the log there is no telling which block is missing.
            let in_log = site.what == What::Meta(BlockType::Log) && seen.is_found();
            let below = harmed.iter().any(|above| self.subject.leads_to(above, site));
            let excused = older_gone && site.age == Age::Older || in_log || below;
            assert!(named || excused, "{what}: {} is not named: {report}", site.name);
        }
    }
}

/// Does it to all samples.
fn on_all(title: &str, each: impl Fn(&Subject, &mut Accident<'_>)) {
    let mut tally = Tally::new();
    for sample in [sample::wide(), sample::deep(), sample::runs()] {
        let subject = Subject::new(sample);
        each(&subject, &mut Accident { subject: &subject, tally: &mut tally });
    }
    tally.tell(title);
}

#[test]
fn every_zeroed_block_is_named_and_no_read_gives_other_bytes() {
    on_all("zeroed blocks", |subject, accident| {
        for site in subject.everything() {
            accident.try_it("zeroed", &[site], |devices| devices.zero(&subject.atlas, site));
        }
    });
}

#[test]
fn two_swapped_blocks_are_both_named_and_no_read_gives_other_bytes() {
    on_all("swapped blocks", |subject, accident| {
        let sites: Vec<&Site> = subject.blocks().filter(|site| site.what != What::Label).collect();
        for (i, a) in sites.iter().enumerate() {
            // All of its own type, and the first of every other.
            let mut types = vec![a.what];
            for b in &sites[i + 1..] {
                if b.what == a.what || !types.contains(&b.what) {
                    types.push(b.what);
                    accident.try_it("swapped", &[a, b], |devices| devices.swap(&subject.atlas, a, b));
                }
            }
        }
        let data: Vec<&Site> = subject.everything().filter(|site| site.what == What::Data).collect();
        for pair in data.chunks_exact(2) {
            accident.try_it("swapped", pair, |devices| devices.swap(&subject.atlas, pair[0], pair[1]));
        }
    });
}

#[test]
fn every_block_that_lost_its_last_write_is_named_and_no_read_gives_other_bytes() {
    on_all("lost writes", |subject, accident| {
        let before = subject.sample.before.memory().devices();
        for site in subject.everything() {
            let old = before.bytes(&subject.atlas, site).unwrap();
            accident.try_it("last write lost of", &[site], |devices| devices.put(&subject.atlas, site, &old));
        }
    });
}

/// As [`every_block_that_lost_its_last_write_is_named_and_no_read_gives_other_bytes`], but what comes back is
/// the version of the same node that the older superblock has, written to the new place: intact, and known
/// only by its parent not to be the right one.
#[test]
fn every_node_that_is_an_older_version_of_itself_is_named_and_no_read_gives_other_bytes() {
    on_all("older versions", |subject, accident| {
        for site in subject.blocks().filter(|site| site.age == Age::Newest) {
            if !matches!(site.what, What::Meta(kind) if kind != BlockType::Superblock && kind != BlockType::Log)
            {
                continue;
            }
            accident.try_it("older version of", &[site], |devices| {
                devices.older_version(&subject.atlas, site)?;
                devices.reseal_alone(&subject.atlas, site)
            });
        }
    });
}

/// Both copies of the newest superblock gone: the older one leads to the present all the same, by its log.
#[test]
fn without_the_newest_superblock_the_older_one_replays_to_the_present() {
    let subject = Subject::new(sample::wide());
    let copies = ["superblock:slot", "superblock:spare"].map(|name| subject.atlas.find(name).unwrap());
    let image = subject
        .sample
        .image
        .changed(|devices| copies.iter().try_for_each(|site| devices.zero(&subject.atlas, site)));
    let seen = look(&image, &subject.now, ALL);
    assert!(seen.is_found());
    assert_eq!(seen.read_only.as_ref().unwrap().refused, 0);
    assert_eq!(seen.other(), (false, false));
}

/// The exception: all metadata put back to what it was. Nothing is wrong with it, and it reads as then, or
/// not at all.
#[test]
fn metadata_rolled_back_as_a_whole_is_an_older_volume() {
    let subject = Subject::new(sample::wide());
    let image = Image { metadata: subject.sample.before.metadata.clone(), ..subject.sample.image.clone() };
    let seen = look(&image, &subject.ever, ALL);
    assert!(seen.other() == (false, false), "{:?}", seen.read_only);
}

/// The other exception: content is compared only on request.
#[test]
fn damaged_content_is_found_by_a_check_with_data_and_not_by_one_without() {
    use dedup_tests::damage::judge::{checked, checked_without_data};
    let subject = Subject::new(sample::deep());
    let site = subject.everything().find(|site| site.what == What::Data).unwrap();
    let image = subject.sample.image.changed(|devices| devices.zero(&subject.atlas, site));
    assert!(checked_without_data(&image).unwrap().is_clean());
    assert!(!checked(&image).unwrap().is_clean());
}
