//! Comparing the bytes of blocks to be written with those of stored blocks that have the same digest.
//!
//! All blocks of a batch are compared with their first candidate in few large reads, then those that differ
//! with their second, and so on: at most [`crate::state::delta::ALIKE_MAX`] times. What came out is
//! remembered as long as the pin is held under which it was found: the block keeps its content, and a round
//! that comes again reads nothing twice.

use crate::engine::Engine;
use crate::io::block_write::BlockWrite;
use crate::io::lookup::Plan;
use dedup_device::{AlignedBuf, ReadOp};
use dedup_schema::Pbn;
use rustc_hash::FxHashMap;

/// Bytes of stored blocks in memory at a time: a few large reads.
const COMPARED_BYTES: usize = 4 << 20;

impl Engine {
    /// Whether a digest that is the same is not enough.
    pub(crate) fn compares_bytes(&self) -> bool {
        self.options.verify_match
    }

    /// Makes hits of blocks that were found to have the same bytes as one of their candidates (place among
    /// the plans, block), and leaves of the candidates those that have to be read. Whether there are none.
    pub(crate) fn remember(
        &self,
        slice: &[BlockWrite<'_>],
        plans: &mut [(usize, Plan)],
        candidates: &mut Vec<(usize, Pbn)>,
    ) -> bool {
        candidates.retain(|(place, pbn)| {
            let (item, plan) = &mut plans[*place];
            let known = slice[*item].compared.iter().find(|(compared, _)| compared == pbn);
            if let (Plan::Alike, Some((_, true))) = (&plan, known) {
                *plan = Plan::Hit(*pbn);
            }
            *plan == Plan::Alike && known.is_none()
        });
        candidates.is_empty()
    }

    /// Makes hits of blocks that have the same bytes as one of their candidates. One whose bytes differ, or
    /// cannot be read, is none.
    pub(crate) fn compare(
        &self,
        slice: &mut [BlockWrite<'_>],
        plans: &mut [(usize, Plan)],
        mut candidates: Vec<(usize, Pbn)>,
    ) {
        let mut collisions = 0;
        while !self.remember(slice, plans, &mut candidates) {
            // The first candidate of each place, side by side where they lie so.
            let mut met = FxHashMap::default();
            let is_first = |(place, pbn): &&(usize, Pbn)| *met.entry(*place).or_insert(*pbn) == *pbn;
            let mut pairs: Vec<(Pbn, usize)> =
                candidates.iter().filter(is_first).map(|(place, pbn)| (*pbn, plans[*place].0)).collect();
            pairs.sort_unstable();
            for part in pairs.chunks((COMPARED_BYTES / self.block_size as usize).max(1)) {
                collisions += self.compare_part(slice, part);
            }
        }
        if collisions > 0 {
            self.state.lock().counters.collisions += collisions;
        }
    }

    /// Compares blocks (stored, item), ascending, and notes what came out. Returns how many were read and
    /// differ.
    fn compare_part(&self, slice: &mut [BlockWrite<'_>], pairs: &[(Pbn, usize)]) -> u64 {
        let mut pbns: Vec<Pbn> = pairs.iter().map(|(pbn, _)| *pbn).collect();
        pbns.dedup();
        let size = self.block_size as usize;
        let mut memory = AlignedBuf::zeroed(pbns.len() * size);
        let mut bufs = memory.chunks_mut(size);
        let runs: Vec<&[Pbn]> = pbns.chunk_by(|a, b| a.0 + 1 == b.0).collect();
        let op = |run: &&[Pbn]| ReadOp {
            offset: run[0].0 * self.block_size,
            bufs: bufs.by_ref().take(run.len()).collect(),
            result: Ok(()),
        };
        let mut ops: Vec<ReadOp<'_>> = runs.iter().map(op).collect();
        self.data.read_batch(&mut ops);
        let results: Vec<std::io::Result<()>> = ops.into_iter().map(|op| op.result).collect();
        let mut readable: FxHashMap<Pbn, &[u8]> = FxHashMap::default();
        let mut stored = memory.chunks_mut(size);
        for (run, mut result) in runs.into_iter().zip(results) {
            for pbn in run {
                let Some(stored) = stored.next() else { break };
                // One block that cannot be read does not take its neighbours with it.
                let read = match result.is_err() && run.len() > 1 {
                    true => self.data.read(pbn.0 * self.block_size, stored),
                    false => std::mem::replace(&mut result, Ok(())),
                };
                match read {
                    Ok(()) => _ = readable.insert(*pbn, stored),
                    Err(error) => {
                        tracing::error!("data device: read of block {pbn}, to compare it: {error}");
                    }
                }
            }
        }
        let mut collisions = 0;
        for (pbn, item) in pairs {
            let block = &mut slice[*item];
            let stored = readable.get(pbn);
            let is_same = stored.is_some_and(|stored| *stored == block.data);
            collisions += u64::from(stored.is_some() && !is_same);
            block.compared.push((*pbn, is_same));
        }
        collisions
    }
}
