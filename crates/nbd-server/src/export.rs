//! What the server serves: the [`Export`] trait, and an export that stores nothing.
//!
//! The trait is the whole of what the server knows of a volume. It is small so that the server's own cost can
//! be measured against [`NullExport`], and so that tests can serve plain memory.

use dedup_request::{Op, Request, RequestError, Wanted};

/// The metadata context that the protocol itself defines. Its status is made of [`STATE_HOLE`] and
/// [`STATE_ZERO`].
pub const BASE_ALLOCATION: &str = "base:allocation";
/// In [`BASE_ALLOCATION`]: nothing is allocated here.
pub const STATE_HOLE: u32 = 1 << 0;
/// In [`BASE_ALLOCATION`]: this reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// A stretch of an export that has one status in some metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least 1.
    pub len: u64,
    /// What the context says of it.
    pub status: u32,
}

/// A block device that a client can be given.
///
/// One export may be served to many connections at once, and to several threads of each: the effects of a
/// flush must cover what any of them wrote (the server tells clients so, with `NBD_FLAG_CAN_MULTI_CONN`).
pub trait Export: Send + Sync {
    /// Size in bytes. Read once a connection, when the client chooses the export.
    fn size(&self) -> u64;

    /// The block size (bytes, a power of two) at which requests need no read-modify-write: a hint to clients.
    fn block_size(&self) -> u32;

    /// Whether to refuse writes. Read once a connection; an export that turns read-only later fails writes
    /// itself.
    fn is_read_only(&self) -> bool;

    /// Runs a batch. `done` is called from this thread once for each request as it completes, in any order;
    /// the call returns when all are done.
    ///
    /// The server has checked that every range lies within [`size`](Self::size) and is not empty. What is
    /// trimmed are whole blocks; a client's trim of parts of blocks comes as zeros to be written.
    ///
    /// A client may be gone before its requests are begun, and may have come back since: an export that can
    /// make a change wait asks whether it is still `wanted` when nothing else can come between, and otherwise
    /// fails it with [`RequestError::Abandoned`], having done nothing of it. Asking takes a system call and
    /// does not wait.
    fn execute<'a>(
        &self,
        wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    );

    /// The metadata contexts that clients may ask for, each a namespace, a colon and a name. None by default.
    fn contexts(&self) -> &'static [&'static str] {
        &[]
    }

    /// Describes `len` bytes from `offset` on in one of its [`contexts`](Self::contexts): at least one and at
    /// most `extents_max` extents, side by side. They may end before the range does, if telling more would
    /// take long.
    ///
    /// # Errors
    /// As for [`execute`](Self::execute). By default all of an export has status 0, which says nothing.
    fn extents(
        &self,
        context: &str,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        let _ = (context, offset, extents_max);
        Ok(vec![Extent { len, status: 0 }])
    }

    /// Is told that a range will be used soon. What it does about that is its own affair: by default,
    /// nothing.
    ///
    /// # Errors
    /// If it can be foretold that reading the range will fail.
    fn cache(&self, offset: u64, len: u64) -> Result<(), RequestError> {
        let _ = (offset, len);
        Ok(())
    }
}

/// An export that drops what is written and reads as zeros: what remains is the cost of the server itself.
#[derive(Clone, Copy, Debug)]
pub struct NullExport {
    size: u64,
}

impl NullExport {
    /// An export of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size }
    }
}

impl Export for NullExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        4096
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn execute<'a>(
        &self,
        _wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        for mut request in batch {
            if let Op::Read { buf, .. } = &mut request.op {
                buf.fill(0);
            }
            done(request, Ok(()));
        }
    }

    fn contexts(&self) -> &'static [&'static str] {
        &[BASE_ALLOCATION]
    }

    fn extents(
        &self,
        _context: &str,
        _offset: u64,
        len: u64,
        _extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        Ok(vec![Extent { len, status: STATE_HOLE | STATE_ZERO }])
    }
}
