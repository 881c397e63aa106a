//! The deduplicated volume: a block device that stores every distinct block once.
//!
//! [`format()`] makes a volume on two devices, [`Volume::open`] opens it, [`Volume::execute`] runs batches of
//! requests.
//!
//! ```text
//!   requests ──> volume ──┬─> read ───────────────────┬──> data device
//!                         ├─> write ──> space ────────┤
//!                         └─> unmap                   │
//!                               │ publish             │
//!                    ┌───────── state ────────┐       │
//!                    │ active delta           │       │
//!                    │ frozen delta ──────> checkpoint├──> trees, superblock  ┐
//!                    │ records ──────────>  commit ───┴──> log                ┴ metadata device
//!                    └────────────────────────┘
//! ```
//!
//! ```
//! use dedup_device::{BlockDevice, MemDevice};
//! use dedup_volume::{FormatOptions, Op, OpenOptions, Request, Volume, VolumeError, format};
//! use std::sync::Arc;
//! use uuid::Uuid;
//!
//! // Memory here; for files and block devices, see `dedup_device::FileDevice`.
//! let data: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(16 << 20));
//! let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
//! let options = FormatOptions::new(1 << 30, Uuid::from_u128(1), Uuid::from_u128(2));
//! format(&*data, &metadata, &options)?;
//! let volume = Volume::open(data.clone(), metadata.clone(), &OpenOptions::default())?;
//!
//! // All requests of a batch count as concurrent; a flush covers what was answered before it was handed over.
//! let (content, mut answers) = ([7; 4096], 0);
//! let write = |tag, offset| Request { tag, op: Op::Write { offset, data: &content, fua: false } };
//! let batches = [vec![write(1, 0), write(2, 512 << 20)], vec![Request { tag: 3, op: Op::Flush }]];
//! for batch in batches {
//!     volume.execute(batch, &mut |_request, result| answers += i32::from(result.is_ok()));
//! }
//! assert_eq!((answers, volume.status().data_used_blocks), (3, 1));
//! drop(volume); // as if the power had failed
//!
//! let volume = Volume::open(data, metadata, &OpenOptions::default())?;
//! let mut buf = [0; 4096];
//! let read = Request { tag: 4, op: Op::Read { offset: 512 << 20, buf: &mut buf } };
//! volume.execute(vec![read], &mut |_request, result| assert_eq!(result, Ok(())));
//! assert_eq!(buf, content);
//! volume.close()?;
//! # Ok::<(), VolumeError>(())
//! ```
//!
//! On files, or block devices, which are locked for as long as they are open:
//!
//! ```
//! use dedup_device::{BlockDevice, FileDevice, IoMode, OpenMode};
//! # use dedup_volume::{FormatOptions, OpenOptions, Volume, format};
//! use std::fs::File;
//! # use std::sync::Arc;
//! # use uuid::Uuid;
//!
//! # let dir = tempfile::tempdir()?;
//! let mut devices = Vec::<Arc<dyn BlockDevice>>::new();
//! for (name, size) in [("data", 16 << 20), ("metadata", 8 << 20)] {
//!     let path = dir.path().join(name);
//!     File::create(&path)?.set_len(size)?; // sparse
//!     devices.push(Arc::new(FileDevice::open(&path, OpenMode::ReadWrite, IoMode::Buffered)?));
//! }
//! let [data, metadata] = &devices[..] else { unreachable!() };
//! format(&**data, metadata, &FormatOptions::new(1 << 30, Uuid::from_u128(1), Uuid::from_u128(2)))?;
//! let volume = Volume::open(data.clone(), metadata.clone(), &OpenOptions::default())?;
//! assert_eq!(volume.logical_size(), 1 << 30);
//! volume.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! *Truth* is LBN -> PBN, PBN -> digest and PBN -> reference count. The index digest -> PBN is a *hint*:
//! every hit is verified against the truth, so entries may be stale or missing, and losing all of them loses
//! no data.
//!
//! # Where what is
//!
//! A folder uses only those before it:
//!
//! | folder | what |
//! |---|---|
//! | `trees` | tables, with runs of changes above them and filters in front |
//! | `journal` | the file that outlives the process |
//! | `state` | all that an operation changes, behind one lock |
//! | `engine` | what all parts share |
//! | `durability` | commits, checkpoints |
//! | `io` | what an operation does |
//! | `background` | what threads do early |
//! | `lifecycle` | format, open, replay |
//!
//! Start reading at `state` (what an operation changes), then `io::write` (the four cases),
//! `durability::commit` and `durability::checkpoint`, `lifecycle::open` (recovery).

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod error;

mod background;
mod durability;
mod engine;
mod io;
mod journal;
mod lifecycle;
mod state;
mod status;
mod trees;
mod volume;

pub use background::gc::{GcEstimate, GcStatus};
pub use dedup_request::{Done, Op, Request, RequestError, Wanted};
pub use dedup_schema::{Counters, Digest, DigestAlgorithm, Label, Lbn, Pbn, Seq};
#[cfg(feature = "lock-times")]
pub use dedup_sync::{LockTime, lock_times};
pub use engine::CheckOnRead;
pub use engine::data_cache::DataCacheStatus;
pub use error::VolumeError;
pub use io::extents::{Detail, Extent};
pub use journal::{JournalFile, JournalOptions, JournalPlace, JournalStatus};
pub use lifecycle::format::{FormatOptions, erase, format};
pub use lifecycle::geometry;
pub use lifecycle::options::OpenOptions;
pub use lifecycle::probe::refuse_if_in_use;
pub use lifecycle::progress::OpenProgress;
pub use status::Status;
pub use trees::runs::RunPolicy;
pub use trees::tables::Tables;
pub use volume::Volume;
