//! A data device for volumes far larger than the disk: it keeps which block has which number, and makes the
//! bytes anew for a read.
//!
//! ```text
//!   write: | number | same in every block ... | number |   ──> run {first block, first number, blocks} in memory
//!   flush: runs since the last one ──> appended to the file, synced           file: | label 4 KiB | run | run | ...
//!   read:  number of the block     ──> the same bytes again
//! ```
//!
//! Invariants: what was flushed is there after a kill or a power cut, what was not may be lost, as with any
//! device; a block that is not of this form is refused, so nothing is ever read back that was not written.
//! Later runs go over earlier ones. Block 0 holds whatever was written there. Not here: faults, or the time
//! that a disk would take.

use crate::workload::BLOCK;
use dedup_device::{BlockDevice, ReadOp, WriteOp};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a block, as an index.
const BLOCK_BYTES: usize = BLOCK as usize;
/// First block, first number, blocks, and a CRC32C of these.
const RECORD_BYTES: usize = 28;
/// Runs read at a time when the file is opened.
const READ_RECORDS: usize = 4096;

/// Makes blocks of a number: all the same but for the number at both ends.
#[derive(Debug)]
pub(crate) struct Stamp {
    filler: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct StampedDevice {
    size: u64,
    file: File,
    stamp: Stamp,
    sync: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    label: Vec<u8>,
    /// First block -> (its number, blocks).
    runs: BTreeMap<u64, (u64, u64)>,
    /// Not in the file yet.
    unflushed: Vec<Run>,
    label_unflushed: bool,
    /// Where the next run goes.
    end: u64,
}

/// Blocks from `first` on with numbers from `number` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    number: u64,
    blocks: u64,
}

impl Stamp {
    pub(crate) fn new() -> Self {
        let mut filler = vec![0; BLOCK_BYTES];
        crate::peers::fill(&mut filler, &mut 1);
        Self { filler }
    }

    /// Makes `block`, of any content, that of `number`.
    pub(crate) fn make(&self, block: &mut [u8], number: u64) {
        block.copy_from_slice(&self.filler);
        Self::renumber(block, number);
    }

    /// Makes a block that has another number that of `number`.
    pub(crate) fn renumber(block: &mut [u8], number: u64) {
        block[..8].copy_from_slice(&number.to_le_bytes());
        block[BLOCK_BYTES - 8..].copy_from_slice(&number.to_le_bytes());
    }

    /// The number of a block, if it looks like one of these. Not every byte is looked at: the volume above
    /// has its checksums.
    pub(crate) fn number(&self, block: &[u8]) -> Option<u64> {
        let (begin, end) = (block.first_chunk::<8>()?, block.last_chunk::<8>()?);
        (begin == end && block[8..64] == self.filler[8..64]).then(|| u64::from_le_bytes(*begin))
    }
}

impl StampedDevice {
    /// Opens the device of `size` bytes behind the file at `path`, which is made if there is none.
    pub(crate) fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut label = vec![0; BLOCK_BYTES];
        let mut state = State {
            label: Vec::new(),
            runs: BTreeMap::new(),
            unflushed: Vec::new(),
            label_unflushed: false,
            end: BLOCK,
        };
        if file.metadata()?.len() >= BLOCK {
            file.read_exact_at(&mut label, 0)?;
            state.load(&file)?;
        }
        // What a killed process left in the cache was read just now, and may not be durable.
        file.sync_data()?;
        state.label = label;
        Ok(Self { size, file, stamp: Stamp::new(), sync: true, state: Mutex::new(state) })
    }

    /// The same, but a flush leaves its runs in the kernel's cache: a power cut may take them, a kill does
    /// not.
    pub(crate) fn without_sync(self) -> Self {
        Self { sync: false, ..self }
    }

    // A panic under the lock ends the process.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self, offset: u64, len: u64) -> io::Result<u64> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        match inside && offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) {
            true => Ok(offset / BLOCK),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset}: expected whole blocks of a device of {} bytes", self.size),
            )),
        }
    }

    fn write_bufs(&self, state: &mut State, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let first = self.blocks(offset, len)?;
        if bufs.iter().any(|buf| !buf.len().is_multiple_of(BLOCK_BYTES)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected whole blocks in each buffer"));
        }
        for (place, block) in (first..).zip(bufs.iter().flat_map(|buf| buf.chunks_exact(BLOCK_BYTES))) {
            if place == 0 {
                state.label.copy_from_slice(block);
                state.label_unflushed = true;
                continue;
            }
            let number = self.stamp.number(block).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("block {place}: expected a stamped block"),
                )
            })?;
            state.write(Run { first: place, number, blocks: 1 });
        }
        Ok(())
    }

    fn read_blocks(&self, state: &State, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let first = self.blocks(offset, buf.len() as u64)?;
        for (place, block) in (first..).zip(buf.chunks_exact_mut(BLOCK_BYTES)) {
            match state.number(place) {
                _ if place == 0 => block.copy_from_slice(&state.label),
                Some(number) => self.stamp.make(block, number),
                None => block.fill(0),
            }
        }
        Ok(())
    }
}

impl State {
    /// Reads the runs up to the first record that is not whole: what came after it was not flushed.
    fn load(&mut self, file: &File) -> io::Result<()> {
        let mut reader = file;
        io::Seek::seek(&mut reader, io::SeekFrom::Start(BLOCK))?;
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            reader.take((READ_RECORDS * RECORD_BYTES) as u64).read_to_end(&mut chunk)?;
            for record in chunk.chunks(RECORD_BYTES) {
                let Some(run) = Run::parse(record) else { return Ok(()) };
                self.insert(run);
                self.end += RECORD_BYTES as u64;
            }
            if chunk.is_empty() {
                return Ok(());
            }
        }
    }

    /// The number of a block that was written.
    fn number(&self, place: u64) -> Option<u64> {
        let (first, (number, blocks)) = self.runs.range(..=place).next_back()?;
        (place - first < *blocks).then(|| number + (place - first))
    }

    fn write(&mut self, run: Run) {
        match self.unflushed.last_mut() {
            Some(last) if last.continues(run) => last.blocks += run.blocks,
            _ => self.unflushed.push(run),
        }
        self.insert(run);
    }

    /// Lays a run over what is there, as a part of the one before it if it can be.
    fn insert(&mut self, run: Run) {
        let end = run.first + run.blocks;
        let mut before = self.runs.range(..run.first).next_back().map(|(first, rest)| (*first, *rest));
        if let Some((first, (number, blocks))) =
            before.filter(|(first, (_, blocks))| first + blocks > run.first)
        {
            let kept = run.first - first;
            self.runs.insert(first, (number, kept));
            if first + blocks > end {
                self.runs.insert(end, (number + (end - first), first + blocks - end));
            }
            before = Some((first, (number, kept)));
        }
        while let Some((first, (number, blocks))) =
            self.runs.range(run.first..end).next().map(|(first, rest)| (*first, *rest))
        {
            self.runs.remove(&first);
            if first + blocks > end {
                self.runs.insert(end, (number + (end - first), first + blocks - end));
            }
        }
        match before {
            Some((first, (number, blocks))) if (Run { first, number, blocks }).continues(run) => {
                self.runs.insert(first, (number, blocks + run.blocks))
            }
            _ => self.runs.insert(run.first, (run.number, run.blocks)),
        };
    }
}

impl Run {
    fn continues(&self, next: Self) -> bool {
        self.first + self.blocks == next.first && self.number + self.blocks == next.number
    }

    fn record(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        for (place, word) in [self.first, self.number, self.blocks].into_iter().enumerate() {
            record[8 * place..8 * place + 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&record[..24]);
        record[24..].copy_from_slice(&crc.to_le_bytes());
        record
    }

    fn parse(record: &[u8]) -> Option<Self> {
        let (words, crc) = (record.get(..24)?, record.get(24..)?);
        let word = |place: usize| Some(u64::from_le_bytes(*words[8 * place..].first_chunk()?));
        let run = Self { first: word(0)?, number: word(1)?, blocks: word(2)? };
        (crc == crc32c::crc32c(words).to_le_bytes() && run.blocks > 0).then_some(run)
    }
}

impl BlockDevice for StampedDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn io_alignment(&self) -> usize {
        BLOCK_BYTES
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_blocks(&self.state(), offset, buf)
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_bufs(&mut self.state(), offset, &[buf])
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_>]) {
        let state = self.state();
        for op in ops {
            let mut offset = op.offset;
            op.result = op.bufs.iter_mut().try_for_each(|buf| {
                let read = self.read_blocks(&state, offset, buf);
                offset += buf.len() as u64;
                read
            });
        }
    }

    fn write_batch(&self, ops: &mut [WriteOp<'_>]) {
        let mut state = self.state();
        for op in ops {
            op.result = self.write_bufs(&mut state, op.offset, &op.bufs);
        }
    }

    /// What was written meanwhile is part of a later flush. A failed one leaves its runs out of the file for
    /// good.
    fn flush(&self) -> io::Result<()> {
        let (label, records, at) = {
            let mut state = self.state();
            let runs = std::mem::take(&mut state.unflushed);
            let records: Vec<u8> = runs.iter().flat_map(Run::record).collect();
            let at = state.end;
            state.end += records.len() as u64;
            let label = std::mem::take(&mut state.label_unflushed).then(|| state.label.clone());
            (label, records, at)
        };
        if let Some(label) = &label {
            self.file.write_all_at(label, 0)?;
        }
        self.file.write_all_at(&records, at)?;
        match self.sync && (label.is_some() || !records.is_empty()) {
            true => self.file.sync_data(),
            false => Ok(()),
        }
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Runs were read from the file when it was opened, and made durable then.
    fn bypass_cache(&self) -> io::Result<bool> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> (tempfile::TempDir, StampedDevice) {
        let dir = tempfile::tempdir().unwrap();
        let device = StampedDevice::open(&dir.path().join("data"), 64 * BLOCK).unwrap();
        (dir, device)
    }

    fn stamped(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let stamp = Stamp::new();
        let block = |number| {
            let mut block = vec![0; BLOCK_BYTES];
            stamp.make(&mut block, number);
            block
        };
        numbers.into_iter().flat_map(block).collect()
    }

    #[test]
    fn blocks_read_as_they_were_last_written_however_they_overlap() {
        let (_dir, device) = device();
        let mut expected: Vec<Option<u64>> = vec![None; 64];
        let mut random = 7u64;
        for round in 0..2000u64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (first, blocks) = (1 + (random >> 33) % 63, 1 + (random >> 50) % 9);
            let blocks = blocks.min(64 - first);
            let number = if round % 3 == 0 { first } else { round * 100 };
            device.write(first * BLOCK, &stamped(number..number + blocks)).unwrap();
            (0..blocks).for_each(|i| expected[(first + i) as usize] = Some(number + i));
            let state = device.state();
            let found: Vec<_> = (0..64).map(|place| state.number(place)).collect();
            assert_eq!(found, expected, "round {round}");
        }
    }

    #[test]
    fn what_was_flushed_is_there_again_and_what_was_not_is_not() {
        let (dir, device) = device();
        device.write(0, &[7; BLOCK_BYTES]).unwrap();
        device.write(BLOCK, &stamped(10..20)).unwrap();
        device.flush().unwrap();
        device.write(3 * BLOCK, &stamped([99])).unwrap();
        drop(device);
        let again = StampedDevice::open(&dir.path().join("data"), 64 * BLOCK).unwrap();
        let mut read = vec![0; 12 * BLOCK_BYTES];
        again.read(0, &mut read).unwrap();
        assert_eq!(read[..BLOCK_BYTES], [7; BLOCK_BYTES]);
        assert_eq!(read[BLOCK_BYTES..11 * BLOCK_BYTES], stamped(10..20));
        assert_eq!(read[11 * BLOCK_BYTES..], [0; BLOCK_BYTES]);
    }

    #[test]
    fn a_run_torn_by_a_power_cut_is_no_run_and_the_next_goes_over_it() {
        let (dir, device) = device();
        device.write(BLOCK, &stamped([1])).unwrap();
        device.flush().unwrap();
        let path = dir.path().join("data");
        let torn = Run { first: 2, number: 2, blocks: 1 }.record();
        device.file.write_all_at(&torn[..20], device.state().end).unwrap();
        drop(device);
        let again = StampedDevice::open(&path, 64 * BLOCK).unwrap();
        assert_eq!(again.state().number(2), None);
        again.write(5 * BLOCK, &stamped([5])).unwrap();
        again.flush().unwrap();
        let third = StampedDevice::open(&path, 64 * BLOCK).unwrap();
        assert_eq!([1, 2, 5].map(|place| third.state().number(place)), [Some(1), None, Some(5)]);
    }

    #[test]
    fn what_could_not_be_read_back_is_refused() {
        let (_dir, device) = device();
        assert!(device.write(BLOCK, &[1; BLOCK_BYTES]).is_err());
        assert!(device.write(BLOCK + 512, &stamped([1])).is_err());
        assert!(device.write(64 * BLOCK, &stamped([1])).is_err());
    }
}
