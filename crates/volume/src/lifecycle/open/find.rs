//! Which superblock an open goes by: the newest valid one of the pool that the data device's label names
//! (R11), and whether this program, these devices and the options asked for fit it.
//!
//! Not here: what the superblock names (metadata map, trees, log).

use crate::error::{VolumeError, name_of};
use crate::lifecycle::options::OpenOptions;
use dedup_device::BlockDevice;
use dedup_meta::{
    Access, CopyState, Epoch, META_BLOCK_SIZE, MetaBlock, Superblock, SuperblockError, TxId, load_superblocks,
};
use dedup_schema::{DigestAlgorithm, Label, LabelError};

/// The superblocks that an open goes by.
pub(super) struct Found {
    pub(super) newest: Superblock,
    pub(super) older: Option<Superblock>,
    pub(super) next_txid: TxId,
    pub(super) highest_epoch: Epoch,
    /// The data device's label is lost: what stands in its place.
    pub(super) label_lost: Option<String>,
    /// Both stand in their slots and one follows the other: no superblock after them was ever durable.
    pub(super) both_slots: bool,
    /// Those of the two that do not stand in their spare place.
    pub(super) without_spare: Vec<Superblock>,
    /// The next superblock's spare place, if what is there could not be read and is not written again.
    pub(super) unreadable_spare: Option<MetaBlock>,
}

/// Looks for the superblocks and checks that they belong to this data device. Without a label, those of the
/// only pool there is: whether the device is that pool's has to be seen.
pub(super) fn find(
    data: &dyn BlockDevice,
    metadata: &dyn BlockDevice,
    options: &OpenOptions,
) -> Result<Found, VolumeError> {
    let (label, label_lost) = match Label::read(data) {
        Ok(label) => (Some(label), None),
        Err(lost @ (LabelError::Missing { .. } | LabelError::Io { .. })) => {
            (None, Some(VolumeError::from(lost)))
        }
        Err(other) => return Err(other.into()),
    };
    let mut survey = load_superblocks(metadata);
    // Nobody searches a device that may never have been a volume's.
    if survey.is_lost() && (label.is_some() || options.rescue) {
        tracing::warn!("metadata device: no superblock where one should be; searching for spare copies");
        survey.search(metadata);
    }
    if survey.is_lost()
        && let Some(lost) = label_lost
    {
        return Err(lost);
    }
    let pool = label.as_ref().map(|label| label.pool);
    let newest = survey.newest(pool).map_err(|error| match error {
        SuperblockError::ForeignPool { expected, found } => {
            VolumeError::WrongPair { what: "pool", expected: name_of(found), found: name_of(expected) }
        }
        SuperblockError::DeviceTooSmall { expected, found } => VolumeError::DeviceTooSmall {
            device: "metadata",
            expected: expected * META_BLOCK_SIZE as u64,
            found: found * META_BLOCK_SIZE as u64,
        },
        SuperblockError::Unsupported { reason, .. } => {
            VolumeError::Unsupported { expected: "format version 1".into(), found: reason.to_string() }
        }
        other => VolumeError::NoVolume { found: other.to_string() },
    })?;
    check_parts(newest)?;
    let data_size = newest.data_blocks * u64::from(newest.block_size);
    if let Some(label) = label {
        check_pair(&label, newest, data_size)?;
    }
    let older = survey.older(newest);
    let has_spare = |superblock: &&Superblock| {
        let at = superblock.layout.spare(superblock.txid);
        survey
            .copies
            .iter()
            .any(|copy| copy.block == at && copy.state == CopyState::Valid(Box::new((**superblock).clone())))
    };
    let without_spare: Vec<Superblock> =
        [Some(newest), older].into_iter().flatten().filter(|sb| !has_spare(sb)).cloned().collect();
    let next_txid = survey.next_txid(newest.pool);
    let has_slot = |superblock: &Superblock| {
        let at = superblock.layout.slot(superblock.txid);
        let mut copies = survey.copies.iter();
        copies.any(|copy| {
            copy.block == at && matches!(&copy.state, CopyState::Valid(sb) if **sb == *superblock)
        })
    };
    let unreadable = |at: &MetaBlock| {
        let mut copies = survey.copies.iter();
        copies.any(|copy| copy.block == *at && matches!(copy.state, CopyState::Unreadable(_)))
            && without_spare.iter().all(|sb| sb.layout.spare(sb.txid) != *at)
    };
    Ok(Found {
        both_slots: older
            .is_some_and(|older| older.txid.next() == newest.txid && has_slot(newest) && has_slot(older)),
        label_lost: label_lost.map(|lost| lost.to_string()),
        older: older.cloned(),
        next_txid,
        unreadable_spare: Some(newest.layout.spare(next_txid)).filter(unreadable),
        highest_epoch: survey.highest_epoch(newest.pool).unwrap_or(newest.epoch),
        without_spare,
        newest: newest.clone(),
    })
}

/// The format has room for more volumes in one pool; this version has one, and reading past the others would
/// lose data from view.
fn check_parts(superblock: &Superblock) -> Result<(), VolumeError> {
    if superblock.volumes.len() == 1 {
        if superblock.needs_check {
            tracing::warn!("metadata was found damaged earlier: run dedup-check");
        }
        return Ok(());
    }
    Err(VolumeError::Unsupported {
        expected: "one volume".into(),
        found: format!("{} volumes", superblock.volumes.len()),
    })
}

/// Whether the label is that of the data device which a superblock names.
fn check_pair(label: &Label, superblock: &Superblock, size: u64) -> Result<(), VolumeError> {
    let wrong = |what, expected: String, found: String| Err(VolumeError::WrongPair { what, expected, found });
    if label.pool != superblock.pool {
        return wrong("pool", name_of(superblock.pool), name_of(label.pool));
    }
    if label.data_device != superblock.data_device {
        return wrong("data device", name_of(superblock.data_device), name_of(label.data_device));
    }
    if label.size != size {
        return wrong("size", size.to_string(), label.size.to_string());
    }
    Ok(())
}

/// Whether the devices and the options fit the superblock.
pub(super) fn check_parameters(
    superblock: &Superblock,
    data: &dyn BlockDevice,
    options: &OpenOptions,
) -> Result<DigestAlgorithm, VolumeError> {
    let mismatch =
        |parameter, expected: String, found: String| VolumeError::Mismatch { parameter, expected, found };
    if let Access::ReadOnly { unknown } = superblock.access()
        && !options.read_only
    {
        return Err(VolumeError::Unsupported {
            expected: "no unknown features for writing; open it read-only".into(),
            found: format!("features {unknown:#x}"),
        });
    }
    let algorithm =
        DigestAlgorithm::from_u8(superblock.digest_algorithm).ok_or_else(|| VolumeError::Unsupported {
            expected: format!("digest algorithms 1 to {}", DigestAlgorithm::ALL.len()),
            found: format!("digest algorithm {}", superblock.digest_algorithm),
        })?;
    if let Some(asked) = options.block_size.filter(|asked| *asked != superblock.block_size) {
        return Err(mismatch("--block-size", superblock.block_size.to_string(), asked.to_string()));
    }
    if let Some(asked) = options.algorithm.filter(|asked| *asked != algorithm) {
        return Err(mismatch("--crypto-alg", algorithm.to_string(), asked.to_string()));
    }
    let expected = superblock.data_blocks * u64::from(superblock.block_size);
    if data.size() < expected {
        return Err(VolumeError::DeviceTooSmall { device: "data", expected, found: data.size() });
    }
    if !u64::from(superblock.block_size).is_multiple_of(data.io_alignment() as u64) {
        return Err(VolumeError::Parameter {
            parameter: "--io direct",
            expected: format!(
                "a block size that is a multiple of the device's {} bytes; use --io buffered",
                data.io_alignment()
            ),
            found: superblock.block_size.to_string(),
        });
    }
    Ok(algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FormatOptions, Volume, format};
    use dedup_device::MemDevice;
    use dedup_sync::Arc;
    use uuid::Uuid;

    /// What a lost superblock said of its epoch stands in log blocks anywhere in the ring. A part of it was
    /// read although the older of the two superblocks stood in its spare alone, and a third may have gone
    /// over its slot.
    #[test]
    fn nothing_was_lost_only_if_both_superblocks_stand_in_their_slots() {
        let data: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(1 << 20));
        let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20));
        format(&*data, &metadata, &FormatOptions::new(1 << 20, Uuid::from_u128(1), Uuid::from_u128(2)))
            .unwrap();
        let options = OpenOptions { background: false, ..OpenOptions::default() };
        Volume::open(data.clone(), metadata.clone(), &options).unwrap().close().unwrap();
        let found = find(&*data, &*metadata, &options).unwrap();
        assert!(found.both_slots && found.older.is_some());
        for txid in [found.newest.txid, found.newest.txid.next()] {
            let mut slot = vec![0; META_BLOCK_SIZE];
            let at = found.newest.layout.slot(txid).0 * META_BLOCK_SIZE as u64;
            metadata.read(at, &mut slot).unwrap();
            metadata.write(at, &[0; META_BLOCK_SIZE]).unwrap();
            let without = find(&*data, &*metadata, &options).unwrap();
            assert_eq!((without.newest, without.older), (found.newest.clone(), found.older.clone()));
            assert!(!without.both_slots, "slot of transaction {txid}");
            metadata.write(at, &slot).unwrap();
        }
    }
}
