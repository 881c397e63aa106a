//! The scripts of the sweeps. Together they reach every path that does I/O while a volume is open: opening
//! with replay, each kind of write, commits, checkpoints, collection, rebuilding, healing, closing.

use super::{Scene, Step};
use dedup_volume::RunPolicy;

/// Every kind of request, with checkpoints and restarts between them.
pub const MIXED: &[Step] = &[
    Step::Write(0, &[1, 2, 3, 1]),
    Step::Flush,
    Step::Batch(&[(4, 4), (5, 4), (6, 2), (0, 5)]),
    Step::Part(10, 18, 7),
    Step::WriteFua(8, &[6, 0]),
    Step::Trim(1, 5),
    Step::Zero(49, 18),
    Step::Checkpoint,
    Step::Write(1, &[1, 8]),
    Step::Read,
    Step::Kill,
    Step::Write(3, &[3, 9]),
    Step::Close,
];

/// What the sweeps go through: names, where they begin, and what is done.
pub fn scripts() -> Vec<(&'static str, Scene, &'static [Step])> {
    let mixed = Scene::small(8);
    let strict = mixed.opened(|options| {
        options.flushrq = Some(1);
        options.verify_match = Some(true);
        options.discard = true;
    });
    // A log of records of every kind, in a ring so large that no checkpoint is due.
    let roomy = Scene::of(4096, 8, 64).opened(|options| options.delta_max = 1000);
    let replay = roomy.after(&[
        Step::Write(0, &[1, 2, 3, 4]),
        Step::Checkpoint,
        Step::WriteFua(4, &[5, 6, 1]),
        Step::Trim(0, 2),
        Step::Flush,
        Step::Zero(41, 8),
        Step::WriteFua(7, &[7, 8, 9]),
        Step::Rot(7),
        Step::Read,
        Step::WriteFua(10, &[7]),
        Step::Flush,
    ]);
    let mut cached = replay.clone();
    cached.bypass = false;
    // Data of four blocks in the log: the open writes it to its place.
    let logged = roomy.opened(|options| options.log_data = 4 * 4096).after(&[
        Step::Write(0, &[1, 2, 3, 4]),
        Step::Flush,
        Step::WriteFua(4, &[5, 6, 1]),
        Step::Trim(0, 2),
        Step::Flush,
    ]);
    let index = mixed.after(&[Step::Write(0, &[1, 2, 3, 4, 5, 6]), Step::Close]).without_index();
    let heal = mixed.after(&[Step::Write(0, &[1, 2, 3, 2]), Step::Checkpoint]);
    let runs = mixed.opened(|options| options.runs = RunPolicy::Always);
    let full = Scene::small(0).opened(|options| options.delta_max = 1);
    let [mut small_blocks, mut large_blocks] = [Scene::of(512, 8, 16), Scene::of(65536, 8, 16)];
    (small_blocks.reorder, large_blocks.reorder) = (Some(1), Some(2));
    vec![
        ("mixed", mixed.clone(), MIXED),
        ("strict", strict, MIXED),
        ("replay", replay, REPLAY),
        ("replay, cached", cached, REPLAY),
        ("replay, data in the log", logged, REPLAY),
        ("index", index, INDEX),
        ("index in runs", runs, RUNS),
        ("heal", heal, HEAL),
        ("full", full, FULL),
        ("wrap", mixed, WRAP),
        ("small blocks, reordered", small_blocks, MIXED),
        ("large blocks, reordered", large_blocks, MIXED),
    ]
}

/// Opening, again and again, with a log.
pub const REPLAY: &[Step] =
    &[Step::ReadOnly, Step::Kill, Step::Write(0, &[2, 10]), Step::Flush, Step::Kill, Step::Checkpoint];

/// The index gets runs, which are joined, merged in slices and dropped.
pub const RUNS: &[Step] = &[
    Step::Write(0, &[1, 2, 3, 4, 5, 6]),
    Step::Checkpoint,
    Step::Write(2, &[7]),
    Step::Checkpoint,
    Step::Write(6, &[2, 8]),
    Step::Checkpoint,
    Step::Collect,
    Step::Write(1, &[3, 9]),
    Step::Kill,
    Step::Checkpoint,
    Step::Write(8, &[9, 10]),
    Step::Close,
];

/// The index is found damaged, dropped, rebuilt and swept.
pub const INDEX: &[Step] = &[
    Step::Write(6, &[1, 7]),
    Step::Collect,
    Step::Checkpoint,
    Step::Trim(0, 4),
    Step::Checkpoint,
    Step::Collect,
    Step::Checkpoint,
    Step::Write(0, &[5, 2]),
    Step::Close,
];

/// A block rots, is found, and healed by a write of its content.
pub const HEAL: &[Step] = &[
    Step::Rot(2),
    Step::Read,
    Step::Flush,
    Step::Kill,
    Step::Part(8, 1, 9),
    Step::Write(5, &[2]),
    Step::Flush,
    Step::Read,
    Step::Close,
];

/// As many data blocks as LBNs and the smallest delta: overwriting takes commits and checkpoints, and what
/// still finds no room fails.
pub const FULL: &[Step] = &[
    Step::Write(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    Step::Write(0, &[13, 14]),
    Step::Trim(3, 3),
    Step::Batch(&[(0, 15), (3, 16), (4, 16), (8, 17)]),
    Step::Flush,
    Step::Write(0, &[9, 9, 9, 9, 9, 9]),
    Step::Close,
];

/// More commits than the ring has blocks, and a block with more references than two bits count.
pub const WRAP: &[Step] = &[
    Step::WriteFua(0, &[1, 1, 1, 1, 1, 1]),
    Step::WriteFua(0, &[2]),
    Step::WriteFua(1, &[3]),
    Step::WriteFua(0, &[1]),
    Step::WriteFua(1, &[2]),
    Step::WriteFua(0, &[3]),
    Step::WriteFua(1, &[1]),
    Step::WriteFua(0, &[2]),
    Step::WriteFua(1, &[3]),
    Step::WriteFua(2, &[4]),
    Step::WriteFua(3, &[5]),
    Step::WriteFua(2, &[1]),
    Step::WriteFua(3, &[1]),
    Step::WriteFua(2, &[6]),
    Step::WriteFua(4, &[6]),
    Step::WriteFua(2, &[7]),
    Step::WriteFua(4, &[8]),
    Step::WriteFua(2, &[9]),
    Step::WriteFua(4, &[1]),
    Step::WriteFua(3, &[10]),
    Step::WriteFua(5, &[11]),
    Step::WriteFua(0, &[1]),
];
