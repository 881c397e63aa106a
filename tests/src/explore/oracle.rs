//! The oracle: what a volume may hold after a crash.
//!
//! The history of a life is a row of *boundaries*, the states between one request and the next, with the
//! counters as they stood there:
//!
//! ```text
//!   boundary 0 ──request 0──> boundary 1 ──request 1──> boundary 2 ──request 2, in progress──>
//!                             └ durable: acknowledged by a FLUSH, FUA, flushrq or checkpoint
//! ```
//!
//! After a crash the volume must hold one of the boundaries from the durable one on, or a request between two
//! of them done in part: whole blocks, any of those that it writes; then, in ascending order, those that it
//! unmaps. Content and counters must be of the *same* place in the history, and what can be counted (mapped
//! and stored blocks) must agree.
//!
//! Two counters are exact only up to the last published operation, which carries them: `reads_on_writes` and
//! `gc_counter`.

use super::script::{Params, Step};
use crate::block;
use dedup_volume::{Counters, Op, Request as VolumeRequest, RequestError, Volume};
use rustc_hash::FxHashMap;

/// A block's content: a hash of its bytes, the same in every script; 0 is zeros.
pub type ContentId = u64;

/// Every content that was ever written, so that a block that holds anything else is seen.
#[derive(Debug, Default)]
struct Contents {
    bytes: FxHashMap<ContentId, Vec<u8>>,
}

impl Contents {
    fn intern(&mut self, bytes: &[u8]) -> ContentId {
        let id = id_of(bytes);
        let known = self.bytes.entry(id).or_insert_with(|| bytes.to_vec());
        assert!(known == bytes, "two contents with one hash");
        id
    }

    /// The id of a content that was written.
    fn find(&self, bytes: &[u8]) -> Option<ContentId> {
        let id = id_of(bytes);
        self.bytes.get(&id).is_some_and(|known| known == bytes).then_some(id)
    }
}

fn id_of(bytes: &[u8]) -> ContentId {
    let (words, rest) = bytes.as_chunks::<8>();
    debug_assert!(rest.is_empty(), "blocks are whole words");
    let mix = |hash: u64, word: &[u8; 8]| {
        (hash.rotate_left(29) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    // Zeros stay 0.
    words.iter().fold(0, mix)
}

/// Contents as a person tells them apart: by the order in which they are first met.
#[derive(Debug, Default)]
struct Names(Vec<ContentId>);

impl Names {
    fn row(&mut self, blocks: &[ContentId]) -> String {
        let mut row = String::new();
        for id in blocks {
            let name = match *id {
                0 => 0,
                id => {
                    let known = self.0.iter().position(|known| *known == id);
                    known.unwrap_or_else(|| {
                        self.0.push(id);
                        self.0.len() - 1
                    }) + 1
                }
            };
            row += &format!("{name} ");
        }
        row.trim_end().to_string()
    }
}

/// What a volume was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Of each LBN.
    pub blocks: Vec<ContentId>,
    /// Its counters.
    pub counters: Counters,
}

/// What a request changes.
#[derive(Clone, Debug, Default)]
struct Request {
    /// Blocks written, with their new content.
    writes: Vec<(usize, ContentId)>,
    /// Blocks unmapped after that, ascending.
    unmaps: Vec<usize>,
    /// Blocks that it reads because it covers them in part.
    edges: u64,
    /// Whether it is a slice of garbage collection, which counts what it removes.
    collects: bool,
}

/// A state between two requests.
#[derive(Clone, Debug)]
struct Boundary {
    found: Found,
    /// The counters as the last published operation carries them.
    carried: Counters,
    /// The last published operation.
    published: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Oracle {
    block_size: u64,
    flushrq: u64,
    contents: Contents,
    boundaries: Vec<Boundary>,
    /// `requests[i]` leads from boundary `i` to the next; one more than that if one is in progress.
    requests: Vec<Request>,
    durable: usize,
    /// Block writes that must be counted after a crash, because flushrq lets no more than the others be lost.
    writes_durable: u64,
}

impl Oracle {
    /// For a volume that was just formatted.
    pub fn new(params: &Params) -> Self {
        let mut contents = Contents::default();
        contents.intern(&vec![0; params.block_size as usize]);
        let found = Found { blocks: vec![0; params.lbns as usize], counters: Counters::default() };
        let boundary = Boundary { found, carried: Counters::default(), published: 0 };
        Self {
            block_size: u64::from(params.block_size),
            flushrq: u64::from(params.flushrq),
            contents,
            boundaries: vec![boundary],
            requests: Vec::new(),
            durable: 0,
            writes_durable: 0,
        }
    }

    /// The volume was closed: everything is durable.
    pub fn closed(&mut self) {
        self.durable = self.boundaries.len() - 1;
        if let Some(now) = self.boundaries.last_mut() {
            now.carried = now.found.counters;
        }
    }

    /// The number of a content of whole blocks.
    pub fn content(&mut self, content: u64) -> ContentId {
        self.contents.intern(&block(content, self.block_size as usize))
    }

    /// How far the history is known durable; changes when more is.
    pub fn durable(&self) -> (usize, u64) {
        (self.durable, self.writes_durable)
    }

    /// Runs a step on the volume. The outer error is a story of what is wrong; the inner one is the volume's
    /// answer. `drain` is called when the step has run, before its reply counts: what was captured meanwhile
    /// is judged by then.
    pub fn run(
        &mut self,
        volume: &Volume,
        step: &Step,
        drain: &mut dyn FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<Result<(), RequestError>, String> {
        let request = self.begin(step);
        self.requests.push(request);
        let result = self.execute(volume, step);
        drain(self)?;
        match result {
            Ok(()) => self.succeeded(volume, step)?,
            Err(_) if volume.is_read_only() => {}
            Err(_) => self.failed(volume, step)?,
        }
        Ok(result)
    }

    /// What the step will change.
    fn begin(&mut self, step: &Step) -> Request {
        let mut request = Request::default();
        let size = self.block_size;
        match *step {
            Step::Write { lbn, blocks, content, .. } => {
                for i in 0..blocks {
                    let bytes = block(content_of(content, i), size as usize);
                    request.writes.push(((lbn + i) as usize, self.contents.intern(&bytes)));
                }
            }
            Step::Part { offset, len, content, .. } => {
                let bytes = block(content, len.next_multiple_of(8) as usize);
                self.overlay(&mut request, offset, &bytes[..len as usize], true);
            }
            Step::Trim { offset, len, .. } => {
                let (first, last) = (offset.div_ceil(size), (offset + len) / size);
                request.unmaps = (first..last.max(first)).map(|lbn| lbn as usize).collect();
            }
            Step::Zero { offset, len, .. } => {
                let zeros = vec![0; len as usize];
                self.overlay(&mut request, offset, &zeros, false);
            }
            Step::Collect => request.collects = true,
            Step::Flush | Step::Checkpoint | Step::Fail { .. } => {}
        }
        let blocks = &self.now().found.blocks;
        request.unmaps.retain(|lbn| blocks[*lbn] != 0);
        request
    }

    /// Lays bytes over the blocks that they touch. Whole ones are written or, without `write`, unmapped.
    fn overlay(&mut self, request: &mut Request, offset: u64, bytes: &[u8], write: bool) {
        let size = self.block_size;
        let mut at = offset;
        while at < offset + bytes.len() as u64 {
            let (lbn, start) = (at / size, at % size);
            let len = (size - start).min(offset + bytes.len() as u64 - at);
            let from = (at - offset) as usize;
            let piece = &bytes[from..from + len as usize];
            if len == size && !write {
                request.unmaps.push(lbn as usize);
            } else {
                let old = self.now().found.blocks[lbn as usize];
                let mut block = self.contents.bytes[&old].clone();
                block[start as usize..(start + len) as usize].copy_from_slice(piece);
                request.edges += u64::from(len < size);
                request.writes.push((lbn as usize, self.contents.intern(&block)));
            }
            at += len;
        }
    }

    fn execute(&self, volume: &Volume, step: &Step) -> Result<(), RequestError> {
        let size = self.block_size;
        let op = |op| crate::run(volume, op);
        match *step {
            Step::Write { lbn, blocks, content, fua } => {
                let data: Vec<u8> =
                    (0..blocks).flat_map(|i| block(content_of(content, i), size as usize)).collect();
                op(Op::Write { offset: lbn * size, data: &data, fua })
            }
            Step::Part { offset, len, content, fua } => {
                let data = block(content, len.next_multiple_of(8) as usize);
                op(Op::Write { offset, data: &data[..len as usize], fua })
            }
            Step::Trim { offset, len, fua } => op(Op::Trim { offset, len, fua }),
            Step::Zero { offset, len, fua } => op(Op::WriteZeroes { offset, len, fua }),
            Step::Flush => op(Op::Flush),
            Step::Checkpoint => volume.checkpoint().map_err(|error| error.for_client()),
            Step::Collect => {
                volume.gc_start();
                volume.collect_some().map(|_| ()).map_err(|error| error.for_client())
            }
            Step::Fail { .. } => Ok(()),
        }
    }

    fn now(&self) -> &Boundary {
        self.boundaries.last().unwrap()
    }

    /// The step's reply was good: its boundary is reached, and it may be durable.
    fn succeeded(&mut self, volume: &Volume, step: &Step) -> Result<(), String> {
        let mut blocks = self.now().found.blocks.clone();
        let request = self.requests.last().unwrap();
        request.writes.iter().for_each(|(lbn, content)| blocks[*lbn] = *content);
        request.unmaps.iter().for_each(|lbn| blocks[*lbn] = 0);
        self.reach(volume, blocks, true).map_err(|why| format!("after {step}: {why}"))?;
        let acknowledged = match step {
            Step::Write { fua, .. }
            | Step::Part { fua, .. }
            | Step::Trim { fua, .. }
            | Step::Zero { fua, .. } => *fua,
            Step::Flush | Step::Checkpoint => true,
            Step::Collect | Step::Fail { .. } => false,
        };
        if acknowledged {
            self.durable = self.boundaries.len() - 1;
        }
        if self.flushrq > 0 && self.requests.last().is_some_and(|request| !request.writes.is_empty()) {
            // Fewer than flushrq acknowledged block writes may be lost; trims are none.
            let writes = self.now().found.counters.writes;
            self.writes_durable = (writes + 1).saturating_sub(self.flushrq);
        }
        // What the volume itself says is durable had better be so.
        let claimed = volume.status().commit.durable;
        let claimed = self.boundaries.iter().rposition(|b| b.published <= claimed).unwrap_or(0);
        self.durable = self.durable.max(claimed);
        if step == &Step::Checkpoint {
            let now = self.boundaries.last_mut().unwrap();
            now.carried = now.found.counters;
        }
        Ok(())
    }

    /// The step failed and the volume goes on: each of its blocks is old or new, and what can be read says
    /// which.
    fn failed(&mut self, volume: &Volume, step: &Step) -> Result<(), String> {
        match self.read(volume) {
            Some(Ok(blocks)) => {
                self.reach(volume, blocks, false).map_err(|why| format!("after {step}, which failed: {why}"))
            }
            Some(Err(why)) => Err(why),
            None => Err(format!("after {step}, which failed: nothing can be read")),
        }
    }

    fn reach(&mut self, volume: &Volume, blocks: Vec<ContentId>, whole: bool) -> Result<(), String> {
        let status = volume.status();
        let found = Found { blocks, counters: status.counters };
        check_usage(&found, status.logical_used_blocks, status.data_used_blocks)?;
        let (base, request) = (self.now(), self.requests.last().unwrap());
        explains(base, request, &found, whole)?;
        let published = status.commit.published;
        let carried = if published > base.published { found.counters } else { base.carried };
        self.boundaries.push(Boundary { found, carried, published });
        Ok(())
    }

    /// All blocks of an open volume; `None` on an I/O error.
    fn read(&mut self, volume: &Volume) -> Option<Result<Vec<ContentId>, String>> {
        let size = self.block_size as usize;
        let lbns = self.boundaries[0].found.blocks.len();
        let mut bytes = vec![0xaa; lbns * size];
        let mut result = Err(RequestError::Io);
        let op = Op::Read { offset: 0, buf: &mut bytes };
        volume.execute(vec![VolumeRequest { tag: 0, op }], &mut |_, outcome| result = outcome);
        result.ok()?;
        let ids = bytes.chunks(size).enumerate().map(|(lbn, block)| {
            let known = self.contents.find(block);
            known.ok_or_else(|| format!("LBN {lbn} holds something that was never written"))
        });
        Some(ids.collect())
    }

    /// What an open volume holds; `None` if it cannot be read.
    pub fn look(&mut self, volume: &Volume) -> Option<Result<Found, String>> {
        let blocks = match self.read(volume)? {
            Ok(blocks) => blocks,
            Err(why) => return Some(Err(why)),
        };
        let status = volume.status();
        let found = Found { blocks, counters: status.counters };
        let usage = check_usage(&found, status.logical_used_blocks, status.data_used_blocks);
        Some(usage.map(|()| found))
    }

    /// Whether a volume may hold this after a crash now.
    pub fn allows(&self, found: &Found) -> Result<(), String> {
        let writes = found.counters.writes;
        if writes < self.writes_durable {
            return Err(format!(
                "flushrq: at least {} block writes are durable, found {writes}",
                self.writes_durable
            ));
        }
        let mut closest = String::new();
        for at in self.durable..self.boundaries.len() {
            let base = &self.boundaries[at];
            match is_boundary(base, found) {
                Ok(()) => return Ok(()),
                Err(why) if base.found.blocks == found.blocks => closest = format!("state {at}: {why}"),
                Err(_) => {}
            }
            let Some(request) = self.requests.get(at) else { continue };
            match explains(base, request, found, false) {
                Ok(()) => return Ok(()),
                Err(why) if closest.is_empty() => closest = format!("state {at}, in part: {why}"),
                Err(_) => {}
            }
        }
        let mut names = Names::default();
        let mut states = String::new();
        for (at, boundary) in self.boundaries.iter().enumerate().skip(self.durable) {
            states += &format!(
                "\n  state {at}: {}, {:?}",
                names.row(&boundary.found.blocks),
                boundary.found.counters
            );
        }
        if let Some(request) = self.requests.get(self.boundaries.len() - 1) {
            let (lbns, new): (Vec<usize>, Vec<ContentId>) = request.writes.iter().copied().unzip();
            states +=
                &format!("\n  in progress: {lbns:?} = {}, unmaps {:?}", names.row(&new), request.unmaps);
        }
        Err(format!(
            "none of the states from the last durable one on:\n  found:   {}, {:?}{states}\n  {closest}",
            names.row(&found.blocks),
            found.counters,
        ))
    }

    /// Starts anew from what a reopened volume holds, which must be allowed. `None` if it cannot be read.
    pub fn recover(&mut self, volume: &Volume) -> Option<Result<(), String>> {
        let found = match self.look(volume)? {
            Ok(found) => found,
            Err(why) => return Some(Err(why)),
        };
        if let Err(why) = self.allows(&found) {
            return Some(Err(why));
        }
        let carried = found.counters;
        let published = volume.status().commit.published;
        self.boundaries = vec![Boundary { found, carried, published }];
        self.requests.clear();
        self.durable = 0;
        self.writes_durable = 0;
        Some(Ok(()))
    }
}

/// Contents of a multi-block write: each its own, unless all are zeros.
fn content_of(first: u64, i: u64) -> u64 {
    if first == 0 { 0 } else { first + i }
}

/// Mapped and stored blocks follow from the content.
fn check_usage(found: &Found, mapped: u64, used: u64) -> Result<(), String> {
    let mut distinct: Vec<ContentId> = found.blocks.iter().copied().filter(|c| *c != 0).collect();
    let expected = distinct.len() as u64;
    if mapped != expected {
        return Err(format!(
            "{mapped} LBNs are counted as mapped, {expected} are: {}",
            Names::default().row(&found.blocks)
        ));
    }
    distinct.sort_unstable();
    distinct.dedup();
    if used != distinct.len() as u64 {
        return Err(format!(
            "{used} blocks are in use for {} contents: {}",
            distinct.len(),
            Names::default().row(&found.blocks)
        ));
    }
    Ok(())
}

/// Whether `found` is just this boundary.
fn is_boundary(base: &Boundary, found: &Found) -> Result<(), String> {
    if base.found.blocks != found.blocks {
        return Err("other content".into());
    }
    let (now, carried, counters) = (&base.found.counters, &base.carried, &found.counters);
    between("reads_on_writes", carried.reads_on_writes, counters.reads_on_writes, now.reads_on_writes)?;
    between("gc_counter", carried.gc_counter, counters.gc_counter, now.gc_counter)?;
    let expected =
        Counters { reads_on_writes: counters.reads_on_writes, gc_counter: counters.gc_counter, ..*now };
    if expected != *counters {
        return Err(format!("counters: expected {expected:?}, found {counters:?}"));
    }
    Ok(())
}

fn between(name: &str, least: u64, found: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(format!("{name}: expected {least} to {most}, found {found}"))
}

/// Whether `found` is what `base` becomes by the request, done in part or, with `whole`, done.
fn explains(base: &Boundary, request: &Request, found: &Found, whole: bool) -> Result<(), String> {
    let old = &base.found.blocks;
    let mut rest: Vec<usize> = (0..old.len()).filter(|lbn| old[*lbn] != found.blocks[*lbn]).collect();
    let (mut sure, mut maybe) = (0u64, 0u64);
    let mut all_written = true;
    for (lbn, new) in &request.writes {
        let here = found.blocks[*lbn];
        rest.retain(|other| other != lbn);
        match (here == *new, here == old[*lbn]) {
            (true, false) => sure += 1,
            (true, true) if whole => sure += 1,
            (true, true) => maybe += 1,
            (false, true) => all_written = false,
            (false, false) => return Err(format!("LBN {lbn} is neither old nor new")),
        }
    }
    let mut trimmed = 0;
    for lbn in &request.unmaps {
        if found.blocks[*lbn] != 0 {
            break;
        }
        rest.retain(|other| other != lbn);
        trimmed += 1;
    }
    if let Some(lbn) = rest.first() {
        return Err(format!("LBN {lbn} changed and should not have"));
    }
    if trimmed > 0 && !all_written {
        return Err("blocks were unmapped before the edges were written".into());
    }
    if whole && !(all_written && trimmed == request.unmaps.len()) {
        return Err("it is done in part only".into());
    }
    let (before, after) = (&base.found.counters, &found.counters);
    let published = trimmed > 0 || sure > 0 || whole;
    explains_counters(base, request, after, published)?;
    let writes = after.writes.wrapping_sub(before.writes);
    between("writes", sure, writes, sure + maybe)?;
    if after.trimmed != before.trimmed + trimmed as u64 {
        return Err(format!(
            "trimmed: expected {}, found {}",
            before.trimmed + trimmed as u64,
            after.trimmed
        ));
    }
    explains_kinds(base, request, found, writes)
}

fn explains_counters(
    base: &Boundary,
    request: &Request,
    after: &Counters,
    published: bool,
) -> Result<(), String> {
    let before = &base.found.counters;
    let most = before.reads_on_writes + request.edges;
    let least = if published { most } else { base.carried.reads_on_writes };
    between("reads_on_writes", least, after.reads_on_writes, most)?;
    let collected = if request.collects { 1 << 20 } else { 0 };
    between("gc_counter", base.carried.gc_counter, after.gc_counter, before.gc_counter + collected)?;
    let same = |c: &Counters| (c.bad_blocks, c.healed_blocks, c.collisions);
    if same(before) != same(after) {
        return Err(format!(
            "bad, healed or colliding blocks: expected {:?}, found {:?}",
            same(before),
            same(after)
        ));
    }
    Ok(())
}

/// The counters that say what became of each of `writes` block writes.
fn explains_kinds(base: &Boundary, request: &Request, found: &Found, writes: u64) -> Result<(), String> {
    let (before, after) = (&base.found.counters, &found.counters);
    let stored = |c: &Counters| c.uniqwrites + c.dupwrites;
    let mapped = |c: &Counters| c.overwrites + c.newwrites;
    if mapped(after) != mapped(before) + writes {
        return Err(format!(
            "overwrites + newwrites: expected {} more than {before:?}, found {after:?}",
            writes
        ));
    }
    if stored(after) + after.zerowrites != stored(before) + before.zerowrites + writes {
        return Err(format!("uniq + dup + zero: expected {} more than {before:?}, found {after:?}", writes));
    }
    let [(lbn, new)] = request.writes.as_slice() else { return Ok(()) };
    if writes == 1 {
        let mut expected = *before;
        expected.writes += 1;
        match (*new, base.found.blocks.contains(new)) {
            (0, _) => expected.zerowrites += 1,
            (_, true) => expected.dupwrites += 1,
            (_, false) => expected.uniqwrites += 1,
        }
        match base.found.blocks[*lbn] {
            0 => expected.newwrites += 1,
            _ => expected.overwrites += 1,
        }
        let kinds = |c: &Counters| (c.uniqwrites, c.dupwrites, c.zerowrites, c.overwrites, c.newwrites);
        if kinds(&expected) != kinds(after) {
            return Err(format!(
                "uniq, dup, zero, over, new: expected {:?}, found {:?}",
                kinds(&expected),
                kinds(after)
            ));
        }
    }
    Ok(())
}
