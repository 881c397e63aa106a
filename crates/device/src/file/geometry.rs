//! Size, alignment and sector of an open file or block device.
//!
//! The kernel is asked in this order: `statx` (6.1 and later) for what direct I/O must be aligned to, the
//! block device's own logical sector, and where neither answers, a read of one sector and one page to see
//! which of them passes.

use super::IoMode;
use crate::AlignedBuf;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Stat, StatxFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;

/// The least logical sector of any disk, and the least physical one where nothing better is known.
const SECTOR_MIN: usize = 512;
/// The largest alignment that direct I/O is known to ask for; the alignment of [`AlignedBuf`].
const ALIGNMENT_MAX: usize = 4096;

/// What does not change while a device is open.
#[derive(Debug)]
pub(super) struct Geometry {
    /// Bytes, a multiple of `io_alignment`.
    pub(super) size: u64,
    /// What offsets and lengths must be multiples of.
    pub(super) io_alignment: usize,
    /// Bytes that the medium writes as a whole.
    pub(super) physical_sector: usize,
    /// What a discarded range must be a multiple of.
    pub(super) discard_unit: u64,
    /// A regular file, which has holes.
    pub(super) is_file: bool,
}

impl Geometry {
    /// Measures; `None` if `io` is direct and the file cannot do it.
    pub(super) fn of(fd: &OwnedFd, io: IoMode) -> io::Result<Option<Self>> {
        let stat = rustix::fs::fstat(fd)?;
        let is_block_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        let io_alignment = match io {
            IoMode::Buffered => 1,
            IoMode::Direct => match direct_alignment(fd.as_fd())? {
                Some(alignment) => alignment,
                None => return Ok(None),
            },
        };
        let (bytes, physical_sector, discard_unit) = if is_block_device {
            let end = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))?;
            let logical = rustix::fs::ioctl_blksszget(fd)?;
            (end, rustix::fs::ioctl_blkpbszget(fd)? as usize, u64::from(logical.max(1)))
        } else {
            // The kernel never reports a negative size.
            (stat.st_size as u64, file_physical_sector(&stat), 1)
        };
        let size = bytes - bytes % io_alignment as u64;
        Ok(Some(Self { size, io_alignment, physical_sector, discard_unit, is_file: !is_block_device }))
    }
}

/// What direct I/O on `fd`, which was opened for it, must be aligned to in memory, offset and length: a power
/// of two.
/// `None` if it cannot be had, or only at more than [`ALIGNMENT_MAX`].
pub(super) fn direct_alignment(fd: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    let asked = match rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(statx) if StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN) => {
            // Zero means that this file refuses direct I/O, whatever its file system does elsewhere.
            Some(
                statx.stx_dio_offset_align.max(statx.stx_dio_mem_align) as usize
                    * usize::from(statx.stx_dio_offset_align > 0),
            )
        }
        Ok(_) | Err(Errno::NOSYS) => rustix::fs::ioctl_blksszget(fd).ok().map(|sector| sector as usize),
        Err(e) => return Err(e.into()),
    };
    match asked {
        Some(alignment) => Ok(valid(alignment)),
        None => probe(fd),
    }
}

/// A sector at least: less is only ever said of memory, and no medium writes less.
fn valid(alignment: usize) -> Option<usize> {
    let usable = alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX;
    usable.then_some(alignment.max(SECTOR_MIN))
}

/// The least alignment at which a read passes.
fn probe(fd: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    let mut buf = AlignedBuf::zeroed(2 * ALIGNMENT_MAX);
    for alignment in [SECTOR_MIN, ALIGNMENT_MAX] {
        // At an odd multiple in both memory and file, so that a stricter file has reason to refuse.
        match rustix::io::pread(fd, &mut buf[alignment..2 * alignment], alignment as u64) {
            Ok(_) => return Ok(Some(alignment)),
            Err(Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

/// The physical sector of the disk under a file's file system, if that is one disk.
pub(super) fn file_physical_sector(stat: &Stat) -> usize {
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    // A partition has its queue at the whole disk, one directory up.
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| {
            let path = format!("/sys/dev/block/{major}:{minor}/{queue}/physical_block_size");
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        })
        .unwrap_or(SECTOR_MIN)
}
