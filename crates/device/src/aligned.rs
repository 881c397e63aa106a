//! Memory that direct I/O takes without a copy.
//!
//! ```text
//!   pages: | 4096 | 4096 | 4096 |      heap, each page on a 4096-byte boundary
//!   bytes: |<----- len ---->|          what Deref shows; the rest of the last page is never seen
//! ```
//!
//! The alignment comes from the page's type, so no unsafe code is needed. The buffer does not grow.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Every device's direct I/O alignment divides this: the page size of x86-64, and the largest logical sector
/// sold.
const PAGE_SIZE: usize = 4096;

/// The unit of allocation, there for its alignment.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

/// Bytes on the heap that begin at a multiple of 4096.
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes. Like `Vec`, ends the program if there is no memory.
    pub fn zeroed(len: usize) -> Self {
        let pages = Page::new_vec_zeroed(len.div_ceil(PAGE_SIZE))
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<Page>()));
        Self { pages, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_begins_at_a_page_boundary_and_is_zero() {
        for len in [0, 1, 511, 512, 4095, 4096, 4097, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(buf.as_ptr().addr().is_multiple_of(PAGE_SIZE));
            assert!(buf.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn bytes_written_are_read_back() {
        let mut buf = AlignedBuf::zeroed(5000);
        buf[4999] = 7;
        assert_eq!((buf[4998], buf[4999]), (0, 7));
    }
}
