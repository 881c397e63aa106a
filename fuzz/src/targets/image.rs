//! A small valid volume with bytes changed anywhere, with and without right checksums afterwards: opened for
//! reading and for writing, used, checkpointed, closed and checked, it never panics or hangs. Where checksums
//! were not put right, a read gives what was written or an error, never anything else.
//!
//! ```text
//!  input:  changes 1 | for each: kind 1 | block 1 | byte 2 | xor 1 ... | operations: kind 1 | block 2 | argument 1
//! ```

use crate::Input;
use crate::template::{BLOCK_SIZE, Content, Disks, LBNS, TEMPLATE, content, read, run as request};
use dedup_checker::{CheckOptions, check};
use dedup_meta::META_BLOCK_SIZE;
use dedup_volume::{Op, RequestError, Volume};

const CHANGES_MAX: u8 = 16;
const OPERATIONS_MAX: usize = 32;

/// Bits of a change's kind.
const UNSEALED: u8 = 1;
const DATA: u8 = 2;

/// What each logical block may read as.
struct Model {
    /// Now.
    may_be: Vec<Vec<Content>>,
    /// After an open that lost what was not durable.
    ever: Vec<Vec<Content>>,
    believed: bool,
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disks = TEMPLATE.disks();
    let sealed = damage(&disks, &mut input);
    let mut model = Model { may_be: TEMPLATE.held.clone(), ever: TEMPLATE.held.clone(), believed: !sealed };

    checked(&disks);
    let copy = disks.copy();
    if let Ok(volume) = copy.open(true) {
        model.read(&volume, (0..LBNS).step_by(3));
        assert!(request(&volume, Op::Trim { offset: 0, len: BLOCK_SIZE as u64, fua: true }).is_err());
        volume.close().expect("nothing to write");
    }
    unchanged(&copy, &disks);

    let Ok(volume) = disks.open(false) else { return };
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        operate(&volume, &mut input, &mut model);
    }
    model.read(&volume, 0..LBNS);
    let _ = volume.status();
    if volume.close().is_err() {
        model.may_be.clone_from(&model.ever);
    }
    checked(&disks);
    let Ok(volume) = disks.open(false) else { return };
    model.read(&volume, 0..LBNS);
}

/// One change of a byte.
struct Change {
    kind: u8,
    block: usize,
    byte: u64,
    xor: u8,
}

/// Makes the changes; says whether there are any whose checksums were put right.
fn damage(disks: &Disks, input: &mut Input<'_>) -> bool {
    let changes = (0..input.u8().min(CHANGES_MAX)).map(|_| Change {
        kind: input.u8(),
        block: usize::from(input.u8()),
        byte: u64::from(input.u16()),
        xor: input.u8(),
    });
    let (raw, sealed): (Vec<_>, Vec<_>) = changes.partition(|change| change.kind & (UNSEALED | DATA) != 0);
    sealed.iter().for_each(|change| change.make(disks));
    if !sealed.is_empty() {
        disks.reseal(&TEMPLATE);
    }
    raw.iter().for_each(|change| change.make(disks));
    !sealed.is_empty()
}

impl Change {
    fn make(&self, disks: &Disks) {
        let (device, block, size) = match self.kind & DATA {
            0 => (
                &disks.metadata,
                TEMPLATE.blocks[self.block % TEMPLATE.blocks.len()].0,
                META_BLOCK_SIZE as u64,
            ),
            _ => (&disks.data, self.block as u64, BLOCK_SIZE as u64),
        };
        Disks::flip(device, block * size + self.byte % size, self.xor);
    }
}

/// Checks the volume; nothing is written.
fn checked(disks: &Disks) {
    let copy = disks.copy();
    if let Ok(report) = check(Some(&*copy.data), copy.metadata.clone(), &CheckOptions::tiny(), &mut |_| ()) {
        let _ = report.to_string();
    }
    unchanged(&copy, disks);
}

fn unchanged(a: &Disks, b: &Disks) {
    assert!(
        a.data.image() == b.data.image() && a.metadata.image() == b.metadata.image(),
        "something was written"
    );
}

fn operate(volume: &Volume, input: &mut Input<'_>, model: &mut Model) {
    let (kind, lbn, argument) = (input.u8(), u64::from(input.u16()) % LBNS, input.u8());
    let offset = lbn * BLOCK_SIZE as u64;
    let blocks = u64::from(argument % 16).min(LBNS - lbn);
    let len = blocks * BLOCK_SIZE as u64;
    let fua = kind & 0x80 != 0;
    match kind % 8 {
        0 => model.read(volume, lbn..lbn + 1),
        1 | 2 => {
            let data = content(argument);
            let result = request(volume, Op::Write { offset, data: &data, fua });
            model.changed(lbn, result, |block| *block = data);
        }
        3 => {
            let start = usize::from(argument);
            let result =
                request(volume, Op::Write { offset: offset + start as u64, data: &[argument; 100], fua });
            model.changed(lbn, result, |block| block[start..start + 100].fill(argument));
        }
        4 => {
            let result = request(volume, Op::Trim { offset, len, fua });
            (lbn..lbn + blocks).for_each(|lbn| model.changed(lbn, result, |block| block.fill(0)));
        }
        5 => {
            let result = request(volume, Op::WriteZeroes { offset, len, fua });
            (lbn..lbn + blocks).for_each(|lbn| model.changed(lbn, result, |block| block.fill(0)));
        }
        6 => drop(request(volume, Op::Flush)),
        _ if argument % 2 == 0 => drop(volume.checkpoint()),
        _ => {
            volume.gc_start();
            let _ = volume.collect_some();
            let _ = volume.gc_estimate();
        }
    }
}

impl Model {
    /// Reads blocks, and holds each that can be read against what it may be.
    fn read(&self, volume: &Volume, lbns: impl Iterator<Item = u64>) {
        for (lbn, result) in read(volume, lbns) {
            let may_be = &self.may_be[lbn as usize];
            if let Ok(found) = result {
                assert!(!self.believed || may_be.contains(&found), "LBN {lbn} reads as {:?}...", &found[..4]);
            }
        }
    }

    /// Takes note of a change that was made, or of one that failed and may have been made.
    fn changed(&mut self, lbn: u64, result: Result<(), RequestError>, change: impl Fn(&mut Content)) {
        let may_be = &mut self.may_be[lbn as usize];
        let mut after = may_be.clone();
        after.iter_mut().for_each(change);
        let ever = &mut self.ever[lbn as usize];
        ever.extend(after.clone());
        match result {
            Ok(()) => *may_be = after,
            Err(_) => may_be.extend(after),
        }
        may_be.sort_unstable();
        may_be.dedup();
        ever.sort_unstable();
        ever.dedup();
    }
}
