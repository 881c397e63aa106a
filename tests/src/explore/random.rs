//! Random scripts from a seed: several lives, ended by close, kill or crash at any event, with crash states
//! sampled all along.

use super::run::{Failure, Session};
use super::script::{End, Keep, Life, Params, Script, Step};
use super::tap::Policy;
use crate::rng::Rng;
use dedup_volume::DigestAlgorithm;

/// Lives of a script.
const LIVES: u64 = 6;
/// Rings, in blocks, of so many sections of 16 that an open passes over most of them. The others wrap around
/// all the time.
const LARGE_RINGS: [u64; 3] = [96, 160, 256];

/// Runs the script of a seed.
pub fn explore(seed: u64, session: &mut Session) -> Result<(), Failure> {
    let script = script(seed);
    let rng = Rng::new(seed ^ 0x5eed);
    let result = session.run(&script, Policy::Random { rng, per_8_events: 12 }, 0).map(|_| ());
    session.forget();
    result
}

/// The script of a seed.
pub fn script(seed: u64) -> Script {
    let mut rng = Rng::new(seed);
    rng.below(2);
    // From generators of their own, so that the scripts of the seeds stay as they were.
    let runs = Rng::new(seed ^ 0x7275_6e73).below(2) == 0;
    let mut params = Params { runs, ..params(&mut rng) };
    let mut rings = Rng::new(seed ^ 0x7269_6e67);
    if rings.below(2) == 0 {
        params.log_blocks = pick(&mut rings, &LARGE_RINGS);
    }
    // A few scripts live on a few contents, most on enough of them that some are new.
    let contents = [4, 12, 40][rng.below(3) as usize];
    let faults = rng.below(4) == 0;
    let lives = (0..LIVES).map(|_| life(&mut rng, &params, contents, faults)).collect();
    Script { params, lives }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize]
}

fn params(rng: &mut Rng) -> Params {
    let digests = [DigestAlgorithm::Sha256, DigestAlgorithm::Blake3, DigestAlgorithm::Md5];
    Params {
        block_size: pick(rng, &[512, 1024, 4096, 4096]),
        lbns: pick(rng, &[2, 6, 16, 24]),
        spare: 1 + rng.below(12),
        log_blocks: pick(rng, &[16, 24, 48]),
        flushrq: pick(rng, &[0, 0, 0, 1, 2, 5]),
        delta_max: pick(rng, &[8, 64, 1000]),
        log_data: pick(rng, &[0, 0, 600, 5000, 64 << 10]),
        discard: rng.below(3) == 0,
        verify_match: rng.below(4) == 0,
        bypass: rng.below(4) != 0,
        algorithm: if rng.below(4) == 0 { pick(rng, &digests) } else { DigestAlgorithm::Sha256 },
        runs: false,
    }
}

fn life(rng: &mut Rng, params: &Params, contents: u64, faults: bool) -> Life {
    let steps = (0..rng.below(50)).map(|_| step(rng, params, contents, faults)).collect();
    let event = (rng.below(4) != 0).then(|| rng.below(90));
    let end = match rng.below(8) {
        0 => End::Close,
        1 | 2 => End::Kill { event },
        _ => End::Crash { event, keep: keep(rng) },
    };
    Life { steps, end }
}

fn keep(rng: &mut Rng) -> Keep {
    match rng.below(4) {
        0 => Keep::None,
        1 => Keep::All,
        n => Keep::Random { salt: rng.below(1 << 30), eighths: 1 + rng.below(7), torn: n == 2 },
    }
}

fn step(rng: &mut Rng, params: &Params, contents: u64, faults: bool) -> Step {
    let size = u64::from(params.block_size);
    let bytes = params.lbns * size;
    let range = |rng: &mut Rng| {
        let offset = rng.below(bytes);
        (offset, 1 + rng.below((bytes - offset).min(4 * size)))
    };
    let lbn = rng.below(params.lbns);
    let blocks = if rng.below(4) == 0 { 1 + rng.below((params.lbns - lbn).min(5)) } else { 1 };
    let fua = rng.below(12) == 0;
    match rng.below(100) {
        0..52 => Step::Write { lbn, blocks, content: rng.below(contents), fua },
        52..62 => {
            let (offset, len) = range(rng);
            Step::Part { offset, len, content: 1 + rng.below(contents), fua }
        }
        62..68 => Step::Trim { offset: lbn * size, len: (1 + rng.below(params.lbns - lbn)) * size, fua },
        68..71 => {
            let (offset, len) = range(rng);
            Step::Trim { offset, len, fua }
        }
        71..76 => {
            let (offset, len) = range(rng);
            Step::Zero { offset, len, fua }
        }
        76..88 => Step::Flush,
        88..95 => Step::Checkpoint,
        95..97 if faults => Step::Fail { device: rng.below(2) as usize, flush: rng.below(2) == 0 },
        _ => Step::Collect,
    }
}
