//! What the tests of the volume share: volumes on simulated devices, blocks with known content, single
//! requests, and [explorers](explore) of what power cuts leave.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "in a test, a panic is how a failure is told"
)]

pub mod damage;
pub mod explore;
pub mod golden;
pub mod history;
pub mod hooked;
pub mod killed;
pub mod ledger;
pub mod model;
pub mod planted;
pub mod process;
pub mod properties;
pub mod rng;
pub mod schedule;
pub mod sweep;

use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, SimDevice};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RequestError, Volume, VolumeError, format};
use std::sync::Arc;
use uuid::Uuid;

/// Both devices of a volume.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Blocks and label.
    pub data: Arc<SimDevice>,
    /// Everything else.
    pub metadata: Arc<SimDevice>,
}

impl Disks {
    /// Empty devices of so many bytes.
    pub fn new(data: u64, metadata: u64) -> Self {
        Self { data: Arc::new(SimDevice::new(data)), metadata: Arc::new(SimDevice::new(metadata)) }
    }

    /// The devices after a power cut that keeps of each only what `keep` says (device 0 is data, 1 is
    /// metadata).
    pub fn crash(&self, mut keep: impl FnMut(usize, usize, usize) -> bool) -> Self {
        Self {
            data: Arc::new(self.data.crash(|write, sector| keep(0, write, sector))),
            metadata: Arc::new(self.metadata.crash(|write, sector| keep(1, write, sector))),
        }
    }

    /// The devices after a power cut that keeps only what was flushed.
    pub fn lose_everything_unflushed(&self) -> Self {
        self.crash(|_, _, _| false)
    }

    /// Whether either device has met its power cut.
    pub fn have_lost_power(&self) -> bool {
        let mut sector = [0; 512];
        self.data.read(0, &mut sector).is_err() || self.metadata.read(0, &mut sector).is_err()
    }

    /// For whoever takes a device.
    pub fn data(&self) -> Arc<dyn BlockDevice> {
        self.data.clone()
    }

    /// For whoever takes a device.
    pub fn metadata(&self) -> Arc<dyn BlockDevice> {
        self.metadata.clone()
    }

    /// Makes a volume.
    pub fn format(&self, options: &FormatOptions) {
        format(&*self.data, &self.metadata(), options).unwrap();
    }

    /// Has the checker look at the devices, data included, and fails if it finds anything.
    #[track_caller]
    pub fn assert_clean(&self, story: &str) {
        let report = check(Some(&*self.data), self.metadata(), &CheckOptions::tiny(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{story}: {report}");
    }

    /// Opens the volume.
    pub fn open(&self, options: &OpenOptions) -> Result<Volume, VolumeError> {
        Volume::open(self.data(), self.metadata(), options)
    }
}

/// A freshly formatted volume of `blocks` logical blocks and a few more data blocks, so that a full one can
/// be overwritten.
pub fn formatted(blocks: u64, block_size: u32) -> Disks {
    let size = blocks * u64::from(block_size);
    let disks = Disks::new((size + 5 * u64::from(block_size)).max(64 << 10), 8 << 20);
    disks.format(&FormatOptions { block_size, ..format_options(size) });
    disks
}

/// The defaults, with UUIDs that are always the same.
pub fn format_options(logical_size: u64) -> FormatOptions {
    FormatOptions::new(logical_size, Uuid::from_u128(1), Uuid::from_u128(2))
}

/// No threads: a run repeats exactly. No data in the log: what damages or loses data finds it on the data
/// device alone.
pub fn options() -> OpenOptions {
    OpenOptions {
        background: false,
        digest_threads: 1,
        cache_bytes: 1 << 20,
        log_data: 0,
        ..OpenOptions::default()
    }
}

/// A block whose content is its number, and nothing else's.
pub fn block(content: u64, size: usize) -> Vec<u8> {
    if content == 0 {
        return vec![0; size];
    }
    let mut state = content.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Two inputs of one MD5 digest, published by Wang and others in 2004; what follows them alike does not part
/// them.
pub fn md5_pair() -> [Vec<u8>; 2] {
    const FIRST: &str = "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a\
        085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0e99f33420f577ee8ce54b67080a80d1e\
        c69821bcb6a8839396f9652b6ff72a70";
    let mut first = vec![0; 4096];
    for (byte, pair) in first.iter_mut().zip(FIRST.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    let mut second = first.clone();
    [19, 45, 59, 83, 109, 123].iter().for_each(|at| second[*at] ^= 0x80);
    [first, second]
}

/// Runs one request.
pub fn run(volume: &Volume, op: Op<'_>) -> Result<(), RequestError> {
    let mut outcome = None;
    volume.execute(vec![Request { tag: 0, op }], &mut |_, result| {
        assert!(outcome.is_none(), "one completion for each request");
        outcome = Some(result);
    });
    outcome.expect("a completion for each request")
}

/// Writes one whole block.
pub fn write(volume: &Volume, lbn: u64, content: u64) {
    try_write(volume, lbn, content, false).unwrap_or_else(|error| panic!("write of LBN {lbn}: {error}"));
}

/// Writes one whole block, or not.
pub fn try_write(volume: &Volume, lbn: u64, content: u64, fua: bool) -> Result<(), RequestError> {
    let size = volume.block_size() as usize;
    run(volume, Op::Write { offset: lbn * size as u64, data: &block(content, size), fua })
}

/// Makes everything durable.
pub fn flush(volume: &Volume) {
    run(volume, Op::Flush).unwrap_or_else(|error| panic!("flush: {error}"));
}

/// Trims whole blocks.
pub fn trim(volume: &Volume, lbn: u64, blocks: u64) {
    let size = u64::from(volume.block_size());
    let trimmed = run(volume, Op::Trim { offset: lbn * size, len: blocks * size, fua: false });
    trimmed.unwrap_or_else(|error| panic!("trim of {blocks} blocks from LBN {lbn}: {error}"));
}

/// Reads one block.
pub fn read(volume: &Volume, lbn: u64) -> Result<Vec<u8>, RequestError> {
    let size = volume.block_size() as usize;
    let mut buf = vec![0xaa; size];
    run(volume, Op::Read { offset: lbn * size as u64, buf: &mut buf })?;
    Ok(buf)
}

/// A block holds what it should.
#[track_caller]
pub fn assert_content(volume: &Volume, lbn: u64, content: u64) {
    let found = read(volume, lbn)
        .unwrap_or_else(|error| panic!("LBN {lbn}: expected content {content}, found {error}"));
    assert!(found == block(content, found.len()), "LBN {lbn}: expected content {content}, found another one");
}
