//! What the tests of the volume share: volumes on simulated devices, blocks with known content, single
//! requests, and [histories](history) of one volume through several power cuts.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "in a test, a panic is how a failure is told"
)]

pub mod history;

use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, SimDevice};
use dedup_meta::LOG_PAYLOAD_SIZE;
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

/// No threads: a run repeats exactly.
pub fn options() -> OpenOptions {
    OpenOptions { background: false, digest_threads: 1, cache_bytes: 1 << 20, ..OpenOptions::default() }
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
    try_write(volume, lbn, content, false).unwrap();
}

/// Writes one whole block, or not.
pub fn try_write(volume: &Volume, lbn: u64, content: u64, fua: bool) -> Result<(), RequestError> {
    let size = volume.block_size() as usize;
    run(volume, Op::Write { offset: lbn * size as u64, data: &block(content, size), fua })
}

/// Makes everything durable.
pub fn flush(volume: &Volume) {
    run(volume, Op::Flush).unwrap();
}

/// Trims whole blocks.
pub fn trim(volume: &Volume, lbn: u64, blocks: u64) {
    let size = u64::from(volume.block_size());
    run(volume, Op::Trim { offset: lbn * size, len: blocks * size, fua: false }).unwrap();
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
    let found = read(volume, lbn).unwrap();
    assert!(found == block(content, found.len()), "LBN {lbn} does not hold content {content}");
}

/// A checkpoint that has returned is where the next open starts from, whatever was not flushed.
pub fn a_checkpoint_is_durable_when_it_returns(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    for round in 0..4 {
        (0..8).for_each(|lbn| write(&volume, lbn, 1 + round * 8 + lbn));
        volume.checkpoint().unwrap();
        let transaction = volume.status().commit.transaction;
        let after = disks.lose_everything_unflushed().open(options).unwrap();
        let commit = after.status().commit;
        assert_eq!(
            (commit.transaction, commit.delta_operations),
            (transaction + 1, 0),
            "one more for the open, nothing replayed"
        );
    }
}

/// Bytes that a write of new content takes in the log: an allocation and a mapping.
const RECORD_BYTES: u64 = 39 + 25;

/// Blocks of the log behind a gap that a power cut left stay dead, even if the client repeats to the letter
/// what was in the gap.
pub fn blocks_behind_a_gap_in_the_log_stay_dead(options: &OpenOptions) {
    let disks = Disks::new(260 * 4096, 16 << 20);
    // A ring in which 100 operations wait for a commit without asking for one.
    disks.format(&FormatOptions { log_blocks: Some(2048), ..format_options(256 * 4096) });
    let volume = disks.open(options).unwrap();
    flush(&volume);
    // Enough for two log blocks in one commit. The cut lets the second one reach the medium, and not the
    // first.
    let in_first_block = LOG_PAYLOAD_SIZE as u64 / RECORD_BYTES;
    let fail_a_commit = |disks: &Disks, volume: Volume, different: u64| {
        (0..in_first_block).for_each(|lbn| write(&volume, lbn, lbn + 1));
        (in_first_block..100).for_each(|lbn| write(&volume, lbn, lbn + different));
        disks.metadata.fail_nth(dedup_device::IoKind::Flush, 0);
        run(&volume, Op::Flush).unwrap_err();
    };
    fail_a_commit(&disks, volume, 1);
    let disks = disks.crash(|device, _, sector| device == 0 || sector >= 8);
    let volume = disks.open(options).unwrap();
    assert_content(&volume, 0, 0);
    // The same first block again, with another one behind it. This cut loses that other one.
    fail_a_commit(&disks, volume, 1000);
    let disks = disks.crash(|device, _, sector| device == 0 || sector < 8);
    let volume = disks.open(options).unwrap();
    assert_content(&volume, in_first_block - 1, in_first_block);
    assert_content(&volume, in_first_block, 0);
    assert_content(&volume, 99, 0);
}
