//! Direct I/O: memory made fit, batches handed to io_uring, leftovers finished one by one.
//!
//! ```text
//!   op --- memory, offset and length aligned ----------------> Transfer over the op's own buffers
//!      \-- anything else ---> AlignedBuf over the aligned ---> Transfer over that, then a copy
//!                             range around it
//!   Transfers --- more than one ---> uring ---> what it did not do, or did in part ---> positioned
//! ```
//!
//! Only reads may have an unaligned range (a buffered device's after its cache is bypassed); writes are
//! aligned, or refused before they get here. Not here: the check of the range against the device.

use super::transfer::Transfer;
use super::{positioned, uring};
use crate::{AlignedBuf, ReadOp, WriteOp};
use rustix::fd::BorrowedFd;
use std::io::{IoSlice, IoSliceMut};

/// A descriptor opened for direct I/O.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectIo<'a> {
    fd: BorrowedFd<'a>,
    alignment: usize,
}

impl<'a> DirectIo<'a> {
    /// `alignment` holds for memory, offsets and lengths: a power of two, at most that of [`AlignedBuf`].
    pub(super) fn new(fd: BorrowedFd<'a>, alignment: usize) -> Self {
        Self { fd, alignment }
    }

    /// Runs reads of any alignment inside the device and sets their results.
    pub(super) fn read(&self, ops: &mut [&mut ReadOp<'_>]) {
        let mut bounces: Vec<Option<AlignedBuf>> = ops.iter().map(|op| self.read_bounce(op)).collect();
        let mut transfers: Vec<_> = ops
            .iter_mut()
            .zip(&mut bounces)
            .map(|(op, bounce)| {
                let needed = op.byte_count() as usize;
                match bounce {
                    None => Transfer::new(op.offset, slices_mut(&mut op.bufs), needed),
                    Some(buf) => {
                        let skip = self.misalignment(op.offset);
                        Transfer::new(op.offset - skip as u64, vec![IoSliceMut::new(buf)], skip + needed)
                    }
                }
            })
            .collect();
        if transfers.len() > 1 {
            uring::read(self.fd, &mut transfers);
        }
        let results: Vec<_> = transfers
            .iter_mut()
            .map(|t| {
                let done = t.progress()?;
                positioned::read_full(self.fd, t.offset, &mut t.slices, t.needed, done)
            })
            .collect();
        drop(transfers);
        for ((op, bounce), result) in ops.iter_mut().zip(&bounces).zip(results) {
            op.result = result;
            if let Some(buf) = bounce {
                scatter(&buf[self.misalignment(op.offset)..], &mut op.bufs);
            }
        }
    }

    /// Runs writes of aligned ranges and sets their results.
    pub(super) fn write(&self, ops: &mut [&mut WriteOp<'_>]) {
        let bounces: Vec<Option<AlignedBuf>> = ops.iter().map(|op| self.write_bounce(op)).collect();
        let mut transfers: Vec<_> = ops
            .iter()
            .zip(&bounces)
            .map(|(op, bounce)| {
                let slices = match bounce {
                    None => op.bufs.iter().filter(|b| !b.is_empty()).map(|b| IoSlice::new(b)).collect(),
                    Some(buf) => vec![IoSlice::new(buf)],
                };
                Transfer::new(op.offset, slices, op.byte_count() as usize)
            })
            .collect();
        if transfers.len() > 1 {
            uring::write(self.fd, &mut transfers);
        }
        let results: Vec<_> = transfers
            .iter_mut()
            .map(|t| {
                let done = t.progress()?;
                positioned::write_full(self.fd, t.offset, &mut t.slices, t.needed, done)
            })
            .collect();
        drop(transfers);
        for (op, result) in ops.iter_mut().zip(results) {
            op.result = result;
        }
    }

    /// Memory for a read that cannot go straight to its buffers: the aligned range around it.
    fn read_bounce(&self, op: &ReadOp<'_>) -> Option<AlignedBuf> {
        let len = op.byte_count() as usize;
        let skip = self.misalignment(op.offset);
        let fits = skip == 0 && op.bufs.iter().all(|buf| self.is_aligned(buf));
        (!fits).then(|| AlignedBuf::zeroed((skip + len).next_multiple_of(self.alignment)))
    }

    /// A copy of a write's bytes, if they do not lie where the kernel takes them from.
    fn write_bounce(&self, op: &WriteOp<'_>) -> Option<AlignedBuf> {
        if op.bufs.iter().all(|buf| self.is_aligned(buf)) {
            return None;
        }
        let mut bounce = AlignedBuf::zeroed(op.byte_count() as usize);
        let mut rest = &mut bounce[..];
        for buf in &op.bufs {
            let (head, tail) = rest.split_at_mut(buf.len());
            head.copy_from_slice(buf);
            rest = tail;
        }
        Some(bounce)
    }

    fn is_aligned(&self, buf: &[u8]) -> bool {
        buf.is_empty()
            || buf.as_ptr().addr().is_multiple_of(self.alignment) && buf.len().is_multiple_of(self.alignment)
    }

    /// Bytes from the aligned offset below `offset` to it.
    fn misalignment(&self, offset: u64) -> usize {
        (offset % self.alignment as u64) as usize
    }
}

fn slices_mut<'s>(bufs: &'s mut [&mut [u8]]) -> Vec<IoSliceMut<'s>> {
    bufs.iter_mut().filter(|b| !b.is_empty()).map(|b| IoSliceMut::new(b)).collect()
}

fn scatter(mut from: &[u8], bufs: &mut [&mut [u8]]) {
    for buf in bufs {
        let (head, tail) = from.split_at(buf.len());
        buf.copy_from_slice(head);
        from = tail;
    }
}
