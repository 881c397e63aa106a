//! Ours: a volume of 512-byte blocks whose data goes nowhere and whose metadata is real.
//!
//! An insert is a write of one block, block `i` to LBN `i`; a commit is a FLUSH. Digests are computed by the
//! calling thread. Half of the memory is for metadata blocks, half for the two deltas.

use super::blocks::{self, BLOCK};
use super::phase::{Index, Phase};
use crate::engine::execute;
use anyhow::{Context, Result};
use dedup_device::{AlignedBuf, BlockDevice, FileDevice, IoMode, OpenMode, ReadOp, WriteOp};
use dedup_volume::{Digest, FormatOptions, Op, OpenOptions, Request, geometry};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Blocks of one request; two of the volume's slices.
const REQUEST_BLOCKS: u64 = 2048;
/// Bytes of an operation in a delta, as `OpenOptions::delta_max` says.
const OPERATION_BYTES: u64 = 200;
/// Data blocks beyond the keys': the label's, and as many as a volume of any size should have.
const SPARE_BLOCKS: u64 = 4096;

/// See the module.
pub(super) struct Volume {
    volume: dedup_volume::Volume,
    memory: AlignedBuf,
}

/// A device that keeps its label and nothing else. What is not kept cannot be read.
#[derive(Debug)]
struct Nowhere {
    size: u64,
    label: File,
}

/// What is kept: what a label may take.
const LABEL_BYTES: u64 = 4096;

impl Volume {
    pub(super) fn open(phase: &Phase, io: IoMode) -> Result<Self> {
        let data_blocks = phase.capacity + SPARE_BLOCKS;
        let data: Arc<dyn BlockDevice> =
            Arc::new(Nowhere::open(&phase.dir.join("label"), data_blocks * BLOCK as u64)?);
        let path = phase.dir.join("metadata");
        let is_new = !fs::exists(&path)?;
        let metadata: Arc<dyn BlockDevice> = match is_new {
            true => {
                Arc::new(FileDevice::create(&path, geometry::metadata_size(phase.capacity, data_blocks), io)?)
            }
            false => Arc::new(FileDevice::open(&path, OpenMode::ReadWrite, io)?),
        };
        if is_new {
            let size = phase.capacity * BLOCK as u64;
            let options = FormatOptions {
                block_size: BLOCK as u32,
                // It would look for what is on the data device otherwise, where there is nothing to be read.
                force: true,
                ..FormatOptions::new(size, Uuid::from_u128(1), Uuid::from_u128(2))
            };
            dedup_volume::format(&*data, &metadata, &options).context("cannot format the volume")?;
        }
        let options = OpenOptions {
            cache_bytes: phase.cache_bytes / 2,
            delta_max: phase.cache_bytes / 2 / 2 / OPERATION_BYTES,
            // There is no data to be spared a flush.
            log_data: 0,
            digest_threads: 1,
            ..OpenOptions::default()
        };
        let volume =
            dedup_volume::Volume::open(data, metadata, &options).context("cannot open the volume")?;
        Ok(Self { volume, memory: AlignedBuf::zeroed(REQUEST_BLOCKS as usize * BLOCK) })
    }
}

impl Index for Volume {
    fn insert(&mut self, numbers: Range<u64>) -> Result<()> {
        let mut first = numbers.start;
        while first < numbers.end {
            let next = (first + REQUEST_BLOCKS).min(numbers.end);
            let data = &mut self.memory[..(next - first) as usize * BLOCK];
            blocks::lay_out(first..next, data);
            let op = Op::Write { offset: first * BLOCK as u64, data, fua: false };
            execute(&self.volume, vec![Request { tag: 0, op }])?;
            first = next;
        }
        execute(&self.volume, vec![Request { tag: 0, op: Op::Flush }])
    }

    fn find(&mut self, keys: &[[u8; 32]]) -> Result<u64> {
        let digests: Vec<Digest> = keys.iter().map(|key| Digest(*key)).collect();
        let found = self.volume.find(&digests).context("cannot look up digests")?;
        Ok(found.iter().flatten().count() as u64)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.volume.close().context("cannot close the volume")
    }
}

impl Nowhere {
    fn open(path: &Path, size: u64) -> Result<Self> {
        let open = || {
            let label = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            label.set_len(LABEL_BYTES)?;
            Ok::<_, io::Error>(label)
        };
        Ok(Self { size, label: open().with_context(|| format!("cannot open {}", path.display()))? })
    }
}

impl BlockDevice for Nowhere {
    fn size(&self) -> u64 {
        self.size
    }

    fn io_alignment(&self) -> usize {
        1
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 <= LABEL_BYTES {
            return self.label.read_exact_at(buf, offset);
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{} bytes at {offset}: only the first {LABEL_BYTES} are kept", buf.len()),
        ))
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let kept = LABEL_BYTES.saturating_sub(offset).min(buf.len() as u64) as usize;
        self.label.write_all_at(&buf[..kept], offset)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        for op in ops {
            let mut offset = op.offset;
            op.result = op.bufs.iter_mut().try_for_each(|buf| {
                let at = offset;
                offset += buf.len() as u64;
                self.read(at, buf)
            });
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        for op in ops {
            let mut offset = op.offset;
            op.result = op.bufs.iter().try_for_each(|buf| {
                let at = offset;
                offset += buf.len() as u64;
                self.write(at, buf)
            });
        }
    }

    /// The label is written by the format only, and what is measured is not power cuts.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Nothing but the label is ever read.
    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}
