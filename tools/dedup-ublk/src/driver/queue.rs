//! One queue: the driver's ring on one side, workers on the other.
//!
//! ```text
//!   ring ─ all completions of one wakeup ─┬─ new commands ─> parse ─> Workers::submit, as one batch
//!                                         └─ the workers' eventfd ─> take what is done ─> commit to the ring
//! ```
//!
//! The thread waits in the ring only. Data moves in the workers: with user copy by reading and writing the
//! character device at a place that stands for {queue, tag}; else the kernel has copied it from and to one
//! buffer a tag.
//!
//! Not here: what a command means and how a batch runs (the library).

use super::kernel::refused;
use anyhow::{Context, Result};
use dedup_ublk::command::Command;
use dedup_ublk::{Window, batch::Task, workers::Completions, workers::Shared, workers::Workers};
use io_uring::{cqueue, opcode, types};
use libublk::ctrl::UblkCtrl;
use libublk::helpers::IoBuf;
use libublk::io::{UblkDev, UblkIOCtx, UblkQueue};
use libublk::{BufDesc, BufDescList, UblkError, UblkIORes, UblkUringData, sys};
use rustix::event::{EventfdFlags, PollFlags};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

/// Marks the eventfd's completions: the driver's carry no such bit.
const WAKE: u64 = UblkUringData::Target as u64;
/// Data of a batch, in largest requests: enough that batches are cut seldom, and memory stays in bounds.
const ARENA_REQUESTS: usize = 4;

/// What every queue needs.
#[derive(Clone)]
pub(crate) struct Setup {
    /// What is served.
    pub(crate) shared: Arc<Shared>,
    /// Threads of this queue.
    pub(crate) workers: usize,
}

/// Serves queue `id` until the device is stopped.
pub(crate) fn serve(id: u16, dev: &UblkDev, setup: &Setup) -> Result<()> {
    let event = Arc::new(
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?,
    );
    let waker = Arc::clone(&event);
    let completions = Arc::new(Completions::new(move || {
        // It can only fail if 2^64 wakeups have not been seen.
        let _ = rustix::io::write(&*waker, &1u64.to_ne_bytes());
    }));
    let queue = UblkQueue::new(id, dev).map_err(refused("set up a queue"))?;
    let (queue, data) = Data::of(queue, dev)?;
    let arena_bytes = dev.dev_info.max_io_buf_bytes as usize * ARENA_REQUESTS;
    let window = data.window();
    let workers =
        Workers::start(setup.workers, arena_bytes, &setup.shared, &window, &completions, init_thread)?;
    let ended = Queue { queue, data, workers: &workers, completions: &completions, event }.run();
    workers.stop();
    match ended {
        Ok(()) | Err(UblkError::QueueIsDown) => Ok(()),
        Err(error) => Err(refused("serve a queue")(error).into()),
    }
}

/// Memory that a worker asks for must not be got by writing to the device that it serves.
fn init_thread() {
    UblkCtrl::init_queue_thread();
}

struct Queue<'d, 'w> {
    queue: UblkQueue<'d>,
    data: Data,
    workers: &'w Workers,
    completions: &'w Completions,
    event: Arc<OwnedFd>,
}

impl Queue<'_, '_> {
    fn run(&self) -> Result<(), UblkError> {
        self.listen()?;
        let mut tags = Vec::new();
        loop {
            let (mut woken, mut listening) = (false, true);
            let waited = self.queue.flush_and_wake_io_tasks(
                |user_data, entry, _| {
                    if user_data == WAKE {
                        woken = true;
                        listening &= cqueue::more(entry.flags());
                    } else if entry.result() == sys::UBLK_IO_RES_OK as i32 {
                        tags.push(UblkIOCtx::user_data_to_tag(user_data) as u16);
                    }
                },
                1,
            );
            match waited {
                Err(UblkError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                waited => {
                    waited?;
                }
            }
            if !listening {
                self.listen()?;
            }
            if woken {
                // Only to take the signal back; what it stands for is in the list.
                let _ = rustix::io::read(&*self.event, &mut [0; 8]);
                for (tag, result) in self.completions.take() {
                    self.complete(tag, result)?;
                }
            }
            let tasks = tags.drain(..).filter_map(|tag| self.task(tag).transpose());
            self.workers.submit(tasks.collect::<Result<_, _>>()?);
        }
    }

    /// Has the ring tell when the eventfd is written to, again and again.
    fn listen(&self) -> Result<(), UblkError> {
        let events = u32::from(PollFlags::IN.bits());
        let poll = opcode::PollAdd::new(types::Fd(self.event.as_raw_fd()), events).multi(true);
        self.queue.ublk_submit_sqe_sync(poll.build().user_data(WAKE))
    }

    /// The command that `tag` stands for; one that is none is answered here.
    fn task(&self, tag: u16) -> Result<Option<Task>, UblkError> {
        let descriptor = self.queue.get_iod(tag);
        match Command::parse(descriptor.op_flags, descriptor.start_sector, descriptor.nr_sectors) {
            Ok(command) => Ok(Some(Task { tag, command })),
            Err(errno) => self.complete(tag, -errno.raw_os_error()).map(|()| None),
        }
    }

    /// Tells the driver how a command ended, and asks for the next.
    fn complete(&self, tag: u16, result: i32) -> Result<(), UblkError> {
        let result = Ok(UblkIORes::Result(result));
        match &self.data {
            Data::UserCopy(_) => self.queue.complete_io_cmd_unified(tag, BufDesc::Slice(&[]), result),
            Data::KernelCopy(buffers) => {
                self.queue.complete_io_cmd_unified(tag, BufDesc::Slice(&buffers.of(tag)), result)
            }
        }
    }
}

/// Where the data of this queue's commands is.
enum Data {
    UserCopy(Arc<UserCopy>),
    KernelCopy(Arc<KernelCopy>),
}

impl Data {
    /// Asks the driver for a command for each tag, and says where their data will be.
    fn of<'d>(queue: UblkQueue<'d>, dev: &UblkDev) -> Result<(UblkQueue<'d>, Self)> {
        let fetch = "fetch commands";
        if dev.dev_info.flags & u64::from(sys::UBLK_F_USER_COPY) == 0 {
            let buffers = dev.alloc_queue_io_bufs();
            let list = BufDescList::Slices(Some(&buffers));
            let queue = queue.submit_fetch_commands_unified(list).map_err(refused(fetch))?;
            // The driver has their addresses, which stay.
            let buffers = buffers.into_iter().map(Mutex::new).collect();
            return Ok((queue, Self::KernelCopy(Arc::new(KernelCopy(buffers)))));
        }
        // The device can be open once, and the library has it open, and tells only the number. So that is
        // duplicated.
        let device = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .and_then(|pidfd| rustix::process::pidfd_getfd(pidfd, dev.tgt.fds[0], PidfdGetfdFlags::empty()))
            .context("cannot get at the character device")?;
        let window = UserCopy { queue: queue.get_qid(), device: File::from(device) };
        let queue = queue.submit_fetch_commands_unified(BufDescList::Slices(None)).map_err(refused(fetch))?;
        Ok((queue, Self::UserCopy(Arc::new(window))))
    }

    fn window(&self) -> Arc<dyn Window> {
        match self {
            Self::UserCopy(window) => Arc::clone(window) as Arc<dyn Window>,
            Self::KernelCopy(window) => Arc::clone(window) as Arc<dyn Window>,
        }
    }
}

/// The server moves the data, by {queue, tag} as a place in the character device.
struct UserCopy {
    queue: u16,
    device: File,
}

impl Window for UserCopy {
    fn fetch(&self, tag: u16, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(buf, UblkIOCtx::ublk_user_copy_pos(self.queue, tag, 0))
    }

    fn store(&self, tag: u16, data: &[u8]) -> io::Result<()> {
        self.device.write_all_at(data, UblkIOCtx::ublk_user_copy_pos(self.queue, tag, 0))
    }
}

/// The kernel has moved the data, or will: from and to one buffer a tag.
struct KernelCopy(Vec<Mutex<IoBuf<u8>>>);

impl KernelCopy {
    fn of(&self, tag: u16) -> MutexGuard<'_, IoBuf<u8>> {
        // A panic ends the process.
        self.0[usize::from(tag)].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Window for KernelCopy {
    fn fetch(&self, tag: u16, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(self.of(tag).get(..buf.len()).ok_or(Errno::INVAL)?);
        Ok(())
    }

    fn store(&self, tag: u16, data: &[u8]) -> io::Result<()> {
        self.of(tag).get_mut(..data.len()).ok_or(Errno::INVAL)?.copy_from_slice(data);
        Ok(())
    }
}
