//! A data device as a read-only open and a check see it: with the content that the log carries, which nobody
//! has written to its place yet.
//!
//! Not here: writing. A writable open puts the content where it belongs and needs no overlay.

use dedup_device::{BlockDevice, ReadOp, WriteOp};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::Deref;

/// A device with some blocks replaced for reading.
#[derive(Debug)]
pub struct Overlay<D> {
    device: D,
    block_size: u64,
    /// Block -> its content.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl<D> Overlay<D> {
    /// `device` with `blocks` of `block_size` bytes each.
    pub fn new(device: D, block_size: u64, blocks: BTreeMap<u64, Vec<u8>>) -> Self {
        Self { device, block_size, blocks }
    }

    /// Whether all blocks of a range are among the replaced ones.
    fn has_all(&self, offset: u64, len: u64) -> bool {
        let blocks = offset / self.block_size..(offset + len).div_ceil(self.block_size);
        self.blocks.range(blocks.clone()).count() as u64 == blocks.end - blocks.start
    }

    /// Replaces what stands in `buf`, read from `offset`, where the log knows better.
    fn replace(&self, offset: u64, buf: &mut [u8]) {
        let end = offset + buf.len() as u64;
        for (block, content) in self.blocks.range(offset / self.block_size..end.div_ceil(self.block_size)) {
            let start = block * self.block_size;
            let from = start.max(offset);
            let to = (start + self.block_size).min(end);
            let bytes = &content[(from - start) as usize..(to - start) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
        }
    }
}

impl<D> BlockDevice for Overlay<D>
where
    D: Deref + Send + Sync + Debug,
    D::Target: BlockDevice,
{
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn io_alignment(&self) -> usize {
        self.device.io_alignment()
    }

    /// What the log has needs no device.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.has_all(offset, buf.len() as u64) {
            self.device.read(offset, buf)?;
        }
        self.replace(offset, buf);
        Ok(())
    }

    fn write(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        self.device.read_batch(ops);
        for op in ops {
            if op.result.is_err() && !self.has_all(op.offset, op.byte_count()) {
                continue;
            }
            op.result = Ok(());
            let mut offset = op.offset;
            for buf in &mut op.bufs {
                self.replace(offset, buf);
                offset += buf.len() as u64;
            }
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        ops.iter_mut().for_each(|op| op.result = Err(read_only()));
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn bypass_cache(&self) -> io::Result<bool> {
        self.device.bypass_cache()
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the volume is open read-only")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_device::{IoKind, MemDevice, SimDevice};

    #[test]
    fn what_the_log_has_is_read_even_if_the_device_cannot() {
        let device = SimDevice::new(4 * 512);
        device.fail_region(IoKind::Read, 512..1024);
        let overlay = Overlay::new(&device, 512, BTreeMap::from([(1, vec![9; 512])]));
        let mut found = vec![0; 512];
        overlay.read(512, &mut found).unwrap();
        assert_eq!(found, [9; 512]);
        let mut op = [ReadOp::new(512, vec![&mut found])];
        overlay.read_batch(&mut op);
        assert!(op[0].result.is_ok());
        overlay.read(512, &mut [0; 1024]).unwrap_err();
        let mut beside = vec![0; 1024];
        let mut op = [ReadOp::new(512, vec![&mut beside])];
        overlay.read_batch(&mut op);
        assert!(op[0].result.is_err(), "of these only a half is in the log");
    }

    /// It stands for the device of a volume that is open read-only, whatever is asked of it.
    #[test]
    fn nothing_that_changes_a_device_passes() {
        let device = SimDevice::new(4 * 512);
        let overlay = Overlay::new(&device, 512, BTreeMap::from([(1, vec![9; 512])]));
        overlay.write(0, &[1; 512]).unwrap_err();
        overlay.discard(0, 512).unwrap_err();
        let mut op = [WriteOp::new(512, vec![&[1; 512]])];
        overlay.write_batch(&mut op);
        assert!(op[0].result.is_err());
        overlay.flush().unwrap();
        assert_eq!((overlay.size(), overlay.bypass_cache().unwrap()), (2048, device.bypass_cache().unwrap()));
        assert_eq!(device.operations(IoKind::Write) + device.operations(IoKind::Discard), 0);
    }

    #[test]
    fn reads_at_any_offset_see_the_blocks_of_the_log_and_the_device_around_them() {
        let device = MemDevice::new(4 * 512);
        device.write(0, &[7; 4 * 512]).unwrap();
        let overlay = Overlay::new(&device as &dyn BlockDevice, 512, BTreeMap::from([(1, vec![9; 512])]));
        let expected: Vec<u8> = [[7; 512], [9; 512], [7; 512], [7; 512]].concat();
        for (offset, len) in [(0, 2048), (500, 20), (512, 512), (700, 10), (1000, 100), (1024, 512), (0, 512)]
        {
            let mut found = vec![0; len];
            overlay.read(offset as u64, &mut found).unwrap();
            assert_eq!(found, expected[offset..offset + len], "{len} bytes at {offset}");
            let (first, second) = found.split_at_mut(len / 3);
            let mut ops = [ReadOp::new(offset as u64, vec![first, second])];
            overlay.read_batch(&mut ops);
            assert!(ops[0].result.is_ok());
            assert_eq!(found, expected[offset..offset + len], "{len} bytes at {offset}, in two buffers");
        }
    }
}
