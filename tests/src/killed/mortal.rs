//! A device as a process sees it that dies: nothing is done any more, and what was under way is done in part. The device below has lost nothing.

use super::Death;
use dedup_device::{BlockDevice, ReadOp, SimDevice, WriteOp};
use std::io;
use std::sync::Arc;

/// Bytes of a sector, which is written whole or not at all.
const SECTOR: usize = 512;

/// A simulated device until the process dies.
#[derive(Debug)]
pub struct Mortal {
    below: Arc<SimDevice>,
    death: Arc<Death>,
}

impl Mortal {
    /// The device of a process that dies then.
    pub fn new(below: &Arc<SimDevice>, death: &Arc<Death>) -> Arc<Self> {
        Arc::new(Self { below: Arc::clone(below), death: Arc::clone(death) })
    }

    fn alive(&self) -> io::Result<()> {
        if self.death.event() { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }
}

impl BlockDevice for Mortal {
    fn size(&self) -> u64 {
        self.below.size()
    }
    fn io_alignment(&self) -> usize {
        self.below.io_alignment()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.death.is_over() { self.alive() } else { self.below.read(offset, buf) }
    }
    /// Two events: who dies in between has written some sectors.
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.alive()?;
        if let Err(dead) = self.alive() {
            let sectors = self.death.events() as usize % (buf.len() / SECTOR + 1);
            self.below.write(offset, &buf[..sectors * SECTOR])?;
            return Err(dead);
        }
        self.below.write(offset, buf)
    }
    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        match self.death.is_over() {
            true => ops.iter_mut().for_each(|op| op.result = self.alive()),
            false => self.below.read_batch(ops),
        }
    }
    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        for op in ops {
            let bytes = op.bufs.concat();
            op.result = self.write(op.offset, &bytes);
        }
    }
    fn flush(&self) -> io::Result<()> {
        self.alive()?;
        self.below.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.alive()?;
        self.below.discard(offset, len)
    }
    fn bypass_cache(&self) -> io::Result<bool> {
        self.below.bypass_cache()
    }
}
