//! What is said of a damaged volume, and what it reads as: the checker, an open for reading, and an open for
//! writing that goes on to use the volume.
//!
//! A read is *right*, *refused*, or *other*: bytes that no one wrote there. Other bytes are what must never
//! be.

use super::sample::Sample;
use super::{Image, Memory};
use crate::{block, options, run};
use dedup_checker::{CheckError, CheckOptions, Report, check};
use dedup_volume::{Op, OpenOptions, Request, Volume, VolumeError};
use std::collections::HashMap;

/// What the logical blocks of a volume may read as.
#[derive(Clone, Debug)]
pub struct Model {
    /// For each logical block the contents that are right.
    may_be: Vec<Vec<u64>>,
    /// The bytes of each content.
    bytes: HashMap<u64, Vec<u8>>,
    block_size: usize,
}

/// How the logical blocks read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Blocks that read as they should.
    pub right: usize,
    /// Blocks that could not be read.
    pub refused: usize,
    /// Blocks that read as something else.
    pub other: Vec<u64>,
}

impl Reads {
    fn add(&mut self, more: Self) {
        self.right += more.right;
        self.refused += more.refused;
        self.other.extend(more.other);
    }
}

impl Model {
    /// The present content alone is right.
    pub fn now(sample: &Sample) -> Self {
        Self::new(sample.now.iter().map(|content| vec![*content]).collect(), sample.block_size)
    }

    /// Whatever was right since the older superblock.
    pub fn ever(sample: &Sample) -> Self {
        Self::new(sample.ever.clone(), sample.block_size)
    }

    fn new(may_be: Vec<Vec<u64>>, block_size: usize) -> Self {
        let ids = may_be.iter().flatten().copied().chain(NEW);
        let bytes = ids.map(|id| (id, block(id, block_size))).collect();
        Self { may_be, bytes, block_size }
    }

    /// Whether the volume, opened for reading, reads as this says in every block that can be read, if any
    /// can.
    pub fn read_only_is(&self, image: &Image) -> bool {
        read_only(image, self).map_or(true, |reads| reads.other.is_empty())
    }

    fn right(&self, lbn: usize, found: &[u8]) -> bool {
        self.may_be[lbn].iter().any(|id| self.bytes[id] == found)
    }

    /// An operation on a block was done, or failed and may have been done.
    fn changed(&mut self, lbn: u64, content: u64, done: bool) {
        let may_be = &mut self.may_be[lbn as usize];
        if done {
            may_be.clear();
        }
        may_be.push(content);
    }

    /// Reads every logical block that the volume says it has.
    pub fn read(&self, volume: &Volume) -> Reads {
        let lbns = (volume.logical_size() / self.block_size as u64).min(self.may_be.len() as u64) as usize;
        let mut buf = vec![0x55; lbns * self.block_size];
        let mut refused = vec![true; lbns];
        let requests = buf.chunks_exact_mut(self.block_size).enumerate().map(|(lbn, buf)| Request {
            tag: lbn as u64,
            op: Op::Read { offset: (lbn * self.block_size) as u64, buf },
        });
        volume.execute(requests.collect(), &mut |request, result| {
            refused[request.tag as usize] = result.is_err();
        });
        let mut reads = Reads::default();
        for (lbn, found) in buf.chunks_exact(self.block_size).enumerate() {
            match (refused[lbn], self.right(lbn, found)) {
                (true, _) => reads.refused += 1,
                (false, true) => reads.right += 1,
                (false, false) => reads.other.push(lbn as u64),
            }
        }
        reads
    }
}

/// Contents that [`used`] writes and no sample has.
const NEW: [u64; 3] = [9001, 9002, 0];

/// What the checker says, data included; that it changed nothing is asserted.
pub fn checked(image: &Image) -> Result<Report, CheckError> {
    checked_with(image, &CheckOptions::tiny())
}

/// The same without reading data.
pub fn checked_without_data(image: &Image) -> Result<Report, CheckError> {
    checked_with(image, &CheckOptions { data: false, ..CheckOptions::tiny() })
}

fn checked_with(image: &Image, options: &CheckOptions) -> Result<Report, CheckError> {
    let memory = image.memory();
    let devices = memory.devices();
    let report = check(Some(&*devices.data), devices.metadata, options, &mut |_| ());
    unchanged(&memory, image);
    report
}

/// How the volume reads when it is opened for reading; that this changed nothing is asserted.
pub fn read_only(image: &Image, model: &Model) -> Result<Reads, VolumeError> {
    let memory = image.memory();
    let volume = open(&memory, true)?;
    let reads = model.read(&volume);
    volume.close()?;
    unchanged(&memory, image);
    Ok(reads)
}

fn unchanged(memory: &Memory, image: &Image) {
    assert!(memory.image() == *image, "something was written");
}

fn open(memory: &Memory, read_only: bool) -> Result<Volume, VolumeError> {
    let devices = memory.devices();
    Volume::open(devices.data, devices.metadata, &OpenOptions { read_only, ..options() })
}

/// What came of using a volume.
#[derive(Clone, Debug, Default)]
pub struct Use {
    /// All reads: at first, after some operations, and after another open.
    pub reads: Reads,
    /// Whether it took no writes by the end of the first opening.
    pub stopped: bool,
}

/// Opens the volume for writing and uses it: reads, writes of new and of known content, a trim, a flush, a
/// checkpoint, reads, close, and once more open and reads. `model` says what is right at first.
pub fn used(image: &Image, model: &Model) -> Result<Use, VolumeError> {
    let memory = image.memory();
    let volume = open(&memory, false)?;
    let mut outcome = Use { reads: model.read(&volume), stopped: false };
    let (at_first, mut model) = (model, model.clone());
    let size = model.block_size as u64;
    let known = at_first.may_be[40][0];
    for (lbn, content) in [(7, NEW[0]), (350, NEW[1]), (8, known), (1, known)] {
        let data = &block(content, size as usize)[..];
        let done = run(&volume, Op::Write { offset: lbn * size, data, fua: lbn == 8 }).is_ok();
        model.changed(lbn, content, done);
    }
    let done = run(&volume, Op::Trim { offset: 30 * size, len: 2 * size, fua: false }).is_ok();
    (30..32).for_each(|lbn| model.changed(lbn, 0, done));
    let mut durable = run(&volume, Op::Flush).is_ok();
    durable &= volume.checkpoint().is_ok();
    outcome.reads.add(model.read(&volume));
    outcome.stopped = volume.is_read_only();
    durable &= volume.close().is_ok();
    if !durable {
        // What was not made durable may be there or not.
        model.may_be.iter_mut().zip(&at_first.may_be).for_each(|(may_be, first)| may_be.extend(first));
    }
    if let Ok(volume) = open(&memory, false) {
        outcome.reads.add(model.read(&volume));
    }
    Ok(outcome)
}
