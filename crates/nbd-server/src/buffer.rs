//! Memory whose first byte stands at a page boundary, for payloads.
//!
//! Direct I/O takes only aligned memory, so payloads are received into, and read into, buffers of this kind:
//! a volume can then hand them to a device without a copy. Contents are never cleared between uses; a buffer
//! belongs to one connection, so one client's bytes cannot reach another.

use std::ops::{Deref, DerefMut};

/// What payloads are aligned to, in bytes: the largest logical sector that devices ask for in direct I/O.
pub(crate) const ALIGNMENT: usize = 4096;

/// `len` bytes that begin at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub(crate) struct AlignedBuf {
    /// `ALIGNMENT - 1` bytes more than asked for. It never grows, so its address stays.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes. Memory that is never touched costs nothing.
    pub(crate) fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT - 1];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len }
    }

    /// Makes it hold `len` bytes or more; the content is lost if it has to grow.
    pub(crate) fn reserve(&mut self, len: usize) {
        if len > self.len {
            *self = Self::zeroed(len);
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_begins_at_a_page_boundary() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr().align_offset(ALIGNMENT), 0);
        }
    }
}
