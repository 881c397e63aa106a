//! Batches through io_uring. The only unsafe code of the project's libraries.
//!
//! Each thread has a ring of its own, made at its first batch. A call puts a batch's transfers on the ring,
//! at most [`DEPTH`] at a time, and comes back when the kernel is done with all that it took. It does not
//! promise to do them: where there is no io_uring (old kernels, containers that forbid it), or a call to it
//! fails, transfers come back with `done` unset or short, and the caller does the rest by other means. Both
//! are idempotent, so an operation done twice does no harm.
//!
//! The invariant that makes this sound: *a buffer that the kernel knows of outlives the kernel's use of it.*
//! The caller's borrows last as long as the call, and the call cannot end, by return or by panic, before
//! [`Flight`] has seen the completion of every entry that the kernel consumed. Entries that it did not
//! consume die with their ring, which is then not used again.
#![allow(unsafe_code)]

use super::positioned::BUFFERS_MAX;
use super::transfer::Transfer;
use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, opcode, types};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};

/// Operations in the kernel at a time, per thread. NVMe disks reach their full rate between 32 and 64.
const DEPTH: u32 = 64;

thread_local! {
    /// This thread's ring between two batches; always without entries of ours.
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// Set when the kernel said that there will be no ring, so that it is asked once and not at each batch.
static UNAVAILABLE: AtomicBool = AtomicBool::new(false);

/// Tries the reads, sets `done` of those that were tried.
pub(super) fn read(fd: BorrowedFd<'_>, transfers: &mut [Transfer<IoSliceMut<'_>>]) {
    let fd = types::Fd(fd.as_raw_fd());
    let entry = |t: &mut Transfer<IoSliceMut<'_>>| {
        // An `IoSliceMut` has the layout of an `iovec`.
        opcode::Readv::new(fd, t.slices.as_mut_ptr().cast(), buffers(&t.slices)).offset(t.offset).build()
    };
    let entries: Vec<Entry> = transfers.iter_mut().map(entry).collect();
    // SAFETY: `transfers` is borrowed mutably for this whole call, so its slice lists and the memory that
    // they borrow stay where they are and are used by nobody else; `fd` is borrowed likewise.
    let results = unsafe { run(&entries) };
    transfers.iter_mut().zip(results).for_each(|(t, done)| t.done = done);
}

/// Tries the writes, sets `done` of those that were tried.
pub(super) fn write(fd: BorrowedFd<'_>, transfers: &mut [Transfer<IoSlice<'_>>]) {
    let fd = types::Fd(fd.as_raw_fd());
    let entry = |t: &mut Transfer<IoSlice<'_>>| {
        // An `IoSlice` has the layout of an `iovec`; the kernel only reads the memory of a write.
        opcode::Writev::new(fd, t.slices.as_ptr().cast(), buffers(&t.slices)).offset(t.offset).build()
    };
    let entries: Vec<Entry> = transfers.iter_mut().map(entry).collect();
    // SAFETY: as in `read`; the written memory is borrowed shared, and nobody writes to it meanwhile.
    let results = unsafe { run(&entries) };
    transfers.iter_mut().zip(results).for_each(|(t, done)| t.done = done);
}

/// How many buffers of a transfer its entry names. The rest is a short transfer to the caller.
fn buffers<S>(slices: &[S]) -> u32 {
    slices.len().min(BUFFERS_MAX) as u32
}

/// Runs `entries` and returns each one's bytes or error, `None` where it did not come to it.
///
/// # Safety
///
/// Whatever `entries` point to must be valid for their use until this returns.
unsafe fn run(entries: &[Entry]) -> Vec<Option<Result<usize, Errno>>> {
    let mut results = vec![None; entries.len()];
    let Some(mut ring) = take_ring() else { return results };
    let mut flight = Flight { ring: &mut ring, results: &mut results, pushed: 0, completed: 0 };
    // SAFETY: the caller keeps the entries' memory valid until this function returns, and `flight` is
    // dropped, and has waited for the kernel, before that.
    let finished = unsafe { flight.fly(entries) }.is_ok();
    drop(flight);
    if finished {
        RING.with_borrow_mut(|slot| *slot = Some(ring));
    }
    results
}

/// This thread's ring, or a new one. The caller gives it back if it is clean.
fn take_ring() -> Option<IoUring> {
    if let Some(ring) = RING.with_borrow_mut(Option::take) {
        return Some(ring);
    }
    if UNAVAILABLE.load(Ordering::Relaxed) {
        return None;
    }
    match IoUring::new(DEPTH) {
        Ok(ring) => Some(ring),
        Err(e) => {
            // Anything else (no memory, no descriptors) may pass.
            if matches!(Errno::from_io_error(&e), Some(Errno::NOSYS | Errno::PERM)) {
                UNAVAILABLE.store(true, Ordering::Relaxed);
            }
            None
        }
    }
}

/// Entries on a ring that the kernel may be working on. Dropping it waits for them.
struct Flight<'a> {
    ring: &'a mut IoUring,
    results: &'a mut [Option<Result<usize, Errno>>],
    /// Entries put on the ring.
    pushed: usize,
    /// Entries whose completion was seen.
    completed: usize,
}

impl Flight<'_> {
    /// Sends all entries and waits for them. After an error some may be left, on the ring or in the kernel.
    ///
    /// # Safety
    ///
    /// Whatever `entries` point to must stay valid until `self` is dropped.
    unsafe fn fly(&mut self, entries: &[Entry]) -> io::Result<()> {
        while self.completed < entries.len() {
            while self.pushed < entries.len() && self.pushed - self.completed < DEPTH as usize {
                let entry = entries[self.pushed].clone().user_data(self.pushed as u64);
                // SAFETY: the entry's memory stays valid until `self` is dropped, and dropping waits for the
                // kernel.
                if unsafe { self.ring.submission().push(&entry) }.is_err() {
                    break;
                }
                self.pushed += 1;
            }
            // While entries wait for a place, any completion is of use; at the end only the last one is.
            let want = if self.pushed < entries.len() { 1 } else { self.pushed - self.completed };
            match self.ring.submit_and_wait(want) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => self.reap(),
            }
        }
        Ok(())
    }

    /// Takes the completions that are there.
    fn reap(&mut self) {
        for completion in self.ring.completion() {
            let result = completion.result();
            let done = usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
            if let Some(slot) = self.results.get_mut(completion.user_data() as usize) {
                *slot = Some(done);
            }
            self.completed += 1;
        }
    }

    /// Entries that the kernel has consumed and not completed.
    fn in_kernel(&mut self) -> usize {
        let unconsumed = self.ring.submission().len();
        self.pushed - self.completed - unconsumed
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.reap();
        while self.in_kernel() > 0 {
            // SAFETY: no argument is passed and nothing is submitted; the call only waits for a completion.
            let waited =
                unsafe { self.ring.submitter().enter::<()>(0, 1, EnterFlags::GETEVENTS.bits(), None) };
            if waited.is_err() {
                // Completions are posted to shared memory without our help; to go on without them would be
                // unsound.
                std::thread::yield_now();
            }
            self.reap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// More transfers than fit on the ring.
    const COUNT: usize = 3 * DEPTH as usize + 5;

    fn try_reads(file: &File, bufs: &mut [[u8; 4]]) -> Vec<Option<Result<usize, Errno>>> {
        let transfer = |(n, buf)| Transfer::new(n as u64 * 4, vec![IoSliceMut::new(buf)], 4);
        let mut transfers: Vec<_> = bufs.iter_mut().map(|b| &mut b[..]).enumerate().map(transfer).collect();
        read(file.as_fd(), &mut transfers);
        transfers.iter().map(|t| t.done).collect()
    }

    #[test]
    fn each_transfer_gets_its_own_result_and_the_ring_survives_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..COUNT as u32 - 1).flat_map(u32::to_le_bytes).chain([1, 2]).collect();
        std::fs::write(&path, content).unwrap();
        let unreadable = File::options().append(true).open(&path).unwrap();
        let readable = File::open(&path).unwrap();
        for _ in 0..3 {
            let mut bufs = [[0; 4]; COUNT];
            let failed = try_reads(&unreadable, &mut bufs);
            if UNAVAILABLE.load(Ordering::Relaxed) {
                eprintln!("SKIPPED, batches are not tested: no io_uring here");
                assert_eq!(failed, [None; COUNT]);
                return;
            }
            assert_eq!(failed, [Some(Err(Errno::BADF)); COUNT]);
            let done = try_reads(&readable, &mut bufs);
            assert_eq!(done[..COUNT - 1], [Some(Ok(4)); COUNT - 1]);
            assert_eq!(done[COUNT - 1], Some(Ok(2)), "the file ends inside the last one");
            assert!((0..COUNT - 1).all(|n| bufs[n] == (n as u32).to_le_bytes()));
        }
    }

    #[test]
    fn a_ring_that_was_left_with_entries_is_waited_for_and_not_used_again() {
        let (reader, writer) = std::io::pipe().unwrap();
        let Ok(mut ring) = IoUring::new(DEPTH) else { return };
        let mut buf = [0_u8; 4];
        let late = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            std::io::Write::write_all(&mut { writer }, &[1, 2, 3, 4]).unwrap();
        });
        let mut results = [None];
        let flight = Flight { ring: &mut ring, results: &mut results, pushed: 1, completed: 0 };
        let entry = opcode::Read::new(types::Fd(reader.as_raw_fd()), buf.as_mut_ptr(), 4).build();
        // SAFETY: `buf` and `reader` live to the end of the test, and `flight` is dropped before.
        unsafe { flight.ring.submission().push(&entry).unwrap() };
        flight.ring.submit().unwrap();
        drop(flight);
        assert_eq!((results[0], buf), (Some(Ok(4)), [1, 2, 3, 4]));
        late.join().unwrap();
    }
}
