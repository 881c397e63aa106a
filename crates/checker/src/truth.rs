//! The trees of truth, held against each other: reference counts are counted anew from the mappings and compared one by one.
//!
//! The comparison goes leaf by leaf of the count tree, and then over the recount's pages for which the tree has no leaf, so a count
//! that is missing is found as one that is too high is. Where a mapping leaf is damaged the recount is too low, and counts that look
//! too high are not reported; what is below a damaged count node is not compared.

use crate::Check;
use crate::recount::Recount;
use crate::report::{Findings, Kind, hex, tree_name};
use crate::sparse::{PAGE, Sparse};
use crate::trees::Walked;
use dedup_meta::BlockType;
use dedup_spacemap::page;
use dedup_volume::{BAD, COUNTS, DIGESTS, Digest, Lbn, MAPPING_RUNS, MAPPINGS, Mapping, OVERFLOW};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet};

/// What a stored count says when the overflow tree has the number.
const OVERFLOW_COUNT: u8 = page::MAX_COUNT;

/// What the trees of truth say, and then what the log makes of it.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Counted from the mappings.
    pub(crate) recount: Recount,
    /// LBNs mapped.
    pub(crate) mapped: u64,
    /// No mapping is missing because of damage.
    pub(crate) mappings_whole: bool,
    /// Checksums beside the mappings, by PBN; only if data is to be read.
    pub(crate) checksums: Option<Sparse<u32>>,
    /// Blocks with a digest, and a few bits of it. See [`tag`].
    pub(crate) tags: Sparse<u16>,
    /// Digests of blocks that the log allocates.
    pub(crate) new_digests: FxHashMap<u64, Digest>,
    /// Blocks marked as damaged.
    pub(crate) bad: BTreeSet<u64>,
    /// Data of blocks in use that the log carries.
    pub(crate) contents: BTreeMap<u64, Vec<u8>>,
}

/// In a tag: the block has a digest.
const TAG_DIGEST: u16 = 1;
/// In a tag: the index has the block with this digest.
pub(crate) const TAG_INDEXED: u16 = 2;

/// 14 bits of a digest's prefix, by multiplication (Knuth) because prefixes of a sorted tree differ in their high bits, above the
/// two marks.
pub(crate) fn tag(prefix: u64) -> u16 {
    let bits = prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
    (bits as u16) << 2 | TAG_DIGEST
}

impl Truth {
    /// The index has this entry: whether it is a good one.
    pub(crate) fn index(&mut self, pbn: u64, prefix: u64) -> bool {
        let is_good = self.tags.get(pbn) == tag(prefix);
        if is_good {
            *self.tags.slot(pbn) |= TAG_INDEXED;
        }
        is_good
    }

    /// An LBN is mapped like this, to a block that can be counted if it is `sound`.
    fn map_if(&mut self, sound: bool, lbn: u64, mapping: &Mapping, findings: &mut Findings) {
        match sound {
            true => self.map(mapping, || format!("LBN {lbn}"), findings),
            false => self.mapped += 1,
        }
    }

    /// One more LBN is mapped like this. `place` is for a finding.
    pub(crate) fn map(&mut self, mapping: &Mapping, place: impl FnOnce() -> String, findings: &mut Findings) {
        let pbn = mapping.pbn.0;
        if let Some(checksums) = &mut self.checksums {
            let slot = checksums.slot(pbn);
            if self.recount.get(pbn) == 0 {
                *slot = mapping.crc;
            } else if *slot != mapping.crc {
                findings.add(Kind::MappingChecksum, place(), "crc", hex(*slot), hex(mapping.crc));
            }
        }
        self.recount.add(pbn);
        self.mapped += 1;
    }
}

/// What a mapping may name.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    lbns: u64,
    pbns: u64,
}

impl Bounds {
    /// Reports what is wrong with an entry; whether its block is one that can be counted.
    fn check(&self, lbn: u64, mapping: &Mapping, findings: &mut Findings) -> bool {
        let place = || format!("LBN {lbn}");
        if lbn >= self.lbns {
            findings.add(Kind::MappingRange, place(), "lbn", format!("below {}", self.lbns), lbn);
        }
        if mapping.flags != 0 {
            findings.add(Kind::MappingFlags, place(), "flags", 0, mapping.flags);
        }
        let sound = (1..self.pbns).contains(&mapping.pbn.0);
        if mapping.is_mapped() && !sound {
            let expected = format!("1 to {}", self.pbns - 1);
            findings.add(Kind::MappingRange, place(), "pbn", expected, mapping.pbn);
        }
        sound
    }
}

/// The LBNs of which a run has said something: a bit for each.
#[derive(Debug, Default)]
struct Said(Sparse<u64>);

impl Said {
    /// Adds one; `false` if it was there.
    fn insert(&mut self, lbn: u64) -> bool {
        let (word, bit) = (self.0.slot(lbn / 64), 1 << (lbn % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn contains(&self, lbn: u64) -> bool {
        self.0.get(lbn / 64) >> (lbn % 64) & 1 == 1
    }
}

impl Check<'_> {
    /// Walks mappings, counts and digests and compares them.
    pub(crate) fn truth(&mut self) -> Truth {
        let mut truth = Truth {
            checksums: (self.options.data && self.data.is_some()).then(Sparse::default),
            ..Truth::default()
        };
        self.mappings(&mut truth);
        self.counts(&truth);
        self.digests(&mut truth);
        self.totals(&truth);
        (self.summary.mapped, self.summary.data_used) = (truth.mapped, truth.recount.used());
        truth
    }

    /// What a run says of an LBN hides what stands below it, so the newest run is walked first, and the base last. Behind a run that is
    /// damaged nothing is counted: what it hides is unknown.
    fn mappings(&mut self, truth: &mut Truth) {
        truth.mappings_whole = true;
        for volume in self.newest.volumes.clone() {
            let bounds = Bounds { lbns: volume.logical_blocks, pbns: self.newest.data_blocks };
            let (mut said, mut runs_whole) = (Said::default(), true);
            for run in volume.mapping.runs.iter().rev() {
                let mut entries = 0;
                let met = self.walk(BlockType::MappingRun, run, |leaf, findings| {
                    for (Lbn(lbn), mapping) in MAPPING_RUNS.tree().leaf_entries(leaf) {
                        entries += 1;
                        let sound = bounds.check(lbn, &mapping, findings);
                        if runs_whole && said.insert(lbn) && mapping.is_mapped() {
                            truth.map_if(sound, lbn, &mapping, findings);
                        }
                    }
                });
                self.check_total(Kind::TreeTotal, BlockType::MappingRun, run, met, entries);
                runs_whole &= met.damaged == 0;
            }
            let met = self.walk(BlockType::Mapping, &volume.mapping.base, |leaf, findings| {
                for (lbn, mapping) in MAPPINGS.leaf_entries(leaf) {
                    let sound = bounds.check(lbn, &mapping, findings);
                    if runs_whole && !said.contains(lbn) {
                        truth.map_if(sound, lbn, &mapping, findings);
                    }
                }
            });
            truth.mappings_whole &= runs_whole && met.damaged == 0;
        }
    }

    fn counts(&mut self, truth: &Truth) {
        let (large, met) = self.overflow();
        let roots = self.newest.roots;
        let compare = Compare { truth, large: &large, large_whole: met.damaged == 0 };
        let mut seen = FxHashSet::default();
        let met = self.walk(BlockType::RefCount, &roots.refcount, |leaf, findings| {
            let number = leaf.header.first.get() / PAGE;
            seen.insert(number);
            compare.page(number, Some(&leaf.payload), findings);
        });
        let overflowing = large.iter().map(|(pbn, _)| pbn / PAGE);
        let rest: BTreeSet<u64> = truth
            .recount
            .page_numbers()
            .into_iter()
            .chain(overflowing)
            .filter(|n| !seen.contains(n))
            .collect();
        for number in rest {
            // What is behind a damaged node is unknown; the walk reported it.
            if met.damaged == 0 || matches!(COUNTS.leaf(&*self.store, &roots.refcount, number), Ok(None)) {
                compare.page(number, None, &mut self.findings);
            }
        }
    }

    /// The overflow tree's entries, ascending.
    fn overflow(&mut self) -> (Vec<(u64, u64)>, Walked) {
        let (mut large, root) = (Vec::new(), self.newest.roots.overflow);
        let met = self.walk(BlockType::Overflow, &root, |leaf, findings| {
            for (pbn, count) in OVERFLOW.leaf_entries(leaf) {
                if count.0 < u64::from(OVERFLOW_COUNT) {
                    let at_least = format!("at least {OVERFLOW_COUNT}");
                    findings.add(Kind::Overflow, format!("PBN {pbn}"), "overflow count", at_least, count.0);
                }
                large.push((pbn.0, count.0));
            }
        });
        self.check_total(Kind::TreeTotal, BlockType::Overflow, &root, met, large.len() as u64);
        (large, met)
    }

    fn digests(&mut self, truth: &mut Truth) {
        let (root, data_blocks) = (self.newest.roots.digest, self.newest.data_blocks);
        let (recount, tags) = (&truth.recount, &mut truth.tags);
        let met = self.walk(BlockType::Digest, &root, |leaf, findings| {
            for (pbn, digest) in DIGESTS.leaf_entries(leaf) {
                if !(1..data_blocks).contains(&pbn) {
                    let place = format!("PBN {pbn}");
                    findings.add(
                        Kind::DigestRange,
                        place,
                        "digest",
                        format!("none beyond PBN {}", data_blocks - 1),
                        digest,
                    );
                } else if recount.get(pbn) > 0 {
                    *tags.slot(pbn) = tag(digest.prefix());
                }
            }
        });
        for pbn in recount.blocks().filter(|pbn| tags.get(*pbn) == 0) {
            if met.damaged == 0
                || matches!(DIGESTS.get(&*self.store, &root, pbn), Ok(digest) if digest == Digest::default())
            {
                let found = format!("none, at a reference count of {}", recount.get(pbn));
                self.findings.add(Kind::DigestMissing, format!("PBN {pbn}"), "digest", "one", found);
            }
        }
    }

    fn totals(&mut self, truth: &Truth) {
        if !truth.mappings_whole {
            return;
        }
        let fields = [
            ("data_used", truth.recount.used(), self.newest.data_used),
            ("mapped", truth.mapped, self.newest.mapped),
        ];
        for (field, expected, found) in fields.into_iter().filter(|(_, expected, found)| expected != found) {
            self.findings.add(Kind::SpaceTotal, "superblock", field, expected, found);
        }
    }

    /// Marks of damaged content.
    pub(crate) fn bad_blocks(&mut self, truth: &mut Truth) {
        let (root, data_blocks) = (self.newest.roots.bad, self.newest.data_blocks);
        let (bad, recount) = (&mut truth.bad, &truth.recount);
        let mut entries = 0;
        let met = self.walk(BlockType::Bad, &root, |leaf, findings| {
            for (pbn, ()) in BAD.leaf_entries(leaf) {
                entries += 1;
                if !(1..data_blocks).contains(&pbn.0) {
                    let place = format!("{} of PBN {pbn}", tree_name(BlockType::Bad));
                    findings.add(Kind::BadRange, place, "pbn", format!("1 to {}", data_blocks - 1), pbn);
                    continue;
                }
                if recount.get(pbn.0) > 0 {
                    let found = format!("one, at a reference count of {}", recount.get(pbn.0));
                    findings.add(Kind::BadBlock, format!("PBN {pbn}"), "bad", "no mark", found);
                }
                bad.insert(pbn.0);
            }
        });
        self.check_total(Kind::TreeTotal, BlockType::Bad, &root, met, entries);
        self.summary.bad_blocks = truth.bad.len() as u64;
    }
}

/// The recount against the stored counts.
struct Compare<'a> {
    truth: &'a Truth,
    /// Ascending.
    large: &'a [(u64, u64)],
    large_whole: bool,
}

impl Compare<'_> {
    /// A page of counts; `None` if the tree has no leaf there, so all are 0.
    fn page(&self, number: u64, stored: Option<&[u8]>, findings: &mut Findings) {
        let counted = self.truth.recount.page(number);
        let (start, end) = (number * PAGE, (number + 1) * PAGE);
        let first = self.large.partition_point(|(pbn, _)| *pbn < start);
        let mut large = self.large[first..].iter().take_while(|(pbn, _)| *pbn < end).peekable();
        for (i, pbn) in (start..end).enumerate() {
            let stored = stored.map_or(0, |page| page::get(page, i));
            let overflow = large.next_if(|(entry, _)| *entry == pbn).map(|(_, count)| *count);
            let counted = counted.map_or(0, |page| page[i]);
            if (stored, counted, overflow) != (0, 0, None) {
                self.block(pbn, stored, overflow, self.truth.recount.widen(pbn, counted), findings);
            }
        }
    }

    fn block(&self, pbn: u64, stored: u8, overflow: Option<u64>, expected: u64, findings: &mut Findings) {
        let place = format_args!("PBN {pbn}");
        let found = match (stored, overflow) {
            (OVERFLOW_COUNT, Some(count)) => count,
            (OVERFLOW_COUNT, None) => {
                if self.large_whole {
                    findings.add(
                        Kind::Overflow,
                        place,
                        "overflow count",
                        "an entry for a count of 3 and more",
                        "none",
                    );
                }
                // At least 3 is all that is known.
                expected.max(OVERFLOW_COUNT.into())
            }
            (stored, Some(count)) => {
                let expected = format!("no entry for a count of {stored}");
                findings.add(Kind::Overflow, place, "overflow count", expected, count);
                stored.into()
            }
            (stored, None) => stored.into(),
        };
        if found < expected {
            findings.add(Kind::CountTooLow, place, "reference count", expected, found);
        } else if found > expected && self.truth.mappings_whole {
            findings.add(Kind::CountTooHigh, place, "reference count", expected, found);
        }
    }
}
