//! Positioned, vectored reads and writes that finish what they begin.
//!
//! The kernel may stop short at any byte, be interrupted, or take only the first 1024 buffers; each call here
//! goes on until all is done or something is wrong. No progress at all is an error: the end of the file on a
//! read (the device shrank behind our back), a full device on a write.

use crate::{ReadOp, WriteOp};
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, preadv, pwritev};
use std::io::{self, IoSlice, IoSliceMut};

/// Most buffers of one system call (`IOV_MAX` of Linux).
pub(super) const BUFFERS_MAX: usize = 1024;

/// Runs one read and sets its result.
pub(super) fn read_op(fd: BorrowedFd<'_>, op: &mut ReadOp<'_>) {
    let needed = op.byte_count() as usize;
    let mut slices: Vec<_> = op.bufs.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
    op.result = read_full(fd, op.offset, &mut slices, needed, 0);
}

/// Runs one write and sets its result.
pub(super) fn write_op(fd: BorrowedFd<'_>, op: &mut WriteOp<'_>) {
    let mut slices: Vec<_> = op.bufs.iter().map(|buf| IoSlice::new(buf)).collect();
    op.result = write_full(fd, op.offset, &mut slices, op.byte_count() as usize, 0);
}

/// Fills `slices` from `offset`, of which `done` bytes are filled already, until at least `needed` are.
pub(super) fn read_full(
    fd: BorrowedFd<'_>,
    offset: u64,
    mut slices: &mut [IoSliceMut<'_>],
    needed: usize,
    mut done: usize,
) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut slices, done);
    while done < needed {
        let batch = slices.len().min(BUFFERS_MAX);
        match preadv(fd, &mut slices[..batch], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                done += n;
                IoSliceMut::advance_slices(&mut slices, n);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes `slices`, `needed` bytes in all, to `offset`; the first `done` bytes are there already.
pub(super) fn write_full(
    fd: BorrowedFd<'_>,
    offset: u64,
    mut slices: &mut [IoSlice<'_>],
    needed: usize,
    mut done: usize,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, done);
    while done < needed {
        let batch = slices.len().min(BUFFERS_MAX);
        match pwritev(fd, &slices[..batch], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                done += n;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
