//! Changes that were acknowledged and not flushed, kept where they outlive the process.
//!
//! The kernel keeps a device whose server has died, and a new server takes it over. But the file system on it has not lost power: it
//! takes every acknowledged write for done, flushed or not, and will not send it again. The volume has those writes only in memory until
//! their commit. So each is appended to a file in the runtime directory before it is acknowledged, and a new server replays the files
//! before it serves. The file need not survive a power cut (then the device is gone too) and is never synced: in a tmpfs it is memory.
//!
//! ```text
//!   a file     generation u64 ─ epoch u64 ─ record ─ record ─ ...
//!   a record   {offset u64, len u64, kind u32, data u32, crc u32 of all before and of the data, pad u32} ─ data
//!
//!   append ──> current          flush begins: current and old change places; only if old is empty
//!              old              flush done:   old is emptied: whatever is in it was complete before the flush began
//! ```
//!
//! Invariants: a record is whole before its change is acknowledged; a record is dropped only after a flush that began after its change
//! was complete; replay in order of generation and of place gives what the last acknowledged change of each byte was (FUA writes are
//! recorded too, or an older record would be laid over them). A torn record was never acknowledged, and ends the replay of its file.
//! A file never becomes shorter than its head, so that the page under it stays its own: a flush works in a full file system too.
//!
//! The epoch is that of the volume's open by the server that recorded. Each open for writing raises it by one, so a server whose own is
//! higher by more than one knows that something else was there in between: what is recorded may be older than what that has written, and
//! [`take_over`] refuses it. Whoever takes over puts its own epoch there before it changes anything, so that a crash in a recovery is
//! followed by another.
//!
//! Both files together hold at most the limit that was given, and one change more for each thread.
//!
//! Two changes of the same block that are in flight at the same time may be recorded in the other order than the volume did them:
//! nothing orders them for anyone before both are acknowledged.

use crate::command::{Command, Kind};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a file's head: generation and epoch.
const HEAD: u64 = 16;
/// Where in it the epoch is.
const EPOCH_AT: u64 = 8;
/// Bytes that a replay hands over at once, at least: one record is at most one command.
const REPLAY_BYTES: usize = 4 << 20;

/// What a record begins with.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Head {
    offset: U64,
    len: U64,
    kind: U32,
    data: U32,
    crc: U32,
    pad: U32,
}

const WRITE: u32 = 1;
const DISCARD: u32 = 2;
const WRITE_ZEROES: u32 = 3;

impl Head {
    fn new(command: &Command, data: &[u8]) -> Self {
        let kind = match command.kind {
            Kind::Discard => DISCARD,
            Kind::WriteZeroes => WRITE_ZEROES,
            _ => WRITE,
        };
        let mut head = Self {
            offset: command.offset.into(),
            len: command.len.into(),
            kind: kind.into(),
            data: (data.len() as u32).into(),
            crc: 0.into(),
            pad: 0.into(),
        };
        head.crc = head.checksum(data).into();
        head
    }

    fn checksum(&self, data: &[u8]) -> u32 {
        let bare = Self { crc: 0.into(), ..*self };
        crc32c::crc32c_append(crc32c::crc32c(bare.as_bytes()), data)
    }

    fn command(&self) -> Option<Command> {
        let kind = match self.kind.get() {
            WRITE => Kind::Write,
            DISCARD => Kind::Discard,
            WRITE_ZEROES => Kind::WriteZeroes,
            _ => return None,
        };
        let command = Command { kind, offset: self.offset.get(), len: self.len.get(), fua: false };
        (command.data_len() == self.data.get() as usize).then_some(command)
    }
}

/// One of the two files.
#[derive(Debug)]
struct Half {
    file: File,
    /// Where the next record goes; [`HEAD`] if there is none.
    end: u64,
}

#[derive(Debug)]
struct Halves {
    current: Half,
    old: Half,
    /// A flush that will empty `old` is under way.
    flushing: bool,
    generation: u64,
}

/// The changes not yet flushed.
#[derive(Debug)]
pub struct Unflushed {
    halves: Mutex<Halves>,
    paths: [PathBuf; 2],
    bytes_max: u64,
}

/// The right to drop what was recorded before a flush began.
#[derive(Debug)]
#[must_use = "what was recorded before the flush stays until it is dropped"]
pub struct Begun {
    /// Whether everything recorded before is dropped; not so if an earlier flush failed.
    pub covers_all: bool,
}

/// A change out of a replay.
pub type Change = (Command, Vec<u8>);

/// What a replay has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Changes.
    pub changes: u64,
    /// Bytes from a damaged record to the end of its file: acknowledged changes, perhaps, that cannot be had any more.
    pub damaged: u64,
}

/// What is next in a file.
enum Next {
    Change(Change),
    /// No further record, or one that was never whole.
    End,
    /// A record that was whole and is not what it was.
    Damaged,
}

impl Unflushed {
    /// Starts with nothing, in the files `<stem>.0` and `.1`, for a volume that was opened with `epoch`; what they held is gone.
    pub fn create(stem: &Path, epoch: u64, bytes_max: u64) -> io::Result<Self> {
        let paths = paths(stem);
        let mut old = Half::open(&paths[0])?;
        let mut current = Half::open(&paths[1])?;
        // The older first: alone after a crash in between, it would be laid over what is newer and durable.
        if old.generation()? > current.generation()? {
            std::mem::swap(&mut old, &mut current);
        }
        old.reset(0)?;
        current.reset(1)?;
        for half in [&old, &current] {
            half.file.write_all_at(&epoch.to_le_bytes(), EPOCH_AT)?;
        }
        let halves = Halves { current, old, flushing: false, generation: 1 };
        Ok(Self { halves: Mutex::new(halves), paths, bytes_max })
    }

    /// Records a change that the volume has done. `false` if there is no room: then it may be acknowledged only after [`Self::begin`] has
    /// been followed by a flush.
    pub fn append(&self, command: &Command, data: &[u8]) -> io::Result<bool> {
        let mut halves = self.lock();
        let head = Head::new(command, data);
        let used = halves.current.end + halves.old.end;
        if used + (size_of::<Head>() + data.len()) as u64 > self.bytes_max {
            return Ok(false);
        }
        halves.current.append(&head, data).map(|()| true)
    }

    /// To be called before a flush is handed to the volume; what it gives, after that succeeded, to [`Self::end`]. `None` if another
    /// flush is to drop records already, or if there are none.
    pub fn begin(&self) -> io::Result<Option<Begun>> {
        let mut halves = self.lock();
        if halves.flushing {
            return Ok(None);
        }
        let no_current = halves.current.end == HEAD;
        // What a failed flush has left is older and stays in front.
        if halves.old.end > HEAD {
            halves.flushing = true;
            return Ok(Some(Begun { covers_all: no_current }));
        }
        if no_current {
            return Ok(None);
        }
        halves.generation += 1;
        let generation = halves.generation;
        halves.old.reset(generation)?;
        let Halves { current, old, flushing, .. } = &mut *halves;
        std::mem::swap(current, old);
        *flushing = true;
        Ok(Some(Begun { covers_all: true }))
    }

    /// Drops what was recorded before the flush began, if that succeeded.
    pub fn end(&self, _begun: Begun, durable: bool) -> io::Result<()> {
        let mut halves = self.lock();
        halves.flushing = false;
        if durable { halves.old.reset(0) } else { Ok(()) }
    }

    /// Bytes recorded.
    pub fn bytes(&self) -> u64 {
        let halves = self.lock();
        halves.current.end + halves.old.end - 2 * HEAD
    }

    /// Removes the files: the volume is closed, everything is durable.
    pub fn remove(self) -> io::Result<()> {
        self.paths.iter().try_for_each(std::fs::remove_file)
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        // A panic ends the process.
        self.halves.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Half {
    /// The file with whatever is in it, made if it is not there; to be [reset](Self::reset).
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Self { file, end: HEAD })
    }

    /// What the file says; 0 if it is cut within.
    fn generation(&self) -> io::Result<u64> {
        Ok(head(&self.file)?.map_or(0, |(generation, _)| generation))
    }

    /// Empties the file; its next records are of `generation`.
    fn reset(&mut self, generation: u64) -> io::Result<()> {
        // In place: a page that is given back may be another's before it is asked for again.
        self.file.write_all_at(&generation.to_le_bytes(), 0)?;
        self.file.set_len(HEAD)?;
        self.file.seek(SeekFrom::Start(HEAD))?;
        self.end = HEAD;
        Ok(())
    }

    fn append(&mut self, head: &Head, data: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(head.as_bytes()).and_then(|()| self.file.write_all(data));
        if let Err(error) = written {
            // The next record must follow the last whole one.
            self.file.seek(SeekFrom::Start(self.end))?;
            self.file.set_len(self.end)?;
            return Err(error);
        }
        self.end += (size_of::<Head>() + data.len()) as u64;
        Ok(())
    }
}

fn paths(stem: &Path) -> [PathBuf; 2] {
    [stem.with_extension("0"), stem.with_extension("1")]
}

/// Bytes of changes that lie in the files of a server that is gone: acknowledged, and not known to be durable.
pub fn left(stem: &Path) -> io::Result<u64> {
    paths(stem).iter().try_fold(0, |sum, path| match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(sum),
        meta => Ok(sum + meta?.len().saturating_sub(HEAD)),
    })
}

/// Generation and epoch of a file; `None` if it is cut within: then it holds nothing.
fn head(file: &File) -> io::Result<Option<(u64, u64)>> {
    let mut head = [U64::ZERO; 2];
    match file.read_exact_at(head.as_mut_bytes(), 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        result => result.map(|()| Some((head[0].get(), head[1].get()))),
    }
}

/// The volume was opened for writing by something else since changes were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedSince {
    /// The epoch at which they were.
    pub recorded: u64,
}

/// Makes what a server that is gone has left that of one which has opened the volume for writing with `epoch`, and changed nothing yet; the
/// inner error says that something else did so before. `force`: all the same. Files without changes belong to anyone.
pub fn take_over(stem: &Path, epoch: u64, force: bool) -> io::Result<Result<(), OpenedSince>> {
    if left(stem)? == 0 {
        return Ok(Ok(()));
    }
    let mut files = Vec::new();
    let mut recorded = 0;
    for path in paths(stem) {
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        if let Some((_, epoch)) = head(&file)? {
            // Differ only after a crash in here: whoever was here then is recorded in one of them.
            recorded = recorded.max(epoch);
            files.push(file);
        }
    }
    if !force && recorded.checked_add(1) != Some(epoch) {
        return Ok(Err(OpenedSince { recorded }));
    }
    files.iter().try_for_each(|file| file.write_all_at(&epoch.to_le_bytes(), EPOCH_AT))?;
    Ok(Ok(()))
}

/// Gives what a server that died had acknowledged and not flushed, in order, to `apply`: in pieces of some MiB. Files that are not there
/// hold nothing.
///
/// # Errors
/// Those of reading, and of `apply`.
pub fn replay(stem: &Path, mut apply: impl FnMut(Vec<Change>) -> io::Result<()>) -> io::Result<Replayed> {
    let mut files = Vec::new();
    for path in paths(stem) {
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => io::BufReader::new(file?),
        };
        if let Some((generation, _)) = head(file.get_ref())? {
            file.seek(SeekFrom::Start(HEAD))?;
            files.push((generation, file));
        }
    }
    files.sort_by_key(|(generation, _)| *generation);
    let mut replayed = Replayed::default();
    for (_, mut file) in files {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        loop {
            let place = file.stream_position()?;
            match next(&mut file)? {
                Next::Change((command, data)) => {
                    replayed.changes += 1;
                    bytes += data.len() + size_of::<Head>();
                    changes.push((command, data));
                }
                Next::End => break,
                Next::Damaged => {
                    replayed.damaged += file.get_ref().metadata()?.len().saturating_sub(place);
                    break;
                }
            }
            if bytes >= REPLAY_BYTES {
                apply(std::mem::take(&mut changes))?;
                bytes = 0;
            }
        }
        if !changes.is_empty() {
            apply(changes)?;
        }
    }
    Ok(replayed)
}

fn next(file: &mut impl Read) -> io::Result<Next> {
    let mut head = [0; size_of::<Head>()];
    if !read_whole(file, &mut head)? {
        return Ok(Next::End);
    }
    let Ok(head) = Head::read_from_bytes(&head) else { return Ok(Next::Damaged) };
    let Some(command) = head.command() else { return Ok(Next::Damaged) };
    let mut data = Vec::new();
    file.take(u64::from(head.data.get())).read_to_end(&mut data)?;
    Ok(if data.len() < head.data.get() as usize {
        Next::End
    } else if head.checksum(&data) == head.crc.get() {
        Next::Change((command, data))
    } else {
        Next::Damaged
    })
}

fn read_whole(file: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buf) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

#[cfg(test)]
mod tests;
