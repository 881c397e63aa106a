//! Every field: one bit of it changed, without and with checksums that fit.

use super::exceptions::{Exceptions, FORGED, SILENT};
use super::*;
use dedup_meta::{Block, MetaBlock};
use dedup_tests::damage::{Age, Field, sample};
use std::collections::BTreeSet;
use zerocopy::FromBytes;

/// Every single bit of every metadata block is covered by its checksum. The rest of this file relies on it
/// and goes by fields.
#[test]
fn a_changed_bit_anywhere_in_a_metadata_block_does_not_pass_its_checksum() {
    let mut bits = 0_u64;
    for subject in [Subject::new(sample::wide()), Subject::new(sample::deep())] {
        let (devices, pool) = (subject.memory.devices(), subject.atlas.newest.pool);
        for site in subject.blocks().filter(|site| site.meta().is_some()) {
            let What::Meta(kind) = site.what else { continue };
            let at = MetaBlock(site.at);
            let mut bytes = devices.meta_block(at);
            let intact = |bytes: &[u8]| {
                Block::read_from_bytes(bytes).unwrap().verify(pool, kind, site.level, at).is_ok()
            };
            assert!(intact(&bytes), "{} is damaged to begin with", site.name);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!intact(&bytes), "{}, bit {bit}", site.name);
                bytes[bit / 8] ^= 1 << (bit % 8);
                bits += 1;
            }
        }
    }
    println!("{bits} bits");
}

/// The bits of a field to try: `DAMAGE_BITS` of them, evenly over the field, or the default.
fn bits(field: &Field, place: usize) -> Vec<usize> {
    let is_entry = field.name.contains('[') && !field.name.starts_with("record");
    let asked = std::env::var("DAMAGE_BITS").ok().map(|n| n.parse().expect("a number"));
    match asked {
        // Another bit from entry to entry, so that all of them have their turn.
        None if is_entry => vec![place * 7 % field.width],
        None => BTreeSet::from([0, field.width / 2, field.width - 1]).into_iter().collect(),
        Some(n) => {
            let n = field.width.min(n);
            (0..n).map(|i| i * field.width / n).collect()
        }
    }
}

/// The first and the last field of each class: what is said and done of the others between them is the same.
fn ends(fields: &[Field]) -> BTreeSet<usize> {
    let mut ends: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (place, field) in fields.iter().enumerate() {
        ends.entry(field.class()).or_insert((place, place)).1 = place;
    }
    ends.into_values().flat_map(|(first, last)| [first, last]).collect()
}

fn accidents(subject: &Subject, tally: &mut Tally) {
    let devices = subject.memory.devices();
    for site in subject.blocks() {
        let fields = subject.atlas.fields(&devices, site);
        let log_seq = subject.log_seq(site);
        for place in ends(&fields) {
            let field = &fields[place];
            let bit = field.width / 2;
            let what = format!("{} {} bit {bit}", site.name, field.name);
            tally.begin(site.kind(), &what);
            let image = subject.sample.image.changed(|d| d.flip(&subject.atlas, site, field, bit));
            let seen = look(&image, &subject.now, ALL);
            if subject.is_last_group(site) {
                // Nothing says that there was a group; but then there is none of it anywhere.
                assert!(!seen.is_found() && Model::read_only_is(&subject.ever, &image), "{what}");
                continue;
            }
            let told = seen.report.iter().flat_map(|report| &report.findings);
            let named = told.clone().any(|finding| {
                names(finding, site, log_seq)
                    && ["checksum", "magic", "log", "label", "seq"].contains(&&*finding.field)
            });
            assert!(named, "{what}: {:?}", told.map(ToString::to_string).collect::<Vec<_>>());
            let (read_only, used) = seen.other();
            assert!(!used, "{what}: other bytes after an open for writing");
            match site.what {
                What::Meta(BlockType::Log) if site.age == Age::Newest => {
                    assert!(seen.used.unwrap().is_err(), "{what}: opened for writing");
                    assert!(seen.read_only.is_err(), "{what}: opened for reading");
                }
                // Reading does without the label, and writing does with what the superblock and the blocks
                // themselves tell.
                What::Label => assert!(seen.read_only.is_ok() && !read_only, "{what}"),
                What::Meta(BlockType::Mapping | BlockType::MappingRun) if site.age == Age::Newest => {
                    // Replay may need it; else a read meets it, and then no more is written.
                    assert!(
                        seen.read_only.is_ok_and(|reads| reads.refused > 0)
                            || seen.used.as_ref().unwrap().is_err(),
                        "{what}"
                    );
                    assert!(seen.used.unwrap().is_ok_and(|used| used.stopped) || !read_only, "{what}");
                }
                _ => assert!(!read_only, "{what}: other bytes after an open for reading"),
            }
        }
    }
}

#[test]
fn every_accident_to_a_field_is_named_and_no_read_gives_other_bytes() {
    let mut tally = Tally::new();
    for sample in [sample::wide(), sample::deep(), sample::runs()] {
        accidents(&Subject::new(sample), &mut tally);
    }
    tally.tell("accidents to fields");
}

/// Forges each field of these blocks.
fn forgeries(
    subject: &Subject,
    wanted: impl Fn(&Site, &Field) -> bool,
    tally: &mut Tally,
    exceptions: &mut Exceptions,
) {
    let devices = subject.memory.devices();
    for site in subject.blocks().filter(|site| site.age == Age::Newest) {
        let fields = subject.atlas.fields(&devices, site);
        let ends = ends(&fields);
        for (place, field) in fields.iter().enumerate() {
            if field.name == "crc" || !wanted(site, field) {
                continue;
            }
            let class = field.class();
            for bit in bits(field, place) {
                let what = format!("{} {} bit {bit}, resealed", site.name, field.name);
                tally.begin(site.kind(), &what);
                let image = subject.forged(site, field, bit);
                let seen = look(
                    &image,
                    &subject.now,
                    Look { data: needs_data(site, field), used: ends.contains(&place) },
                );
                let kind = site.kind();
                if !seen.is_found() && !subject.is_last_group(site) {
                    exceptions.demand(SILENT, kind, &class, &what);
                }
                let (read_only, used) = seen.other();
                if read_only || used {
                    let shows_the_past =
                        seen.is_found() && !used && Model::read_only_is(&subject.ever, &image);
                    if !shows_the_past && !subject.is_last_group(site) {
                        exceptions.demand(FORGED, kind, &class, &what);
                    }
                }
            }
        }
    }
}

/// Whether only content tells: everything else is found without reading it.
fn needs_data(site: &Site, field: &Field) -> bool {
    match site.what {
        What::Meta(BlockType::Mapping | BlockType::MappingRun) => field.name.ends_with("].crc"),
        What::Meta(BlockType::Digest) => field.name.starts_with("digest"),
        What::Meta(BlockType::Log | BlockType::Superblock) | What::Label => true,
        _ => false,
    }
}

impl Subject {
    /// A field forged: in a superblock in both copies, or the other one would say what is right.
    fn forged(&self, site: &Site, field: &Field, bit: usize) -> Image {
        let copies = match site.what {
            What::Meta(BlockType::Superblock) => vec!["superblock:slot", "superblock:spare"],
            _ => vec![&*site.name],
        };
        self.sample.image.changed(|devices| {
            copies.iter().try_for_each(|name| {
                let site = self.atlas.find(name).unwrap();
                devices.flip(&self.atlas, site, field, bit)?;
                devices.reseal(&self.atlas, site)
            })
        })
    }

    /// The sequence number of a log block.
    pub(crate) fn log_seq(&self, site: &Site) -> Option<u64> {
        let number: u64 = site.name.rsplit(':').next()?.parse().ok()?;
        let of = |superblock: &dedup_meta::Superblock| superblock.log.next.0 + number;
        match (site.what, site.age) {
            (What::Meta(BlockType::Log), Age::Newest) => Some(of(&self.atlas.newest)),
            (What::Meta(BlockType::Log), Age::Older) => self.atlas.older.as_ref().map(of),
            _ => None,
        }
    }
}

#[test]
fn every_forged_field_is_found_or_listed_and_no_read_gives_other_bytes() {
    let mut exceptions = Exceptions::default();
    let mut tally = Tally::new();
    let wide = Subject::new(sample::wide());
    forgeries(&wide, |site, _| site.name != "superblock:spare", &mut tally, &mut exceptions);
    // Of the large leaves that this one is for: what is in use, and the ends. Free blocks are all alike.
    let deep = Subject::new(sample::deep());
    let devices = deep.memory.devices();
    let large = |site: &Site, field: &Field| {
        let What::Meta(kind @ (BlockType::RefCount | BlockType::MetaMap)) = site.what else { return false };
        let is_count = kind == BlockType::RefCount || site.level == 0;
        let (byte, _) = field.bit(0);
        let block = devices.meta_block(MetaBlock(site.at));
        !is_count || !field.name.starts_with("count") || block[byte] != 0 || byte % 512 == 0
    };
    forgeries(&deep, large, &mut tally, &mut exceptions);
    // What the others do not have.
    let in_runs = |site: &Site, field: &Field| match site.what {
        What::Meta(BlockType::MappingRun) => true,
        What::Meta(BlockType::Hint) => site.name.contains("run"),
        What::Meta(BlockType::Superblock) => site.name == "superblock:slot" && field.name.contains(" run"),
        _ => false,
    };
    forgeries(&Subject::new(sample::runs()), in_runs, &mut tally, &mut exceptions);
    exceptions.assert_exact();
    tally.tell("forged fields");
}
