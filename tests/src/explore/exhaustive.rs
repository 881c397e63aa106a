//! All sequences of a few steps over two LBNs, with all subsets of unflushed writes at every event.
//!
//! Each sequence runs on a volume that has lived before: LBN 0 is mapped, by trees, to a block of content 1;
//! LBN 1 is not mapped. A flush and a crash follow, or a close, so that each sequence is also committed or
//! checkpointed as it stands; then an open, which replays what was committed, and a checkpoint of that, so
//! that power fails there too.

use super::run::{Failure, Session};
use super::script::{End, Keep, Life, Params, Script, Step};
use super::tap::{Policy, Torn};
use crate::rng::Rng;

/// Two sectors: enough to be torn, and to be written in part.
const BLOCK_SIZE: u64 = 1024;
/// What LBN 0 holds at first.
const FIRST: u64 = 1;

/// How far it goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Steps in a sequence.
    pub length: u32,
    /// Pending writes, beside the newest, of which all subsets are taken.
    pub subsets: usize,
    /// How writes are torn.
    pub torn: Torn,
    /// Whether each sequence is also run with a close at its end.
    pub close: bool,
    /// Bytes of data that a commit may carry in the log.
    pub log_data: u64,
}

/// A step of the alphabet; what it writes depends on what came before.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    /// Content that was never there.
    Unique(usize),
    /// The same, and complete only once durable.
    UniqueFua(usize),
    /// The content of the other LBN, or the first one.
    Duplicate(usize),
    /// The first content again, wherever it was or is.
    Again(usize),
    Trim(usize),
    TrimFua(usize),
    Zero(usize),
    /// The second half of a block, or of the first and the first half of the second.
    Part(usize),
    PartOfBoth,
    Flush,
    Checkpoint,
    FailFlush(usize),
}

const SYMBOLS: [Symbol; 19] = [
    Symbol::Unique(0),
    Symbol::Unique(1),
    Symbol::UniqueFua(0),
    Symbol::Duplicate(0),
    Symbol::Duplicate(1),
    Symbol::Again(0),
    Symbol::Again(1),
    Symbol::Trim(0),
    Symbol::Trim(1),
    Symbol::TrimFua(0),
    Symbol::Zero(0),
    Symbol::Zero(1),
    Symbol::Part(0),
    Symbol::Part(1),
    Symbol::PartOfBoth,
    Symbol::Flush,
    Symbol::Checkpoint,
    Symbol::FailFlush(0),
    Symbol::FailFlush(1),
];

/// How many scripts there are.
pub fn count(bounds: &Bounds) -> u64 {
    (SYMBOLS.len() as u64).pow(bounds.length) * if bounds.close { 2 } else { 1 }
}

/// Runs script number `n`.
pub fn explore(n: u64, bounds: &Bounds, session: &mut Session) -> Result<(), Failure> {
    let policy = Policy::Subsets { max: bounds.subsets, torn: bounds.torn, rng: Rng::new(n) };
    session.run(&script(n, bounds), policy, 1).map(|_| ())
}

/// Script number `n`. Those that begin alike have numbers next to each other.
pub fn script(n: u64, bounds: &Bounds) -> Script {
    let sequences = (SYMBOLS.len() as u64).pow(bounds.length);
    let (closes, mut rest) = (n >= sequences, n % sequences);
    let mut symbols = Vec::new();
    for _ in 0..bounds.length {
        symbols.push(SYMBOLS[(rest % SYMBOLS.len() as u64) as usize]);
        rest /= SYMBOLS.len() as u64;
    }
    symbols.reverse();
    let params = Params {
        block_size: BLOCK_SIZE as u32,
        lbns: 2,
        spare: 3,
        log_data: bounds.log_data,
        ..Params::default()
    };
    let first = Step::Write { lbn: 0, blocks: 1, content: FIRST, fua: false };
    let before = Life { steps: vec![first], end: End::Close };
    let mut steps = steps(&symbols);
    let end = if closes { End::Close } else { End::Crash { event: None, keep: Keep::None } };
    if !closes {
        steps.push(Step::Flush);
    }
    let after = Life { steps: vec![Step::Checkpoint], end: End::Crash { event: None, keep: Keep::None } };
    Script { params, lives: vec![before, Life { steps, end }, after] }
}

fn steps(symbols: &[Symbol]) -> Vec<Step> {
    // What whole-block writes have put where; `None` for anything else.
    let mut held = [Some(FIRST), None];
    let mut steps = Vec::new();
    for (unique, symbol) in (FIRST + 1..).zip(symbols) {
        let write = |lbn: usize, content| Step::Write { lbn: lbn as u64, blocks: 1, content, fua: false };
        let at = |lbn: usize| lbn as u64 * BLOCK_SIZE;
        let trim = |lbn, fua| Step::Trim { offset: at(lbn), len: BLOCK_SIZE, fua };
        let (step, change): (Step, &[(usize, Option<u64>)]) = match *symbol {
            Symbol::Unique(lbn) => (write(lbn, unique), &[(lbn, Some(unique))]),
            Symbol::Duplicate(lbn) => {
                let content = held[1 - lbn].unwrap_or(FIRST);
                (write(lbn, content), &[(lbn, Some(content))])
            }
            Symbol::Again(lbn) => (write(lbn, FIRST), &[(lbn, Some(FIRST))]),
            Symbol::UniqueFua(lbn) => {
                let step = Step::Write { lbn: lbn as u64, blocks: 1, content: unique, fua: true };
                (step, &[(lbn, Some(unique))])
            }
            Symbol::Trim(lbn) => (trim(lbn, false), &[(lbn, None)]),
            Symbol::TrimFua(lbn) => (trim(lbn, true), &[(lbn, None)]),
            Symbol::Zero(lbn) => (write(lbn, 0), &[(lbn, None)]),
            Symbol::Part(lbn) => {
                let offset = at(lbn) + BLOCK_SIZE / 2;
                (Step::Part { offset, len: BLOCK_SIZE / 2, content: unique, fua: false }, &[(lbn, None)])
            }
            Symbol::PartOfBoth => {
                let step =
                    Step::Part { offset: BLOCK_SIZE / 2, len: BLOCK_SIZE, content: unique, fua: false };
                (step, &[(0, None), (1, None)])
            }
            Symbol::Flush => (Step::Flush, &[]),
            Symbol::Checkpoint => (Step::Checkpoint, &[]),
            Symbol::FailFlush(device) => (Step::Fail { device, flush: true }, &[]),
        };
        change.iter().for_each(|(lbn, content)| held[*lbn] = *content);
        steps.push(step);
    }
    steps
}
