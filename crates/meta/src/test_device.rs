//! A small device in memory for this crate's tests: counts operations, fails on demand, and remembers the
//! writes since the last flush so that a test can lose any of them in a crash.

use dedup_device::{BlockDevice, ReadOp, WriteOp};
use std::io;
use std::sync::Mutex;

use crate::META_BLOCK_SIZE;

/// See the module.
#[derive(Debug)]
pub(crate) struct TestDevice {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// First byte of each 4 KiB block written since the last flush, in order.
    volatile: Vec<usize>,
    write_sizes: Vec<usize>,
    reads: usize,
    bytes_read: usize,
    fail_writes: bool,
    unreadable: Vec<u64>,
}

impl TestDevice {
    /// A device of this many zeroed metadata blocks.
    pub(crate) fn new(blocks: usize) -> Self {
        let bytes = vec![0; blocks * META_BLOCK_SIZE];
        Self { state: Mutex::new(State { durable: bytes.clone(), bytes, ..State::default() }) }
    }

    /// Bytes of each write operation so far.
    pub(crate) fn write_sizes(&self) -> Vec<usize> {
        self.state.lock().unwrap().write_sizes.clone()
    }

    /// Read operations so far.
    pub(crate) fn reads(&self) -> usize {
        self.state.lock().unwrap().reads
    }

    /// Bytes of all read operations so far.
    pub(crate) fn bytes_read(&self) -> usize {
        self.state.lock().unwrap().bytes_read
    }

    /// From now on all writes fail, or none.
    pub(crate) fn fail_writes(&self, fail: bool) {
        self.state.lock().unwrap().fail_writes = fail;
    }

    /// Reads that touch this metadata block fail.
    pub(crate) fn make_unreadable(&self, block: u64) {
        self.state.lock().unwrap().unreadable.push(block);
    }

    /// Flips bits of one byte, on the medium too.
    pub(crate) fn corrupt(&self, block: u64, byte: usize) {
        let mut s = self.state.lock().unwrap();
        let at = block as usize * META_BLOCK_SIZE + byte;
        s.bytes[at] ^= 0x5a;
        s.durable[at] = s.bytes[at];
    }

    /// Power loss: of the blocks written since the last flush only those survive for which `keep(index)` says
    /// so.
    pub(crate) fn crash(&self, mut keep: impl FnMut(usize) -> bool) {
        let mut s = self.state.lock().unwrap();
        let State { bytes, durable, volatile, .. } = &mut *s;
        for (index, &at) in volatile.iter().enumerate() {
            if keep(index) {
                durable[at..at + META_BLOCK_SIZE].copy_from_slice(&bytes[at..at + META_BLOCK_SIZE]);
            }
        }
        volatile.clear();
        bytes.clone_from(durable);
    }

    /// 4 KiB blocks written since the last flush.
    pub(crate) fn volatile(&self) -> usize {
        self.state.lock().unwrap().volatile.len()
    }

    fn range(s: &State, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = offset as usize;
        if start + len > s.bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(start..start + len)
    }
}

impl BlockDevice for TestDevice {
    fn size(&self) -> u64 {
        self.state.lock().unwrap().bytes.len() as u64
    }

    fn io_alignment(&self) -> usize {
        META_BLOCK_SIZE
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut s = self.state.lock().unwrap();
        s.reads += 1;
        s.bytes_read += buf.len();
        let range = Self::range(&s, offset, buf.len())?;
        let touched = range.start / META_BLOCK_SIZE..range.end.div_ceil(META_BLOCK_SIZE);
        if s.unreadable.iter().any(|b| touched.contains(&(*b as usize))) {
            return Err(io::Error::other("unreadable"));
        }
        buf.copy_from_slice(&s.bytes[range]);
        Ok(())
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut s = self.state.lock().unwrap();
        s.write_sizes.push(buf.len());
        if s.fail_writes {
            return Err(io::Error::other("write refused"));
        }
        let range = Self::range(&s, offset, buf.len())?;
        s.volatile.extend(range.clone().step_by(META_BLOCK_SIZE));
        s.bytes[range].copy_from_slice(buf);
        Ok(())
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        for op in ops {
            let len = op.bufs.iter().map(|b| b.len()).sum();
            let mut all = vec![0; len];
            op.result = self.read(op.offset, &mut all);
            let mut rest = &all[..];
            for buf in &mut op.bufs {
                let (head, tail) = rest.split_at(buf.len());
                buf.copy_from_slice(head);
                rest = tail;
            }
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        for op in ops {
            op.result = self.write(op.offset, &op.bufs.concat());
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut s = self.state.lock().unwrap();
        let State { bytes, durable, volatile, .. } = &mut *s;
        for at in volatile.drain(..) {
            durable[at..at + META_BLOCK_SIZE].copy_from_slice(&bytes[at..at + META_BLOCK_SIZE]);
        }
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}
