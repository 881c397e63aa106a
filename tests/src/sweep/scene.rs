//! Where a script begins: two device images, what the volume on them holds, and how it is opened.

use super::*;
use dedup_device::SparseImage;
use dedup_meta::{BlockRef, Superblock};
use dedup_volume::Label;

/// Where a script begins.
#[derive(Clone, Debug)]
pub struct Scene {
    data: SparseImage,
    metadata: SparseImage,
    /// What the volume holds.
    pub ledger: Ledger,
    /// How it is opened.
    pub options: OpenOptions,
    /// Whether both devices let their caches be bypassed.
    pub bypass: bool,
    /// A seed for the order in which a batch takes effect on a device; in turn if there is none.
    pub reorder: Option<u64>,
    /// Whether the index is damaged, for the volume to find out.
    pub(super) index_lost: bool,
    /// Whether the mapping is damaged, for good.
    pub(super) mapping_lost: bool,
}

/// LBNs of the sweeps' volumes.
pub const LBNS: u64 = 12;

impl Scene {
    /// An empty volume of [`LBNS`] blocks of 4 KiB and `spare` data blocks beyond one for each.
    pub fn new(spare: u64, format: &FormatOptions, options: &OpenOptions) -> Self {
        let size = u64::from(format.block_size);
        let disks = Disks::new((LBNS + 1 + spare) * size, METADATA_BYTES);
        disks.format(format);
        Self {
            data: disks.data.image(),
            metadata: disks.metadata.image(),
            ledger: Ledger::new(LBNS as usize, size as usize),
            options: options.clone(),
            bypass: true,
            reorder: None,
            index_lost: false,
            mapping_lost: false,
        }
    }

    /// As [`Self::new`], with the smallest ring.
    pub fn small(spare: u64) -> Self {
        Self::of(4096, spare, 16)
    }

    /// As [`Self::new`], with other blocks, and a log ring of so many.
    pub fn of(block_size: u32, spare: u64, log_blocks: u64) -> Self {
        let size = LBNS * u64::from(block_size);
        let format = FormatOptions { log_blocks: Some(log_blocks), block_size, ..format_options(size) };
        Self::new(spare, &format, &OpenOptions { delta_max: 24, cache_bytes: 0, ..super::options() })
    }

    /// Where it stands after these steps, everything that is cached kept.
    pub fn after(&self, steps: &[Step]) -> Self {
        let mut run = Run::start(self);
        run.play(steps);
        assert!(run.volume.as_ref().is_some_and(|volume| !volume.is_read_only()), "{}", run.story);
        self.with(&run.disks, &run.ledger)
    }

    /// The same opened otherwise.
    pub fn opened(&self, adjust: impl FnOnce(&mut OpenOptions)) -> Self {
        let mut scene = self.clone();
        adjust(&mut scene.options);
        scene
    }

    /// The same with a damaged root of the digest index, which the volume finds out and cures.
    pub fn without_index(&self) -> Self {
        let newest = superblock(&self.disks());
        Self { index_lost: true, ..self.with_damage(newest.hint.base.node) }
    }

    /// The same with a damaged root of the mapping, which costs what it maps.
    pub fn with_damaged_mapping(&self) -> Self {
        let newest = superblock(&self.disks());
        Self { mapping_lost: true, ..self.with_damage(newest.volumes[0].mapping.base.node) }
    }

    fn with_damage(&self, node: Option<BlockRef>) -> Self {
        let disks = self.disks();
        disks.metadata.rot(node.expect("a tree").block.0 * 4096 + 1024, &[0xff]).unwrap();
        self.with(&disks, &self.ledger)
    }

    /// The same with other devices.
    pub fn with(&self, disks: &Disks, ledger: &Ledger) -> Self {
        let (data, metadata) = (disks.data.image(), disks.metadata.image());
        Self { data, metadata, ledger: ledger.clone(), ..self.clone() }
    }

    /// Other devices.
    pub fn disks(&self) -> Disks {
        let disks = Disks {
            data: Arc::new(SimDevice::from_image(self.data.clone())),
            metadata: Arc::new(SimDevice::from_image(self.metadata.clone())),
        };
        if !self.bypass {
            disks.data.refuse_bypass();
            disks.metadata.refuse_bypass();
        }
        for (device, seed) in [&disks.data, &disks.metadata].into_iter().zip(self.reorder.into_iter().cycle())
        {
            device.set_reorder(seed);
        }
        disks
    }
}

/// The newest superblock on a volume's devices.
pub fn superblock(disks: &Disks) -> Superblock {
    let label = Label::read(&*disks.data).unwrap();
    dedup_meta::load_superblocks(&*disks.metadata).newest(Some(label.pool)).unwrap().clone()
}

/// Smallest metadata device with room to work: 1 MiB between the superblock slots, and as much behind.
const METADATA_BYTES: u64 = 4 << 20;
