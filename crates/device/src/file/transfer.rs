//! [`Transfer`]: one operation on aligned memory, and how far the kernel came with it.

use rustix::io::Errno;
use std::io;

/// One operation in a form that the kernel takes.
#[derive(Debug)]
pub(super) struct Transfer<S> {
    /// Byte offset, aligned.
    pub(super) offset: u64,
    /// Aligned memory.
    pub(super) slices: Vec<S>,
    /// Bytes that must be moved; a read at a file's odd end may stop short of the rest.
    pub(super) needed: usize,
    /// Bytes that io_uring moved, or its error; `None` if it did not come to it.
    pub(super) done: Option<Result<usize, Errno>>,
}

impl<S> Transfer<S> {
    pub(super) fn new(offset: u64, slices: Vec<S>, needed: usize) -> Self {
        Self { offset, slices, needed, done: None }
    }

    /// Where to go on: at the byte that io_uring stopped at, or at the beginning if it only asks for another
    /// try.
    pub(super) fn progress(&self) -> io::Result<usize> {
        match self.done {
            None | Some(Err(Errno::INTR | Errno::AGAIN)) => Ok(0),
            Some(Ok(done)) => Ok(done),
            Some(Err(e)) => Err(e.into()),
        }
    }
}
