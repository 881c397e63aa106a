//! What the metadata of a volume says: the entries of its tables, digests, log records, the label of the data
//! device. Bytes, and how they are read and written, with no opinion on what follows from them.
//!
//! The volume and its checker both stand on this crate and on nothing of each other: they share readers, and
//! no conclusion.
//!
//! | module | on disk |
//! |---|---|
//! | `ids` | [`Lbn`], [`Pbn`], [`Seq`]: numbers of 48 bits |
//! | `digest` | [`Digest`], and the [`DigestAlgorithm`]s that make it |
//! | `mapping` | the entries of the tables, and the trees that hold them: [`MAPPINGS`], [`DIGESTS`], [`COUNTS`], ... |
//! | `scan` | a range of the LBN map, with the runs above it |
//! | `record` | [`Record`]: what an operation did, in the log |
//! | `contents` | [`Contents`]: data that the log carries |
//! | `overlay` | [`Overlay`]: a data device as it will be once that data is at its place |
//! | `counters` | [`Counters`] in log blocks and superblocks |
//! | `label` | [`Label`]: block 0 of the data device |
//!
//! ```
//! use dedup_schema::{DigestAlgorithm, Lbn, Mapping, Pbn, Record};
//!
//! let content = [7; 4096];
//! let (pbn, digest) = (Pbn(12), DigestAlgorithm::Sha256.digest(&content));
//! let new = Mapping { pbn, crc: crc32c::crc32c(&content), flags: 0 };
//! let mut bytes = Vec::new();
//! for record in [Record::Allocate { pbn, digest }, Record::Map { lbn: Lbn(3), new, old: Pbn(0) }] {
//!     record.encode(&mut bytes);
//! }
//! let mut rest = &bytes[..];
//! assert_eq!(Record::decode(&mut rest)?, Record::Allocate { pbn, digest });
//! # Ok::<(), String>(())
//! ```
//!
//! Not here: trees and nodes (`dedup-btree`), blocks, superblocks and the ring of the log (`dedup-meta`), and
//! everything that decides.

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod contents;
mod counters;
mod digest;
mod ids;
mod label;
mod mapping;
mod overlay;
mod record;
mod scan;

pub use contents::Contents;
pub use counters::{COUNTER_SLOTS, Counters};
pub use digest::{DIGEST_SIZE, Digest, DigestAlgorithm};
pub use ids::{Lbn, MAX_BLOCKS, Pbn, Seq};
pub use label::{LABEL_IO_BYTES, Label, LabelError};
pub use mapping::{
    BAD, COUNT_OVERFLOW, COUNTS, Count, CountLeaf, DIGESTS, DigestLeaf, HINT_SET, HINTS, HintKey,
    MAPPING_RUNS, MAPPINGS, META_MAP, Mapping, MappingLeaf, OVERFLOW,
};
pub use overlay::Overlay;
pub use record::Record;
pub use scan::scan_mappings;
