//! The log: its damage, and its records, replayed onto the recount.
//!
//! Where the volume's own replay goes by the stored counts and trusts a record's old mapping, this one looks
//! every mapping up and goes by what is really mapped. So a log that passes both fits the trees in two
//! independent ways.

use crate::Check;
use crate::report::{Findings, Kind};
use crate::truth::Truth;
use dedup_meta::{BlockType, LogBlock, LogDamage, MetaError, Store, Superblock, scan};
use dedup_schema::{Contents, Lbn, Mapping, Pbn, Record, scan_mappings};
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;

impl Check<'_> {
    /// Scans the log from both superblocks and replays it from the newest.
    pub(crate) fn log(&mut self, truth: &mut Truth) {
        self.older_log();
        let (newest, device) = (&self.newest, &**self.store.device());
        let (ring, from) = (newest.layout.log, newest.log);
        let log = scan(device, newest.pool, ring, from, newest.epoch, newest.epoch_start);
        if let Some(damage) = &log.damage {
            damaged(damage, &mut self.findings);
        }
        if log.unreadable > 0 {
            self.findings.add(Kind::LogUnreadable, "log", "unreadable blocks", 0, log.unreadable);
        }
        let mut replay = Replay {
            store: &self.store,
            superblock: newest,
            findings: &mut self.findings,
            truth,
            mappings: BTreeMap::new(),
            allocated: FxHashSet::default(),
            contents: Contents::default(),
            place: String::new(),
        };
        let mut op_seq = newest.op_seq;
        for block in &log.blocks {
            self.summary.log_records += replay.block(block, op_seq);
            if !self.options.data {
                replay.contents.forget_allocated();
            }
            if block.records > 0 {
                op_seq = block.op_seq;
            }
        }
        let contents = std::mem::take(&mut replay.contents).allocated();
        truth.contents = contents.into_iter().filter(|(pbn, _)| truth.recount.get(*pbn) > 0).collect();
        let summary = &mut self.summary;
        summary.log_blocks = log.blocks.len() as u64;
        (summary.mapped, summary.data_used) = (truth.mapped, truth.recount.used());
        summary.bad_blocks = truth.bad.len() as u64;
    }
}

fn damaged(damage: &LogDamage, findings: &mut Findings) {
    match damage {
        LogDamage::Gap { gap_at, .. } => findings.add(
            Kind::LogDamage,
            format!("log block {gap_at}"),
            "log",
            "a block that was durable",
            damage,
        ),
        LogDamage::Released { needed, found } => findings.add(
            Kind::LogDamage,
            format!("log block {needed}"),
            "seq",
            needed,
            format!("{found}, of a later lap"),
        ),
        LogDamage::Unreadable { seq, error, .. } => findings.add(
            Kind::LogDamage,
            format!("log block {seq}"),
            "read",
            "a block of the log, or its end",
            error,
        ),
        other => findings.add(Kind::LogDamage, "log", "log", "whole", other),
    }
}

struct Replay<'c> {
    store: &'c Store,
    superblock: &'c Superblock,
    findings: &'c mut Findings,
    truth: &'c mut Truth,
    /// Mappings that the log changed.
    mappings: BTreeMap<u64, Mapping>,
    /// Blocks allocated by a record, and not mapped by one yet.
    allocated: FxHashSet<u64>,
    /// Data that the log carries.
    contents: Contents,
    /// The log block at hand.
    place: String,
}

impl Replay<'_> {
    /// Replays a block whose first operation comes after `op_seq`; returns its number of records.
    fn block(&mut self, block: &LogBlock, op_seq: u64) -> u64 {
        self.place = format!("log block {}", block.seq);
        self.contents.begin_block(block.epoch, block.group);
        let expected = if block.records == 0 { 0 } else { op_seq.saturating_add(block.records.into()) };
        if block.op_seq != expected {
            self.wrong("op_seq", expected, block.op_seq);
        }
        let (mut bytes, mut records) = (block.payload.as_slice(), 0);
        while !bytes.is_empty() {
            match Record::decode(&mut bytes) {
                Ok(record) => self.record(&record),
                Err(error) => {
                    self.wrong("record", "a valid one", error);
                    break;
                }
            }
            records += 1;
        }
        // An operation is never split over two blocks.
        let mut left: Vec<u64> = self.allocated.drain().collect();
        left.sort_unstable();
        for pbn in left {
            self.wrong("allocate", format!("a mapping to PBN {pbn} behind it"), "none");
        }
        records
    }

    fn wrong(&mut self, field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) {
        self.findings.add(Kind::LogRecord, &self.place, field, expected, found);
    }

    fn record(&mut self, record: &Record<'_>) {
        let block_size = self.superblock.block_size.into();
        match *record {
            Record::Allocate { pbn, digest } => {
                if !self.pbn_fits("allocate", pbn) {
                    return;
                }
                if self.truth.mappings_whole && self.truth.recount.get(pbn.0) > 0 {
                    self.wrong("allocate", format!("PBN {pbn} free"), "one in use");
                }
                self.truth.bad.remove(&pbn.0);
                self.truth.new_digests.insert(pbn.0, digest);
                self.allocated.insert(pbn.0);
                if let Err(error) = self.contents.allocate(pbn, block_size) {
                    self.wrong("allocate", "whole content or none", error);
                }
            }
            Record::Content { pbn, offset, bytes } => {
                if self.pbn_fits("content", pbn)
                    && let Err(error) = self.contents.piece(pbn, offset, bytes, block_size)
                {
                    self.wrong("content", "the next piece", error);
                }
            }
            Record::Map { lbn, new, old } => self.map(lbn, new, old),
            Record::Unmap { lbn, blocks } => self.unmap(lbn, blocks),
            Record::Bad { pbn } if self.pbn_fits("bad", pbn) => {
                self.truth.bad.insert(pbn.0);
            }
            Record::Healed { pbn } if self.pbn_fits("healed", pbn) => {
                self.truth.bad.remove(&pbn.0);
            }
            Record::Bad { .. } | Record::Healed { .. } => {}
        }
    }

    fn map(&mut self, lbn: Lbn, new: Mapping, old: Pbn) {
        if lbn.0 >= self.logical_blocks() {
            return self.wrong("map lbn", format!("below {}", self.logical_blocks()), lbn);
        }
        if new.is_mapped() && !self.pbn_fits("map pbn", new.pbn) {
            return;
        }
        if new.flags != 0 {
            self.wrong("map flags", 0, new.flags);
        }
        let current = match self.current(lbn) {
            Ok(current) => current,
            // There is no saying what the old mapping is.
            Err(error) => return self.findings.node_again(BlockType::Mapping, &error),
        };
        if current.pbn != old {
            self.wrong("map old pbn", format!("{}, to which LBN {lbn} is mapped", current.pbn), old);
        }
        let shared = !self.truth.mappings_whole || self.truth.recount.get(new.pbn.0) > 0;
        if new.is_mapped() && !shared && !self.allocated.contains(&new.pbn.0) {
            self.wrong(
                "map pbn",
                "a block in use or just allocated",
                format!("PBN {}, which is free", new.pbn),
            );
        }
        self.allocated.remove(&new.pbn.0);
        self.replace(lbn.0, new, current);
    }

    fn unmap(&mut self, first: Lbn, blocks: u64) {
        let end = first.0.saturating_add(blocks);
        if end > self.logical_blocks() {
            return self.wrong(
                "unmap",
                format!("LBNs below {}", self.logical_blocks()),
                format!("{first} to {end}"),
            );
        }
        let volume = &self.superblock.volumes[0];
        let mut mapped: BTreeMap<u64, Mapping> = BTreeMap::new();
        for entry in scan_mappings(self.store, &volume.mapping, first..Lbn(end)) {
            match entry {
                Ok((lbn, mapping)) => {
                    mapped.insert(lbn.0, mapping);
                }
                // What is mapped behind it is unknown.
                Err(error) => {
                    self.findings.node_again(BlockType::Mapping, &error);
                    break;
                }
            }
        }
        mapped.extend(self.mappings.range(first.0..end).map(|(lbn, mapping)| (*lbn, *mapping)));
        for (lbn, mapping) in mapped.into_iter().filter(|(_, mapping)| mapping.is_mapped()) {
            self.replace(lbn, Mapping::UNMAPPED, mapping);
        }
    }

    /// Moves the reference of an LBN that is mapped to `current`.
    fn replace(&mut self, lbn: u64, new: Mapping, current: Mapping) {
        if current.is_mapped() {
            self.truth.mapped = self.truth.mapped.saturating_sub(1);
            if (1..self.superblock.data_blocks).contains(&current.pbn.0) {
                self.truth.recount.remove(current.pbn.0);
            }
        }
        if new.is_mapped() {
            let place = &self.place;
            self.truth.map(&new, || format!("{place} (LBN {lbn})"), self.findings);
        }
        self.mappings.insert(lbn, new);
    }

    fn current(&self, lbn: Lbn) -> Result<Mapping, MetaError> {
        match self.mappings.get(&lbn.0) {
            Some(mapping) => Ok(*mapping),
            None => {
                let range = lbn..Lbn(lbn.0 + 1);
                let found = scan_mappings(self.store, &self.superblock.volumes[0].mapping, range).next();
                found.map_or(Ok(Mapping::UNMAPPED), |entry| entry.map(|(_, mapping)| mapping))
            }
        }
    }

    fn logical_blocks(&self) -> u64 {
        self.superblock.volumes[0].logical_blocks
    }

    fn pbn_fits(&mut self, field: &str, pbn: Pbn) -> bool {
        let last = self.superblock.data_blocks - 1;
        let fits = (1..=last).contains(&pbn.0);
        if !fits {
            self.wrong(field, format!("PBN 1 to {last}"), pbn);
        }
        fits
    }
}
