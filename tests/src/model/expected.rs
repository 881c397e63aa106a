//! What a volume should hold and count, and what it may hold after a crash.
//!
//! ```text
//!   history:   durable at least | batch | batch | ... |   blocks: now
//!   counted:   ^                ^       ^                 counters: now
//! ```
//!
//! A crash leaves what the [`History`] allows, and counters between those before the batch at its end and
//! those after it.

use super::orders::{Content, Contents, Outcomes, Placed};
use super::script::{Change, Req, Shape};
use crate::history::History;
use anyhow::{Result, ensure};
use dedup_volume::{Counters, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The model of a volume.
#[derive(Debug)]
pub struct Expected {
    pub(super) block_size: u64,
    pub(super) contents: Contents,
    blocks: Vec<Content>,
    counters: Counters,
    /// What was done since the last state known durable, in batches.
    history: History,
    /// The counters before each batch of it.
    counted: Vec<Counters>,
}

/// A batch on its way through the model.
#[derive(Debug)]
pub(super) struct Batch {
    changes: Vec<Placed>,
    /// By block.
    outcomes: BTreeMap<usize, Outcomes>,
}

impl Batch {
    /// What a read may find in a block.
    pub(super) fn may_read<'a>(&'a self, expected: &'a Expected, block: usize) -> &'a [Content] {
        self.outcomes.get(&block).map_or(std::slice::from_ref(&expected.blocks[block]), |o| &o.any)
    }
}

impl Expected {
    /// A freshly formatted volume.
    pub fn new(shape: &Shape) -> Self {
        let contents = Contents::new(shape.block_size as usize);
        Self {
            block_size: u64::from(shape.block_size),
            blocks: vec![contents.zero(); shape.blocks as usize],
            contents,
            counters: Counters::default(),
            history: History::new(shape.blocks as usize, shape.block_size as usize),
            counted: Vec::new(),
        }
    }

    /// Bytes of the logical device.
    pub fn size(&self) -> u64 {
        self.blocks.len() as u64 * self.block_size
    }

    /// Whether a request lies within the device.
    pub(super) fn has(&self, request: &Req) -> bool {
        match request {
            Req::Flush => true,
            Req::Read { offset, len } | Req::Change { offset, len, .. } => {
                offset.checked_add(*len).is_some_and(|end| end <= self.size())
            }
        }
    }

    /// What the requests of a batch may do. Those beyond the end do nothing.
    pub(super) fn begin(&self, requests: &[Req]) -> Batch {
        let valid = requests.iter().filter(|request| self.has(request));
        let changes: Vec<Placed> = valid.filter_map(|r| Placed::new(r, self.block_size)).collect();
        let touched: BTreeSet<usize> = changes.iter().flat_map(Placed::blocks).collect();
        let outcome = |block: usize| {
            let on_it: Vec<&Placed> = changes.iter().filter(|c| c.blocks().contains(&block)).collect();
            (block, Outcomes::of(&on_it, block, &self.blocks[block], &self.contents))
        };
        Batch { outcomes: touched.into_iter().map(outcome).collect(), changes }
    }

    /// The batch is done; `read` tells what a block holds that several requests changed, `status` what the
    /// volume counts.
    pub(super) fn end(
        &mut self,
        batch: Batch,
        flushed: bool,
        read: impl Fn(usize) -> Result<Content>,
        status: &Status,
    ) -> Result<()> {
        // What is acknowledged with FUA is in what a crash leaves, and so is all that was answered before it
        // was asked for.
        if flushed || batch.changes.iter().any(|change| change.fua && !change.blocks().is_empty()) {
            self.all_durable();
        }
        self.counted.push(self.counters);
        self.count(&batch, &status.counters)?;
        for (block, outcomes) in &batch.outcomes {
            let now = if outcomes.end.len() > 1 { read(*block)? } else { Arc::clone(&outcomes.end[0]) };
            ensure!(
                outcomes.end.contains(&now),
                "block {block} holds what no order of its requests makes of it"
            );
            self.blocks[*block] = now;
        }
        let partly = batch.outcomes.iter().map(|(block, o)| (*block, o.durable.clone())).collect();
        let done = batch.outcomes.keys().map(|block| (*block, vec![self.blocks[*block].clone()])).collect();
        self.history.push_batch(partly, done);
        self.check(status)
    }

    /// Everything done so far is durable.
    pub(super) fn all_durable(&mut self) {
        self.history.restart(self.blocks.iter().map(|content| vec![content.clone()]).collect());
        self.counted.clear();
    }

    /// Takes over what a volume holds after a crash, if it may.
    pub(super) fn recover(&mut self, found: Vec<Content>, status: &Status, flushrq: u32) -> Result<()> {
        let counters = of_interest(&status.counters);
        let all: Vec<Option<Content>> = found.iter().cloned().map(Some).collect();
        let now = of_interest(&self.counters);
        let counted = |k: usize| self.counted.get(k).map_or(now, of_interest);
        let may_be = (0..=self.history.request_count())
            .any(|k| self.history.fits(&all, k) && between(counted(k), counters, counted(k + 1)));
        ensure!(
            may_be,
            "after the crash the volume is not as after any beginning of what was done since the last state known durable; it \
             counts {:?}, which was {:?} before the crash; these blocks differ from it: {:?}",
            status.counters,
            self.counters,
            (0..found.len()).filter(|block| found[*block] != self.blocks[*block]).collect::<Vec<_>>()
        );
        let lost = self.counters.writes - status.counters.writes;
        ensure!(
            flushrq == 0 || lost < u64::from(flushrq),
            "{lost} block writes are lost, with a commit every {flushrq}"
        );
        self.blocks = found;
        self.counters = status.counters;
        self.all_durable();
        self.check(status)
    }

    /// What is read of a block.
    pub(super) fn block(&self, block: usize) -> &Content {
        &self.blocks[block]
    }

    /// The status is that of such a volume.
    pub(super) fn check(&self, status: &Status) -> Result<()> {
        let zero = self.contents.zero();
        let mapped: Vec<&Content> = self.blocks.iter().filter(|content| **content != zero).collect();
        let distinct: BTreeSet<&Content> = mapped.iter().copied().collect();
        ensure!(
            status.logical_used_blocks == mapped.len() as u64,
            "{} LBNs are mapped, expected {}",
            status.logical_used_blocks,
            mapped.len()
        );
        ensure!(
            status.data_used_blocks == distinct.len() as u64,
            "{} data blocks are in use, expected {}",
            status.data_used_blocks,
            distinct.len()
        );
        let (found, expected) = (of_interest(&status.counters), of_interest(&self.counters));
        ensure!(found == expected, "the volume counts {found:?}, expected {expected:?}");
        let c = &status.counters;
        ensure!((c.bad_blocks, c.healed_blocks, c.collisions) == (0, 0, 0), "nothing was damaged: {c:?}");
        let sizes = (status.logical_used, status.data_used, status.data_free_blocks);
        let block_size = self.block_size;
        let free = status.data_total_blocks - distinct.len() as u64;
        ensure!(
            sizes == (mapped.len() as u64 * block_size, distinct.len() as u64 * block_size, free),
            "sizes do not follow from block counts: {status:?}"
        );
        Ok(())
    }

    /// Adds what the batch counts. Where several requests change one block, or the only copy of a content
    /// goes while it comes again, the order decides, and `found` tells what it was; the sums hold in any
    /// case.
    fn count(&mut self, batch: &Batch, found: &Counters) -> Result<()> {
        let overlap = batch.changes.iter().map(|c| c.blocks().len()).sum::<usize>() != batch.outcomes.len();
        let zero = self.contents.zero();
        let mut written: Vec<&Content> = Vec::new();
        let mut counters = self.counters;
        for change in &batch.changes {
            for block in change.blocks() {
                let mapped = self.blocks[block] != zero;
                let whole = change.is_whole(block);
                if whole && !matches!(change.change, Change::Write { .. }) {
                    counters.trimmed += u64::from(mapped);
                    continue;
                }
                counters.reads_on_writes += u64::from(!whole);
                counters.writes += 1;
                *if mapped { &mut counters.overwrites } else { &mut counters.newwrites } += 1;
                match &batch.outcomes[&block].end[0] {
                    new if *new == zero => counters.zerowrites += 1,
                    new => written.push(new),
                }
            }
        }
        let (mut unique, mut undecided) = (0, false);
        for content in written.iter().copied().collect::<BTreeSet<_>>() {
            let holders = || (0..self.blocks.len()).filter(|block| self.blocks[*block] == *content);
            let stays = |block: usize| batch.outcomes.get(&block).is_none_or(|o| o.end[0] == *content);
            unique += u64::from(holders().next().is_none());
            undecided |= holders().next().is_some() && !holders().any(stays);
        }
        counters.uniqwrites += unique;
        counters.dupwrites += written.len() as u64 - unique;
        let c = found;
        ensure!(
            c.uniqwrites + c.dupwrites + c.zerowrites == c.writes && c.newwrites + c.overwrites == c.writes,
            "counters do not add up: {c:?}"
        );
        ensure!(c.writes == counters.writes, "{} block writes, expected {}", c.writes, counters.writes);
        if overlap {
            counters = *found;
        } else if undecided {
            (counters.uniqwrites, counters.dupwrites) = (found.uniqwrites, found.dupwrites);
        }
        self.counters = counters;
        Ok(())
    }
}

/// Those that the model knows, in the order on disk.
fn of_interest(counters: &Counters) -> [u64; 8] {
    let Counters { writes, uniqwrites, dupwrites, zerowrites, overwrites, newwrites, .. } = *counters;
    [
        writes,
        uniqwrites,
        dupwrites,
        zerowrites,
        overwrites,
        newwrites,
        counters.reads_on_writes,
        counters.trimmed,
    ]
}

fn between(low: [u64; 8], found: [u64; 8], high: [u64; 8]) -> bool {
    (0..8).all(|at| low[at] <= found[at] && found[at] <= high[at])
}
