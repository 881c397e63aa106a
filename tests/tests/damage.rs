//! The damage sweep: every field of every block that a volume has, one at a time, and every block as a whole.
//!
//! What is held, over three volumes that have every type of block and every tree, runs too, with an index
//! node (`dedup_tests::damage::sample`):
//!
//! - *an accident* (a changed byte whose checksum does not fit, a block zeroed, swapped, lost to its older
//!   version): the checker names the block and the field, and every logical block reads as what was written
//!   or not at all, opened for reading and for writing;
//! - *a forgery* (the same with every checksum right again up to the superblocks, as only a program can leave
//!   it): found too, or listed in `exceptions.rs` with the reason, where each line must be needed;
//! - nothing panics, and nothing takes longer than [`PATIENCE`].
//!
//! What no format of this kind can tell, and the test holds to be the only exceptions for accidents:
//!
//! - the last log group of a volume that was not closed: it looks like one that was never written. The volume
//!   then reads as before that group, in every block;
//! - the older superblock's slot and the newest one's spare, damaged: told, as info, since a crash leaves
//!   them so;
//! - the device put back whole to an older state (both superblock copies at least), which is an older volume
//!   and not a damaged one;
//! - content, if the checker is not asked to read data. A read notices.
//! - a change that leaves a CRC32C as it was: one in 2^32, if it changes more than 32 bits that do not stand
//!   together.
//!
//! `DAMAGE_BITS=N` tries N bits of every field (the default is one of an entry's and three of any other).

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

#[path = "damage/blocks.rs"]
mod blocks;
#[path = "damage/exceptions.rs"]
mod exceptions;
#[path = "damage/fields.rs"]
mod fields;
#[path = "damage/truncated.rs"]
mod truncated;

use dedup_checker::{CheckError, Finding, Report, Severity};
use dedup_meta::BlockType;
use dedup_tests::damage::judge::{Model, Reads, Use};
use dedup_tests::damage::sample::Sample;
use dedup_tests::damage::{Atlas, Image, Memory, Site, What};
use dedup_volume::VolumeError;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longer than the checker and three openings of so small a volume take, on a machine that has much else to
/// do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sample, taken apart.
struct Subject {
    sample: Sample,
    memory: Memory,
    atlas: Atlas,
    now: Model,
    ever: Model,
}

impl Subject {
    fn new(sample: Sample) -> Self {
        let memory = sample.image.memory();
        let atlas = Atlas::of(&memory.devices()).unwrap();
        let (now, ever) = (Model::now(&sample), Model::ever(&sample));
        Self { sample, memory, atlas, now, ever }
    }

    /// Blocks on the metadata device, and the label.
    fn blocks(&self) -> impl Iterator<Item = &Site> {
        self.atlas.sites.iter().filter(|site| site.what != What::Data)
    }

    /// Every block that matters: of the data blocks those whose content an LBN has now.
    fn everything(&self) -> impl Iterator<Item = &Site> {
        let size = self.sample.block_size;
        let contents: HashSet<Vec<u8>> =
            self.sample.now.iter().map(|n| dedup_tests::block(*n, size)).collect();
        let devices = self.memory.devices();
        self.atlas.sites.iter().filter(move |site| {
            site.what != What::Data || contents.contains(&devices.bytes(&self.atlas, site).unwrap())
        })
    }

    /// Whether one node is somewhere above another.
    fn leads_to(&self, above: &Site, below: &Site) -> bool {
        let mut namers = below.named_at.iter().filter_map(|(namer, _)| {
            self.blocks().find(|site| site.meta() == Some(*namer) && site.what == below.what)
        });
        namers.any(|namer| namer.at == above.at || self.leads_to(above, namer))
    }

    /// Whether the site is the log's last block, which ends its last group.
    fn is_last_group(&self, site: &Site) -> bool {
        let last = self.atlas.sites.iter().rfind(|site| site.what == What::Meta(BlockType::Log)).unwrap();
        site.at == last.at && site.what == last.what
    }
}

/// What was seen of one damaged volume.
struct Seen {
    report: Result<Report, CheckError>,
    read_only: Result<Reads, VolumeError>,
    used: Option<Result<Use, VolumeError>>,
}

impl Seen {
    /// Findings that are more than info.
    fn problems(&self) -> Vec<&Finding> {
        let findings = self.report.iter().flat_map(|report| &report.findings);
        findings.filter(|finding| finding.severity > Severity::Info).collect()
    }

    /// Whether the checker found something, or nothing that it could check.
    fn is_found(&self) -> bool {
        self.report.is_err() || !self.problems().is_empty()
    }

    /// Whether a read gave other bytes: opened for reading, for writing.
    fn other(&self) -> (bool, bool) {
        let read_only = self.read_only.as_ref().is_ok_and(|reads| !reads.other.is_empty());
        let used = self.used.iter().flatten().any(|used| !used.reads.other.is_empty());
        (read_only, used)
    }
}

/// How much of a damaged volume to look at.
#[derive(Clone, Copy)]
struct Look {
    /// Have the checker read the data.
    data: bool,
    /// Open it for writing and use it.
    used: bool,
}

const ALL: Look = Look { data: true, used: true };

fn look(image: &Image, model: &Model, look: Look) -> Seen {
    use dedup_tests::damage::judge;
    Seen {
        report: if look.data { judge::checked(image) } else { judge::checked_without_data(image) },
        read_only: judge::read_only(image, model),
        used: look.used.then(|| judge::used(image, model)),
    }
}

/// Counts damages by type of block, and sees to it that none takes for ever.
struct Tally {
    counts: BTreeMap<&'static str, usize>,
    watch: std::sync::Arc<Mutex<(String, Instant)>>,
}

impl Tally {
    fn new() -> Self {
        let watch = std::sync::Arc::new(Mutex::new((String::new(), Instant::now())));
        let watched = std::sync::Arc::downgrade(&watch);
        // Ends with the tally. A loop would otherwise be a test that hangs and does not say where.
        std::thread::spawn(move || {
            while let Some(watch) = watched.upgrade() {
                let (what, since) = watch.lock().unwrap().clone();
                if since.elapsed() > PATIENCE {
                    eprintln!("{what}: no end after {PATIENCE:?}");
                    std::process::abort();
                }
                drop(watch);
                std::thread::park_timeout(Duration::from_millis(200));
            }
        });
        Self { counts: BTreeMap::new(), watch }
    }

    /// One more damage.
    fn begin(&mut self, kind: &'static str, what: &str) {
        *self.counts.entry(kind).or_default() += 1;
        *self.watch.lock().unwrap() = (what.to_string(), Instant::now());
    }

    fn tell(&self, title: &str) {
        let total: usize = self.counts.values().sum();
        println!("{title}: {total} damages: {:?}", self.counts);
    }
}

/// Places in which findings about a block are.
fn names(finding: &Finding, site: &Site, log_seq: Option<u64>) -> bool {
    match site.what {
        What::Label => finding.place == "data label",
        What::Data => finding.place == format!("PBN {}", site.at),
        What::Meta(BlockType::Log) => log_seq.is_some_and(|seq| finding.place == format!("log block {seq}")),
        What::Meta(_) => finding.place.starts_with(&format!("metadata block {} (", site.at)),
    }
}
