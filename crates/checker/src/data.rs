//! The data itself: every block in use is read, in the order of the device, and compared with its digest and
//! its checksum.
//!
//! Blocks next to each other are read together, up to 4 MiB, and digested on all cores. A read that fails is
//! repeated block by block, so that one bad sector costs one block. What the log carries counts as written to
//! its place, as an open will do.

use crate::report::{Kind, hex};
use crate::truth::Truth;
use crate::{Check, Phase, Progress};
use dedup_device::{AlignedBuf, BlockDevice};
use dedup_meta::BlockType;
use dedup_schema::{DIGESTS, Digest, DigestAlgorithm, Overlay};
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::io;

/// Bytes of a read: beyond this no disk gets faster.
const READ_BYTES: usize = 4 << 20;
/// Runs below this are digested by the caller's thread: waking a worker costs about as much as 16 KiB of
/// SHA-256.
const PARALLEL_BYTES_MIN: usize = 64 << 10;

/// Blocks next to each other.
struct Run {
    first: u64,
    blocks: usize,
}

impl Check<'_> {
    /// Reads and compares all data.
    pub(crate) fn content(&mut self, truth: &mut Truth) {
        let (Some(device), Some(algorithm)) =
            (self.data, DigestAlgorithm::from_u8(self.newest.digest_algorithm))
        else {
            return;
        };
        let size = self.newest.block_size as usize;
        let device = &Overlay::new(device, size as u64, std::mem::take(&mut truth.contents));
        let total = truth.recount.used();
        // No more than there is to read: a test checks thousands of volumes of a few blocks.
        let blocks_max = (READ_BYTES / size).min(usize::try_from(total).unwrap_or(usize::MAX)).max(1);
        // Room for the alignment of the device at both ends.
        let mut buffer = AlignedBuf::zeroed(blocks_max * size + 2 * device.io_alignment());
        let mut pbns = truth.recount.blocks().peekable();
        while let Some(first) = pbns.next() {
            let mut run = Run { first, blocks: 1 };
            while run.blocks < blocks_max && pbns.next_if_eq(&(first + run.blocks as u64)).is_some() {
                run.blocks += 1;
            }
            self.run_of_blocks(device, algorithm, &run, &mut buffer, truth);
            self.summary.data_checked += run.blocks as u64;
            let done = self.summary.data_checked;
            (self.progress)(Progress { phase: Phase::Data, done, total });
        }
    }

    fn run_of_blocks(
        &mut self,
        device: &dyn BlockDevice,
        algorithm: DigestAlgorithm,
        run: &Run,
        buffer: &mut AlignedBuf,
        truth: &Truth,
    ) {
        let size = self.newest.block_size as usize;
        match read(device, run, size, buffer) {
            Ok(content) => {
                let one = |block: &[u8]| (algorithm.digest(block), crc32c::crc32c(block));
                let found: Vec<(Digest, u32)> = match content.len() >= PARALLEL_BYTES_MIN && run.blocks > 1 {
                    true => content.par_chunks(size).map(one).collect(),
                    false => content.chunks(size).map(one).collect(),
                };
                self.compare(run, &found, truth);
            }
            Err(_) if run.blocks > 1 => {
                for pbn in run.first..run.first + run.blocks as u64 {
                    self.run_of_blocks(device, algorithm, &Run { first: pbn, blocks: 1 }, buffer, truth);
                }
            }
            Err(error) => {
                self.findings.add(
                    Kind::DataUnreadable,
                    format!("PBN {}", run.first),
                    "content",
                    format!("{size} bytes"),
                    error,
                );
            }
        }
    }

    fn compare(&mut self, run: &Run, found: &[(Digest, u32)], truth: &Truth) {
        let stored = self.stored_digests(run);
        for (pbn, (digest, crc)) in (run.first..).zip(found) {
            let place = format_args!("PBN {pbn}");
            let kind = if truth.bad.contains(&pbn) { Kind::DataKnownBad } else { Kind::DataMismatch };
            let expected = truth.new_digests.get(&pbn).or_else(|| stored.get(&pbn));
            let checksum = truth.checksums.as_ref().map(|checksums| checksums.get(pbn));
            // A digest that is missing or unreadable has been reported with the trees.
            match expected.filter(|expected| **expected != Digest::default()) {
                Some(expected) if expected != digest => {
                    self.findings.add(kind, place, "digest", expected, digest)
                }
                _ => {
                    if let Some(expected) = checksum.filter(|expected| expected != crc) {
                        self.findings.add(kind, place, "crc", hex(expected), hex(*crc));
                    }
                }
            }
        }
    }

    /// The digests of a run, as the tree has them; those below a damaged node are left out.
    fn stored_digests(&mut self, run: &Run) -> FxHashMap<u64, Digest> {
        let (root, mut stored) = (self.newest.roots.digest, FxHashMap::default());
        let pbns: Vec<u64> = (run.first..).take(run.blocks).collect();
        let all = DIGESTS.get_many(&*self.store, &root, &pbns, |pbn, digest| {
            stored.insert(pbn, digest);
        });
        if all.is_err() {
            stored.clear();
            for pbn in pbns {
                match DIGESTS.get(&*self.store, &root, pbn) {
                    Ok(digest) => {
                        stored.insert(pbn, digest);
                    }
                    Err(error) => self.findings.node_again(BlockType::Digest, &error),
                }
            }
        }
        stored
    }
}

/// The content of a run, read with the alignment that the device wants.
fn read<'b>(
    device: &dyn BlockDevice,
    run: &Run,
    size: usize,
    buffer: &'b mut AlignedBuf,
) -> io::Result<&'b [u8]> {
    let (alignment, size) = (device.io_alignment() as u64, size as u64);
    let start = run.first.checked_mul(size).ok_or(io::ErrorKind::InvalidInput)?;
    let end = start.checked_add(run.blocks as u64 * size).ok_or(io::ErrorKind::InvalidInput)?;
    let aligned = start - start % alignment
        ..end.checked_next_multiple_of(alignment).ok_or(io::ErrorKind::InvalidInput)?;
    let bytes = &mut buffer[..(aligned.end - aligned.start) as usize];
    device.read(aligned.start, bytes)?;
    Ok(&bytes[(start - aligned.start) as usize..][..(end - start) as usize])
}
