//! The trees of truth, held against each other: reference counts are counted anew from the mappings and
//! compared one by one.
//!
//! The comparison goes leaf by leaf of the count tree, and then over the recount's pages for which the tree
//! has no leaf, so a count that is missing is found as one that is too high is. Where a mapping leaf is
//! damaged the recount is too low, and counts that look too high are not reported; what is below a damaged
//! count node is not compared.

use crate::Check;
use crate::batch::Batch;
use crate::merge::Stream;
use crate::recount::{Page, Recount};
use crate::report::{Findings, Kind, hex};
use crate::sparse::{PAGE, Sparse};
use crate::tags::Tags;
use crate::trees::{RUN_WINDOW, sweep};
use crate::walked::Walked;
use dedup_meta::{Block, BlockType};
use dedup_schema::{BAD, COUNTS, DIGESTS, Digest, MAPPING_RUNS, MAPPINGS, Mapping, OVERFLOW};
use dedup_spacemap::page;
use rustc_hash::FxHashMap;
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
    /// Digests of blocks in use, until the index has been held against them.
    pub(crate) tags: Tags,
    /// Digests of blocks that the log allocates.
    pub(crate) new_digests: FxHashMap<u64, Digest>,
    /// Blocks marked as damaged.
    pub(crate) bad: BTreeSet<u64>,
    /// Data of blocks in use that the log carries.
    pub(crate) contents: BTreeMap<u64, Vec<u8>>,
}

impl Truth {
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
    /// Whether a mapping's block is one that can be counted.
    fn is_sound(&self, mapping: &Mapping) -> bool {
        (1..self.pbns).contains(&mapping.pbn.0)
    }

    /// Reports what is wrong with an entry.
    fn check(&self, lbn: u64, mapping: &Mapping, findings: &mut Findings) {
        let place = || format!("LBN {lbn}");
        if lbn >= self.lbns {
            findings.add(Kind::MappingRange, place(), "lbn", format!("below {}", self.lbns), lbn);
        }
        if mapping.flags != 0 {
            findings.add(Kind::MappingFlags, place(), "flags", 0, mapping.flags);
        }
        if mapping.is_mapped() && !self.is_sound(mapping) {
            let expected = format!("1 to {}", self.pbns - 1);
            findings.add(Kind::MappingRange, place(), "pbn", expected, mapping.pbn);
        }
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

    /// Walks each volume's mapping and its runs, side by side: what a run says of an LBN hides what stands
    /// below it. From where a run is damaged, nothing below it is counted: what it hides is unknown.
    fn mappings(&mut self, truth: &mut Truth) {
        truth.mappings_whole = true;
        let mut batch = Batch::default();
        for volume in self.newest.volumes.clone() {
            let bounds = Bounds { lbns: volume.logical_blocks, pbns: self.newest.data_blocks };
            let runs = volume.mapping.runs.iter().rev();
            let mut streams: Vec<Stream<u64, Mapping>> = runs
                .map(|run| self.stream(BlockType::MappingRun, run, false))
                .chain([self.stream(BlockType::Mapping, &volume.mapping.base, true)])
                .collect();
            self.merge(
                &mut streams,
                |leaf, ahead, findings| {
                    match leaf.header.block_type == BlockType::Mapping as u8 {
                        true => ahead.extend(MAPPINGS.leaf_entries(leaf)),
                        false => {
                            let entries = MAPPING_RUNS.tree().leaf_entries(leaf);
                            ahead.extend(entries.map(|(lbn, mapping)| (lbn.0, mapping)));
                        }
                    }
                    ahead.iter().for_each(|(lbn, mapping)| bounds.check(*lbn, mapping, findings));
                },
                |part, findings| {
                    if part.in_doubt {
                        return;
                    }
                    for (lbn, mapping) in part.entries.iter().filter(|(_, mapping)| mapping.is_mapped()) {
                        if !bounds.is_sound(mapping) {
                            truth.mapped += 1;
                        } else if truth.checksums.is_some() {
                            truth.map(mapping, || format!("LBN {lbn}"), findings);
                        } else {
                            truth.mapped += 1;
                            if batch.push(mapping.pbn.0, 0) {
                                batch.drain(|page, notes| truth.recount.add_noted(page, notes));
                            }
                        }
                    }
                },
            );
            batch.drain(|page, notes| truth.recount.add_noted(page, notes));
            if let Some((_base, runs)) = streams.split_last() {
                for run in runs {
                    let Stream { root, met, entries, .. } = run;
                    self.check_total(Kind::TreeTotal, BlockType::MappingRun, root, *met, *entries);
                }
            }
            truth.mappings_whole &= streams.iter().all(|stream| stream.met.damaged == 0);
        }
    }

    /// Reads the count tree and the overflow tree side by side, page by page, with the recount.
    fn counts(&mut self, truth: &Truth) {
        let roots = self.newest.roots;
        let mut overflow: Stream<u64, u64> = self.stream(BlockType::Overflow, &roots.overflow, true);
        let mut large_entries = |leaf: &Block, ahead: &mut Vec<(u64, u64)>, findings: &mut Findings| {
            ahead.extend(OVERFLOW.leaf_entries(leaf).map(|(pbn, count)| (pbn.0, count.0)));
            for (pbn, count) in ahead.iter().filter(|(_, count)| *count < u64::from(OVERFLOW_COUNT)) {
                let at_least = format!("at least {OVERFLOW_COUNT}");
                findings.add(Kind::Overflow, format!("PBN {pbn}"), "overflow count", at_least, count);
            }
        };
        let mut leaves = sweep(BlockType::RefCount, &self.reader, RUN_WINDOW, &roots.refcount);
        let (mut met, mut more, mut leaf) = (Walked::default(), true, None);
        let mut pages = truth.recount.page_numbers().into_iter().peekable();
        loop {
            while leaf.is_none() && more {
                more = self.step(&mut *leaves, BlockType::RefCount, &mut met, |block, _| {
                    leaf = Some((block.header.first.get() / PAGE, block.payload));
                });
            }
            self.read_on(&mut overflow, &mut large_entries);
            let next = [
                leaf.as_ref().map(|leaf| leaf.0),
                pages.peek().copied(),
                overflow.head().map(|pbn| pbn / PAGE),
            ];
            let Some(number) = next.into_iter().flatten().min() else { break };
            pages.next_if_eq(&number);
            let mut large = Vec::new();
            while let Some(entry) = overflow.next_below((number + 1) * PAGE) {
                large.push(entry);
                self.read_on(&mut overflow, &mut large_entries);
            }
            let stored = leaf.take_if(|leaf| leaf.0 == number).map(|(_, payload)| payload);
            // What is behind a damaged node is unknown; the walk reported it.
            let is_known = stored.is_some()
                || met.damaged == 0
                || matches!(COUNTS.leaf(&*self.store, &roots.refcount, number), Ok(None));
            if is_known {
                let compare = Compare { truth, large: &large, large_whole: overflow.met.damaged == 0 };
                compare.page(number, stored.as_ref().map(|payload| &payload[..]), &mut self.findings);
            }
        }
        self.account(BlockType::RefCount, met);
        self.account(BlockType::Overflow, overflow.met);
        self.check_total(
            Kind::TreeTotal,
            BlockType::Overflow,
            &roots.overflow,
            overflow.met,
            overflow.entries,
        );
    }

    fn digests(&mut self, truth: &mut Truth) {
        let (root, data_blocks) = (self.newest.roots.digest, self.newest.data_blocks);
        let (recount, tags) = (&truth.recount, &mut truth.tags);
        let met = self.walk(BlockType::Digest, &root, |leaf, findings| {
            let mut at = (u64::MAX, None);
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
                    continue;
                }
                if at.0 != pbn / PAGE {
                    at = (pbn / PAGE, recount.page(pbn / PAGE));
                }
                if at.1.is_some_and(|page| page.is_used((pbn % PAGE) as usize)) {
                    tags.set(pbn, digest.prefix());
                }
            }
        });
        let pages = recount.page_numbers().into_iter().filter_map(|n| Some((n, recount.page(n)?)));
        for pbn in pages.flat_map(|(number, page)| tags.missing(number, page)) {
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
                    let place = format!("{} of PBN {pbn}", BlockType::Bad.name());
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
    /// The overflow tree's entries for the page at hand, ascending.
    large: &'a [(u64, u64)],
    /// No such entry is missing because of damage.
    large_whole: bool,
}

impl Compare<'_> {
    /// A page of counts; `None` if the tree has no leaf there, so all are 0.
    fn page(&self, number: u64, stored: Option<&[u8]>, findings: &mut Findings) {
        let recount = &self.truth.recount;
        let counted = recount.page(number);
        if self.large.is_empty() && stored.is_some() && counted.and_then(Page::as_leaf) == stored {
            return; // as nearly always
        }
        let mut large = self.large.iter().peekable();
        for (i, pbn) in (number * PAGE..(number + 1) * PAGE).enumerate() {
            let stored = stored.map_or(0, |page| page::get(page, i));
            let overflow = large.next_if(|(entry, _)| *entry == pbn).map(|(_, count)| *count);
            let counted = recount.count(counted, pbn);
            if (stored, counted, overflow) != (0, 0, None) {
                self.block(pbn, stored, overflow, counted, findings);
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
