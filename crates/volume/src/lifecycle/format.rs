//! Making a volume. Atomic: until the superblock, which comes last, there is none.
//!
//! ```text
//!  refuse what holds anything ─> erase old superblocks, flush ─> (lengths: the caller's) ─> data label, flush
//!      ─> space for the log, metadata map, flush ─> superblock, flush ─> spare, flush
//! ```

use crate::engine::backing::fixed_places;
use crate::error::{VolumeError, is_full};
use crate::lifecycle::geometry;
use crate::lifecycle::probe;
use crate::trees::metamap;
use dedup_device::BlockDevice;
use dedup_meta::{
    COUNTERS, CopyState, Epoch, Features, Layout, LogPosition, LogSeq, MAX_METADATA_BLOCKS, META_BLOCK_SIZE,
    MIN_METADATA_BLOCKS, MetaBlock, MetaError, Roots, RunSet, Store, Superblock, TxId, load_superblocks,
};
use dedup_schema::{DigestAlgorithm, LABEL_IO_BYTES, Label};
use dedup_sync::Arc;
use uuid::Uuid;

/// What a volume is made with.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Bytes of the logical device; a multiple of the block size.
    pub logical_size: u64,
    /// Bytes in a block: a power of two from 512 to 1 MiB.
    pub block_size: u32,
    /// The digest.
    pub algorithm: DigestAlgorithm,
    /// Commit every so many block writes by default; 0 = only on FLUSH and FUA.
    pub flushrq: u32,
    /// Compare the bytes of every match by default. Always done for weak digests.
    pub verify_match: bool,
    /// Overwrite whatever is there.
    pub force: bool,
    /// The new pool's UUID; the caller's choice, since nothing random happens in here.
    pub pool: Uuid,
    /// The data device's.
    pub data_device: Uuid,
    /// Blocks of the log ring; `None`: as the data device's size asks for, see [`geometry::log_blocks`].
    pub log_blocks: Option<u64>,
}

impl FormatOptions {
    /// The defaults for a logical device of `logical_size` bytes.
    pub fn new(logical_size: u64, pool: Uuid, data_device: Uuid) -> Self {
        Self {
            logical_size,
            block_size: 4096,
            algorithm: DigestAlgorithm::Sha256,
            flushrq: 0,
            verify_match: false,
            force: false,
            pool,
            data_device,
            log_blocks: None,
        }
    }
}

/// Blocks that get space beside those of superblocks and log: twice what trims have to themselves when a
/// metadata device is full, 4 MiB.
const FIRST_BLOCKS: u64 = 1024;
/// Blocks of cache while formatting: the few nodes of the metadata map.
const CACHE_BLOCKS: usize = 64;

/// Formats both devices. Their lengths are final; [`erase`] has run on the metadata device if its length was
/// changed.
pub fn format(
    data: &dyn BlockDevice,
    metadata: &Arc<dyn BlockDevice>,
    options: &FormatOptions,
) -> Result<Superblock, VolumeError> {
    let mut superblock = plan(data.size(), metadata.size(), options)?;
    if !options.force {
        probe::refuse_if_in_use(data, "data")?;
        probe::refuse_if_in_use(&**metadata, "metadata")?;
    }
    let (log, unit) = (superblock.layout.log, META_BLOCK_SIZE as u64);
    set_space_aside(&**metadata, &superblock.layout)?;
    erase(&**metadata)?;
    let size = superblock.data_blocks * u64::from(options.block_size);
    let FormatOptions { pool, data_device, block_size, .. } = *options;
    let label = Label { pool, data_device, size, block_size, identity: None };
    label.write(data)?;
    data.flush().map_err(|source| VolumeError::Data { operation: "flush", source })?;
    let store = Store::new(Arc::clone(metadata), options.pool, CACHE_BLOCKS);
    let reserved = metadata.reserve(log.start.0 * unit, log.blocks * unit);
    reserved.map_err(|source| MetaError::Io { operation: "write", block: log.start, source })?;
    dedup_meta::write_milestones(&**metadata, log, options.pool)?;
    let mut map = metamap::empty(&superblock.layout);
    let (root, _, _) = metamap::save(&store, &mut map, superblock.txid, &dedup_meta::Root::EMPTY)?;
    superblock.roots.metamap = root;
    store.flush()?;
    dedup_meta::write_superblock(&store, &superblock)?;
    store.flush()?;
    dedup_meta::write_spare(&store, &superblock)?;
    store.flush()?;
    Ok(superblock)
}

/// Space for superblocks, log and first checkpoints, which changes no byte: without it, what is there stays.
fn set_space_aside(metadata: &dyn BlockDevice, layout: &Layout) -> Result<(), VolumeError> {
    let unit = META_BLOCK_SIZE as u64;
    let mut places = Vec::from(fixed_places(layout));
    let log_end = layout.log.start.0 + layout.log.blocks;
    let first = log_end..(log_end + FIRST_BLOCKS).min(layout.spare(TxId(0)).0.min(layout.spare(TxId(1)).0));
    places.extend((!first.is_empty()).then_some(first));
    let wanted = places.iter().map(|range| range.end - range.start).sum::<u64>() * unit;
    let full = || VolumeError::FullBelow { device: "metadata", wanted, room: metadata.room_below() };
    for place in &places {
        match metadata.preallocate(place.start * unit, (place.end - place.start) * unit) {
            // Then the zeros that are written into the log find out.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(error) if is_full(&error) => return Err(full()),
            done => done.map_err(|source| MetaError::Io {
                operation: "allocate space",
                block: MetaBlock(place.start),
                source,
            })?,
        }
    }
    Ok(())
}

/// Overwrites every superblock copy on a device with zeros, wherever one stands or will stand, and flushes.
pub fn erase(metadata: &dyn BlockDevice) -> Result<(), VolumeError> {
    let survey = load_superblocks(metadata);
    for copy in survey.copies.iter().filter(|copy| copy.state != CopyState::Empty) {
        dedup_meta::erase_copy(metadata, copy.block)?;
    }
    metadata.flush().map_err(|source| MetaError::Io { operation: "flush", block: MetaBlock(0), source })?;
    Ok(())
}

/// The first superblock, or why these devices cannot hold such a volume.
fn plan(data_size: u64, metadata_size: u64, options: &FormatOptions) -> Result<Superblock, VolumeError> {
    geometry::check_block_size(options.block_size)?;
    let block_size = u64::from(options.block_size);
    let logical_blocks = geometry::logical_blocks(options.logical_size, options.block_size)?;
    let data_blocks = (data_size / block_size).min(dedup_schema::MAX_BLOCKS);
    let data_min = (2 * block_size).max(2 * LABEL_IO_BYTES as u64);
    if data_size < data_min {
        return Err(VolumeError::DeviceTooSmall { device: "data", expected: data_min, found: data_size });
    }
    let metadata_blocks = metadata_size / META_BLOCK_SIZE as u64;
    let log_blocks =
        options.log_blocks.unwrap_or_else(|| geometry::log_blocks(data_blocks).min(metadata_blocks / 4));
    if metadata_blocks > MAX_METADATA_BLOCKS {
        return Err(VolumeError::Parameter {
            parameter: "metadata size",
            expected: format!(
                "at most {} bytes, since its map is kept in memory",
                MAX_METADATA_BLOCKS * META_BLOCK_SIZE as u64
            ),
            found: format!("{metadata_size} bytes"),
        });
    }
    if metadata_blocks < MIN_METADATA_BLOCKS {
        let expected = MIN_METADATA_BLOCKS * META_BLOCK_SIZE as u64;
        return Err(VolumeError::DeviceTooSmall { device: "metadata", expected, found: metadata_size });
    }
    let layout = Layout::new(metadata_blocks, log_blocks).map_err(|fault| VolumeError::Parameter {
        parameter: "log size",
        expected: format!("a ring that fits {metadata_blocks} metadata blocks"),
        found: fault.to_string(),
    })?;
    let volume = dedup_meta::Volume { id: 0, logical_blocks, mapping: RunSet::EMPTY };
    Ok(Superblock {
        features: Features::default(),
        pool: options.pool,
        data_device: options.data_device,
        txid: TxId(1),
        block_size: options.block_size,
        digest_algorithm: options.algorithm as u8,
        verify_match: options.verify_match,
        flushrq: options.flushrq,
        data_blocks,
        layout,
        clean: true,
        needs_check: false,
        recount_needed: false,
        epoch: Epoch(0),
        epoch_start: LogSeq(0),
        log: LogPosition { next: LogSeq(0), prev_crc: 0 },
        op_seq: 0,
        counters: [0; COUNTERS],
        data_used: 0,
        mapped: 0,
        cursor: 0,
        hint_rebuild_next: None,
        roots: Roots::EMPTY,
        hint: RunSet::EMPTY,
        volumes: vec![volume],
        journal: None,
    })
}
