//! A batch completes each command once, with the right bytes, and never too early.

use super::*;
use crate::command::Kind;
use std::sync::Mutex;

/// A disk in memory that remembers what it was asked.
#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    asked: Mutex<Vec<String>>,
    fail: Option<RequestError>,
}

impl Target for Memory {
    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        let mut bytes = self.bytes.lock().unwrap();
        bytes.resize(1 << 16, 0);
        // Not in the order they came.
        for mut request in batch.into_iter().rev() {
            let asked = match &mut request.op {
                Op::Read { offset, buf } => {
                    buf.copy_from_slice(&bytes[*offset as usize..][..buf.len()]);
                    "read".to_owned()
                }
                Op::Write { offset, data, fua } => {
                    bytes[*offset as usize..][..data.len()].copy_from_slice(data);
                    format!("write{}", if *fua { " fua" } else { "" })
                }
                Op::Flush => "flush".to_owned(),
                Op::Trim { .. } => "trim".to_owned(),
                Op::WriteZeroes { .. } => "zero".to_owned(),
            };
            self.asked.lock().unwrap().push(asked);
            done(request, self.fail.map_or(Ok(()), Err));
        }
    }
}

/// The kernel's side of the data: by tag.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>, bool);

impl Buffers {
    fn new(buffers: &[&[u8]]) -> Self {
        Self(Mutex::new(buffers.iter().map(|buf| buf.to_vec()).collect()), false)
    }
}

impl Window for Buffers {
    fn fetch(&self, tag: u16, buf: &mut [u8]) -> io::Result<()> {
        if self.1 {
            return Err(io::ErrorKind::Other.into());
        }
        buf.copy_from_slice(&self.0.lock().unwrap()[usize::from(tag)]);
        Ok(())
    }
    fn store(&self, tag: u16, data: &[u8]) -> io::Result<()> {
        if self.1 {
            return Err(io::ErrorKind::Other.into());
        }
        self.0.lock().unwrap()[usize::from(tag)] = data.to_vec();
        Ok(())
    }
}

fn task(tag: u16, kind: Kind, offset: u64, len: u64) -> Task {
    Task { tag, command: Command { kind, offset, len, fua: false } }
}

fn run_all(target: &dyn Target, window: &dyn Window, tasks: &[Task]) -> Vec<(u16, i32)> {
    let mut completed = Vec::new();
    let mut arena = AlignedBuf::zeroed(tasks.iter().map(Task::arena_len).sum());
    run(target, window, tasks, &mut arena, &mut |tag, result| completed.push((tag, result)));
    completed.sort_unstable();
    completed
}

#[test]
fn data_goes_between_window_and_target_and_each_command_completes_once() {
    let memory = Memory::default();
    let window = Buffers::new(&[&[7; 512], &[8; 1024], &[]]);
    let tasks =
        [task(0, Kind::Write, 0, 512), task(1, Kind::Write, 4096, 1024), task(2, Kind::Discard, 8192, 4096)];
    assert_eq!(run_all(&memory, &window, &tasks), [(0, 512), (1, 1024), (2, 0)]);
    let tasks = [task(0, Kind::Read, 4096, 512), task(1, Kind::Read, 0, 512), task(2, Kind::Flush, 0, 0)];
    assert_eq!(run_all(&memory, &window, &tasks), [(0, 512), (1, 512), (2, 0)]);
    let buffers = window.0.lock().unwrap();
    assert_eq!((&buffers[0][..], &buffers[1][..]), (&[8; 512][..], &[7; 512][..]));
}

#[test]
fn a_failed_command_tells_the_driver() {
    let memory = Memory { fail: Some(RequestError::NoSpace), ..Memory::default() };
    let tasks = [task(0, Kind::Write, 0, 512), task(1, Kind::Flush, 0, 0)];
    let window = Buffers::new(&[&[7; 512], &[]]);
    assert_eq!(run_all(&memory, &window, &tasks), [(0, -28), (1, -28)]);
    assert_eq!(flush(&memory), Err(RequestError::NoSpace));
}

#[test]
fn data_that_cannot_be_moved_fails_its_own_command_only() {
    let memory = Memory::default();
    let tasks = [task(0, Kind::Write, 0, 512), task(1, Kind::Read, 0, 512), task(2, Kind::Flush, 0, 0)];
    let window = Buffers(Mutex::default(), true);
    assert_eq!(run_all(&memory, &window, &tasks), [(0, -5), (1, -5), (2, 0)]);
    assert_eq!(*memory.asked.lock().unwrap(), ["flush", "read"], "the write never reached the volume");
}

#[test]
fn the_negative_control_acknowledges_and_asks_for_nothing() {
    let target = IgnoreFlush(Memory::default());
    let mut fua = task(0, Kind::Write, 0, 512);
    fua.command.fua = true;
    let tasks = [fua, task(1, Kind::Flush, 0, 0)];
    assert_eq!(run_all(&target, &Buffers::new(&[&[7; 512], &[]]), &tasks), [(0, 512), (1, 0)]);
    assert_eq!(*target.0.asked.lock().unwrap(), ["write"]);
}
