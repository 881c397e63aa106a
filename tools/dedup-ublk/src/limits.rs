//! What the kernel is told of a device: its size, block sizes, cache and limits.
//!
//! ```text
//!   logical block    512 unless asked otherwise: what is addressed. Partition tables mean other places if it changes
//!   physical block   the volume's block, up to a page: file systems align to it
//!   minimum I/O      the volume's block: smaller writes are read-modify-write
//!   optimal I/O      a batch that is written in one go
//!   discard          whole volume blocks, in pieces of 1 GiB; write-zeroes likewise
//! ```
//!
//! Not here: how the driver takes it (`driver/`).

use crate::command::SECTOR;
use dedup_volume::Volume;

/// The largest block size that the driver takes as logical, and file systems as physical: a page of every
/// machine.
const PAGE: u32 = 4096;
/// Bytes of one discard or write-zeroes. What it costs is what it unmaps, so this only bounds how long one
/// can take.
const UNMAP_MAX: u64 = 1 << 30;
/// Bytes that a writer does well to write at once: large enough that new blocks go out as long sequential
/// writes.
const OPTIMAL_IO: u32 = 256 << 10;

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of the smallest addressable unit.
    pub logical_block: u32,
    /// Bytes that are written as a whole, as file systems see it.
    pub physical_block: u32,
    /// Bytes below which a write costs a read.
    pub io_min: u32,
    /// Bytes that are best written at once.
    pub io_optimal: u32,
    /// Bytes of the largest read or write.
    pub io_max: u32,
    /// Bytes that a discard must cover to have an effect.
    pub discard_granularity: u32,
    /// Sectors of the largest discard or write-zeroes; 0 if the device takes none.
    pub unmap_max_sectors: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Limits {
    /// Those of a volume.
    pub fn of(volume: &Volume, logical_block: u32, io_max: u32) -> Self {
        Self::new(volume.logical_size(), volume.block_size(), volume.is_read_only(), logical_block, io_max)
    }

    /// Those of a device of `size` bytes in blocks of `block_size`. All but `size` are powers of two;
    /// `logical_block` is at most a page.
    pub fn new(size: u64, block_size: u32, read_only: bool, logical_block: u32, io_max: u32) -> Self {
        let io_min = block_size.max(logical_block);
        let unmap = UNMAP_MAX / SECTOR;
        Self {
            // A rest that is no whole logical block cannot be addressed.
            size: size / u64::from(logical_block) * u64::from(logical_block),
            logical_block,
            physical_block: io_min.min(PAGE),
            io_min,
            io_optimal: OPTIMAL_IO.max(io_min),
            io_max,
            discard_granularity: io_min,
            unmap_max_sectors: if read_only { 0 } else { unmap as u32 },
            read_only,
        }
    }

    /// Whether flushes and FUA mean something: a device without writes has nothing to flush.
    pub fn volatile_cache(&self) -> bool {
        !self.read_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(block_size: u32, logical_block: u32) -> Limits {
        Limits::new(1 << 30, block_size, false, logical_block, 1 << 20)
    }

    #[test]
    fn every_block_size_gives_limits_that_the_driver_takes() {
        for block_size in (9..=20).map(|shift| 1 << shift) {
            for logical in [512, 1024, 2048, 4096] {
                let l = limits(block_size, logical);
                for size in [l.logical_block, l.physical_block, l.io_min, l.io_optimal, l.discard_granularity]
                {
                    assert!(size.is_power_of_two());
                }
                assert!(l.logical_block <= l.physical_block && l.physical_block <= PAGE.max(l.logical_block));
                assert!(l.physical_block <= l.io_min && l.io_min <= l.io_optimal);
                assert!(l.discard_granularity >= l.logical_block);
            }
        }
    }

    #[test]
    fn the_volumes_block_is_what_file_systems_align_to_and_discard_by() {
        let l = limits(65536, 512);
        assert_eq!((l.logical_block, l.physical_block), (512, 4096));
        assert_eq!((l.io_min, l.discard_granularity), (65536, 65536));
        let l = limits(512, 512);
        assert_eq!((l.physical_block, l.io_min, l.discard_granularity), (512, 512, 512));
    }

    #[test]
    fn a_size_that_is_no_whole_logical_block_is_rounded_down() {
        assert_eq!(Limits::new((1 << 20) + 512, 512, false, 4096, 1 << 20).size, 1 << 20);
    }

    #[test]
    fn a_read_only_device_takes_no_discard_and_has_no_cache() {
        let l = Limits::new(1 << 30, 4096, true, 512, 1 << 20);
        assert!(l.read_only && l.unmap_max_sectors == 0 && !l.volatile_cache());
        assert!(limits(4096, 512).volatile_cache());
    }
}
