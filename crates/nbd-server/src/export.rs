//! What the server serves: the [`Export`] trait, and an export that stores nothing.
//!
//! The trait is the whole of what the server knows of a volume. It is small so that the server's own cost can be measured
//! against [`NullExport`], and so that tests can serve plain memory.

use dedup_volume::{Op, Request, RequestError};

/// A block device that a client can be given.
///
/// One export may be served to many connections at once, and to several threads of each: the effects of a flush must
/// cover what any of them wrote (the server tells clients so, with `NBD_FLAG_CAN_MULTI_CONN`).
pub trait Export: Send + Sync {
    /// Size in bytes. Read once a connection, when the client chooses the export.
    fn size(&self) -> u64;

    /// The block size (bytes, a power of two) at which requests need no read-modify-write: a hint to clients.
    fn block_size(&self) -> u32;

    /// Whether to refuse writes. Read once a connection; an export that turns read-only later fails writes itself.
    fn is_read_only(&self) -> bool;

    /// Runs a batch. `done` is called from this thread once for each request as it completes, in any order; the call
    /// returns when all are done.
    ///
    /// The server has checked that every range lies within [`size`](Self::size) and is not empty.
    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    );
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
}
