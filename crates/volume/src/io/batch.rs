//! Running a batch of requests.
//!
//! Within a batch all requests count as concurrent: they may take effect in any order, each block whole.
//! Reads go first, since they wait for nobody; then the changes, in *waves* of requests that touch different
//! blocks; then one commit for everything that has to be durable before it is answered.
//!
//! The caller can end its interest in a batch that runs: a wave is begun only if the batch is still wanted
//! once the wave's blocks are locked. So a batch whose client has gone is either finished, or never begun,
//! before anybody else changes the same blocks.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::io::block_write::BlockWrite;
use crate::io::read::BlockRead;
use crate::state::Mode;
use dedup_device::AlignedBuf;
use dedup_request::{Done, Op, Request, RequestError, Wanted};
use dedup_schema::{Lbn, Seq};
use std::collections::BTreeMap;
use std::ops::Range;

/// A changing request and the whole blocks that it touches.
struct Change<'a> {
    request: Request<'a>,
    span: Span,
    lbns: Range<Lbn>,
}

/// The bytes of a changing request.
#[derive(Clone, Copy, Debug)]
struct Span {
    offset: u64,
    len: u64,
    fua: bool,
}

/// What a batch may do, as of its beginning: who is told so may still fail later.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    write: Result<(), RequestError>,
    /// A flush of a volume that stopped after a failure must fail; one of a volume that never wrote has
    /// nothing to do.
    flush: Result<(), RequestError>,
}

/// How a changing request ended: what has to be durable before it is answered.
type Outcome = Result<Option<Seq>, RequestError>;

impl Engine {
    /// Runs a batch, as long as it is `wanted`; calls `done` once for each request.
    pub(crate) fn execute<'a>(&self, wanted: Wanted<'_>, batch: Vec<Request<'a>>, done: Done<'_, 'a>) {
        let (mut reads, mut changes, mut flushes) = (Vec::new(), Vec::new(), Vec::new());
        let allowed = self.allowed();
        for request in batch {
            match self.check(&request, allowed) {
                Err(error) => done(request, Err(error)),
                Ok(None) => flushes.push(request),
                Ok(Some(_)) if matches!(request.op, Op::Read { .. }) => reads.push(request),
                Ok(Some(span)) => {
                    let lbns = self.touched(&request, span);
                    changes.push(Change { request, span, lbns });
                }
            }
        }
        let flush_seq = if flushes.is_empty() { Seq(0) } else { self.published_seq() };
        self.run_reads(reads, done);
        let mut commits = self.run_changes(wanted, changes, done);
        commits.extend(flushes.into_iter().map(|request| (request, flush_seq)));
        let Some(last) = commits.iter().map(|(_, seq)| *seq).max() else {
            self.maintain();
            return;
        };
        let result = self.commit(last).map_err(|error| error.for_client());
        // A failed commit is no statement about a read-only volume: what it cannot do is make anything
        // durable.
        let result =
            result.map_err(|kind| if kind == RequestError::ReadOnly { RequestError::Io } else { kind });
        for (request, _) in commits {
            done(request, result);
        }
        self.maintain();
    }

    /// What the volume's mode allows now.
    fn allowed(&self) -> Allowed {
        let state = self.state.lock();
        Allowed {
            write: state.writable().map_err(|error| error.for_client()),
            flush: match state.mode {
                Mode::Failed(_) => Err(RequestError::Io),
                _ => Ok(()),
            },
        }
    }

    /// Whether the request can be run, and on which bytes (`None` for a flush).
    fn check(&self, request: &Request<'_>, allowed: Allowed) -> Result<Option<Span>, RequestError> {
        let (span, writes) = match &request.op {
            Op::Flush => return allowed.flush.map(|()| None),
            Op::Read { offset, buf } => (Span { offset: *offset, len: buf.len() as u64, fua: false }, false),
            Op::Write { offset, data, fua } => {
                (Span { offset: *offset, len: data.len() as u64, fua: *fua }, true)
            }
            Op::Trim { offset, len, fua } | Op::WriteZeroes { offset, len, fua } => {
                (Span { offset: *offset, len: *len, fua: *fua }, true)
            }
        };
        match span.offset.checked_add(span.len) {
            Some(end) if end <= self.lbns * self.block_size => {}
            _ => return Err(RequestError::OutOfRange),
        }
        if writes {
            allowed.write?;
        }
        Ok(Some(span))
    }

    /// The blocks that a request changes: all it touches, or for a trim the whole ones.
    fn touched(&self, request: &Request<'_>, span: Span) -> Range<Lbn> {
        let size = self.block_size;
        let end = span.offset + span.len;
        let whole = matches!(request.op, Op::Trim { .. });
        match whole {
            true => {
                let start = span.offset.div_ceil(size);
                Lbn(start)..Lbn((end / size).max(start))
            }
            false => Lbn(span.offset / size)..Lbn(end.div_ceil(size)),
        }
    }

    fn run_reads<'a>(&self, mut requests: Vec<Request<'a>>, done: Done<'_, 'a>) {
        let mut results = vec![Ok(()); requests.len()];
        let mut parts = Vec::new();
        for (place, request) in requests.iter_mut().enumerate() {
            if let Op::Read { offset, buf } = &mut request.op {
                let mut rest = &mut **buf;
                for (lbn, start, len) in blocks_of(*offset, rest.len() as u64, self.block_size) {
                    let (buf, tail) = rest.split_at_mut(len);
                    parts.push(BlockRead { lbn, start, buf, request: place });
                    rest = tail;
                }
            }
        }
        if !parts.is_empty() {
            let (seq, failed) = self.read_blocks(&mut parts);
            for (place, error) in failed {
                results[parts[place].request] = Err(error.for_client());
            }
            // What was read stays there, too. Where the journal cannot be written, it may be lost with its
            // writer's answer.
            self.keep_shown(seq);
        }
        drop(parts);
        requests.into_iter().zip(results).for_each(|(request, result)| done(request, result));
    }

    /// Runs the changing requests, answers those that need no commit, and returns the others with what they
    /// wait for.
    fn run_changes<'a>(
        &self,
        wanted: Wanted<'_>,
        changes: Vec<Change<'a>>,
        done: Done<'_, 'a>,
    ) -> Vec<(Request<'a>, Seq)> {
        let mut commits = Vec::new();
        let mut rest = changes;
        while !rest.is_empty() {
            let (wave, later) = split_wave(rest);
            rest = later;
            let outcomes = self.run_wave(wanted, &wave);
            let is_answered = |outcome: &Outcome| matches!(outcome, Ok(None));
            // All that was published before is in it, too: a trim may have found nothing mapped because of
            // another one.
            let kept = !outcomes.iter().any(is_answered) || self.keep_published();
            for (change, outcome) in wave.into_iter().zip(outcomes) {
                match outcome {
                    Ok(Some(seq)) => commits.push((change.request, seq)),
                    Ok(None) if !kept => commits.push((change.request, self.published_seq())),
                    Ok(_) => done(change.request, Ok(())),
                    Err(error) => done(change.request, Err(error)),
                }
            }
        }
        commits
    }

    /// Runs requests that touch different blocks: first all blocks that are written, then what is unmapped,
    /// which takes its own locks.
    fn run_wave(&self, wanted: Wanted<'_>, wave: &[Change<'_>]) -> Vec<Outcome> {
        let mut ranges = Vec::with_capacity(wave.len());
        wave.iter().for_each(|change| change.add_written_lbns(self.block_size, &mut ranges));
        let locked = (!ranges.is_empty()).then(|| self.ranges.lock(ranges));
        // Not before: while this thread waited for the blocks, the client may have gone, come back and
        // written something newer.
        if !wanted() {
            return wave.iter().map(|_| Err(RequestError::Abandoned)).collect();
        }
        let mut results: Vec<Outcome> = wave.iter().map(|_| Ok(None)).collect();
        let (edges, failed) = self.read_edges(wave);
        for (place, error) in failed {
            results[place] = Err(error.for_client());
        }
        let mut pieces: Vec<(usize, Lbn, &[u8])> = Vec::new();
        for (place, change) in wave.iter().enumerate().filter(|(place, _)| results[*place].is_ok()) {
            if let Op::Write { offset, data, .. } = &change.request.op {
                let mut rest = *data;
                for (lbn, _, len) in blocks_of(*offset, data.len() as u64, self.block_size) {
                    let (piece, tail) = rest.split_at(len);
                    rest = tail;
                    pieces.push((place, lbn, edges.get(&lbn).map_or(piece, |edge| edge)));
                }
            } else {
                pieces.extend(
                    change
                        .edge_lbns(self.block_size)
                        .filter_map(|lbn| Some((place, lbn, &**edges.get(&lbn)?))),
                );
            }
        }
        let prints = self.fingerprints.batch(&pieces.iter().map(|(_, _, data)| *data).collect::<Vec<_>>());
        let mut blocks: Vec<BlockWrite<'_>> = pieces
            .into_iter()
            .zip(prints)
            .map(|((request, lbn, data), print)| {
                let lbns = &wave[request].lbns;
                BlockWrite::new(lbn, data, (request, lbns.end.0 - lbns.start.0), print)
            })
            .collect();
        self.write_blocks(&mut blocks);
        for block in &blocks {
            let change = &wave[block.request];
            merge(&mut results[block.request], block.outcome(), change.span.fua);
        }
        drop(locked);
        for (place, change) in
            wave.iter().enumerate().filter(|(_, c)| !matches!(c.request.op, Op::Write { .. }))
        {
            if results[place].is_ok() {
                let lbns = change.whole_lbns(self.block_size);
                let last = self.unmap(wanted, lbns);
                // Where nothing was mapped, the zeros that FUA asks for may still be those of an uncommitted
                // operation before.
                let before = self.published_seq();
                let last = last.as_ref().map(|seq| (seq.unwrap_or(before), false));
                merge(&mut results[place], last, change.span.fua);
            }
        }
        results
    }

    /// The blocks that requests cover in part, with the new bytes laid over the old ones. Trims leave such
    /// blocks alone.
    fn read_edges(&self, wave: &[Change<'_>]) -> (BTreeMap<Lbn, AlignedBuf>, Vec<(usize, VolumeError)>) {
        let mut edges = BTreeMap::new();
        for change in wave {
            for lbn in change.edge_lbns(self.block_size) {
                edges.insert(lbn, AlignedBuf::zeroed(self.block_size as usize));
            }
        }
        if edges.is_empty() {
            return (edges, Vec::new());
        }
        let mut reads: Vec<BlockRead<'_>> =
            edges.iter_mut().map(|(lbn, buf)| BlockRead { lbn: *lbn, start: 0, buf, request: 0 }).collect();
        self.state.lock().counters.reads_on_writes += reads.len() as u64;
        let failed: Vec<(Lbn, VolumeError)> = self
            .read_blocks(&mut reads)
            .1
            .into_iter()
            .map(|(place, error)| (reads[place].lbn, error))
            .collect();
        drop(reads);
        for change in wave {
            for lbn in change.edge_lbns(self.block_size) {
                if let Some(edge) = edges.get_mut(&lbn) {
                    change.lay_over(lbn, self.block_size, edge);
                }
            }
        }
        let owner = |lbn: Lbn| wave.iter().position(|c| c.lbns.contains(&lbn)).unwrap_or(0);
        (edges, failed.into_iter().map(|(lbn, error)| (owner(lbn), error)).collect())
    }
}

impl Change<'_> {
    /// The first and last block, where they are covered in part and changed. A trim leaves such blocks alone,
    /// and has not locked them.
    fn edge_lbns(&self, size: u64) -> impl Iterator<Item = Lbn> + use<> {
        let Span { offset, len, .. } = match self.request.op {
            Op::Trim { .. } => Span { offset: 0, len: 0, fua: false },
            _ => self.span,
        };
        let end = offset + len;
        let first = (len > 0 && (!offset.is_multiple_of(size) || (end < (offset / size + 1) * size)))
            .then_some(offset / size);
        let last = (len > 0 && !end.is_multiple_of(size)).then_some(end / size);
        first.into_iter().chain(last.filter(|last| Some(*last) != first)).map(Lbn)
    }

    /// Adds the blocks that are written, as ranges that do not touch: all of a write's, the edges of what is
    /// zeroed.
    fn add_written_lbns(&self, size: u64, ranges: &mut Vec<Range<Lbn>>) {
        if !matches!(self.request.op, Op::Write { .. }) {
            ranges.extend(self.edge_lbns(size).map(|lbn| lbn..Lbn(lbn.0 + 1)));
        } else if !self.lbns.is_empty() {
            ranges.push(self.lbns.clone());
        }
    }

    /// The blocks covered as a whole.
    fn whole_lbns(&self, size: u64) -> Range<Lbn> {
        let start = self.span.offset.div_ceil(size);
        Lbn(start)..Lbn(((self.span.offset + self.span.len) / size).max(start))
    }

    /// Puts the request's bytes for block `lbn` over what `block` holds.
    fn lay_over(&self, lbn: Lbn, size: u64, block: &mut [u8]) {
        let Span { offset, len, .. } = self.span;
        let block_start = lbn.0 * size;
        let from = offset.max(block_start);
        let to = (offset + len).min(block_start + size);
        let target = &mut block[(from - block_start) as usize..(to - block_start) as usize];
        match &self.request.op {
            Op::Write { data, .. } => {
                target.copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize])
            }
            _ => target.fill(0),
        }
    }
}

/// Takes from the front as many requests as touch different blocks; the others come later.
fn split_wave(changes: Vec<Change<'_>>) -> (Vec<Change<'_>>, Vec<Change<'_>>) {
    if are_apart(&changes) {
        return (changes, Vec::new());
    }
    let mut taken: BTreeMap<Lbn, Lbn> = BTreeMap::new();
    changes.into_iter().partition(|change| {
        let free =
            taken.range(..change.lbns.end).next_back().is_none_or(|(_, end)| *end <= change.lbns.start);
        if free && !change.lbns.is_empty() {
            taken.insert(change.lbns.start, change.lbns.end);
        }
        free
    })
}

/// Whether no two requests touch the same block. So it is in nearly every batch, and sorting tells sooner
/// than a map does.
fn are_apart(changes: &[Change<'_>]) -> bool {
    let spans = changes.iter().map(|change| (change.lbns.start, change.lbns.end));
    let mut spans: Vec<(Lbn, Lbn)> = spans.filter(|(start, end)| start < end).collect();
    spans.sort_unstable();
    spans.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}

/// Adds a block's result to its request's: the first error stays; a commit is needed for FUA, or when
/// `flushrq` says so.
fn merge(result: &mut Outcome, block: Result<(Seq, bool), &VolumeError>, fua: bool) {
    match (block, &mut *result) {
        (Err(error), Ok(_)) => {
            let kind = error.for_client();
            // What the data device said is logged already, with its block.
            if kind == RequestError::Io && !matches!(error, VolumeError::Data { .. }) {
                tracing::error!("write: {error}");
            }
            *result = Err(kind);
        }
        (Ok((seq, commit)), Ok(last)) if fua || commit => *last = (*last).max(Some(seq)),
        _ => {}
    }
}

/// The blocks of a byte range: (block, first byte within it, bytes).
fn blocks_of(offset: u64, len: u64, size: u64) -> impl Iterator<Item = (Lbn, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (lbn, start) = (at / size, at % size);
        let bytes = (size - start).min(end - at);
        at += bytes;
        Some((Lbn(lbn), start as usize, bytes as usize))
    })
}
