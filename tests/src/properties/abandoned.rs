//! A batch that nobody wants any more: what of it has begun ends, and nothing else of it begins.

use super::*;
use crate::hooked::{Rig, while_held};
use dedup_device::IoKind;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The client goes while the first of several waves is being written: whatever the later ones are, they have
/// no effect and say so.
pub fn nothing_of_a_batch_is_begun_once_nobody_wants_it(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    (0..8).for_each(|lbn| write(&rig.volume, lbn, 100 + lbn));
    flush(&rig.volume);
    let wanted = Arc::new(AtomicBool::new(true));
    let gone = Arc::clone(&wanted);
    rig.data.before(IoKind::Write, 0, move || gone.store(false, SeqCst));
    let contents = [block(1, 4096), block(2, 3 * 4096), block(3, 200)];
    let batch = vec![
        Request { tag: 0, op: Op::Write { offset: 0, data: &contents[0], fua: false } },
        Request { tag: 1, op: Op::Write { offset: 0, data: &contents[1], fua: true } },
        Request { tag: 2, op: Op::Write { offset: 4000, data: &contents[2], fua: false } },
        Request { tag: 3, op: Op::Trim { offset: 0, len: 8 * 4096, fua: true } },
        Request { tag: 4, op: Op::WriteZeroes { offset: 10, len: 7 * 4096, fua: false } },
    ];
    let mut results = [None; 5];
    rig.volume.execute_while(&|| wanted.load(SeqCst), batch, &mut |request, result| {
        results[request.tag as usize] = Some(result);
    });
    for lbn in 1..8 {
        let kept = read(&rig.volume, lbn).unwrap() == block(100 + lbn, 4096);
        assert!(kept, "LBN {lbn}: begun although nobody wanted it");
    }
    assert!(read(&rig.volume, 0).unwrap() == contents[0], "what had begun was not finished");
    let abandoned = Some(Err(RequestError::Abandoned));
    assert_eq!(results, [Some(Ok(())), abandoned, abandoned, abandoned, abandoned]);
    drop(rig.volume);
    rig.disks.assert_clean("a batch that was abandoned");
}

/// A request waits for blocks that another client is writing, and its own client goes meanwhile: it is not
/// begun after all, so what that client, or another, has written since stays.
pub fn what_waits_for_its_blocks_is_asked_for_again(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    let wanted = AtomicBool::new(true);
    let volume = &*rig.volume;
    let (old, new) = (block(1, 4096), block(2, 4096));
    let newer = || run(volume, Op::Write { offset: 0, data: &new, fua: true }).unwrap();
    let stale = || {
        let batch = vec![Request { tag: 0, op: Op::Write { offset: 0, data: &old, fua: false } }];
        let is_wanted = || {
            let was = wanted.load(SeqCst);
            // Whoever asks before the blocks are locked hears that all is well; then the client goes.
            wanted.store(false, SeqCst);
            was
        };
        volume.execute_while(&is_wanted, batch, &mut |_, _| ());
    };
    let in_turn = || {
        // The client goes while the request waits.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(stale);
            std::thread::sleep(std::time::Duration::from_millis(30));
            wanted.store(false, SeqCst);
            waiting.join().unwrap();
        });
    };
    while_held(&rig.data, IoKind::Write, newer, in_turn);
    let found = read(volume, 0).unwrap();
    assert!(found == new, "a newer write was replaced by one that nobody wanted");
}

/// A long trim goes in steps; when its client goes, the step under way is the last.
pub fn a_long_trim_ends_when_nobody_wants_it(options: &OpenOptions) {
    const BLOCKS: u64 = 3000;
    let disks = formatted(BLOCKS, 512);
    let volume = disks.open(options).unwrap();
    let contents: Vec<Vec<u8>> = (0..BLOCKS).map(|lbn| block(lbn + 1, 512)).collect();
    let data = contents.concat();
    run(&volume, Op::Write { offset: 0, data: &data, fua: false }).unwrap();
    // Once for all of it, once for the first step.
    let asked = std::cell::Cell::new(0);
    let wanted = || {
        asked.set(asked.get() + 1);
        asked.get() <= 2
    };
    let trim = vec![Request { tag: 0, op: Op::Trim { offset: 0, len: BLOCKS * 512, fua: true } }];
    let mut outcome = None;
    volume.execute_while(&wanted, trim, &mut |_, result| outcome = Some(result));
    assert_eq!(outcome, Some(Err(RequestError::Abandoned)));
    let mut found = vec![1; data.len()];
    run(&volume, Op::Read { offset: 0, buf: &mut found }).unwrap();
    assert!(found[..512].iter().all(|byte| *byte == 0), "the step under way was not finished");
    assert!(found.ends_with(&contents[BLOCKS as usize - 1]), "trimmed although nobody wanted it");
    drop(volume);
    disks.assert_clean("a trim that was abandoned");
}
