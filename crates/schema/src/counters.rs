//! The counters of dm-dedup, and ours. Absolute since format; every log block carries them, so a crash loses
//! none.

/// What happened since the volume was formatted. Block writes, not requests, unless it says otherwise.
///
/// `writes = uniqwrites + dupwrites + zerowrites = newwrites + overwrites`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Blocks written by clients.
    pub writes: u64,
    /// Of these, blocks whose content was new.
    pub uniqwrites: u64,
    /// Of these, blocks whose content was stored already.
    pub dupwrites: u64,
    /// Of these, blocks of zeros, which take no space.
    pub zerowrites: u64,
    /// Of these, blocks whose LBN was mapped.
    pub overwrites: u64,
    /// Of these, blocks whose LBN was not mapped.
    pub newwrites: u64,
    /// Blocks read because a write covered them in part.
    pub reads_on_writes: u64,
    /// Mapped blocks that trims and range zeroing unmapped.
    pub trimmed: u64,
    /// Stale index entries removed by garbage collection.
    pub gc_counter: u64,
    /// Blocks found damaged by a read.
    pub bad_blocks: u64,
    /// Damaged blocks healed by a write of the same content.
    pub healed_blocks: u64,
    /// Digest matches whose bytes differed (with byte comparison).
    pub collisions: u64,
}

/// Slots on disk; those behind the last field are 0.
pub const COUNTER_SLOTS: usize = 16;

impl Counters {
    /// The on-disk order.
    pub fn to_slots(&self) -> [u64; COUNTER_SLOTS] {
        let mut slots = [0; COUNTER_SLOTS];
        slots[..12].copy_from_slice(&[
            self.writes,
            self.uniqwrites,
            self.dupwrites,
            self.zerowrites,
            self.overwrites,
            self.newwrites,
            self.reads_on_writes,
            self.trimmed,
            self.gc_counter,
            self.bad_blocks,
            self.healed_blocks,
            self.collisions,
        ]);
        slots
    }

    /// From the on-disk order.
    pub fn from_slots(slots: &[u64; COUNTER_SLOTS]) -> Self {
        Self {
            writes: slots[0],
            uniqwrites: slots[1],
            dupwrites: slots[2],
            zerowrites: slots[3],
            overwrites: slots[4],
            newwrites: slots[5],
            reads_on_writes: slots[6],
            trimmed: slots[7],
            gc_counter: slots[8],
            bad_blocks: slots[9],
            healed_blocks: slots[10],
            collisions: slots[11],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_survives_the_disk() {
        let mut slots = [0; COUNTER_SLOTS];
        (0..12).for_each(|i| slots[i] = i as u64 + 1);
        assert_eq!(Counters::from_slots(&slots).to_slots(), slots);
    }
}
