//! Requests of a block device: what a front end hands over, and what it gets back.
//!
//! A front end knows nothing of the engine but this, and the engine nothing of front ends.
//!
//! ```
//! use dedup_request::{Done, Op, Request, RequestError};
//!
//! /// A device of 4096 zeros.
//! fn execute<'a>(batch: Vec<Request<'a>>, done: Done<'_, 'a>) {
//!     for mut request in batch {
//!         let result = match &mut request.op {
//!             Op::Read { offset, buf } if *offset + buf.len() as u64 <= 4096 => Ok(buf.fill(0)),
//!             Op::Read { .. } => Err(RequestError::OutOfRange),
//!             Op::Flush => Ok(()),
//!             Op::Write { .. } | Op::Trim { .. } | Op::WriteZeroes { .. } => Err(RequestError::ReadOnly),
//!         };
//!         done(request, result);
//!     }
//! }
//!
//! let mut buf = [1; 512];
//! let read = Request { tag: 7, op: Op::Read { offset: 0, buf: &mut buf } };
//! execute(vec![read], &mut |request, result| assert_eq!((request.tag, result), (7, Ok(()))));
//! assert_eq!(buf, [0; 512]);
//! ```

use std::fmt;

/// One request of a batch. Offsets and lengths are bytes of the logical device and need no alignment.
#[derive(Debug)]
pub struct Request<'a> {
    /// The front end's own number for it; the engine only hands it back.
    pub tag: u64,
    /// What to do.
    pub op: Op<'a>,
}

/// The operations of a block device.
#[derive(Debug)]
pub enum Op<'a> {
    /// Fill `buf` from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Where the data goes; on an error its content is unspecified.
        buf: &'a mut [u8],
    },
    /// Write `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes. Block-aligned memory saves a copy under direct I/O.
        data: &'a [u8],
        /// Complete only once durable.
        fua: bool,
    },
    /// Make everything durable that completed before this request was handed over.
    Flush,
    /// Unmap the whole blocks inside the range, which then read as zeros; partial edges are left alone.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Complete only once durable.
        fua: bool,
    },
    /// Make the range read as zeros: whole blocks are unmapped, partial edges are written.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Complete only once durable.
        fua: bool,
    },
}

/// How a front end hears of completed requests.
pub type Done<'d, 'a> = &'d mut dyn FnMut(Request<'a>, Result<(), RequestError>);

/// Whether the changes of a batch are still to be begun; asked again and again while it runs.
pub type Wanted<'w> = &'w dyn Fn() -> bool;

/// Why a request failed, in the terms a client can act on. The full story is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The range is not within the device.
    OutOfRange,
    /// Data or metadata device full.
    NoSpace,
    /// A device failed, or what it returned is not what was written; or the volume has stopped writing after
    /// that.
    Io,
    /// The volume is open read-only.
    ReadOnly,
    /// The volume is shutting down.
    ShuttingDown,
    /// Whoever asked was gone before this was begun: no block of it has changed, or, of a long trim, not all.
    Abandoned,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "request beyond the end of the device",
            Self::NoSpace => "no space left",
            Self::Io => "I/O error",
            Self::ReadOnly => "volume is read-only",
            Self::ShuttingDown => "volume is shutting down",
            Self::Abandoned => "whoever asked was gone before it was begun",
        })
    }
}

impl std::error::Error for RequestError {}
