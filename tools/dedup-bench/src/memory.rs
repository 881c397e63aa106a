//! A device in memory that is all there from the beginning: no write makes the kernel clear a page for it,
//! which would be in the CPU time of what is measured. Each page has a lock of its own, so that writers of
//! different blocks never wait for one another here.

use dedup_device::{BlockDevice, ReadOp, WriteOp};
use std::io;
use std::sync::{PoisonError, RwLock};

/// Bytes behind one lock: a block.
const PAGE: usize = 4096;

/// See the module.
pub(crate) struct TouchedMemory {
    pages: Vec<RwLock<[u8; PAGE]>>,
}

impl TouchedMemory {
    /// A device of at least `size` bytes, all zero.
    pub(crate) fn new(size: u64) -> Self {
        Self { pages: (0..size.div_ceil(PAGE as u64)).map(|_| RwLock::new([0; PAGE])).collect() }
    }

    /// Calls `each` with every page from `offset` on and the part of it, up to `len` bytes.
    fn for_each(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(&RwLock<[u8; PAGE]>, std::ops::Range<usize>, std::ops::Range<usize>),
    ) -> io::Result<()> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.size()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset}: expected less than {}", self.size()),
            ));
        }
        let mut done = 0;
        while done < len {
            let at = offset as usize + done;
            let (page, start) = (at / PAGE, at % PAGE);
            let bytes = (PAGE - start).min(len - done);
            each(&self.pages[page], start..start + bytes, done..done + bytes);
            done += bytes;
        }
        Ok(())
    }
}

impl std::fmt::Debug for TouchedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TouchedMemory").field("size", &self.size()).finish_non_exhaustive()
    }
}

impl BlockDevice for TouchedMemory {
    fn size(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    fn io_alignment(&self) -> usize {
        1
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.for_each(offset, buf.len(), |page, part, of_buf| {
            buf[of_buf].copy_from_slice(&page.read().unwrap_or_else(PoisonError::into_inner)[part]);
        })
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.for_each(offset, buf.len(), |page, part, of_buf| {
            page.write().unwrap_or_else(PoisonError::into_inner)[part].copy_from_slice(&buf[of_buf]);
        })
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

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.for_each(offset, len as usize, |page, part, _| {
            page.write().unwrap_or_else(PoisonError::into_inner)[part].fill(0);
        })
    }

    /// Memory is its own medium: `true`.
    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_where_they_were_written_across_pages_and_nowhere_else() {
        let device = TouchedMemory::new(3 * PAGE as u64);
        device.write(PAGE as u64 - 10, &[7; PAGE + 20]).unwrap();
        device.discard(PAGE as u64, 5).unwrap();
        let mut all = vec![1; 3 * PAGE];
        device.read(0, &mut all).unwrap();
        let expected = |at: usize| {
            let written = (PAGE - 10..2 * PAGE + 10).contains(&at) && !(PAGE..PAGE + 5).contains(&at);
            if written { 7 } else { 0 }
        };
        assert!(all.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        assert!(device.write(3 * PAGE as u64 - 1, &[0; 2]).is_err());
    }
}
