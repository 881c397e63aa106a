//! The trees as one checkpoint left them, and what a lookup finds in them.
//!
//! Immutable: a checkpoint makes new roots, and whoever still reads from the old ones keeps them pinned.

use crate::trees::lbn_map;
use crate::trees::run_filters::RunFilters;
use dedup_btree::KeySet;
use dedup_meta::{MetaError, NodeSource, Root, RunSet, TxId};
use dedup_schema::{
    BAD, COUNT_OVERFLOW, COUNTS, DIGESTS, Digest, HINT_SET, HintKey, Lbn, MAX_BLOCKS, Mapping, OVERFLOW, Pbn,
};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// How many hints of one prefix a lookup reads in each tree of the index. Two blocks with equal 64-bit
/// prefixes are already rare (2^-9 expected pairs among 2^28 blocks of a TiB), so more than a few are stale
/// hints, each of which costs a look at a count and is then dropped; or a pile made on purpose, which costs
/// no more than this.
const HINTS_READ_MAX: usize = 64;

/// The roots of all trees that lookups read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The checkpoint that made them.
    pub txid: TxId,
    /// LBN -> mapping.
    pub mappings: RunSet,
    /// Filters in front of its runs.
    pub run_filters: RunFilters,
    /// PBN -> digest.
    pub digests: Root,
    /// PBN -> count, 2 bits.
    pub counts: Root,
    /// PBN -> count of 3 and more.
    pub overflow: Root,
    /// Digest prefix -> PBN.
    pub hints: RunSet,
    /// Damaged PBNs.
    pub bad: Root,
}

/// Reference counts of blocks, which know of which trees they are.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    of: TxId,
    counts: FxHashMap<Pbn, u64>,
}

impl Counts {
    /// What is known to be so in the trees `of`.
    pub(crate) fn new(of: TxId, counts: FxHashMap<Pbn, u64>) -> Self {
        Self { of, counts }
    }

    /// The trees that have these counts.
    pub(crate) fn of(&self) -> TxId {
        self.of
    }

    /// A block's count; `None` if it was not looked up.
    #[inline]
    pub(crate) fn get(&self, pbn: Pbn) -> Option<u64> {
        self.counts.get(&pbn).copied()
    }

    /// Adds counts of the same trees.
    ///
    /// # Panics
    /// If they are of others.
    pub(crate) fn extend(&mut self, more: Self) {
        assert_eq!(self.of, more.of, "counts of different trees");
        match self.counts.is_empty() {
            true => self.counts = more.counts,
            false => self.counts.extend(more.counts),
        }
    }

    /// These counts, as they are in the trees `of`, which came of changes: `changed` has the new count of
    /// each block that they changed.
    pub(crate) fn bring_to(&mut self, of: TxId, changed: impl Fn(Pbn) -> Option<u64>) {
        self.of = of;
        for (pbn, count) in &mut self.counts {
            *count = changed(*pbn).unwrap_or(*count);
        }
    }
}

impl Tables {
    /// The mappings of `lbns` (rising), in their order.
    pub(crate) fn mappings(&self, source: &impl NodeSource, lbns: &[Lbn]) -> Result<Vec<Mapping>, MetaError> {
        lbn_map::get_many(source, &self.mappings, &self.run_filters, lbns)
    }

    /// Reference counts of `pbns` (any order, repeats allowed).
    pub(crate) fn counts(
        &self,
        source: &impl NodeSource,
        pbns: impl IntoIterator<Item = Pbn>,
    ) -> Result<Counts, MetaError> {
        let mut indices: Vec<u64> = pbns.into_iter().map(|p| p.0).collect();
        indices.sort_unstable();
        indices.dedup();
        let mut counts = FxHashMap::default();
        let mut large = Vec::new();
        COUNTS.get_many(source, &self.counts, &indices, |pbn, count| {
            counts.insert(Pbn(pbn), u64::from(count));
            if count == COUNT_OVERFLOW {
                large.push(Pbn(pbn));
            }
        })?;
        if !large.is_empty() {
            OVERFLOW.lookup_many(source, &self.overflow, &large, |pbn, count| {
                counts.insert(pbn, count.0);
            })?;
        }
        Ok(Counts::new(self.txid, counts))
    }

    /// Digests of `pbns` (any order, repeats allowed).
    pub(crate) fn digests(
        &self,
        source: &impl NodeSource,
        pbns: impl IntoIterator<Item = Pbn>,
    ) -> Result<FxHashMap<Pbn, Digest>, MetaError> {
        let mut indices: Vec<u64> = pbns.into_iter().map(|p| p.0).collect();
        indices.sort_unstable();
        indices.dedup();
        let mut digests = FxHashMap::default();
        DIGESTS.get_many(source, &self.digests, &indices, |pbn, digest| {
            digests.insert(Pbn(pbn), digest);
        })?;
        Ok(digests)
    }

    /// The blocks that the index names for each of `digests` (ascending), those of younger runs first: (place
    /// in `digests`, block). Of very many of one prefix the first ones of each tree.
    pub(crate) fn candidates(
        &self,
        source: &impl NodeSource,
        digests: &[Digest],
    ) -> Result<Vec<(usize, Pbn)>, MetaError> {
        let mut found: Vec<(usize, Pbn)> = Vec::new();
        if digests.is_empty() {
            return Ok(found);
        }
        // One probe for each prefix; digests with equal prefixes share it.
        let mut places: Vec<usize> = (0..digests.len()).collect();
        places.dedup_by_key(|i| digests[*i].prefix());
        let key = |prefix, pbn| HintKey { prefix, pbn: Pbn(pbn) };
        let probes: Vec<(HintKey, HintKey)> = places
            .iter()
            .map(|i| digests[*i].prefix())
            .map(|prefix| (key(prefix, 0), key(prefix, MAX_BLOCKS - 1)))
            .collect();
        HINT_SET.range_many(source, &self.hints, &probes, HINTS_READ_MAX, |probe, key| {
            let first = places[probe];
            let sharing = digests[first..].iter().take_while(|d| d.prefix() == key.prefix).count();
            found.extend((first..first + sharing).map(|i| (i, key.pbn)));
        })?;
        Ok(found)
    }

    /// Entries of the index, a little wrong while it has runs.
    pub(crate) fn index_entries(&self) -> u64 {
        KeySet::<HintKey>::entries(&self.hints)
    }

    /// All blocks marked damaged.
    pub(crate) fn bad(&self, source: &impl NodeSource) -> Result<BTreeSet<Pbn>, MetaError> {
        if self.bad.node.is_none() {
            return Ok(BTreeSet::new());
        }
        BAD.range(source, &self.bad, Pbn(0)..).map(|entry| entry.map(|(pbn, ())| pbn)).collect()
    }
}
