//! What a device holds before it is formatted: nothing is overwritten that anybody could miss.

use crate::error::VolumeError;
use dedup_device::{AlignedBuf, BlockDevice};

/// Bytes looked at from both ends: beyond the furthest signature (btrfs, 64 KiB) and where backup headers
/// (GPT, MD) stand.
const PROBE_BYTES: u64 = 1 << 20;

/// Offset, bytes, name: the signatures that `file` and `blkid` go by.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"dedupdat", "the data label of a deduplicated volume"),
    (32, b"dedupsb", "the superblock of a deduplicated volume"),
    (0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0x218, b"LVM2 001", "an LVM physical volume"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1fe, &[0x55, 0xaa], "a partition table or boot sector"),
];

/// Refuses a device that holds anything: a known signature, or just bytes that are not zero, in its first or
/// last MiB.
pub fn refuse_if_in_use(device: &dyn BlockDevice, name: &'static str) -> Result<(), VolumeError> {
    let size = device.size() / 4096 * 4096;
    let len = size.min(PROBE_BYTES);
    let read = |offset| {
        let mut bytes = AlignedBuf::zeroed(len as usize);
        let result = device.read(offset, &mut bytes);
        result
            .map(|()| bytes)
            .map_err(|source| VolumeError::Data { operation: "read before formatting", source })
    };
    let (first, last) = (read(0)?, read(size - len)?);
    if crate::engine::fingerprint::is_zero(&first) && crate::engine::fingerprint::is_zero(&last) {
        return Ok(());
    }
    let known = SIGNATURES.iter().find(|(at, magic, _)| first.get(*at..at + magic.len()) == Some(*magic));
    let found = known.map_or("data of an unknown kind", |(_, _, name)| name).to_owned();
    Err(VolumeError::InUse { device: name, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_device::MemDevice;

    #[test]
    fn an_empty_device_is_free_and_any_byte_near_either_end_is_not() {
        for at in [0u64, 4095, (1 << 20) - 1, (7 << 20), (8 << 20) - 1] {
            let device = MemDevice::new(8 << 20);
            refuse_if_in_use(&device, "data").unwrap();
            device.write(at, &[1]).unwrap();
            assert!(refuse_if_in_use(&device, "data").is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_overwritten_is_named() {
        let device = MemDevice::new(8 << 20);
        device.write(0x438, &[0x53, 0xef]).unwrap();
        let error = refuse_if_in_use(&device, "data").unwrap_err().to_string();
        assert!(error.contains("ext4") && error.contains("--force"), "{error}");
    }
}
