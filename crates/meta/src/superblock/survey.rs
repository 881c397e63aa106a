//! All superblock copies of a device, and which of them counts.
//!
//! A copy's checksum is seeded with the pool's UUID, which is read from the copy itself: what a survey calls
//! valid is an intact superblock of *some* pool. Whose it has to be is the caller's knowledge (the data
//! device's label names the pool), and copies of other pools, left over from an earlier use of the device,
//! then do not count.

use super::disk::{Decoded, claimed_pool};
use super::*;
use crate::io::{RUN_BLOCKS, device_blocks, read_blocks};
use std::ops::Range;

/// Why no superblock can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Nothing on the device looks like a superblock.
    #[error("metadata device is not formatted: no superblock in any of {copies} places")]
    NotFormatted {
        /// Places looked at.
        copies: usize,
    },
    /// There are copies, and none is intact.
    #[error("no valid superblock: {faults}")]
    AllDamaged {
        /// Place and fault of each.
        faults: String,
    },
    /// Intact superblocks, of other pools only.
    #[error("metadata device belongs to pool {found}, expected pool {expected}")]
    ForeignPool {
        /// The pool asked for.
        expected: Uuid,
        /// A pool found.
        found: Uuid,
    },
    /// Intact superblocks of more than one pool, and none was asked for.
    #[error(
        "metadata device has superblocks of pools {first} and {second}; expected one pool, name it or its data device"
    )]
    Ambiguous {
        /// One pool.
        first: Uuid,
        /// Another.
        second: Uuid,
    },
    /// The newest superblock is intact but not for this version.
    #[error("superblock in block {block}: {reason}")]
    Unsupported {
        /// The copy.
        block: MetaBlock,
        /// Why.
        reason: Unsupported,
    },
    /// The device is smaller than the pool on it.
    #[error("metadata device is too small: expected {expected} blocks of 4096 bytes, found {found}")]
    DeviceTooSmall {
        /// Blocks that the superblock records.
        expected: u64,
        /// Blocks on the device.
        found: u64,
    },
}

/// What stands where a copy may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// No sign of a superblock.
    Empty,
    /// The device could not read it.
    Unreadable(String),
    /// It was a superblock once.
    Damaged(BlockFault),
    /// Intact, but not for this version.
    Unsupported {
        /// Its pool.
        pool: Uuid,
        /// Its transaction.
        txid: TxId,
        /// Why.
        reason: Unsupported,
    },
    /// Intact.
    Valid(Box<Superblock>),
}

/// One place of a superblock copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperblockCopy {
    /// The place.
    pub block: MetaBlock,
    /// What is there.
    pub state: CopyState,
}

/// All copies found on one device. See [`load_superblocks`].
#[derive(Clone, Debug)]
pub struct Survey {
    /// Slots, then spares at the device's end, then spares where a superblock of another size has them.
    pub copies: Vec<SuperblockCopy>,
    /// Whole blocks on the device.
    pub device_blocks: u64,
}

/// Reads every superblock copy of a device, whatever pool it belongs to. A copy that cannot be read or is
/// damaged is reported as such and hinders nothing.
pub fn load_superblocks(device: &dyn BlockDevice) -> Survey {
    let blocks = device_blocks(device);
    let mut copies: Vec<SuperblockCopy> = Vec::new();
    let look = |at: MetaBlock, copies: &mut Vec<SuperblockCopy>| {
        if at.0 < blocks && copies.iter().all(|copy| copy.block != at) {
            copies.push(SuperblockCopy { block: at, state: load_copy(device, at) });
        }
    };
    Layout::copies(blocks).for_each(|at| look(at, &mut copies));
    let elsewhere: Vec<MetaBlock> =
        valid(&copies).flat_map(|sb| [TxId(0), TxId(1)].map(|t| sb.layout.spare(t))).collect();
    elsewhere.into_iter().for_each(|at| look(at, &mut copies));
    Survey { copies, device_blocks: blocks }
}

/// Blocks searched for spares from either end of a device: 16 GiB, more than the metadata of half a tebibyte.
const SEARCHED_MAX: u64 = 4 << 20;

impl Survey {
    /// Whether nothing is left where copies stand, although there may have been some.
    pub fn is_lost(&self) -> bool {
        valid(&self.copies).next().is_none()
            && !self.copies.iter().any(|copy| matches!(copy.state, CopyState::Unsupported { .. }))
    }

    /// Looks for copies in other places, after the device has grown and its slots were lost: the spares stand
    /// at its old end, which nobody knows. Reads up to 16 GiB from either end.
    pub fn search(&mut self, device: &dyn BlockDevice) {
        let blocks = self.device_blocks;
        let first = blocks.min(SEARCHED_MAX);
        for range in [0..first, first.max(blocks.saturating_sub(SEARCHED_MAX))..blocks] {
            for start in range.clone().step_by(RUN_BLOCKS) {
                self.search_run(device, start..range.end.min(start + RUN_BLOCKS as u64));
            }
        }
    }

    fn search_run(&mut self, device: &dyn BlockDevice, run: Range<u64>) {
        let numbers: Vec<MetaBlock> = run.map(MetaBlock).collect();
        let mut blocks = vec![Block::zeroed(); numbers.len()];
        // What cannot be read together is tried alone.
        let read = read_blocks(device, &numbers, &mut blocks);
        for ((at, block), read) in numbers.into_iter().zip(&blocks).zip(read) {
            if read.is_ok() && claimed_pool(block).is_none()
                || self.copies.iter().any(|copy| copy.block == at)
            {
                continue;
            }
            if let state @ CopyState::Valid(_) = load_copy(device, at) {
                self.copies.push(SuperblockCopy { block: at, state });
            }
        }
    }

    /// The newest valid superblock of `pool`, or of the only pool there is.
    pub fn newest(&self, pool: Option<Uuid>) -> Result<&Superblock, SuperblockError> {
        let pool = match pool {
            Some(pool) => pool,
            None => self.only_pool()?,
        };
        let newest = self.of(pool).max_by_key(|sb| sb.txid);
        if let Some(error) = self.newer_unsupported(pool, newest.map(|sb| sb.txid)) {
            return Err(error);
        }
        let newest = newest.ok_or_else(|| self.nothing_of(pool))?;
        let expected = newest.layout.metadata_blocks;
        if self.device_blocks < expected {
            return Err(SuperblockError::DeviceTooSmall { expected, found: self.device_blocks });
        }
        Ok(newest)
    }

    /// The valid superblock that would be the newest of its pool without `newest`.
    pub fn older(&self, newest: &Superblock) -> Option<&Superblock> {
        self.of(newest.pool).filter(|sb| sb.txid < newest.txid).max_by_key(|sb| sb.txid)
    }

    /// The number for the next transaction of `pool`: one more than any copy has.
    pub fn next_txid(&self, pool: Uuid) -> TxId {
        let seen = self.copies.iter().filter_map(|copy| match &copy.state {
            CopyState::Valid(sb) if sb.pool == pool => Some(sb.txid),
            CopyState::Unsupported { pool: other, txid, .. } if *other == pool => Some(*txid),
            _ => None,
        });
        seen.max().map_or(TxId(1), TxId::next)
    }

    /// The highest epoch in any copy of `pool`.
    pub fn highest_epoch(&self, pool: Uuid) -> Option<Epoch> {
        self.of(pool).map(|sb| sb.epoch).max()
    }

    fn of(&self, pool: Uuid) -> impl Iterator<Item = &Superblock> {
        valid(&self.copies).filter(move |sb| sb.pool == pool)
    }

    fn pools(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.copies.iter().filter_map(|copy| match &copy.state {
            CopyState::Valid(sb) => Some(sb.pool),
            CopyState::Unsupported { pool, .. } => Some(*pool),
            CopyState::Empty | CopyState::Unreadable(_) | CopyState::Damaged(_) => None,
        })
    }

    fn only_pool(&self) -> Result<Uuid, SuperblockError> {
        let first = self.pools().next().ok_or_else(|| self.nothing_at_all())?;
        match self.pools().find(|&pool| pool != first) {
            Some(second) => Err(SuperblockError::Ambiguous { first, second }),
            None => Ok(first),
        }
    }

    fn newer_unsupported(&self, wanted: Uuid, newest: Option<TxId>) -> Option<SuperblockError> {
        self.copies.iter().find_map(|copy| match &copy.state {
            CopyState::Unsupported { pool, txid, reason } if *pool == wanted && Some(*txid) > newest => {
                Some(SuperblockError::Unsupported { block: copy.block, reason: reason.clone() })
            }
            _ => None,
        })
    }

    fn nothing_of(&self, expected: Uuid) -> SuperblockError {
        match self.pools().find(|&pool| pool != expected) {
            Some(found) => SuperblockError::ForeignPool { expected, found },
            None => self.nothing_at_all(),
        }
    }

    fn nothing_at_all(&self) -> SuperblockError {
        let faults: Vec<String> = self
            .copies
            .iter()
            .filter_map(|copy| match &copy.state {
                CopyState::Damaged(fault) => Some(format!("block {}: {fault}", copy.block)),
                CopyState::Unreadable(error) => Some(format!("block {}: {error}", copy.block)),
                CopyState::Empty | CopyState::Unsupported { .. } | CopyState::Valid(_) => None,
            })
            .collect();
        if faults.is_empty() {
            return SuperblockError::NotFormatted { copies: self.copies.len() };
        }
        SuperblockError::AllDamaged { faults: faults.join("; ") }
    }
}

fn valid(copies: &[SuperblockCopy]) -> impl Iterator<Item = &Superblock> {
    copies.iter().filter_map(|copy| match &copy.state {
        CopyState::Valid(sb) => Some(&**sb),
        _ => None,
    })
}

fn load_copy(device: &dyn BlockDevice, at: MetaBlock) -> CopyState {
    let mut block = Block::zeroed();
    if let Err(error) = device.read(offset(at.0), block.as_mut().as_mut_bytes()) {
        return CopyState::Unreadable(error.to_string());
    }
    let Some(pool) = claimed_pool(&block) else {
        return CopyState::Empty;
    };
    match Superblock::decode(&block, at) {
        Ok(Decoded::Known(superblock)) => CopyState::Valid(superblock),
        Ok(Decoded::Unsupported(reason)) => {
            let txid = TxId(block.header.birth.get());
            match ensure_txid(txid) {
                Ok(()) => CopyState::Unsupported { pool, txid, reason },
                Err(fault) => CopyState::Damaged(fault),
            }
        }
        Err(fault) => CopyState::Damaged(fault),
    }
}
