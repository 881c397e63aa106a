//! A data device whose label is lost: whether it is the volume's all the same, and its label, written again.
//!
//! The label keeps a volume from being opened for writing with another one's data, so it is not enough that
//! nothing else speaks against a device. What speaks for it is what it holds: blocks from all over the volume
//! are read and held against the digests that the metadata has of them. A device on which most of them are
//! found in their places is the volume's, or a copy of it, which is as much as a label says.
//!
//! Not here: opening for reading only, which needs no label, since every block that is read has its checksum.

use crate::error::VolumeError;
use crate::trees::tables::Tables;
use dedup_device::{AlignedBuf, BlockDevice};
use dedup_meta::{MetaError, NodeSource, Superblock};
use dedup_schema::{COUNTS, DigestAlgorithm, Label, Pbn};

/// Blocks looked at: a few tenths of a second on a disk.
const SAMPLED: u64 = 64;

/// Writes the label of `superblock` again, if `data` holds what the volume stored there. `found` is what
/// stands in the label's place.
pub(super) fn renew(
    data: &dyn BlockDevice,
    source: &impl NodeSource,
    superblock: &Superblock,
    algorithm: DigestAlgorithm,
    found: &str,
) -> Result<(), VolumeError> {
    let (sampled, matching) = sample(data, source, superblock, algorithm)?;
    if matching * 2 <= sampled {
        return Err(VolumeError::LabelLost { found: found.into(), sampled, matching });
    }
    tracing::warn!(
        "data device: {found}; it holds what the volume stored in {matching} of {sampled} places, so the label is written again"
    );
    let label = Label {
        pool: superblock.pool,
        data_device: superblock.data_device,
        size: superblock.data_blocks * u64::from(superblock.block_size),
        block_size: superblock.block_size,
        identity: None,
    };
    label.replace(data)?;
    data.flush().map_err(|source| VolumeError::Data { operation: "flush", source })
}

/// Blocks in use that were looked at, from all over the device, and how many of them hold what they should.
fn sample(
    data: &dyn BlockDevice,
    source: &impl NodeSource,
    superblock: &Superblock,
    algorithm: DigestAlgorithm,
) -> Result<(u64, u64), MetaError> {
    let tables = Tables::of(superblock);
    let blocks = superblock.data_blocks;
    let mut pbns = Vec::new();
    for i in 0..SAMPLED {
        // Widened: a device may have 2^48 blocks.
        let place = |i: u64| (u128::from(blocks) * u128::from(i) / u128::from(SAMPLED)) as u64;
        let range = place(i).max(1)..place(i + 1);
        if let Some(entry) = COUNTS.scan(source, &tables.counts, range).next() {
            pbns.push(Pbn(entry?.0));
        }
    }
    let digests = tables.digests(source, pbns.iter().copied())?;
    let block_size = u64::from(superblock.block_size);
    let mut bytes = AlignedBuf::zeroed(superblock.block_size as usize);
    let mut matching = 0;
    for pbn in &pbns {
        let read = data.read(pbn.0 * block_size, &mut bytes);
        matching += u64::from(read.is_ok() && digests.get(pbn) == Some(&algorithm.digest(&bytes)));
    }
    Ok((pbns.len() as u64, matching))
}
