//! Every content is stored once: the blocks in use are held against the distinct contents that a hash set
//! knows, whatever comes and goes, whoever runs checkpoints meanwhile.
//!
//! | | |
//! |---|---|
//! | real files, in versions; random scripts; many clients | the property |
//! | content that comes and goes; MD5 collisions; an index that grew under a delta | where it was broken |
//! | checkpoints at every read | no work is thrown away, so there is an end |

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use dedup_device::{BlockDevice, IoKind};
use dedup_tests::hooked::{Hooked, Rig, watched};
use dedup_tests::rng::Rng;
use dedup_tests::*;
use dedup_volume::{DigestAlgorithm, FormatOptions, Op, OpenOptions, Request, RunPolicy, Volume, geometry};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The metadata device has its default size.
fn of_default_size(blocks: u64, block_size: u32) -> Disks {
    let bytes = blocks * u64::from(block_size);
    let data = bytes + 8 * u64::from(block_size).max(4096);
    let disks = Disks::new(data, geometry::metadata_size(blocks, data / u64::from(block_size)));
    disks.format(&FormatOptions { block_size, ..format_options(bytes) });
    disks
}

/// Writes whole blocks, one after the other, in one batch.
fn write_blocks(volume: &Volume, lbn: u64, blocks: &[Vec<u8>]) {
    let at = |i: usize| (lbn + i as u64) * volume.block_size() as u64;
    let request = |(i, data)| Request { tag: i as u64, op: Op::Write { offset: at(i), data, fua: false } };
    volume.execute(blocks.iter().map(Vec::as_slice).enumerate().map(request).collect(), &mut |_, result| {
        result.unwrap();
    });
}

fn used(volume: &Volume) -> u64 {
    volume.status().data_used_blocks
}

/// All files below a directory, each padded to whole blocks as in an archive, in the order of their names.
fn files(dir: &Path, block_size: usize, out: &mut BTreeMap<String, Vec<Vec<u8>>>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), block_size, out);
        } else if entry.file_type().unwrap().is_file() {
            let padded = |chunk: &[u8]| [chunk, &vec![0; block_size - chunk.len()]].concat();
            let blocks = std::fs::read(entry.path()).unwrap().chunks(block_size).map(padded).collect();
            out.insert(entry.path().display().to_string(), blocks);
        }
    }
}

/// Container layers on a volume of small blocks: a good hundred blocks more were stored than were distinct,
/// of 915,494.
#[test]
fn versions_of_a_tree_of_files_take_a_block_for_each_distinct_content() {
    const BLOCK: usize = 512;
    let mut tree = BTreeMap::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates"), BLOCK, &mut tree);
    let blocks: u64 = tree.values().map(|file| file.len() as u64).sum();
    let disks = of_default_size(4 * blocks, BLOCK as u32);
    let volume = disks.open(&options()).unwrap();
    let mut held: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut rng = Rng::new(5);
    // Four places for archives, of which each new version takes the oldest's.
    for version in 0..9 {
        let mut lbn = version % 4 * blocks;
        for (name, file) in &mut tree {
            // Some files have gone, some have changed in one place, some have grown at their beginning.
            match rng.below(12) {
                0 => continue,
                1 => file[0] = block(rng.below(u64::MAX), BLOCK),
                2 if name.ends_with("rs") && version % 2 == 0 => file.rotate_right(1),
                _ => {}
            }
            for part in file.chunks(64) {
                write_blocks(&volume, lbn, part);
                held.extend(part.iter().cloned().zip(lbn..).map(|(data, lbn)| (lbn, data)));
                lbn += part.len() as u64;
            }
        }
        let distinct: HashSet<&[u8]> =
            held.values().map(Vec::as_slice).filter(|b| b.iter().any(|b| *b != 0)).collect();
        assert_eq!(used(&volume), distinct.len() as u64, "blocks in use after version {version}");
        if version % 3 == 1 {
            volume.checkpoint().unwrap();
        }
    }
    volume.close().unwrap();
    disks.assert_clean("versions of files");
}

/// What holds a few contents that come and go in few places, on a store in which each place is soon taken
/// again.
fn comes_and_goes(seed: u64, options: &OpenOptions, format: &FormatOptions) {
    const LBNS: u64 = 60;
    let disks = Disks::new((LBNS + 8) * 4096, 8 << 20);
    disks.format(format);
    let mut volume = disks.open(options).unwrap();
    let (mut rng, mut held) = (Rng::new(seed), vec![0; LBNS as usize]);
    for step in 0..400 {
        let lbn = rng.below(LBNS - 8);
        match rng.below(20) {
            0..12 => {
                let contents: Vec<u64> = (0..1 + rng.below(8)).map(|_| 1 + rng.below(40)).collect();
                let blocks: Vec<_> = contents.iter().map(|content| block(*content, 4096)).collect();
                write_blocks(&volume, lbn, &blocks);
                held[lbn as usize..][..contents.len()].copy_from_slice(&contents);
            }
            12..16 => {
                trim(&volume, lbn, 8);
                held[lbn as usize..][..8].fill(0);
            }
            16 => flush(&volume),
            17 | 18 => volume.checkpoint().unwrap(),
            _ => {
                volume.close().unwrap();
                volume = disks.open(options).unwrap();
            }
        }
        let distinct: HashSet<u64> = held.iter().copied().filter(|content| *content > 0).collect();
        assert_eq!(used(&volume), distinct.len() as u64, "seed {seed}, after step {step}");
    }
    held.iter().enumerate().for_each(|(lbn, content)| assert_content(&volume, lbn as u64, *content));
    volume.close().unwrap();
    disks.assert_clean("contents that come and go");
}

#[test]
fn the_blocks_in_use_are_the_distinct_contents_whatever_comes_and_goes() {
    let plain = format_options(60 * 4096);
    let md5 = FormatOptions { algorithm: DigestAlgorithm::Md5, ..format_options(60 * 4096) };
    for seed in 0..6 {
        comes_and_goes(seed, &options(), &plain);
        comes_and_goes(
            100 + seed,
            &OpenOptions { runs: RunPolicy::Always, filter_bytes_max: 0, ..options() },
            &plain,
        );
        comes_and_goes(200 + seed, &OpenOptions { delta_max: 12, ..options() }, &md5);
    }
}

/// Four stale entries of one digest hid the block that had its content: candidates were counted before
/// anybody knew that they were stale, and none was ever dropped. The content was stored again by each write,
/// until the next sweep.
#[test]
fn content_that_comes_and_goes_is_found_each_time_and_leaves_no_pile_of_entries() {
    const CONTENTS: u64 = 32;
    for runs in [RunPolicy::ByCost, RunPolicy::Always] {
        let disks = formatted(4 * CONTENTS, 4096);
        let options = OpenOptions { runs, ..options() };
        let volume = disks.open(&options).unwrap();
        for cycle in 0..12 {
            (0..CONTENTS).for_each(|n| write(&volume, n, 1 + n));
            // What others hold makes the contents move.
            (0..CONTENTS / 2).for_each(|n| write(&volume, 3 * CONTENTS + n, 1000 + 100 * cycle + n));
            volume.checkpoint().unwrap();
            let before = used(&volume);
            (0..CONTENTS).for_each(|n| write(&volume, CONTENTS + n, 1 + n));
            assert_eq!(used(&volume), before, "cycle {cycle}: stored although it was there");
            trim(&volume, 0, 2 * CONTENTS);
            volume.checkpoint().unwrap();
        }
        volume.checkpoint().unwrap();
        let entries = volume.status().index_entries;
        assert!(entries < 5 * CONTENTS, "{entries} entries are left of {CONTENTS} contents and a few others");
        volume.close().unwrap();
        disks.assert_clean("contents that came and went");
    }
}

/// The pair was stored 25,941 times when it was written by turns, and each write then read all of it.
#[test]
fn two_contents_of_one_digest_are_each_found_and_stored_once() {
    let pair = md5_pair();
    assert_eq!(DigestAlgorithm::Md5.digest(&pair[0]), DigestAlgorithm::Md5.digest(&pair[1]));
    let disks = Disks::new(100 * 4096, 8 << 20);
    disks.format(&FormatOptions { algorithm: DigestAlgorithm::Md5, ..format_options(64 * 4096) });
    let mut volume = disks.open(&options()).unwrap();
    let batch = [pair[0].clone(), pair[1].clone(), pair[0].clone(), pair[1].clone()];
    for round in 0..13 {
        for turn in 0..4 {
            write_blocks(&volume, (4 * round + turn) % 60, std::slice::from_ref(&pair[turn as usize % 2]));
        }
        write_blocks(&volume, 60, &batch);
        assert_eq!(used(&volume), 2, "blocks after round {round}");
        match round % 3 {
            0 => {}
            1 => volume.checkpoint().unwrap(),
            _ => {
                volume.close().unwrap();
                volume = disks.open(&options()).unwrap();
            }
        }
        // One of them goes and comes again.
        if round % 4 == 3 {
            trim(&volume, 0, 64);
            write_blocks(&volume, 1, &pair[1..]);
            assert_eq!(used(&volume), 1);
        }
    }
    for (lbn, expected) in (60..64).zip(&batch) {
        assert_eq!(&read(&volume, lbn).unwrap(), expected);
    }
    volume.close().unwrap();
    disks.assert_clean("two contents of one digest");
}

/// A delta is admitted while the one before it is written, and so while the index is small; when its own turn
/// came, the index had grown, a leaf for each of its changes was more than there was, and it was left out
/// without a word.
#[test]
fn an_index_that_has_grown_under_the_delta_of_the_moment_is_not_left_out() {
    const FIRST: u64 = 24_000;
    const SECOND: u64 = 16_000;
    let blocks = |from: u64, n: u64| (from..from + n).map(|n| block(1 + n, 512)).collect::<Vec<_>>();
    let rig = Rig::open(of_default_size(300_000, 512), &OpenOptions { cache_bytes: 32 << 20, ..options() })
        .unwrap();
    let volume = Arc::clone(&rig.volume);
    write_blocks(&volume, 0, &blocks(0, FIRST / 2));
    let second = blocks(FIRST, SECOND);
    let other = Arc::clone(&volume);
    // The commit is past; the checkpoint that is due after the large write is under way.
    rig.metadata.before(IoKind::Write, 3, move || {
        for (i, part) in second.chunks(1000).enumerate() {
            write_blocks(&other, FIRST + 1000 * i as u64, part);
        }
    });
    write_blocks(&volume, FIRST / 2, &blocks(FIRST / 2, FIRST / 2));
    assert_eq!(
        used(&volume),
        FIRST + SECOND,
        "the second part came while the first was written to the trees"
    );
    volume.checkpoint().unwrap();
    let status = volume.status();
    assert!(!status.gc.rebuilding && status.index_entries == FIRST + SECOND, "{status:?}");
    for first in (FIRST..FIRST + SECOND).step_by(1000) {
        write_blocks(&volume, 100_000 + first, &blocks(first, 1000));
    }
    assert_eq!(used(&volume), FIRST + SECOND);
}

/// Many clients, and two threads that do nothing but checkpoints: each of these made void what all others had
/// looked up, and a writer stood still for more than a minute.
#[test]
fn clients_beside_two_threads_that_loop_checkpoints_come_to_an_end_and_store_each_content_once() {
    for verify_match in [false, true] {
        watched(Duration::from_secs(60), move || {
            let disks = formatted(4096, 4096);
            let options = OpenOptions { verify_match: Some(verify_match), background: true, ..options() };
            let volume = disks.open(&options).unwrap();
            let ended = AtomicBool::new(false);
            let held = std::thread::scope(|scope| {
                let loops = || {
                    while !ended.load(Ordering::Relaxed) {
                        volume.checkpoint().unwrap();
                    }
                };
                scope.spawn(loops);
                scope.spawn(loops);
                let client = |n: u64| {
                    let (volume, mut rng) = (&volume, Rng::new(n));
                    move || {
                        let mut held = vec![0; 1024];
                        for _ in 0..12 {
                            let contents: Vec<u64> = (0..256).map(|_| 1 + rng.below(1500)).collect();
                            let blocks: Vec<_> =
                                contents.iter().map(|content| block(*content, 4096)).collect();
                            let at = rng.below(768);
                            write_blocks(volume, 1024 * n + at, &blocks);
                            held[at as usize..][..256].copy_from_slice(&contents);
                            let at = rng.below(1000);
                            trim(volume, 1024 * n + at, 20);
                            held[at as usize..][..20].fill(0);
                        }
                        held
                    }
                };
                let clients: Vec<_> = (0..4).map(|n| scope.spawn(client(n))).collect();
                let held: Vec<u64> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
                ended.store(true, Ordering::Relaxed);
                held
            });
            let distinct: HashSet<u64> = held.iter().copied().filter(|content| *content > 0).collect();
            assert_eq!(used(&volume), distinct.len() as u64);
            held.iter()
                .enumerate()
                .step_by(37)
                .for_each(|(lbn, content)| assert_content(&volume, lbn as u64, *content));
            volume.close().unwrap();
            disks.assert_clean("clients beside checkpoints");
        });
    }
}

/// Has `act` done before each read of a device, as often as told, but not before those that it causes itself.
/// Returns how often it was.
fn at_every_read(
    device: &Arc<Hooked>,
    times: usize,
    act: impl Fn() + Send + Sync + 'static,
) -> Arc<AtomicU64> {
    let (done, is_acting, act) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Arc::new(act));
    for _ in 0..times {
        let (done, is_acting, act) = (Arc::clone(&done), Arc::clone(&is_acting), Arc::clone(&act));
        device.before(IoKind::Read, 0, move || {
            if !is_acting.swap(true, Ordering::Relaxed) {
                done.fetch_add(1, Ordering::Relaxed);
                act();
                is_acting.store(false, Ordering::Relaxed);
            }
        });
    }
    done
}

/// Blocks were compared one at a time, and all that had been compared was thrown away with each checkpoint:
/// on a slow device beside a fast writer, none of 1,024 blocks was written in two minutes, for 22,743 reads.
/// The more is written meanwhile, the shorter the history of the trees reaches; then the batch looks its
/// blocks up again, and compares none again.
#[test]
fn a_batch_whose_blocks_are_compared_reads_each_once_whatever_checkpoints_do_meanwhile() {
    for checkpoints in [1, 3] {
        let options = OpenOptions { verify_match: Some(true), delta_max: 600, ..options() };
        let rig = Rig::open(of_default_size(100_000, 4096), &options).unwrap();
        let blocks: Vec<_> = (0..256).map(|n| block(1 + n, 4096)).collect();
        write_blocks(&rig.volume, 0, &blocks);
        rig.volume.checkpoint().unwrap();
        let (volume, next) = (Arc::clone(&rig.volume), AtomicU64::new(1000));
        let reads = at_every_read(&rig.data, 2000, move || {
            for _ in 0..checkpoints {
                let first = next.fetch_add(250, Ordering::Relaxed);
                let others: Vec<_> = (first..first + 250).map(|n| block(n, 4096)).collect();
                write_blocks(&volume, first, &others);
                volume.checkpoint().unwrap();
            }
        });
        write_blocks(&rig.volume, 500, &blocks);
        let reads = reads.load(Ordering::Relaxed);
        // They lie side by side.
        assert!((1..20).contains(&reads), "{reads} reads of the data device for 256 blocks");
        rig.data.forget_hooks();
        assert_eq!(rig.volume.status().counters.dupwrites, 256);
        (0..256).for_each(|n| assert_content(&rig.volume, 500 + n, 1 + n));
        rig.volume.checkpoint().unwrap();
        rig.disks.assert_clean("compared beside checkpoints");
    }
}

/// A checkpoint at every read of the metadata device: what was looked up before it stays true but for what
/// its delta says.
#[test]
fn a_checkpoint_at_every_read_makes_neither_writes_nor_trims_begin_anew() {
    let options = OpenOptions { cache_bytes: 0, filter_bytes_max: 0, ..options() };
    let rig = Rig::open(of_default_size(4000, 4096), &options).unwrap();
    (0..64).for_each(|n| write(&rig.volume, n, 1 + n));
    rig.volume.checkpoint().unwrap();
    let volume = Arc::clone(&rig.volume);
    let reads = at_every_read(&rig.metadata, 5000, move || {
        volume.checkpoint().unwrap();
    });
    let mut last = 0;
    let mut reads_of = |what: &str| {
        let now = reads.load(Ordering::Relaxed);
        assert!(now - last < 40, "{what}: {} reads, a checkpoint before each", now - last);
        last = now;
    };
    // Half of it is stored, half is new.
    let blocks: Vec<_> = (32..96).map(|n| block(1 + n, 4096)).collect();
    write_blocks(&rig.volume, 100, &blocks);
    reads_of("a batch of writes");
    write_blocks(&rig.volume, 0, &blocks);
    reads_of("a batch that overwrites");
    trim(&rig.volume, 100, 64);
    reads_of("a trim");
    rig.metadata.forget_hooks();
    assert_eq!(used(&rig.volume), 64);
    (0..64).for_each(|n| assert_content(&rig.volume, n, 33 + n));
    rig.volume.checkpoint().unwrap();
    rig.disks.assert_clean("checkpoints at every read");
}

/// A reader that began before the index was lost meets the damage after it was built anew: the new one stays.
#[test]
fn a_reader_from_before_that_meets_damage_does_not_drop_an_index_that_was_rebuilt() {
    const BLOCKS: u64 = 600;
    let options = OpenOptions { cache_bytes: 0, ..options() };
    let disks = of_default_size(4000, 4096);
    let volume = disks.open(&options).unwrap();
    (0..BLOCKS).for_each(|n| write(&volume, n, 1 + n));
    volume.close().unwrap();
    let rig = Rig::open(disks, &options).unwrap();
    write(&rig.volume, 3000, 5000);
    let label = dedup_volume::Label::read(&*rig.disks.data).unwrap();
    let root =
        dedup_meta::load_superblocks(&*rig.disks.metadata).newest(Some(label.pool)).unwrap().hint.base.node;
    rig.disks.metadata.write(root.unwrap().block.0 * 4096 + 1024, &[0xff; 512]).unwrap();
    let volume = Arc::clone(&rig.volume);
    // The first read is of the old mapping, under the pin.
    let acted = at_every_read(&rig.metadata, 1, move || {
        write(&volume, 3001, 1);
        while volume.collect_some().unwrap() {}
        volume.checkpoint().unwrap();
        assert!(volume.status().index_entries >= BLOCKS, "it was rebuilt meanwhile");
    });
    write(&rig.volume, 3002, 2);
    assert_eq!(acted.load(Ordering::Relaxed), 1);
    let status = rig.volume.status();
    assert!(status.index_entries >= BLOCKS && !status.gc.rebuilding, "{status:?}");
}
