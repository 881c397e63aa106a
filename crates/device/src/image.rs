//! A sparse array of bytes that is cheap to clone: the content of the memory and the simulated device.
//!
//! ```text
//!   SparseImage -> Arc<map> -> chunk 0 -> page 0 (4 KiB)      every arrow is an Arc: a clone shares all of it,
//!                                      -> page 5              and a write copies the map, one chunk and one page
//!                           -> chunk 9 -> page 576            where they are shared, nothing where they are not
//! ```
//!
//! Invariants: a page of zeros is not stored, and neither is a chunk without pages; so equal content means
//! equal maps, and `==` compares bytes. A digest that is remembered is that of the bytes beside it:
//! [`Page::bytes_mut`] and [`SparseImage::slot`] forget it before they hand out what it covers.

use crate::block_device::check_range;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

/// Bytes in a page: the block size of most that is stored here, so that a write replaces a page and copies
/// none.
pub(crate) const PAGE_SIZE: usize = 4096;
/// Pages in a chunk: a chunk's copy (64 pointers) then costs less than a page's.
const CHUNK_PAGES: usize = 64;

#[derive(Clone)]
pub(crate) struct Page {
    bytes: [u8; PAGE_SIZE],
    /// See [`SparseImage::fingerprint`].
    digest: OnceLock<u128>,
}

impl Page {
    fn zeros() -> Self {
        Self::new(&[0; PAGE_SIZE])
    }

    fn new(bytes: &[u8; PAGE_SIZE]) -> Self {
        Self { bytes: *bytes, digest: OnceLock::new() }
    }

    fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        self.digest.take();
        &mut self.bytes
    }

    /// Digest of the bytes and of where they are. A page never moves: it is shared only by images that have
    /// it in one place.
    fn digest(&self, number: u64) -> u128 {
        *self.digest.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.bytes).update(&number.to_le_bytes());
            let mut digest = [0; 16];
            hasher.finalize_xof().fill(&mut digest);
            u128::from_le_bytes(digest)
        })
    }
}

impl PartialEq for Page {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Page {}

#[derive(Clone)]
struct Chunk {
    pages: [Option<Arc<Page>>; CHUNK_PAGES],
    /// See [`SparseImage::fingerprint`].
    digest: OnceLock<u128>,
}

impl Chunk {
    fn digest(&self, number: u64) -> u128 {
        *self.digest.get_or_init(|| {
            let first = number * CHUNK_PAGES as u64;
            let pages = (first..).zip(&self.pages).filter_map(|(n, page)| Some(page.as_ref()?.digest(n)));
            pages.fold(0, u128::wrapping_add)
        })
    }
}

impl PartialEq for Chunk {
    fn eq(&self, other: &Self) -> bool {
        self.pages == other.pages
    }
}

impl Eq for Chunk {}

/// Bytes of a device of fixed size; what was never written reads as zeros. A clone is a snapshot and costs
/// O(1).
#[derive(Clone, PartialEq, Eq)]
pub struct SparseImage {
    size: u64,
    chunks: Arc<BTreeMap<u64, Arc<Chunk>>>,
}

impl SparseImage {
    /// `size` bytes, all zero.
    pub fn new(size: u64) -> Self {
        Self { size, chunks: Arc::default() }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory that hold content (shared or not).
    pub fn stored_bytes(&self) -> u64 {
        self.stored_pages().count() as u64 * PAGE_SIZE as u64
    }

    /// Numbers of the pages that hold content, rising.
    pub(crate) fn stored_pages(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().flat_map(|(n, chunk)| {
            let pages = (n * CHUNK_PAGES as u64..).zip(&chunk.pages);
            pages.filter_map(|(page, content)| content.as_ref().map(|_| page))
        })
    }

    /// A digest of size and content, for sets of images: equal images have equal fingerprints, and different
    /// ones do not, short of an accident of 2^-128. It is the sum of the digests of the pages, remembered for
    /// each page and each chunk, so that a snapshot costs only what was written since an image that it shares
    /// pages with was asked (about 2 us a page).
    pub fn fingerprint(&self) -> u128 {
        let chunks = self.chunks.iter().map(|(n, chunk)| chunk.digest(*n));
        chunks.fold(u128::from(self.size), u128::wrapping_add)
    }

    /// Fills `buf` from `offset`. Fails if that is beyond the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, 1, offset, buf.len() as u64)?;
        let mut rest = buf;
        for piece in pieces(offset, rest.len() as u64) {
            let (head, tail) = rest.split_at_mut(piece.len);
            match self.page(piece.page) {
                Some(page) => head.copy_from_slice(&page[piece.start..piece.start + piece.len]),
                None => head.fill(0),
            }
            rest = tail;
        }
        Ok(())
    }

    /// Writes `data` at `offset`. Fails if that is beyond the end.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.size, 1, offset, data.len() as u64)?;
        let mut rest = data;
        for piece in pieces(offset, rest.len() as u64) {
            let (head, tail) = rest.split_at(piece.len);
            self.write_piece(piece, head);
            rest = tail;
        }
        Ok(())
    }

    fn write_piece(&mut self, piece: Piece, bytes: &[u8]) {
        if is_zero(bytes) {
            return self.zero_piece(piece);
        }
        let slot = self.slot(piece.page);
        let page = Arc::make_mut(slot.get_or_insert_with(|| Arc::new(Page::zeros()))).bytes_mut();
        page[piece.start..piece.start + piece.len].copy_from_slice(bytes);
    }

    /// Writes what was prepared, and returns pages that it replaced: freeing them takes a while, too.
    pub(crate) fn put(&mut self, prepared: Vec<Prepared<'_>>) -> Vec<Replaced> {
        let mut replaced = Vec::with_capacity(prepared.len());
        for part in prepared {
            match part {
                Prepared::Page(number, page) => replaced.push(Replaced(self.slot(number).replace(page))),
                Prepared::Piece(piece, bytes) => self.write_piece(piece, bytes),
            }
        }
        replaced
    }

    /// Zeroes a range, giving back the memory of whole pages. Fails if it is beyond the end.
    pub fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size, 1, offset, len)?;
        let end = offset + len;
        let chunk_bytes = (PAGE_SIZE * CHUNK_PAGES) as u64;
        // Only chunks that exist: a discard of an empty terabyte must not walk it.
        let touched: Vec<u64> =
            self.chunks.range(offset / chunk_bytes..end.div_ceil(chunk_bytes)).map(|(n, _)| *n).collect();
        for chunk in touched {
            let from = offset.max(chunk * chunk_bytes);
            let to = end.min((chunk + 1) * chunk_bytes);
            pieces(from, to - from).for_each(|piece| self.zero_piece(piece));
        }
        Ok(())
    }

    fn zero_piece(&mut self, piece: Piece) {
        let Some(page) = self.page(piece.page) else { return };
        let end = piece.start + piece.len;
        if page[..piece.start].iter().chain(&page[end..]).any(|b| *b != 0) {
            if let Some(page) = self.slot(piece.page) {
                Arc::make_mut(page).bytes_mut()[piece.start..end].fill(0);
            }
            return;
        }
        *self.slot(piece.page) = None;
        let (chunk, _) = place(piece.page);
        if self.chunks[&chunk].pages.iter().all(Option::is_none) {
            Arc::make_mut(&mut self.chunks).remove(&chunk);
        }
    }

    fn page(&self, page: u64) -> Option<&[u8; PAGE_SIZE]> {
        let (chunk, index) = place(page);
        Some(&self.chunks.get(&chunk)?.pages[index].as_deref()?.bytes)
    }

    /// The page's place in a chunk that this image alone owns, made if there is none.
    fn slot(&mut self, page: u64) -> &mut Option<Arc<Page>> {
        let (chunk, index) = place(page);
        let chunks = Arc::make_mut(&mut self.chunks);
        let new = || Arc::new(Chunk { pages: [const { None }; CHUNK_PAGES], digest: OnceLock::new() });
        let chunk = Arc::make_mut(chunks.entry(chunk).or_insert_with(new));
        chunk.digest.take();
        &mut chunk.pages[index]
    }
}

impl std::fmt::Debug for SparseImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SparseImage")
            .field("size", &self.size)
            .field("stored_bytes", &self.stored_bytes())
            .finish()
    }
}

/// A part of a write in the form in which an image takes it at once.
pub(crate) enum Prepared<'a> {
    /// The number of a page, and that page.
    Page(u64, Arc<Page>),
    Piece(Piece, &'a [u8]),
}

/// A page that is no longer part of an image.
pub(crate) struct Replaced(#[expect(dead_code, reason = "kept to be dropped later")] Option<Arc<Page>>);

/// Prepares a write at `offset`: whole pages are copied here, so that whoever locks the image does not do it
/// under the lock.
pub(crate) fn prepare<'a>(offset: u64, data: &'a [u8]) -> impl Iterator<Item = Prepared<'a>> {
    let mut rest = data;
    pieces(offset, data.len() as u64).map(move |piece| {
        let (head, tail) = rest.split_at(piece.len);
        rest = tail;
        match <&[u8; PAGE_SIZE]>::try_from(head) {
            Ok(page) if !is_zero(head) => Prepared::Page(piece.page, Arc::new(Page::new(page))),
            _ => Prepared::Piece(piece, head),
        }
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// The part of a range that lies in one page.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    page: u64,
    start: usize,
    len: usize,
}

/// Cuts a range at page boundaries.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let start = (at % PAGE_SIZE as u64) as usize;
        let len = (end - at).min((PAGE_SIZE - start) as u64) as usize;
        let piece = Piece { page: at / PAGE_SIZE as u64, start, len };
        at += len as u64;
        Some(piece)
    })
}

/// A page's chunk and its index there.
fn place(page: u64) -> (u64, usize) {
    (page / CHUNK_PAGES as u64, (page % CHUNK_PAGES as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_it_had_when_the_original_is_written() {
        let mut image = SparseImage::new(1 << 20);
        image.write(5000, &[1; 10]).unwrap();
        let snapshot = image.clone();
        image.write(5000, &[2; 10]).unwrap();
        let mut bytes = [0; 10];
        snapshot.read(5000, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 10]);
    }

    #[test]
    fn zeros_take_no_memory_however_they_got_there() {
        let mut image = SparseImage::new(1 << 40);
        image.write(1 << 39, &[0; 10_000]).unwrap();
        assert_eq!(image.stored_bytes(), 0);
        image.write(4000, &[9; 5000]).unwrap();
        assert_eq!(image.stored_bytes(), 3 * 4096);
        image.write(4000, &[0; 96]).unwrap();
        assert_eq!(image.stored_bytes(), 2 * 4096);
        image.zero(0, 1 << 40).unwrap();
        assert_eq!(image, SparseImage::new(1 << 40));
    }

    #[test]
    fn the_fingerprint_tells_contents_places_and_sizes_apart_and_nothing_else() {
        let mut image = SparseImage::new(1 << 30);
        let mut seen = vec![(image.fingerprint(), image.clone())];
        let mut note = |image: &SparseImage| {
            let known = seen.iter().find(|(print, _)| *print == image.fingerprint());
            match known {
                Some((_, other)) => assert_eq!(other, image, "two images with one fingerprint"),
                None => {
                    assert!(seen.iter().all(|(_, other)| other != image), "one image with two fingerprints");
                    seen.push((image.fingerprint(), image.clone()));
                }
            }
            seen.len()
        };
        for (offset, byte, distinct) in [
            (0, 1, 2),
            (4096, 1, 3), // the same page in two places
            (0, 0, 4),    // in the other place only
            (0, 1, 4),    // back
            (1 << 29, 1, 5),
            (5000, 2, 6),
            (5000, 1, 7), // a neighbour of equal bytes, not the page as it was
            (5000, 0, 7), // as it was before
        ] {
            image.write(offset, &[byte; 10]).unwrap();
            assert_eq!(note(&image), distinct, "images so far, after {byte} at {offset}");
        }
        image.zero(0, 1 << 30).unwrap();
        assert_eq!(image.fingerprint(), SparseImage::new(1 << 30).fingerprint());
        assert_ne!(image.fingerprint(), SparseImage::new(1 << 29).fingerprint());
    }

    #[test]
    fn nothing_is_touched_beyond_the_end() {
        let mut image = SparseImage::new(100);
        assert!(image.write(99, &[1; 2]).is_err());
        assert!(image.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(image.zero(0, 101).is_err());
        assert_eq!(image, SparseImage::new(100));
    }
}
