//! Making damage: one change of a volume's devices, and, if asked for, checksums that are right again
//! afterwards.
//!
//! Without re-sealing a change is an *accident* (rot, a torn, lost or misdirected write). With it the block
//! and all that name it, up to the superblocks, get the checksums that fit: what a bug of the program that
//! wrote them would leave, and what reaches the checks behind the checksums.

use super::Devices;
use super::atlas::{Atlas, Site, What};
use super::layout::Field;
use dedup_device::BlockDevice;
use dedup_meta::{Block, BlockType, META_BLOCK_SIZE, MetaBlock};
use std::collections::BTreeSet;
use std::io;
use zerocopy::{FromBytes, IntoBytes};

/// Where a block's own number stands in it, in bytes.
const NUMBER_AT: usize = 8;
/// Bytes of the label that its checksum covers, and where that stands.
const LABEL_BYTES: usize = 512;
const LABEL_CRC_AT: usize = 12;

impl Devices {
    /// The bytes of a metadata block; zeros beyond the device's end.
    pub fn meta_block(&self, at: MetaBlock) -> Vec<u8> {
        let mut bytes = vec![0; META_BLOCK_SIZE];
        let _ = self.metadata.read(at.0.saturating_mul(META_BLOCK_SIZE as u64), &mut bytes);
        bytes
    }

    /// Writes a metadata block, as it is.
    pub fn put_meta(&self, at: MetaBlock, bytes: &[u8]) -> io::Result<()> {
        self.metadata.write(at.0 * META_BLOCK_SIZE as u64, bytes)
    }

    /// The bytes of a block, whichever device it is on.
    pub fn bytes(&self, atlas: &Atlas, site: &Site) -> io::Result<Vec<u8>> {
        let (device, offset, len) = self.place(atlas, site);
        let mut bytes = vec![0; len];
        device.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces the bytes of a block.
    pub fn put(&self, atlas: &Atlas, site: &Site, bytes: &[u8]) -> io::Result<()> {
        let (device, offset, _) = self.place(atlas, site);
        device.write(offset, bytes)
    }

    fn place(&self, atlas: &Atlas, site: &Site) -> (&dyn BlockDevice, u64, usize) {
        let size = atlas.newest.block_size as usize;
        match site.what {
            // Read as a whole page, as direct I/O wants it.
            What::Label => (&*self.data, 0, META_BLOCK_SIZE.max(LABEL_BYTES)),
            What::Data => (&*self.data, site.at * size as u64, size),
            What::Meta(_) => (&*self.metadata, site.at * META_BLOCK_SIZE as u64, META_BLOCK_SIZE),
        }
    }

    /// Flips one bit of a field.
    pub fn flip(&self, atlas: &Atlas, site: &Site, field: &Field, bit: usize) -> io::Result<()> {
        let mut bytes = self.bytes(atlas, site)?;
        let (byte, mask) = field.bit(bit);
        bytes[byte] ^= mask;
        self.put(atlas, site, &bytes)
    }

    /// Overwrites a block with zeros.
    pub fn zero(&self, atlas: &Atlas, site: &Site) -> io::Result<()> {
        let mut bytes = self.bytes(atlas, site)?;
        let len = if site.what == What::Label { LABEL_BYTES } else { bytes.len() };
        bytes[..len].fill(0);
        self.put(atlas, site, &bytes)
    }

    /// Puts the content of each of two blocks of one device and size into the place of the other.
    pub fn swap(&self, atlas: &Atlas, a: &Site, b: &Site) -> io::Result<()> {
        let (in_a, in_b) = (self.bytes(atlas, a)?, self.bytes(atlas, b)?);
        self.put(atlas, a, &in_b)?;
        self.put(atlas, b, &in_a)
    }

    /// Gives a block the number of the place it stands in, as if it had been written there.
    pub fn renumber(&self, at: MetaBlock) -> io::Result<()> {
        let mut bytes = self.meta_block(at);
        bytes[NUMBER_AT..][..8].copy_from_slice(&at.0.to_le_bytes());
        self.put_meta(at, &bytes)
    }

    /// Makes the checksums of a block and of all that name it right. Other blocks keep what they have.
    pub fn reseal(&self, atlas: &Atlas, site: &Site) -> io::Result<()> {
        match site.what {
            What::Data => Ok(()),
            What::Label => self.reseal_label(atlas, site),
            What::Meta(_) => self.reseal_up(atlas, MetaBlock(site.at)),
        }
    }

    /// Makes the checksum of a metadata block right, and leaves those that name it as they are.
    pub fn reseal_alone(&self, atlas: &Atlas, site: &Site) -> io::Result<()> {
        site.meta().map_or(Ok(()), |at| self.seal(atlas, at).map(drop))
    }

    fn reseal_label(&self, atlas: &Atlas, site: &Site) -> io::Result<()> {
        let mut bytes = self.bytes(atlas, site)?;
        bytes[LABEL_CRC_AT..][..4].fill(0);
        let crc = crc32c::crc32c(&bytes[..LABEL_BYTES]);
        bytes[LABEL_CRC_AT..][..4].copy_from_slice(&crc.to_le_bytes());
        self.put(atlas, site, &bytes)
    }

    fn reseal_up(&self, atlas: &Atlas, from: MetaBlock) -> io::Result<()> {
        // Breadth first: a superblock that several paths reach is sealed after the last of them, or once
        // more.
        let mut due = BTreeSet::from([from]);
        let mut steps = 0;
        while let Some(at) = due.pop_first() {
            let crc = self.seal(atlas, at)?;
            let site = atlas.sites.iter().find(|site| site.meta() == Some(at));
            for (namer, byte) in site.into_iter().flat_map(|site| &site.named_at) {
                let mut bytes = self.meta_block(*namer);
                bytes[*byte..][..4].copy_from_slice(&crc.to_le_bytes());
                self.put_meta(*namer, &bytes)?;
                due.insert(*namer);
            }
            steps += 1;
            assert!(steps < 1 << 16, "names go up a tree or along the log, never round");
        }
        Ok(())
    }

    /// Puts a block's own checksum right and returns it.
    fn seal(&self, atlas: &Atlas, at: MetaBlock) -> io::Result<u32> {
        let bytes = self.meta_block(at);
        let mut block = Block::read_from_bytes(&bytes).expect("a block's size");
        let superblock = block.header.block_type == BlockType::Superblock as u8;
        // A superblock is sealed with the pool that it names itself.
        let pool = match superblock {
            true => uuid::Uuid::from_slice(&bytes[72..88]).expect("16 bytes"),
            false => atlas.newest.pool,
        };
        let crc = block.seal(pool);
        self.put_meta(at, block.as_bytes())?;
        Ok(crc)
    }

    /// Puts the older superblock's version of a node into its place, with that place's number: what a lost
    /// write of a program that numbers its blocks would leave. `false` if there is no other version.
    pub fn older_version(&self, atlas: &Atlas, site: &Site) -> io::Result<bool> {
        let older = match site.what {
            What::Meta(BlockType::Superblock) => atlas.find(&site.name.replace(':', ":older-")),
            _ => atlas.find(&format!("older:{}", site.name)),
        };
        let (Some(older), Some(at)) = (older, site.meta()) else { return Ok(false) };
        let bytes = self.bytes(atlas, older)?;
        self.put(atlas, site, &bytes)?;
        self.renumber(at)?;
        Ok(true)
    }
}
