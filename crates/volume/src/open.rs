//! Opening a volume: the newest valid superblock, then the valid suffix of the log.
//!
//! ```text
//!  flush data, flush metadata             R5: what a killed process left in the cache may be readable and not durable
//!  label ─> pool ─> superblocks           only those of the pool that the label names (R11)
//!  metadata map of both superblocks       blocks of either are never written (I1)
//!  scan the log, and where it may have been  stops at damage (R6), takes no stale blocks (R4)
//!  replay into the active delta           the trees are not touched: the log stays until the next checkpoint
//!  write the data that the log carries    to its place; it is there again until a checkpoint has flushed it
//!  both superblocks stand in their spares  lost in a crash, they are written again: the next one goes over the older one's slot;
//!                                         a spare that cannot be read is erased: it may be one of the same number
//!  write a superblock with a new epoch    where the accepted log ended; flush; only then may anything be appended (R4)
//! ```
//!
//! Time and memory are bounded by the log ring, by the operations that two deltas may hold, and by the
//! metadata map (2 bits for each 4 KiB of metadata); nothing walks the volume. A read-only open does the same
//! in memory and writes nothing.

use crate::barrier::Barrier;
use crate::budget::{Budget, TreeBounds};
use crate::checkpoint::MetaSide;
use crate::claims::Claims;
use crate::commit::Commits;
use crate::content::Unflushed;
use crate::counters::Counters;
use crate::data_cache::DataCache;
use crate::digest::{DigestAlgorithm, Fingerprinter};
use crate::engine::{CheckOnRead, Engine, EngineOptions};
use crate::error::VolumeError;
use crate::fault::{Fault, Planted};
use crate::filter::Filter;
use crate::gc::Sweep;
use crate::ids::{Pbn, Seq};
use crate::label::Label;
use crate::layers::Layers;
use crate::maintenance::Threads;
use crate::metamap;
use crate::overlay::Overlay;
use crate::pins::Pins;
use crate::ranges::RangeLocks;
use crate::replay::{Bounds, replay};
use crate::runs::RunPolicy;
use crate::space::Space;
use crate::state::{Mode, State};
use crate::sync::{Arc, Mutex};
use crate::tables::Tables;
use crate::turns::Turns;
use crate::turnstile::Turnstile;
use crate::volume::Volume;
use crate::wakeup::Wakeup;
use dedup_device::{BlockDevice, WriteOp};
use dedup_meta::{
    Access, CopyState, Epoch, Features, LogBuilder, LogWriter, META_BLOCK_SIZE, MetaBlock, MetaError, Reach,
    RunSet, Scan, Store, Superblock, SuperblockError, load_superblocks,
};
use dedup_spacemap::Generations;
use std::collections::BTreeMap;

/// How to open a volume.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Write nothing; the log is replayed in memory.
    pub read_only: bool,
    /// With `read_only`: open also if part of the log that was durable is lost. The volume then reads as it was before the loss, which
    /// acknowledged writes may be missing from.
    pub rescue: bool,
    /// How reads are verified.
    pub check_on_read: CheckOnRead,
    /// Compare the bytes of every match; `None`: as formatted. Always done for weak digests.
    pub verify_match: Option<bool>,
    /// Commit every so many block writes; `None`: as formatted.
    pub flushrq: Option<u32>,
    /// If given, must be what the volume was formatted with.
    pub block_size: Option<u32>,
    /// If given, must be what the volume was formatted with.
    pub algorithm: Option<DigestAlgorithm>,
    /// Bytes of metadata blocks kept in memory.
    pub cache_bytes: u64,
    /// Bytes of data kept in memory, each block once however many LBNs share it; 0: none. For data devices that are not read through the
    /// kernel's page cache.
    pub data_cache_bytes: u64,
    /// Operations at most that a delta holds; 180 to 250 bytes of memory each, twice. A small volume has smaller ones: a 512th of its
    /// blocks, but no less than 32 k.
    pub delta_max: u64,
    /// A commit of up to this many bytes of new data carries them in the log, which saves the flush of the data device; 0: never.
    /// As many bytes of memory.
    pub log_data: u64,
    /// Bytes at most of the filter that saves lookups in the index for what is not stored: 10 bits for each block of the data
    /// device, if they fit; 0: none. Taken as it fills.
    pub filter_bytes_max: u64,
    /// When checkpoints put changes of the LBN map and of the digest index into runs.
    pub runs: RunPolicy,
    /// Threads that compute digests.
    pub digest_threads: usize,
    /// Pass freed blocks down to the data device as discards.
    pub discard: bool,
    /// Do commits, checkpoints and collection in threads of their own. Without, the calling threads do them,
    /// and a run repeats exactly.
    pub background: bool,
    /// Keep the log and all metadata in memory: FLUSH flushes data only, and nothing can be reopened.
    pub in_ram: bool,
    /// A fault to plant.
    #[cfg(feature = "planted-faults")]
    pub planted: Option<Fault>,
}

impl OpenOptions {
    /// Operations that a delta of a volume of so many logical blocks holds.
    pub fn delta_operations(&self, lbns: u64) -> u64 {
        self.delta_max.min((lbns / BLOCKS_PER_DELTA_OPERATION).max(DELTA_SMALL))
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            rescue: false,
            check_on_read: CheckOnRead::Crc,
            verify_match: None,
            flushrq: None,
            block_size: None,
            algorithm: None,
            cache_bytes: 128 << 20,
            data_cache_bytes: 0,
            delta_max: DELTA_MAX,
            log_data: LOG_DATA,
            filter_bytes_max: FILTER_BYTES_MAX,
            runs: RunPolicy::ByCost,
            digest_threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            discard: false,
            background: true,
            in_ram: false,
            #[cfg(feature = "planted-faults")]
            planted: None,
        }
    }
}

/// Default operations in a delta: 2 x 50 MiB of memory, and few enough leaf writes an operation (design: the
/// cost of checkpoints).
const DELTA_MAX: u64 = 256 << 10;
/// Logical blocks for each operation of a delta: the proportion at which a checkpoint of half a delta writes no more an operation than at
/// 1 TiB. The default is all that a volume of 512 GiB and more may have.
const BLOCKS_PER_DELTA_OPERATION: u64 = 512;
/// Operations that a delta of a small volume may have: 2 x 7 MiB, and a tenth of a second of a writer at full rate.
const DELTA_SMALL: u64 = 32 << 10;
/// Default data of a commit in the log: about what a device writes in the time of a flush, and 32 blocks of 4 KiB.
const LOG_DATA: u64 = 128 << 10;
/// Default of `filter_bytes_max`: enough for 1.6 TiB stored, and of use, with fewer bits a key, for twice that.
const FILTER_BYTES_MAX: u64 = 512 << 20;
/// Bytes of data in the log that go to their places at a time.
const RESTORE_BYTES: u64 = 4 << 20;
/// Cache blocks that an open volume has at least: the paths from a few roots to a few leaves.
const CACHE_BLOCKS_MIN: u64 = 64;

/// The superblocks that an open goes by.
struct Found {
    newest: Superblock,
    older: Option<Superblock>,
    next_txid: dedup_meta::TxId,
    highest_epoch: Epoch,
    /// Both stand in their slots and one follows the other: no superblock after them was ever durable.
    both_slots: bool,
    /// Those of the two that do not stand in their spare place.
    without_spare: Vec<Superblock>,
    /// The next superblock's spare place, if what is there could not be read and is not written again.
    unreadable_spare: Option<MetaBlock>,
}

impl Volume {
    /// Opens the volume on these two devices, which the caller has locked (exclusively unless read-only).
    pub fn open(
        data: Arc<dyn BlockDevice>,
        metadata: Arc<dyn BlockDevice>,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let planted = options.planted();
        if !options.read_only && !planted.is(Fault::OpenNotFlushed) {
            data.flush().map_err(|source| VolumeError::Data { operation: "flush", source })?;
            metadata.flush().map_err(|source| meta_io("flush", source))?;
        }
        let from_medium = metadata.bypass_cache().map_err(|source| meta_io("read", source))?;
        let found = find(&*data, &*metadata, planted)?;
        let algorithm = check_parameters(&found.newest, &*data, options)?;
        let cache_blocks = (options.cache_bytes / META_BLOCK_SIZE as u64).max(CACHE_BLOCKS_MIN);
        let store = Store::new(metadata, found.newest.pool, cache_blocks as usize).planting(planted.meta());
        let log = scan_log(&store, &found, options, from_medium)?;
        let engine = assemble(data, store, found, log, algorithm, options)?;
        let engine = Arc::new(engine);
        let threads = match options.background && !options.read_only {
            true => Some(Threads::start(&engine)?),
            false => None,
        };
        Ok(Self { engine, threads })
    }
}

fn meta_io(operation: &'static str, source: std::io::Error) -> VolumeError {
    MetaError::Io { operation, block: MetaBlock(0), source }.into()
}

fn find(data: &dyn BlockDevice, metadata: &dyn BlockDevice, planted: Planted) -> Result<Found, VolumeError> {
    let label = Label::read(data)?;
    let survey = load_superblocks(metadata);
    let pool = (!planted.is(Fault::LabelNotChecked)).then_some(label.pool);
    let newest = survey.newest(pool).map_err(|error| match error {
        SuperblockError::ForeignPool { expected, found } => VolumeError::WrongPair {
            what: "pool",
            expected: crate::error::name_of(found),
            found: crate::error::name_of(expected),
        },
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
    if !planted.is(Fault::LabelNotChecked) {
        label.check_pair(newest.pool, newest.data_device, data_size)?;
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
        older: older.cloned(),
        next_txid,
        unreadable_spare: Some(newest.layout.spare(next_txid)).filter(unreadable),
        highest_epoch: survey.highest_epoch(newest.pool).unwrap_or(newest.epoch),
        without_spare,
        newest: newest.clone(),
    })
}

/// The format has room for more volumes in one pool; this version has one, and reading past the others would lose data from view.
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

fn check_parameters(
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
            expected: "digest algorithms 1 to 5".into(),
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

/// The log behind a superblock. If the device may have shown what is only cached, log and superblocks are written
/// back byte for byte and flushed before anything is built upon them (R5).
fn scan_log(
    store: &Store,
    found: &Found,
    options: &OpenOptions,
    from_medium: bool,
) -> Result<Scan, VolumeError> {
    let planted = options.planted();
    // A superblock that was lost may have had a higher epoch (R4): then every log block is asked for its own.
    let reach = match found.both_slots || planted.is(Fault::LostEpochNotSearched) {
        true => Reach::Log,
        false => Reach::Ring,
    };
    let log = dedup_meta::scan_log(&**store.device(), &found.newest, reach, planted.meta())?;
    if let Some(damage) = log.damage.as_ref().filter(|_| !planted.is(Fault::MidLogDamageTakenForTail)) {
        if !(options.read_only && options.rescue) {
            return Err(VolumeError::LogDamaged { what: damage.to_string() });
        }
        tracing::warn!("opened as of before the damage in the log: {damage}");
    }
    if !from_medium && !options.read_only && !planted.is(Fault::CachedLogBelieved) {
        for block in &log.blocks {
            store.write_raw(&*store.read_raw(found.newest.layout.log.place(block.seq))?)?;
        }
        store.flush()?;
        rewrite_superblocks(store)?;
    }
    Ok(log)
}

/// Does the same with the superblocks: one that only the cache has would count as the way back from the next one. Copy by copy, so
/// that a power cut tears no more than one.
fn rewrite_superblocks(store: &Store) -> Result<(), VolumeError> {
    let survey = load_superblocks(&**store.device());
    for copy in survey.copies {
        if matches!(&copy.state, CopyState::Valid(superblock) if superblock.pool == store.pool()) {
            store.write_raw(&*store.read_raw(copy.block)?)?;
            store.flush()?;
        }
    }
    Ok(())
}

fn assemble(
    data: Arc<dyn BlockDevice>,
    store: Store,
    found: Found,
    log: Scan,
    algorithm: DigestAlgorithm,
    options: &OpenOptions,
) -> Result<Engine, VolumeError> {
    let superblock = &found.newest;
    let (lbns, pbns) = (superblock.volumes[0].logical_blocks, superblock.data_blocks);
    let tables = Tables::of(superblock);
    let meta_blocks = superblock.layout.metadata_blocks;
    let bounds = TreeBounds { lbns, pbns, meta_blocks, runs: options.runs };
    let older_log =
        found.older.as_ref().map_or(superblock.log.next, |older| older.log.next.min(superblock.log.next));
    let ring = superblock.layout.log.blocks;
    let mut state = State {
        mode: if options.read_only { Mode::ReadOnly } else { Mode::ReadWrite },
        layers: Layers::new(tables.clone()),
        log: LogBuilder::new(),
        logged: !options.in_ram,
        seq: Seq(superblock.op_seq),
        counters: Counters::from_slots(&superblock.counters),
        data_used: superblock.data_used,
        mapped: superblock.mapped,
        bad: tables.bad(&store)?,
        quarantine: Default::default(),
        unflushed: Unflushed::new(match options.in_ram {
            true => 0,
            // What would take a good part of the ring goes to the data device alone.
            false => options.log_data.min(ring * META_BLOCK_SIZE as u64 / 16) as usize,
        }),
        writes_since_commit: 0,
        budget: Budget::new(
            bounds,
            ring,
            older_log.0,
            superblock.log.next.0,
            log.end.next.0,
            options.delta_operations(lbns),
            options.planted(),
        )
        .paced(options.background),
        hint_rebuild_next: superblock.hint_rebuild_next.map(Pbn),
        hints_dropped: false,
        recount_needed: superblock.recount_needed,
        planted: options.planted(),
    };
    let block_size = u64::from(superblock.block_size);
    let (highest_epoch, end, group) = (log.highest_epoch, log.end, next_group(&log));
    let content = replay(&store, &mut state, log.blocks, Bounds { lbns, pbns, block_size })?;
    for (pbn, bytes) in &content {
        // It goes over what is on the data device, so it is held against the digest that its allocation names.
        if state.recent_digest(Pbn(*pbn)) != Some(algorithm.digest(bytes)) {
            let what = format!("content of block {pbn}: it does not have the digest of its allocation");
            return Err(VolumeError::LogDamaged { what });
        }
    }
    let data = restore(data, &mut state, content, block_size, options.read_only)?;
    if state.planted.is(Fault::BadMarksForgotten) {
        state.bad.clear();
    }
    let meta = load_maps(&store, &found, older_log)?;
    state.budget.meta(meta.map.allocatable(), meta.map.in_use(), &tables);
    let highest = highest_epoch.unwrap_or_default().max(found.highest_epoch);
    let engine_options = EngineOptions {
        check_on_read: options.check_on_read,
        verify_match: algorithm.is_weak() || options.verify_match.unwrap_or(superblock.verify_match),
        flushrq: options.flushrq.unwrap_or(superblock.flushrq),
        discard: options.discard,
        background: options.background,
        runs: options.runs,
        filter_bytes_max: options.filter_bytes_max,
        planted: options.planted(),
    };
    let epoch = if engine_options.planted.is(Fault::EpochKept) { superblock.epoch } else { highest.next() };
    let writer = LogWriter::new(superblock.layout.log, superblock.pool, epoch, end, older_log, group)
        .planting(engine_options.planted.meta());
    let durable = state.seq;
    let engine = Engine {
        data,
        data_cache: DataCache::new(options.data_cache_bytes, block_size),
        block_size,
        lbns,
        pbns,
        slice_max: (state.budget.ring_blocks() / 8).max(1) as usize,
        algorithm,
        options: engine_options,
        fingerprints: Fingerprinter::new(algorithm, options.digest_threads)
            .map_err(|error| VolumeError::Threads(error.to_string()))?,
        ranges: RangeLocks::default(),
        space: Space::new(pbns, superblock.cursor),
        state: Mutex::new(state),
        claims: Claims::new(),
        healing: Claims::new(),
        admissions: Turnstile::default(),
        pins: Pins::default(),
        neighbours: Mutex::default(),
        commits: Commits::new(writer, durable),
        barrier: Barrier::default(),
        data_barrier: Barrier::default(),
        checkpoints: Turns::new(0),
        meta: Mutex::new(meta),
        sweep: Mutex::new(Sweep::default()),
        filter: Mutex::new(Filter::new(pbns, options.filter_bytes_max, tables.hints == RunSet::EMPTY)),
        filling: Mutex::default(),
        wakeup: Wakeup::default(),
        store,
    };
    if !options.read_only || engine.planted(Fault::ReadOnlyOpenWrites) {
        begin_epoch(&engine, &found, epoch, end.next)?;
    }
    Ok(engine)
}

/// The data device with the content that the log carries: in its place, or over it for a read-only open.
fn restore(
    data: Arc<dyn BlockDevice>,
    state: &mut State,
    content: BTreeMap<u64, Vec<u8>>,
    block_size: u64,
    read_only: bool,
) -> Result<Arc<dyn BlockDevice>, VolumeError> {
    if content.is_empty() || state.planted.is(Fault::ContentNotRestored) {
        return Ok(data);
    }
    if read_only {
        return Ok(Arc::new(Overlay::new(data, block_size, content)));
    }
    tracing::info!("{} blocks of data in the log go to their places", content.len());
    let blocks: Vec<(u64, Vec<u8>)> = content.into_iter().collect();
    for slice in blocks.chunks((RESTORE_BYTES / block_size).max(1) as usize) {
        let consecutive = slice.chunk_by(|(a, _), (b, _)| a + 1 == *b);
        let mut ops: Vec<WriteOp<'_>> = consecutive
            .map(|run| WriteOp::new(run[0].0 * block_size, run.iter().map(|(_, bytes)| &**bytes).collect()))
            .collect();
        data.write_batch(&mut ops);
        for op in ops {
            let block = op.offset / block_size;
            op.result.map_err(|source| VolumeError::NotRestored { block, source })?;
        }
    }
    state.unflushed.wrote_more();
    Ok(data)
}

fn next_group(log: &Scan) -> u64 {
    log.blocks.last().map_or(0, |block| block.group + 1)
}

/// The newest superblock's map, with what only the older one reaches held back.
fn load_maps(store: &Store, found: &Found, older_log: dedup_meta::LogSeq) -> Result<MetaSide, VolumeError> {
    let layout = &found.newest.layout;
    let mut map = metamap::load(store, &found.newest.roots.metamap, layout)?;
    let mut generations = Generations::new();
    // An older map that cannot be read belongs to a superblock that could not be opened either.
    if let Some(older) = &found.older
        && let Ok(old_map) = metamap::load(store, &older.roots.metamap, layout)
    {
        let only_old: Vec<u64> =
            (0..map.len()).filter(|b| old_map.count(*b) > 0 && map.count(*b) == 0).collect();
        only_old.iter().for_each(|block| map.hold(*block));
        generations.freed(found.newest.txid.0, only_old);
    }
    Ok(MetaSide {
        map,
        generations,
        superblock: found.newest.clone(),
        older_log,
        leaked: Vec::new(),
        merging_mappings: None,
        merging_hints: None,
        blocks_written: 0,
    })
}

/// Makes the new epoch and the end of the accepted log durable, before anything is appended.
fn begin_epoch(
    engine: &Engine,
    found: &Found,
    epoch: Epoch,
    accepted: dedup_meta::LogSeq,
) -> Result<(), VolumeError> {
    let mut meta = engine.meta.lock();
    // The next superblock goes over the slot of the older one. If it is torn there, the way back is the older one's spare; and
    // soon after the newest one's, which a crash may have lost as well.
    let without_spare = found.without_spare.iter().filter(|_| !engine.planted(Fault::SparesNotRestored));
    for superblock in without_spare {
        dedup_meta::write_spare(&engine.store, superblock)?;
    }
    // What cannot be read now may be a superblock that is newer than all others, and readable later: beside its successor, which
    // has the same number and need not have its spare yet. It must not come back.
    if let Some(at) = found.unreadable_spare {
        dedup_meta::erase_copy(&**engine.store.device(), at)?;
    }
    if !found.without_spare.is_empty() || found.unreadable_spare.is_some() {
        engine.store.flush()?;
    }
    let mut features = meta.superblock.features;
    if engine.state.lock().unflushed.goes_to_the_log() {
        features.incompat |= Features::LOG_DATA;
    }
    let superblock = Superblock {
        features,
        txid: found.next_txid,
        epoch,
        epoch_start: match engine.planted(Fault::EpochStartNotRecorded) {
            false => accepted,
            true => meta.superblock.epoch_start,
        },
        clean: false,
        ..meta.superblock.clone()
    };
    engine.write_superblock(&mut meta, superblock)?;
    engine.release_log(meta.older_log);
    let mut state = engine.state.lock();
    let state = &mut *state;
    let (free, used) = (meta.map.allocatable(), meta.map.in_use());
    state.budget.checkpointed(meta.older_log.0, free, used, state.layers.tables());
    Ok(())
}
