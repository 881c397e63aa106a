//! The data device's label, and whether the two devices belong together.

use crate::report::{Findings, Kind};
use dedup_device::BlockDevice;
use dedup_meta::{Superblock, SuperblockError, Survey};
use dedup_schema::Label;

/// The label, if it can be read.
pub(crate) fn label(data: &dyn BlockDevice, findings: &mut Findings) -> Option<Label> {
    match Label::read(data) {
        Ok(label) => Some(label),
        Err(error) => {
            findings.add(Kind::DataLabel, "data label", "label", "that of a volume", error);
            None
        }
    }
}

/// The newest superblock of the pool that the label names; without a label of the only pool there is.
pub(crate) fn superblock<'s>(
    survey: &'s Survey,
    label: Option<Label>,
    findings: &mut Findings,
) -> Result<&'s Superblock, SuperblockError> {
    match survey.newest(label.map(|label| label.pool)) {
        Err(SuperblockError::ForeignPool { expected, found }) => {
            findings.add(Kind::Pairing, "data label", "pool", found, expected);
            survey.newest(None)
        }
        other => other,
    }
}

/// Whether the data device is the superblock's, so that its content can be judged.
pub(crate) fn check(
    data: &dyn BlockDevice,
    label: Option<Label>,
    superblock: &Superblock,
    findings: &mut Findings,
) -> bool {
    let size = superblock.data_blocks.saturating_mul(superblock.block_size.into());
    if data.size() < size {
        findings.add(Kind::DeviceSize, "data device", "bytes", format!("at least {size}"), data.size());
    }
    let Some(label) = label else { return true };
    let fields = [
        ("pool", superblock.pool.to_string(), label.pool.to_string()),
        ("data device uuid", superblock.data_device.to_string(), label.data_device.to_string()),
        ("size", size.to_string(), label.size.to_string()),
        ("block size", superblock.block_size.to_string(), label.block_size.to_string()),
    ];
    let wrong: Vec<_> = fields.into_iter().filter(|(_, expected, found)| expected != found).collect();
    for (field, expected, found) in wrong.iter().filter(|(field, ..)| *field != "pool") {
        findings.add(Kind::Pairing, "data label", field, expected, found);
    }
    wrong.is_empty()
}
