//! The label in block 0 of the data device: which pool the device belongs to.
//!
//! ```text
//!  0         8         12        16          32          48          56           60         76
//!  | magic   | version | crc32c  | pool UUID | own UUID  | size      | block size | identity | zeros    first 512 bytes
//! ```
//!
//! The pool's UUID pairs the devices and seeds the checksum of every metadata block, so it cannot change
//! without all of them being written anew. What a volume is told apart by from its copies is the *identity*,
//! which stands here and nowhere else: to change it is to write one sector, which a power cut leaves old or
//! new. Zeros: the pool's UUID.
//!
//! The CRC covers the 512 bytes with the CRC field as zeros.

use dedup_device::{AlignedBuf, BlockDevice};
use std::io;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the label begins with.
const MAGIC: [u8; 8] = *b"dedupdat";
/// The label's format.
const VERSION: u32 = 1;
/// Bytes read and written for it: a page, so that any device takes it as it is. Only the first 512 are the
/// label's.
pub const LABEL_IO_BYTES: usize = 4096;

/// Who owns a data device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The pool that the device belongs to.
    pub pool: Uuid,
    /// The device's own UUID.
    pub data_device: Uuid,
    /// Bytes of it that belong to the pool.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// What tells the volume from its copies, if that is not the pool's UUID.
    pub identity: Option<Uuid>,
}

/// Why there is no label to be had.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The device failed.
    #[error("data device: {operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the device said.
        source: io::Error,
    },
    /// No label is there, or it is damaged.
    #[error("the data device has no label: {found}")]
    Missing {
        /// What is there instead.
        found: String,
    },
    /// It is of another version.
    #[error("the data device has {found}; expected {expected}")]
    Unsupported {
        /// What this program can read.
        expected: String,
        /// What is there.
        found: String,
    },
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskLabel {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    pool: [u8; 16],
    data_device: [u8; 16],
    size: U64,
    block_size: U32,
    identity: [u8; 16],
    zeros: [u8; 436],
}

const _: () = assert!(size_of::<DiskLabel>() == 512);

impl DiskLabel {
    fn checksum(&self) -> u32 {
        crc32c::crc32c(Self { crc: U32::ZERO, ..*self }.as_bytes())
    }
}

impl Label {
    /// Reads the label of a data device.
    pub fn read(device: &dyn BlockDevice) -> Result<Self, LabelError> {
        let found = |found: String| LabelError::Missing { found };
        if device.size() < LABEL_IO_BYTES as u64 {
            return Err(found(format!("{} bytes, too few for a label", device.size())));
        }
        let mut bytes = AlignedBuf::zeroed(LABEL_IO_BYTES);
        device
            .read(0, &mut bytes)
            .map_err(|source| LabelError::Io { operation: "read of the label", source })?;
        let Ok((disk, _)) = DiskLabel::read_from_prefix(&bytes) else {
            return Err(found("fewer than 512 bytes".into()));
        };
        if disk.magic != MAGIC {
            return Err(found("no label in its first block".into()));
        }
        if disk.checksum() != disk.crc.get() {
            return Err(found(format!(
                "a label whose checksum should be {:#010x} and is {:#010x}",
                disk.crc.get(),
                disk.checksum()
            )));
        }
        if disk.version.get() != VERSION {
            return Err(LabelError::Unsupported {
                expected: format!("data label version {VERSION}"),
                found: format!("data label version {}", disk.version),
            });
        }
        Ok(Self {
            pool: Uuid::from_bytes(disk.pool),
            data_device: Uuid::from_bytes(disk.data_device),
            size: disk.size.get(),
            block_size: disk.block_size.get(),
            identity: Some(Uuid::from_bytes(disk.identity)).filter(|identity| !identity.is_nil()),
        })
    }

    /// What tells the volume from every other, its copies included once they have been given another.
    pub fn identity(&self) -> Uuid {
        self.identity.unwrap_or(self.pool)
    }

    /// Writes the label. Not durable before a flush.
    pub fn write(&self, device: &dyn BlockDevice) -> Result<(), LabelError> {
        write_first_block(device, self.encode().as_bytes())
    }

    /// As [`write`](Self::write), on a device in use: what stands behind the label stays. With blocks of 512
    /// bytes that is content.
    pub fn replace(&self, device: &dyn BlockDevice) -> Result<(), LabelError> {
        let mut bytes = AlignedBuf::zeroed(LABEL_IO_BYTES);
        device
            .read(0, &mut bytes)
            .map_err(|source| LabelError::Io { operation: "read of the label", source })?;
        bytes[..size_of::<DiskLabel>()].copy_from_slice(self.encode().as_bytes());
        write_first_block(device, &bytes)
    }

    fn encode(&self) -> DiskLabel {
        let mut disk = DiskLabel {
            magic: MAGIC,
            version: U32::new(VERSION),
            crc: U32::ZERO,
            pool: self.pool.into_bytes(),
            data_device: self.data_device.into_bytes(),
            size: U64::new(self.size),
            block_size: U32::new(self.block_size),
            identity: self.identity.unwrap_or_default().into_bytes(),
            zeros: [0; 436],
        };
        disk.crc = U32::new(disk.checksum());
        disk
    }

    /// Overwrites a label with zeros, so that the device no longer belongs to a pool.
    pub fn erase(device: &dyn BlockDevice) -> Result<(), LabelError> {
        write_first_block(device, &[])
    }
}

fn write_first_block(device: &dyn BlockDevice, content: &[u8]) -> Result<(), LabelError> {
    let mut bytes = AlignedBuf::zeroed(LABEL_IO_BYTES);
    bytes[..content.len()].copy_from_slice(content);
    device.write(0, &bytes).map_err(|source| LabelError::Io { operation: "write of the label", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_device::MemDevice;

    #[test]
    fn any_flipped_bit_of_the_label_is_seen() {
        let device = MemDevice::new(1 << 20);
        let label = Label {
            pool: Uuid::from_u128(1),
            data_device: Uuid::from_u128(2),
            size: 1 << 20,
            block_size: 4096,
            identity: Some(Uuid::from_u128(3)),
        };
        label.write(&device).unwrap();
        assert_eq!(Label::read(&device).unwrap(), label);
        for byte in 0..512 {
            let mut bytes = [0; 4096];
            device.read(0, &mut bytes).unwrap();
            bytes[byte] ^= 0x10;
            device.write(0, &bytes).unwrap();
            assert!(Label::read(&device).is_err(), "byte {byte}");
            bytes[byte] ^= 0x10;
            device.write(0, &bytes).unwrap();
        }
        assert_eq!(Label::read(&device).unwrap(), label);
    }

    /// With blocks of 512 bytes, seven blocks of content stand in the page of the label.
    #[test]
    fn a_label_that_is_replaced_leaves_what_stands_behind_it() {
        let device = MemDevice::new(1 << 20);
        device.write(0, &[7; 8192]).unwrap();
        let pool = Uuid::from_u128(1);
        let old =
            Label { pool, data_device: Uuid::from_u128(2), size: 1 << 20, block_size: 512, identity: None };
        old.replace(&device).unwrap();
        assert_eq!(Label::read(&device).unwrap().identity(), pool);
        let new = Label { identity: Some(Uuid::from_u128(3)), ..old };
        new.replace(&device).unwrap();
        assert_eq!(Label::read(&device).unwrap().identity(), Uuid::from_u128(3));
        let mut rest = [0; 8192 - 512];
        device.read(512, &mut rest).unwrap();
        assert_eq!(rest, [7; 8192 - 512]);
    }
}
