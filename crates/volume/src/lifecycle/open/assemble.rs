//! The engine of an open volume, from what the superblock, the log and the metadata map say.

use super::epoch::begin_epoch;
use super::find::Found;
use super::maps;
use crate::durability::backing::back_fixed_places;
use crate::engine::backing::Backing;
use crate::engine::commits::Commits;
use crate::engine::data_cache::DataCache;
use crate::engine::fingerprint::Fingerprinter;
use crate::engine::overwrites::Overwrites;
use crate::engine::space::Space;
use crate::engine::sweep::Sweep;
use crate::engine::{Engine, EngineOptions};
use crate::error::VolumeError;
use crate::journal::pending::Pending;
use crate::lifecycle::journal;
use crate::lifecycle::options::OpenOptions;
use crate::lifecycle::replay::{Bounds, replay};
use crate::lifecycle::take_in::{Existing, TakenIn, take_in};
use crate::state::budget::{Budget, Ring, TreeBounds};
use crate::state::history::History;
use crate::state::pins::Pins;
use crate::state::unflushed::Unflushed;
use crate::state::{Mode, Recorded, State};
use crate::trees::filter::Filter;
use crate::trees::tables::Tables;
use dedup_device::{BlockDevice, WriteOp};
use dedup_meta::{LogBuilder, LogSeq, LogWriter, META_BLOCK_SIZE, RunSet, Scan, Store, Superblock};
use dedup_schema::{Counters, DigestAlgorithm, Overlay, Pbn, Seq};
use dedup_sync::{Arc, Barrier, Claims, Layers, Line, Mutex, RangeLocks, Turns, Wakeup};
use std::collections::BTreeMap;

/// Bytes of data in the log that go to their places at a time.
const RESTORE_BYTES: u64 = 4 << 20;

/// Replays the log and takes in the journal, and for writing restores the data that it carries and begins an
/// epoch.
pub(super) fn assemble(
    data: Arc<dyn BlockDevice>,
    store: Store,
    found: Found,
    (log, existing): (Scan, Option<Existing>),
    algorithm: DigestAlgorithm,
    options: &OpenOptions,
) -> Result<Engine, VolumeError> {
    let superblock = &found.newest;
    let (lbns, pbns) = (superblock.volumes[0].logical_blocks, superblock.data_blocks);
    let tables = Tables::of(superblock);
    let older_log =
        found.older.as_ref().map_or(superblock.log.next, |older| older.log.next.min(superblock.log.next));
    let mut state = state_at(superblock, &store, &tables, (older_log, log.end.next), options)?;
    let block_size = u64::from(superblock.block_size);
    let (highest_epoch, end, group) = (log.highest_epoch, log.end, next_group(&log));
    let rescue = options.read_only && options.rescue;
    let bounds = Bounds { lbns, pbns, block_size, rescue };
    let mut content = replay(&store, &mut state, log.blocks, bounds, &options.progress)?;
    let durable = state.seq;
    // It goes over what is on the data device, so it is held against the digest that its allocation names.
    let wrong =
        |(pbn, bytes): (&u64, &Vec<u8>)| state.recent_digest(Pbn(*pbn)) != Some(algorithm.digest(bytes));
    let wrong: Vec<u64> = content.iter().filter(|entry| wrong(*entry)).map(|(pbn, _)| *pbn).collect();
    if let Some(pbn) = wrong.first().filter(|_| !rescue) {
        let what = format!("content of block {pbn}: it does not have the digest of its allocation");
        return Err(VolumeError::LogDamaged { what });
    }
    content.retain(|pbn, _| !wrong.contains(pbn));
    let data = restore(data, &mut state, content, block_size, options.read_only)?;
    let taken = match &existing {
        Some(existing) => take_in(existing, &store, &mut state, bounds)?,
        None => TakenIn::default(),
    };
    let writes = !options.read_only;
    if writes {
        taken.rewrite(&store, &mut state, &*data, block_size)?;
    }
    let wanted = options.journal.as_ref().filter(|_| writes && !options.in_ram);
    let (journal, record, pending) = journal::begin(wanted, existing, superblock);
    state.journal = pending;
    let mut meta = maps::load(&store, &found, older_log, &mut state)?;
    let backing = match options.read_only {
        true => Backing::default(),
        false => Backing::find(&**store.device(), &mut meta.map),
    };
    state.budget.meta(meta.usage(&backing.parts()), state.layers.tables());
    let highest = highest_epoch.unwrap_or_default().max(found.highest_epoch);
    let epoch = highest.next();
    let writer = LogWriter::new(superblock.layout.log, superblock.pool, epoch, end, older_log, group);
    let engine = Engine {
        data,
        data_cache: DataCache::new(options.data_cache_bytes, block_size),
        block_size,
        lbns,
        pbns,
        slice_max: (state.budget.ring().blocks() / 8).max(1) as usize,
        algorithm,
        options: engine_options(options, superblock, algorithm),
        fingerprints: Fingerprinter::new(algorithm, options.digest_threads)
            .map_err(|error| VolumeError::Threads(error.to_string()))?,
        ranges: RangeLocks::default(),
        space: Space::new(pbns, superblock.cursor),
        overwrites: Overwrites::new(lbns, pbns - 1),
        state: Mutex::new(state),
        claims: Claims::default(),
        healing: Claims::default(),
        admissions: Line::default(),
        pins: Pins::default(),
        neighbours: Mutex::default(),
        commits: Commits::new(writer, durable),
        journal,
        barrier: Barrier::default(),
        data_barrier: Barrier::default(),
        checkpoints: Turns::new(0),
        meta: Mutex::new(meta),
        backing,
        sweep: Mutex::new(Sweep::default()),
        filter: Mutex::new(Filter::new(pbns, options.filter_bytes_max, tables.hints == RunSet::EMPTY)),
        filling: Mutex::default(),
        wakeup: Wakeup::default(),
        store,
    };
    if writes {
        back_fixed_places(&**engine.store.device(), &found.newest.layout);
        begin_epoch(&engine, &found, (epoch, end.next), record)?;
        engine.back_what_is_promised(0);
        engine.settle_taken_in(&taken)?;
    }
    Ok(engine)
}

/// The state as the superblock has it: nothing of the log, which goes from where the older superblock needs
/// it to its end, is replayed yet.
fn state_at(
    superblock: &Superblock,
    store: &Store,
    tables: &Tables,
    (older_log, log_end): (LogSeq, LogSeq),
    options: &OpenOptions,
) -> Result<State, VolumeError> {
    let (lbns, pbns) = (superblock.volumes[0].logical_blocks, superblock.data_blocks);
    let meta_blocks = superblock.layout.metadata_blocks;
    let bounds = TreeBounds { lbns, pbns, meta_blocks, runs: options.runs };
    let ring = superblock.layout.log.blocks;
    Ok(State {
        mode: if options.read_only { Mode::ReadOnly } else { Mode::ReadWrite },
        layers: Layers::new(tables.clone()),
        history: History::new(tables.txid, options.delta_operations(lbns)),
        log: LogBuilder::new(),
        journal: Pending::default(),
        logged: !options.in_ram,
        seq: Seq(superblock.op_seq),
        counters: Counters::from_slots(&superblock.counters),
        data_used: superblock.data_used,
        mapped: superblock.mapped,
        data_blocks: pbns,
        bad: match tables.bad(store) {
            // A block that is damaged does not pass its checksum, marked or not.
            Err(error) if options.read_only => {
                tracing::warn!("opened without the marks of damaged blocks: {error}");
                Default::default()
            }
            marks => marks?,
        },
        quarantine: Default::default(),
        unflushed: Unflushed::new(match options.in_ram {
            true => 0,
            // What would take a good part of the ring goes to the data device alone.
            false => options.log_data.min(ring * META_BLOCK_SIZE as u64 / 16) as usize,
        }),
        writes_since_commit: 0,
        budget: Budget::new(
            bounds,
            Ring::new(ring, older_log.0, superblock.log.next.0, log_end.0),
            options.delta_operations(lbns),
        )
        .paced(options.background),
        hint_rebuild_next: superblock.hint_rebuild_next.map(Pbn),
        rebuilds_begun: 0,
        hints_dropped: false,
        recount_needed: superblock.recount_needed,
        recorded: Recorded::of(superblock, 0),
    })
}

/// What was asked for, or what the volume was formatted with.
fn engine_options(
    options: &OpenOptions,
    superblock: &Superblock,
    algorithm: DigestAlgorithm,
) -> EngineOptions {
    EngineOptions {
        check_on_read: options.check_on_read,
        verify_match: algorithm.is_weak() || options.verify_match.unwrap_or(superblock.verify_match),
        flushrq: options.flushrq.unwrap_or(superblock.flushrq),
        discard: options.discard,
        background: options.background,
        runs: options.runs,
        filter_bytes_max: options.filter_bytes_max,
    }
}

/// The data device with the content that the log carries: in its place, or over it for a read-only open.
fn restore(
    data: Arc<dyn BlockDevice>,
    state: &mut State,
    content: BTreeMap<u64, Vec<u8>>,
    block_size: u64,
    read_only: bool,
) -> Result<Arc<dyn BlockDevice>, VolumeError> {
    if content.is_empty() {
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
