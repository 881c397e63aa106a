//! Damage in a mapping that stands in runs above its base: what it hides is unknown, and everything else is
//! held to account.

use crate::support::*;
use crate::*;
use dedup_btree::{Descend, Visit, Visitor};
use dedup_device::SimDevice;
use dedup_schema::{MAPPING_RUNS, MAPPINGS};
use dedup_volume::{OpenOptions, RunPolicy, Volume};
use std::collections::BTreeSet;

const MANY: u64 = 3000;
/// LBNs that a run says something of: more than a leaf of it holds.
const CHANGED: u64 = 700;

/// The leaves of a tree, from left to right, with the LBNs that they hold.
#[derive(Default)]
struct Leaves {
    is_run: bool,
    met: Vec<(MetaBlock, BTreeSet<u64>)>,
}

impl Visitor for Leaves {
    fn node(&mut self, visit: Visit<'_>) -> Descend {
        if let (0, Ok(leaf)) = (visit.level, visit.node) {
            let lbns = match self.is_run {
                true => MAPPING_RUNS.tree().leaf_entries(leaf).map(|(lbn, _)| lbn.0).collect(),
                false => MAPPINGS.leaf_entries(leaf).map(|(lbn, _)| lbn).collect(),
            };
            self.met.push((visit.at.block, lbns));
        }
        Descend::Yes
    }
}

fn place(n: u64) -> u64 {
    n * 4 + 1
}

fn is_trimmed(n: u64) -> bool {
    n.is_multiple_of(7)
}

fn open(disks: &Disks, runs: RunPolicy) -> Volume {
    let options = OpenOptions { background: false, digest_threads: 1, runs, ..OpenOptions::default() };
    Volume::open(disks.data.clone(), disks.metadata.clone(), &options).unwrap()
}

/// A volume full of mappings in the base, of which a quarter has been overwritten, or trimmed, in a run; the
/// leaves of base and run; and the LBNs that are mapped.
fn with_run() -> (Image, [Leaves; 2], BTreeSet<u64>) {
    let disks =
        Disks { metadata: Arc::new(SimDevice::new(16 << 20)), data: Arc::new(SimDevice::new(4 << 20)) };
    let options = dedup_volume::FormatOptions {
        block_size: BLOCK_SIZE as u32,
        log_blocks: Some(1024),
        ..dedup_volume::FormatOptions::new(
            MANY * BLOCK_SIZE as u64,
            uuid::Uuid::from_u128(1),
            uuid::Uuid::from_u128(2),
        )
    };
    let metadata: Arc<dyn BlockDevice> = disks.metadata.clone();
    dedup_volume::format(&*disks.data, &metadata, &options).unwrap();
    let volume = open(&disks, RunPolicy::Never);
    (0..MANY).for_each(|lbn| write(&volume, lbn, 1 + lbn));
    volume.close().unwrap();
    let volume = open(&disks, RunPolicy::Always);
    for n in 0..CHANGED {
        match is_trimmed(n) {
            true => trim(&volume, place(n), 1),
            false => write(&volume, place(n), 10_000 + n),
        }
    }
    volume.close().unwrap();
    let image = disks.image();
    image.edit_superblock(|_| ());
    assert!(image.problems().is_empty());
    let superblock = image.superblock();
    let mapping = &superblock.volumes[0].mapping;
    let runs: Vec<&Root> = mapping.runs.iter().filter(|run| run.node.is_some()).collect();
    assert_eq!((runs.len(), runs[0].entries), (1, CHANGED), "all changes stand in one run");
    let store = Store::new(image.metadata.clone(), superblock.pool, 64);
    let (mut base, mut run) = (Leaves::default(), Leaves { is_run: true, ..Leaves::default() });
    MAPPINGS.walk(&store, &mapping.base, &mut base);
    MAPPING_RUNS.tree().walk(&store, runs[0], &mut run);
    let trimmed: BTreeSet<u64> = (0..CHANGED).filter(|n| is_trimmed(*n)).map(place).collect();
    let mapped: BTreeSet<u64> = (0..MANY).filter(|lbn| !trimmed.contains(lbn)).collect();
    assert_eq!(image.check().summary.mapped, mapped.len() as u64);
    (image, [base, run], mapped)
}

/// That nothing is found but the damage to one block, and how much is counted.
#[track_caller]
fn assert_damage(image: &Image, at: MetaBlock, tree: &str, mapped: usize) {
    image.flip(at, 500, 0x80);
    let problems = image.problems();
    let places: Vec<_> = problems.iter().map(|f| (f.kind, f.place.clone())).collect();
    assert_eq!(places, [(Kind::TreeNode, format!("metadata block {at} ({tree}, level 0)"))]);
    assert_eq!(image.check().summary.mapped, mapped as u64);
}

/// A leaf of the base is lost. What the run says of its LBNs counts, and so does all that stands in other
/// leaves.
#[test]
fn behind_a_damaged_leaf_of_a_base_below_runs_everything_is_counted() {
    let (image, [base, run], mapped) = with_run();
    let (at, lost) = &base.met[2];
    let in_run: BTreeSet<u64> = run.met.iter().flat_map(|(_, lbns)| lbns).copied().collect();
    let counted = mapped.iter().filter(|lbn| !lost.contains(lbn) || in_run.contains(lbn));
    assert_damage(&image, *at, "mapping tree", counted.count());
}

/// A leaf of the run is lost. What it said of its LBNs may have hidden mappings of the base, so from there on
/// the base counts no more; what it said before, and what the run says behind, does.
#[test]
fn from_a_damaged_leaf_of_a_run_on_only_what_the_run_says_is_counted() {
    let (image, [_, run], mapped) = with_run();
    assert!(run.met.len() > 2, "one leaf before and one behind");
    let (at, _) = &run.met[1];
    let last = *run.met[0].1.last().unwrap();
    let behind: BTreeSet<u64> = run.met[2..].iter().flat_map(|(_, lbns)| lbns).copied().collect();
    let counted = mapped.iter().filter(|lbn| **lbn <= last || behind.contains(lbn));
    assert_damage(&image, *at, "mapping run", counted.count());
}
