//! Metadata blocks to and from the device in as few operations as their numbers allow.
//!
//! Consecutive block numbers become one positioned operation of up to 1 MiB, gathered from the blocks' own
//! memory without a copy; all operations of a call form one batch. Nothing is verified or sealed here.

use crate::{Block, META_BLOCK_SIZE, MetaBlock, MetaError};
use dedup_device::{BlockDevice, ReadOp, WriteOp};
use std::io;
use zerocopy::IntoBytes;

/// Blocks in the largest single operation: 1 MiB, where sequential throughput of disks and SSDs has levelled
/// off, and well below the 1024 buffers that the kernel takes in one vectored call.
pub(crate) const RUN_BLOCKS: usize = 256;

/// Whole metadata blocks on the device.
pub(crate) fn device_blocks(device: &dyn BlockDevice) -> u64 {
    device.size() / META_BLOCK_SIZE as u64
}

/// Writes each block to the place in its header. The caller knows that the places are on the device; blocks
/// with rising numbers next to each other are merged. On an error any part of any of them may have been
/// written.
pub(crate) fn write_blocks<'a>(
    device: &dyn BlockDevice,
    blocks: impl IntoIterator<Item = &'a Block>,
) -> Result<(), MetaError> {
    let mut ops: Vec<WriteOp<'_>> = Vec::new();
    let mut expected = None;
    for block in blocks {
        let number = block.header.block.get();
        match ops.last_mut() {
            Some(op) if expected == Some(number) && op.bufs.len() < RUN_BLOCKS => {
                op.bufs.push(block.as_bytes())
            }
            _ => {
                ops.push(WriteOp { offset: offset(number), bufs: vec![block.as_bytes()], result: not_run() })
            }
        }
        expected = number.checked_add(1);
    }
    device.write_batch(&mut ops);
    ops.into_iter().try_for_each(|op| op.result.map_err(|source| failed("write", op.offset, source)))
}

/// Fills `blocks` from the places `numbers` (of the same length, all on the device) and says of each how it
/// went.
pub(crate) fn read_blocks(
    device: &dyn BlockDevice,
    numbers: &[MetaBlock],
    blocks: &mut [Box<Block>],
) -> Vec<io::Result<()>> {
    assert_eq!(numbers.len(), blocks.len(), "one place for each block");
    let mut ops: Vec<ReadOp<'_>> = Vec::new();
    let mut expected = None;
    for (number, block) in numbers.iter().zip(blocks) {
        let bytes = block.as_mut().as_mut_bytes();
        match ops.last_mut() {
            Some(op) if expected == Some(number.0) && op.bufs.len() < RUN_BLOCKS => op.bufs.push(bytes),
            _ => ops.push(ReadOp { offset: offset(number.0), bufs: vec![bytes], result: not_run() }),
        }
        expected = number.0.checked_add(1);
    }
    device.read_batch(&mut ops);
    let outcome = |op: &ReadOp<'_>| op.result.as_ref().map(|&()| ()).map_err(io::Error::kind);
    ops.iter().flat_map(|op| op.bufs.iter().map(move |_| outcome(op).map_err(io::Error::from))).collect()
}

/// Wraps what the device said.
pub(crate) fn failed(operation: &'static str, offset: u64, source: io::Error) -> MetaError {
    MetaError::Io { operation, block: MetaBlock(offset / META_BLOCK_SIZE as u64), source }
}

/// The byte at which a block begins.
pub(crate) fn offset(block: u64) -> u64 {
    block * META_BLOCK_SIZE as u64
}

/// What stands in an operation's result until the device sets it, so that an operation it forgot is not taken
/// for done.
fn not_run() -> io::Result<()> {
    Err(io::Error::other("the device did not run the operation"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device::TestDevice;
    use crate::{BlockType, TxId};

    #[test]
    fn consecutive_blocks_become_one_operation_of_at_most_1_mib_and_read_back() {
        let device = TestDevice::new(1024);
        let numbers: Vec<_> = (10..10 + 300).chain([700, 701, 900]).map(MetaBlock).collect();
        let blocks: Vec<_> = numbers.iter().map(|&n| Block::new(BlockType::Hint, 0, n, TxId(1))).collect();
        write_blocks(&device, blocks.iter().map(|b| &**b)).unwrap();
        assert_eq!(device.write_sizes(), [256, 44, 2, 1].map(|n| n * META_BLOCK_SIZE));

        let mut back = vec![Block::zeroed(); numbers.len()];
        assert!(read_blocks(&device, &numbers, &mut back).iter().all(Result::is_ok));
        assert!(back.iter().zip(&blocks).all(|(a, b)| a.as_bytes() == b.as_bytes()));
    }
}
