//! Plays a script on a volume and on the model at once, and says at which step they part.

use super::expected::Expected;
use super::orders::Content;
use super::script::{Change, Ending, OpenAs, Req, Script, Step};
use crate::{Disks, format_options, options, run};
use anyhow::{Context, Result, anyhow, ensure};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, RequestError, RunPolicy, Volume};

/// Room for the trees of the largest volume that scripts make, three times over.
const METADATA_BYTES: u64 = 8 << 20;
/// The label's two copies, and what the smallest volumes are rounded up to.
const DATA_BYTES_MIN: u64 = 16 << 10;

/// Plays a script; the error says what is not as it should be, and after which line.
pub fn play(script: &Script) -> Result<()> {
    let shape = &script.shape;
    let block_size = u64::from(shape.block_size);
    let data_bytes = ((shape.blocks + shape.spare + 1) * block_size).max(DATA_BYTES_MIN);
    let disks = Disks::new(data_bytes, METADATA_BYTES);
    disks.format(&FormatOptions {
        block_size: shape.block_size,
        algorithm: shape.algorithm,
        flushrq: shape.flushrq,
        verify_match: shape.verify_match,
        log_blocks: Some(shape.log_blocks),
        ..format_options(shape.blocks * block_size)
    });
    let mut player = Player {
        volume: Some(open(&disks, script, &script.open)?),
        expected: Expected::new(shape),
        flushrq: script.open.flushrq.unwrap_or(shape.flushrq),
        script,
        disks,
    };
    for (number, step) in script.steps.iter().enumerate() {
        player.step(step).with_context(|| format!("step {}: {step}", number + 1))?;
    }
    player.end().context("at the end")
}

struct Player<'s> {
    script: &'s Script,
    disks: Disks,
    /// `None` only while it is being opened again.
    volume: Option<Volume>,
    expected: Expected,
    /// What this life of the volume was opened with.
    flushrq: u32,
}

fn open(disks: &Disks, script: &Script, open: &OpenAs) -> Result<Volume> {
    let with = OpenOptions {
        read_only: open.read_only,
        check_on_read: open.check_on_read,
        verify_match: open.verify_match,
        flushrq: open.flushrq,
        block_size: Some(script.shape.block_size),
        algorithm: Some(script.shape.algorithm),
        discard: open.discard,
        delta_max: open.delta_max,
        // Where checkpoints are frequent, the index has runs.
        runs: if open.delta_max < 64 { RunPolicy::Always } else { RunPolicy::ByCost },
        cache_bytes: open.cache_bytes,
        data_cache_bytes: open.cache_bytes,
        in_ram: script.shape.in_ram,
        ..options()
    };
    disks.open(&with).context("open")
}

impl Player<'_> {
    fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("open between two steps")
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Batch(requests) if self.volume().is_read_only() => self.refused(requests),
            Step::Batch(requests) => self.batch(requests),
            Step::Checkpoint | Step::Collect if self.volume().is_read_only() => Ok(()),
            Step::Checkpoint => {
                self.volume().checkpoint()?;
                self.expected.all_durable();
                self.expected.check(&self.volume().status())
            }
            Step::Collect => {
                self.volume().gc_start();
                while self.volume().collect_some()? {}
                self.expected.check(&self.volume().status())
            }
            Step::Reopen(ending, open) => self.reopen(*ending, open),
        }
    }

    fn batch(&mut self, requests: &[Req]) -> Result<()> {
        let batch = self.expected.begin(requests);
        for (request, (result, buf)) in requests.iter().zip(execute(self.volume(), &self.expected, requests)?)
        {
            let wanted = if self.expected.has(request) { Ok(()) } else { Err(RequestError::OutOfRange) };
            ensure!(result == wanted, "{request}: answered {result:?}, expected {wanted:?}");
            if let (Req::Read { offset, .. }, Ok(())) = (request, result) {
                let may = |block| batch.may_read(&self.expected, block);
                check_read(*offset, &buf, self.expected.block_size, may)
                    .with_context(|| request.to_string())?;
            }
        }
        let volume = self.volume.as_ref().expect("open between two steps");
        let read = |block: usize| read_block(volume, block);
        let flushed = requests.contains(&Req::Flush);
        self.expected.end(batch, flushed, read, &volume.status())
    }

    /// A volume that is open for reading only answers reads and refuses the rest.
    fn refused(&self, requests: &[Req]) -> Result<()> {
        let nothing = self.expected.begin(&[]);
        for (request, (result, buf)) in requests.iter().zip(execute(self.volume(), &self.expected, requests)?)
        {
            let wanted = match request {
                _ if !self.expected.has(request) => Err(RequestError::OutOfRange),
                Req::Change { .. } => Err(RequestError::ReadOnly),
                Req::Read { .. } | Req::Flush => Ok(()),
            };
            ensure!(result == wanted, "{request}: answered {result:?}, expected {wanted:?}");
            if let (Req::Read { offset, .. }, Ok(())) = (request, result) {
                let may = |block| nothing.may_read(&self.expected, block);
                check_read(*offset, &buf, self.expected.block_size, may)
                    .with_context(|| request.to_string())?;
            }
        }
        self.expected.check(&self.volume().status())
    }

    fn reopen(&mut self, ending: Ending, open_as: &OpenAs) -> Result<()> {
        ensure!(!self.script.shape.in_ram, "a volume in memory ends with its process");
        let volume = self.volume.take().expect("open between two steps");
        let was_read_only = volume.is_read_only();
        match ending {
            Ending::Close => {
                volume.close().context("close")?;
                self.expected.all_durable();
            }
            Ending::Kill => drop(volume),
            Ending::Cut => self.disks = self.disks.lose_everything_unflushed(),
            Ending::Torn(salt) => {
                self.disks = self.disks.crash(|device, write, sector| {
                    crate::rng::Rng::new(salt ^ (device << 40 ^ write << 20 ^ sector) as u64).below(2) == 0
                });
            }
        }
        self.disks.assert_clean(&format!("after {ending}"));
        let images = (self.disks.data.image(), self.disks.metadata.image());
        let volume = open(&self.disks, self.script, open_as)?;
        let found = (0..self.script.shape.blocks as usize)
            .map(|block| read_block(&volume, block))
            .collect::<Result<Vec<Content>>>()?;
        let flushrq = if was_read_only { 0 } else { self.flushrq };
        self.expected.recover(found, &volume.status(), flushrq)?;
        if open_as.read_only {
            let same = (self.disks.data.image(), self.disks.metadata.image()) == images;
            ensure!(same, "opened for reading only, and changed");
        }
        self.flushrq = open_as.flushrq.unwrap_or(self.script.shape.flushrq);
        self.volume = Some(volume);
        Ok(())
    }

    /// Everything once more, and the checker.
    fn end(mut self) -> Result<()> {
        let volume = self.volume.take().expect("open between two steps");
        for block in 0..self.script.shape.blocks as usize {
            ensure!(
                read_block(&volume, block)? == *self.expected.block(block),
                "block {block} holds other bytes"
            );
        }
        self.expected.check(&volume.status())?;
        if self.script.shape.in_ram {
            ensure!(volume.status().mdbackend == "inram", "{}", volume.status().mdbackend);
            return Ok(());
        }
        let counters = volume.status().counters;
        volume.close().context("close")?;
        self.disks.assert_clean("after the end");
        let read_only = OpenAs { read_only: true, ..self.script.open.clone() };
        let volume = open(&self.disks, self.script, &read_only)?;
        ensure!(volume.status().counters == counters, "closing changed counters");
        self.expected.check(&volume.status())
    }
}

/// How a request ended, and its memory: what a read found.
type Answer = (Result<(), RequestError>, Vec<u8>);

/// Runs a batch; each request is answered once.
fn execute(volume: &Volume, expected: &Expected, requests: &[Req]) -> Result<Vec<Answer>> {
    let size = expected.block_size as usize;
    let mut bufs: Vec<Vec<u8>> = requests.iter().map(|request| memory(request, expected, size)).collect();
    let mut results = vec![None; requests.len()];
    let mut twice = None;
    let batch = (0..).zip(requests).zip(&mut bufs).map(|((tag, request), buf)| {
        let op = match *request {
            Req::Flush => Op::Flush,
            Req::Read { offset, .. } => Op::Read { offset, buf },
            Req::Change { offset, len, ref change, fua } => match change {
                Change::Write { .. } => Op::Write { offset, data: buf, fua },
                Change::Trim => Op::Trim { offset, len, fua },
                Change::Zero => Op::WriteZeroes { offset, len, fua },
            },
        };
        Request { tag, op }
    });
    volume.execute(batch.collect(), &mut |request, result| {
        if results[request.tag as usize].replace(result).is_some() {
            twice = Some(request.tag);
        }
    });
    ensure!(twice.is_none(), "request {twice:?} was answered twice");
    let answered = |(result, buf): (Option<_>, _)| Ok((result.ok_or_else(|| anyhow!("no answer"))?, buf));
    results.into_iter().zip(bufs).map(answered).collect()
}

/// What a write brings, or where a read goes: filled with what nobody wrote.
fn memory(request: &Req, expected: &Expected, size: usize) -> Vec<u8> {
    match *request {
        Req::Flush | Req::Change { change: Change::Trim | Change::Zero, .. } => Vec::new(),
        Req::Read { len, .. } => vec![0xaa; len as usize],
        Req::Change { offset, len, change: Change::Write { first, stride }, .. } => {
            let mut data = Vec::with_capacity(len as usize);
            let mut number = first;
            let mut start = offset as usize % size;
            while data.len() < len as usize {
                let end = size.min(start + len as usize - data.len());
                data.extend_from_slice(&expected.contents.of(number)[start..end]);
                (number, start) = (number + stride, 0);
            }
            data
        }
    }
}

/// Each block's part of what was read is as the model allows.
fn check_read<'a>(
    offset: u64,
    mut buf: &[u8],
    block_size: u64,
    may: impl Fn(usize) -> &'a [Content],
) -> Result<()> {
    let (mut block, mut start) = ((offset / block_size) as usize, (offset % block_size) as usize);
    while !buf.is_empty() {
        let (part, rest) = buf.split_at(buf.len().min(block_size as usize - start));
        let end = start + part.len();
        ensure!(
            may(block).iter().any(|content| content[start..end] == *part),
            "block {block} reads as other bytes than were written, from byte {start} of it"
        );
        (buf, block, start) = (rest, block + 1, 0);
    }
    Ok(())
}

fn read_block(volume: &Volume, block: usize) -> Result<Content> {
    let size = u64::from(volume.block_size());
    let mut buf = vec![0xaa; size as usize];
    run(volume, Op::Read { offset: block as u64 * size, buf: &mut buf })
        .map_err(|error| anyhow!("block {block} cannot be read: {error}"))?;
    Ok(buf.into())
}
