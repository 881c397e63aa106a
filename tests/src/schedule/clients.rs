//! What the clients of a schedule do, and the record of it.

use super::causes::Causes;
use super::oracle::{Action, Event, History, Value};
use crate::block;
use crate::rng::Rng;
use dedup_volume::{Op, Request, Volume};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Logical blocks: few, so that clients meet.
pub(super) const LBNS: usize = 7;
/// Contents that all clients share, so that duplicates meet in flight.
const SHARED: u64 = 5;
/// Bytes in a block: one sector, which is never torn, a few, and what volumes have.
pub(super) const BLOCK_SIZES: [usize; 3] = [512, 1024, 4096];

/// The record of a run, and its clock: it counts requests and replies.
#[derive(Debug)]
pub(super) struct Record {
    /// Bytes in a block, one of [`BLOCK_SIZES`].
    block: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    clock: u64,
    history: History,
    /// The last content that nobody else writes.
    unique: u64,
    /// Requests that were answered.
    replies: u64,
}

impl Record {
    /// A record that begins with these values, on a volume of such blocks.
    pub(super) fn new(initial: Vec<Value>, block: usize) -> Self {
        let unique = initial.iter().flatten().copied().max().unwrap_or(0).max(SHARED);
        let history = History { initial, ..History::default() };
        Self { block, inner: Mutex::new(Inner { history, unique, ..Inner::default() }) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn now(&self) -> u64 {
        self.with(|inner| {
            inner.clock += 1;
            inner.clock
        })
    }

    /// What was answered before `request` is durable.
    pub(super) fn flushed(&self, request: u64) {
        self.with(|inner| inner.history.flushes.push(request));
    }

    /// What was recorded, and how many requests were answered.
    pub(super) fn take(&self) -> (History, u64) {
        self.with(|inner| (std::mem::take(&mut inner.history), inner.replies))
    }
}

/// Contents that a run may use: far more than its writes.
const CONTENTS: u64 = 1024;

/// A block of `size` bytes with one content.
fn whole(content: u64, size: usize) -> &'static [u8] {
    static BLOCKS: [OnceLock<Vec<Vec<u8>>>; BLOCK_SIZES.len()] =
        [const { OnceLock::new() }; BLOCK_SIZES.len()];
    let place = BLOCK_SIZES.iter().position(|known| *known == size).expect("a size of the list");
    let blocks = BLOCKS[place].get_or_init(|| (0..CONTENTS).map(|content| block(content, size)).collect());
    &blocks[content as usize]
}

/// One half of it.
fn half(content: u64, which: usize, size: usize) -> &'static [u8] {
    &whole(content, size)[which * (size / 2)..][..size / 2]
}

/// A request as the client remembers it.
enum Sent {
    Write { first: usize, contents: Vec<u64>, fua: bool },
    Half { lbn: usize, which: usize, content: u64, fua: bool },
    Zero { first: usize, blocks: usize, fua: bool },
    Read { first: usize, blocks: usize },
    Flush,
}

impl Sent {
    fn any(rng: &mut Rng, record: &Record) -> Self {
        let first = rng.below(LBNS as u64) as usize;
        let fua = rng.below(6) == 0;
        let room = (LBNS - first) as u64;
        match rng.below(20) {
            0..9 => {
                let blocks = 1 + rng.below(room.min(3));
                let contents = (0..blocks).map(|_| content(rng, record)).collect();
                Self::Write { first, contents, fua }
            }
            9..12 => {
                let which = rng.below(2) as usize;
                Self::Half { lbn: first, which, content: content(rng, record), fua }
            }
            12..14 => Self::Zero { first, blocks: 1 + rng.below(room) as usize, fua },
            14..18 => Self::Read { first, blocks: 1 + rng.below(room) as usize },
            _ => Self::Flush,
        }
    }

    /// What it does to each block.
    fn writes(&self) -> Vec<(usize, [Option<u64>; 2])> {
        match self {
            Self::Write { first, contents, .. } => {
                contents.iter().enumerate().map(|(i, content)| (first + i, [Some(*content); 2])).collect()
            }
            Self::Half { lbn, which: 0, content, .. } => vec![(*lbn, [Some(*content), None])],
            Self::Half { lbn, content, .. } => vec![(*lbn, [None, Some(*content)])],
            Self::Zero { first, blocks, .. } => {
                (*first..first + blocks).map(|lbn| (lbn, [Some(0); 2])).collect()
            }
            Self::Read { .. } | Self::Flush => Vec::new(),
        }
    }

    fn bytes(&self, block: usize) -> Vec<u8> {
        match self {
            Self::Write { contents, .. } => contents.iter().flat_map(|c| whole(*c, block)).copied().collect(),
            Self::Half { which, content, .. } => half(*content, *which, block).to_vec(),
            Self::Read { blocks, .. } => vec![0xaa; blocks * block],
            Self::Zero { .. } | Self::Flush => Vec::new(),
        }
    }

    fn op<'a>(&self, bytes: &'a mut [u8], trims: bool, block: usize) -> Op<'a> {
        let at = |lbn: &usize| (lbn * block) as u64;
        match self {
            Self::Write { first, fua, .. } => Op::Write { offset: at(first), data: bytes, fua: *fua },
            Self::Half { lbn, which, fua, .. } => {
                Op::Write { offset: at(lbn) + (which * (block / 2)) as u64, data: bytes, fua: *fua }
            }
            Self::Zero { first, blocks, fua } => {
                let (offset, len, fua) = (at(first), (blocks * block) as u64, *fua);
                if trims { Op::Trim { offset, len, fua } } else { Op::WriteZeroes { offset, len, fua } }
            }
            Self::Read { first, .. } => Op::Read { offset: at(first), buf: bytes },
            Self::Flush => Op::Flush,
        }
    }

    fn is_fua(&self) -> bool {
        match self {
            Self::Write { fua, .. } | Self::Half { fua, .. } | Self::Zero { fua, .. } => *fua,
            Self::Read { .. } | Self::Flush => false,
        }
    }
}

fn content(rng: &mut Rng, record: &Record) -> u64 {
    match rng.below(5) {
        0 => record.with(|inner| {
            inner.unique += 1;
            inner.unique
        }),
        _ => rng.below(SHARED + 1),
    }
}

/// Which content a half block holds, if it is one of those up to `last`.
fn content_of(bytes: &[u8], which: usize, last: u64) -> Option<u64> {
    (0..=last).find(|content| half(*content, which, 2 * bytes.len()) == bytes)
}

/// One client: batches until the power fails. `Err` says what an answer must not be.
pub(super) fn client(
    volume: &Volume,
    record: &Record,
    causes: &Causes,
    seed: u64,
    batches: u64,
    writes_are_durable: bool,
) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    for _ in 0..batches {
        let sent: Vec<Sent> = (0..1 + rng.below(4)).map(|_| Sent::any(&mut rng, record)).collect();
        let mut buffers: Vec<Vec<u8>> = sent.iter().map(|sent| sent.bytes(record.block)).collect();
        let request = record.now();
        // Recorded before anything happens: what is not answered may happen too.
        let places: Vec<usize> = sent
            .iter()
            .map(|sent| {
                let durable = sent.is_fua() || (writes_are_durable && matches!(sent, Sent::Write { .. }));
                let event = |(lbn, halves)| Event {
                    lbn,
                    action: Action::Write(halves),
                    request,
                    reply: None,
                    durable,
                };
                record.with(|inner| {
                    let place = inner.history.events.len();
                    inner.history.events.extend(sent.writes().into_iter().map(event));
                    place
                })
            })
            .collect();
        let batch: Vec<Request<'_>> = sent
            .iter()
            .zip(&mut buffers)
            .enumerate()
            .map(|(i, (sent, bytes))| {
                let op = sent.op(bytes, rng.below(2) == 0, record.block);
                Request { tag: i as u64, op }
            })
            .collect();
        let (mut wrong, mut answers) = (None, 0);
        volume.execute(batch, &mut |answered, result| {
            answers += 1;
            let i = answered.tag as usize;
            let judged = match result {
                Ok(()) => answer(record, &sent[i], places[i], request, &answered.op),
                Err(error) => causes.allow(error, matches!(sent[i], Sent::Read { .. }), request),
            };
            wrong = wrong.take().or(judged.err());
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        if answers != sent.len() {
            return Err(format!("{answers} replies to {} requests", sent.len()));
        }
        if causes.is_cut() {
            return Ok(());
        }
        if volume.is_read_only() {
            return after_a_stop(volume, record, causes);
        }
    }
    Ok(())
}

/// On a volume that has stopped, nothing is acknowledged as durable (I6), and reads go on.
fn after_a_stop(volume: &Volume, record: &Record, causes: &Causes) -> Result<(), String> {
    let all = Sent::Read { first: 0, blocks: LBNS };
    let (mut bytes, request) = (all.bytes(record.block), record.now());
    let read = Request { tag: 0, op: all.op(&mut bytes, false, record.block) };
    let mut judged = Ok(());
    volume.execute(vec![read, Request { tag: 1, op: Op::Flush }], &mut |answered, result| {
        let this = match (&answered.op, result) {
            (Op::Flush, Ok(())) => Err("a flush was answered on a volume that has stopped".into()),
            (op, Ok(())) => answer(record, &all, 0, request, op),
            (op, Err(error)) => causes.allow(error, matches!(op, Op::Read { .. }), request),
        };
        judged = std::mem::replace(&mut judged, Ok(())).and(this);
    });
    judged
}

/// Records a good reply.
fn answer(record: &Record, sent: &Sent, place: usize, request: u64, op: &Op<'_>) -> Result<(), String> {
    let reply = record.now();
    let last = record.with(|inner| inner.unique);
    let mut reads = Vec::new();
    if let (Sent::Read { first, .. }, Op::Read { buf, .. }) = (sent, op) {
        for (i, bytes) in buf.chunks(record.block).enumerate() {
            let lbn = first + i;
            let value = value_of(bytes, last).ok_or(format!("LBN {lbn} reads as something never written"))?;
            let action = Action::Read(value);
            reads.push(Event { lbn, action, request, reply: Some(reply), durable: false });
        }
    }
    record.with(|inner| {
        inner.replies += 1;
        for event in &mut inner.history.events[place..place + sent.writes().len()] {
            event.reply = Some(reply);
        }
        if matches!(sent, Sent::Flush) {
            inner.history.flushes.push(request);
        }
        inner.history.events.append(&mut reads);
    });
    Ok(())
}

/// What a block holds, if it is among the contents up to `last`.
pub(super) fn value_of(bytes: &[u8], last: u64) -> Option<Value> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    Some([content_of(first, 0, last)?, content_of(second, 1, last)?])
}

/// Checkpoints, collections and status, in between. `Err` says which error has no cause.
pub(super) fn operator(
    volume: &Volume,
    record: &Record,
    causes: &Causes,
    seed: u64,
    rounds: u64,
) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    for _ in 0..rounds {
        match rng.below(5) {
            0 | 1 => {
                let request = record.now();
                if let Err(error) = volume.checkpoint() {
                    return causes.allow_stop(&error);
                }
                record.flushed(request);
            }
            2 => volume.gc_start(),
            3 => drop(volume.gc_estimate()),
            _ => drop(volume.status()),
        }
        (0..rng.below(30)).for_each(|_| shuttle::thread::yield_now());
    }
    Ok(())
}

/// The largest content number that a history names.
pub(super) fn last_content(history: &History) -> u64 {
    let written = history.events.iter().flat_map(|event| match event.action {
        Action::Write(halves) => halves.into_iter().flatten().max(),
        Action::Read(_) => None,
    });
    written.chain(history.initial.iter().flatten().copied()).max().unwrap_or(0).max(SHARED)
}
