//! Random scripts, and how they are made smaller.
//!
//! A request is chosen by block and by *spot* within the block, where things go wrong (its edges, its
//! middle), and turned into bytes once the block size is known: so a failing script shrinks in blocks, spots
//! and steps, and its volume by itself.

use super::play;
use super::script::{Change, Ending, OpenAs, Req, Script, Shape, Step};
use dedup_volume::{CheckOnRead, DigestAlgorithm};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// A place in a block.
#[derive(Clone, Copy, Debug)]
enum Spot {
    Start,
    Second,
    Middle,
    Last,
}

impl Spot {
    fn bytes(self, block_size: u64) -> u64 {
        match self {
            Self::Start => 0,
            Self::Second => 1,
            Self::Middle => block_size / 2,
            Self::Last => block_size - 1,
        }
    }
}

/// A request before the volume's shape is known.
#[derive(Clone, Debug)]
struct Sketch {
    kind: Kind,
    at: (u64, Spot),
    len: (u64, Spot),
    /// May reach beyond the end.
    beyond: bool,
    fua: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Read,
    Change(Change),
    Flush,
}

fn spot() -> impl Strategy<Value = Spot> {
    prop_oneof![6 => Just(Spot::Start), 1 => Just(Spot::Second), 2 => Just(Spot::Middle), 1 => Just(Spot::Last)]
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let kind = prop_oneof![
        2 => Just(Kind::Read),
        8 => (0..9_u64, 0..3_u64).prop_map(|(first, stride)| Kind::Change(Change::Write { first, stride })),
        2 => Just(Kind::Change(Change::Trim)),
        2 => Just(Kind::Change(Change::Zero)),
        1 => Just(Kind::Flush),
    ];
    let len = prop_oneof![4 => Just((1, Spot::Start)), 3 => (0..4_u64, spot()), 1 => (0..12_u64, spot())];
    (kind, (0..12_u64, spot()), len, prop::bool::weighted(0.02), prop::bool::weighted(0.1))
        .prop_map(|(kind, at, len, beyond, fua)| Sketch { kind, at, len, beyond, fua })
}

impl Sketch {
    fn request(self, shape: &Shape) -> Req {
        let block_size = u64::from(shape.block_size);
        let size = shape.blocks * block_size;
        let bytes = |(blocks, spot): (u64, Spot)| blocks * block_size + spot.bytes(block_size);
        let (mut offset, mut len) = (bytes((self.at.0 % shape.blocks, self.at.1)), bytes(self.len));
        if self.beyond {
            offset += size - block_size;
        } else {
            len = len.min(size - offset);
        }
        // What is refused is refused by its end; nobody needs to make the bytes for it.
        if self.beyond && matches!(self.kind, Kind::Change(Change::Trim)) {
            (offset, len) = (u64::MAX - len, len + 1);
        }
        match self.kind {
            Kind::Read => Req::Read { offset, len },
            Kind::Change(change) => Req::Change { offset, len, change, fua: self.fua },
            Kind::Flush => Req::Flush,
        }
    }
}

#[derive(Clone, Debug)]
enum StepSketch {
    Batch(Vec<Sketch>),
    Other(Step),
}

fn open_as() -> impl Strategy<Value = OpenAs> {
    (
        prop::bool::weighted(0.15),
        select(&[CheckOnRead::Crc, CheckOnRead::Digest, CheckOnRead::Off][..]),
        select(&[None, Some(false), Some(true)][..]),
        select(&[None, Some(0), Some(1), Some(5)][..]),
        any::<bool>(),
        select(&[1000, 64, 8][..]),
        select(&[1 << 20, 0][..]),
    )
        .prop_map(
            |(read_only, check_on_read, verify_match, flushrq, discard, delta_max, cache_bytes)| OpenAs {
                read_only,
                check_on_read,
                verify_match,
                flushrq,
                discard,
                delta_max,
                cache_bytes,
            },
        )
}

fn step() -> impl Strategy<Value = StepSketch> {
    let ending = prop_oneof![
        1 => Just(Ending::Close),
        1 => Just(Ending::Kill),
        2 => Just(Ending::Cut),
        1 => (0..1000_u64).prop_map(Ending::Torn)
    ];
    prop_oneof![
        // Up to four: all their orders are looked at.
        20 => vec(sketch(), 1..5).prop_map(StepSketch::Batch),
        1 => Just(StepSketch::Other(Step::Checkpoint)),
        1 => Just(StepSketch::Other(Step::Collect)),
        3 => (ending, open_as()).prop_map(|(ending, open)| StepSketch::Other(Step::Reopen(ending, open))),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        // 512 bytes to 1 MiB; the large ones seldom, since they take their time.
        prop_oneof![9 => 9..14_u32, 1 => 14..21_u32],
        2..12_u64,
        1..6_u64,
        select(&DigestAlgorithm::ALL[..]),
        any::<bool>(),
        select(&[0, 1, 3][..]),
        select(&[256, 32, 16][..]),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(bits, blocks, spare, algorithm, verify_match, flushrq, log_blocks, in_ram)| Shape {
            block_size: 1 << bits,
            blocks,
            spare,
            algorithm,
            verify_match,
            flushrq,
            log_blocks,
            in_ram,
        })
}

/// Scripts of up to `steps` steps.
pub fn scripts(steps: usize) -> impl Strategy<Value = Script> {
    (shape(), open_as(), vec(step(), 1..=steps)).prop_map(|(shape, open, sketches)| {
        let step = |sketch| match sketch {
            StepSketch::Batch(sketches) => {
                Step::Batch(sketches.into_iter().map(|sketch| sketch.request(&shape)).collect())
            }
            // A volume in memory has one life.
            StepSketch::Other(Step::Reopen(..)) if shape.in_ram => Step::Checkpoint,
            StepSketch::Other(step) => step,
        };
        let steps = sketches.into_iter().map(step).collect();
        // What is formatted is written to in its first life.
        Script { open: OpenAs { read_only: false, ..open }, steps, shape }
    })
}

/// Plays `cases` random scripts of up to `steps` steps; the error is the smallest script found that fails,
/// and why.
pub fn campaign(seed: u64, cases: u32, steps: usize) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4096, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let test = |script: Script| play(&script).map_err(|error| TestCaseError::fail(format!("{error:#}")));
    match runner.run(&scripts(steps), test) {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, script)) => {
            Err(format!("seed {seed}: {reason}\nThe script:\n\n{script}"))
        }
        Err(TestError::Abort(reason)) => Err(format!("seed {seed}: {reason}")),
    }
}
