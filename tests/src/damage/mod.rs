//! Damage, made on purpose and named: for the sweep over every field of every block, for the `damage` tool,
//! for fixtures.
//!
//! - [`layout`]: which byte of a block is which field, from `docs/format.md`;
//! - [`atlas`]: every block of a volume by name, with the places where its checksum stands;
//! - [`act`]: flips, zeros, swaps, older versions, cut devices; with or without checksums that are right
//!   afterwards;
//! - [`command`]: all of this as commands, for the tool and for recipes;
//! - [`sample`]: volumes that have every type of block;
//! - [`judge`]: what the checker says of a damaged volume, and what it reads as.
//!
//! [`Devices`] is the pair that all of it works on, in memory or in files.

pub mod act;
pub mod atlas;
pub mod command;
pub mod judge;
pub mod layout;
pub mod sample;

pub use atlas::{Age, Atlas, Site, What};
pub use layout::Field;

use dedup_device::{BlockDevice, MemDevice, SparseImage};
use std::sync::Arc;

/// Both devices of a volume, whatever they are.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Label and blocks.
    pub data: Arc<dyn BlockDevice>,
    /// Everything else.
    pub metadata: Arc<dyn BlockDevice>,
}

/// The bytes of both devices. A copy costs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Label and blocks.
    pub data: SparseImage,
    /// Everything else.
    pub metadata: SparseImage,
}

/// Devices in memory that begin with an image.
#[derive(Clone, Debug)]
pub struct Memory {
    data: Arc<MemDevice>,
    metadata: Arc<MemDevice>,
}

impl Image {
    /// Devices with this content, which may be changed.
    pub fn memory(&self) -> Memory {
        let device = |image: &SparseImage| Arc::new(MemDevice::from_image(image.clone()));
        Memory { data: device(&self.data), metadata: device(&self.metadata) }
    }

    /// What it is after a change.
    ///
    /// # Panics
    /// If the change fails.
    pub fn changed(&self, change: impl FnOnce(&Devices) -> std::io::Result<()>) -> Self {
        let memory = self.memory();
        change(&memory.devices()).unwrap();
        memory.image()
    }

    /// The devices cut to so many bytes.
    pub fn truncated(&self, data: u64, metadata: u64) -> Self {
        Self { data: cut(&self.data, data), metadata: cut(&self.metadata, metadata) }
    }
}

impl Memory {
    /// For whoever takes devices.
    pub fn devices(&self) -> Devices {
        Devices { data: self.data.clone(), metadata: self.metadata.clone() }
    }

    /// What they hold now.
    pub fn image(&self) -> Image {
        Image { data: self.data.image(), metadata: self.metadata.image() }
    }
}

fn cut(image: &SparseImage, size: u64) -> SparseImage {
    if size >= image.size() {
        return image.clone();
    }
    const STEP: u64 = 1 << 16;
    let mut shorter = SparseImage::new(size);
    let mut bytes = vec![0; STEP as usize];
    for at in (0..size).step_by(STEP as usize) {
        let len = (size - at).min(STEP) as usize;
        image.read(at, &mut bytes[..len]).unwrap();
        shorter.write(at, &bytes[..len]).unwrap();
    }
    shorter
}
