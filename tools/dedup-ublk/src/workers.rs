//! The threads that run a queue's batches, so that its own thread always has an ear for the driver.
//!
//! ```text
//!   queue thread ── submit(all commands of one wakeup) ──> channel ──> worker ──> batch::run
//!        ▲                                                                │
//!        └── wake, if nobody has yet ── completions <─────────────────────┘
//! ```
//!
//! Invariants: a batch's data fits into a worker's arena, since longer ones are cut when they are submitted;
//! after [`Workers::stop`] no batch is begun, and the ones that were are done; the same after
//! [`Shared::leave`], for all queues.

use crate::batch::{self, Target, Task, Window};
use dedup_device::AlignedBuf;
use std::io;
use std::mem;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread::{self, JoinHandle};

/// What the workers of all queues have in common.
pub struct Shared {
    /// What is served.
    pub target: Box<dyn Target>,
    /// Held for reading by every batch; `false` inside once no batch is to begin any more.
    open: RwLock<bool>,
}

impl Shared {
    /// Batches may begin.
    pub fn new(target: Box<dyn Target>) -> Self {
        Self { target, open: RwLock::new(true) }
    }

    /// Leaves what has not begun to a successor: when this returns, no batch runs, and none will.
    pub fn leave(&self) {
        // A panic ends the process.
        *self.open.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = false;
    }
}

/// A command that is done: its tag, and what the driver is told.
pub type Completion = (u16, i32);

/// Completions on their way to the queue's thread.
pub struct Completions {
    done: Mutex<Vec<Completion>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Completions {
    /// `wake` makes the queue's thread call [`take`](Self::take).
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { done: Mutex::default(), wake: Box::new(wake) }
    }

    /// All that have come since the last call.
    pub fn take(&self) -> Vec<Completion> {
        mem::take(&mut *lock(&self.done))
    }

    fn push(&self, completion: Completion) {
        let mut done = lock(&self.done);
        done.push(completion);
        let first = done.len() == 1;
        drop(done);
        // Whoever came before has woken it already.
        if first {
            (self.wake)();
        }
    }
}

/// The workers of one queue.
pub struct Workers {
    sender: Option<Sender<Vec<Task>>>,
    threads: Vec<JoinHandle<()>>,
    arena_bytes: usize,
}

impl Workers {
    /// Starts `count` threads, each with an arena of `arena_bytes`; `init` is called on each first.
    pub fn start(
        count: usize,
        arena_bytes: usize,
        shared: &Arc<Shared>,
        window: &Arc<dyn Window>,
        completions: &Arc<Completions>,
        init: fn(),
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..count).map(|_| {
            let (shared, window) = (Arc::clone(shared), Arc::clone(window));
            let (completions, receiver) = (Arc::clone(completions), Arc::clone(&receiver));
            thread::Builder::new().name("worker".to_owned()).spawn(move || {
                init();
                work(&shared, &*window, &completions, &receiver, arena_bytes);
            })
        });
        Ok(Self { sender: Some(sender), threads: threads.collect::<Result<_, _>>()?, arena_bytes })
    }

    /// Hands over commands. They are run as one batch if their data fits into an arena.
    pub fn submit(&self, tasks: Vec<Task>) {
        let Some(sender) = &self.sender else { return };
        for batch in cut(tasks, self.arena_bytes) {
            // The workers end only after the sender.
            let _ = sender.send(batch);
        }
    }

    /// Waits until everything handed over is done.
    pub fn stop(mut self) {
        drop(self.sender.take());
        for thread in self.threads.drain(..) {
            // A panic ends the process.
            let _ = thread.join();
        }
    }
}

/// Batches whose data fits into an arena, in order.
fn cut(tasks: Vec<Task>, arena_bytes: usize) -> Vec<Vec<Task>> {
    let (mut batches, mut bytes) = (Vec::<Vec<Task>>::new(), 0);
    for task in tasks {
        bytes += task.arena_len();
        match batches.last_mut() {
            Some(batch) if bytes <= arena_bytes => batch.push(task),
            _ => {
                bytes = task.arena_len();
                batches.push(vec![task]);
            }
        }
    }
    batches
}

fn work(
    shared: &Shared,
    window: &dyn Window,
    completions: &Completions,
    receiver: &Mutex<Receiver<Vec<Task>>>,
    arena_bytes: usize,
) {
    let mut arena = AlignedBuf::zeroed(arena_bytes);
    loop {
        // The guard goes with the statement: the next worker waits here while this one works.
        let received = lock(receiver).recv();
        let Ok(tasks) = received else { return };
        let open = shared.open.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !*open {
            continue;
        }
        let complete = &mut |tag, result| completions.push((tag, result));
        batch::run(&*shared.target, window, &tasks, &mut arena, complete);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic ends the process.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Null;
    use crate::command::{Command, Kind};
    use std::sync::Barrier;

    struct NoData;

    impl Window for NoData {
        fn fetch(&self, _: u16, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn store(&self, _: u16, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(tag: u16, len: u64) -> Task {
        Task { tag, command: Command { kind: Kind::Read, offset: 0, len, fua: false } }
    }

    fn start(
        target: impl Target + 'static,
        leaving: bool,
    ) -> (Workers, Arc<Completions>, mpsc::Receiver<()>) {
        let (wake, woken) = mpsc::channel();
        let completions = Arc::new(Completions::new(move || wake.send(()).unwrap()));
        let shared = Arc::new(Shared::new(Box::new(target)));
        if leaving {
            shared.leave();
        }
        let window: Arc<dyn Window> = Arc::new(NoData);
        (Workers::start(2, 8192, &shared, &window, &completions, || ()).unwrap(), completions, woken)
    }

    #[test]
    fn batches_are_cut_where_an_arena_ends_and_nowhere_else() {
        let tasks = [read(0, 512), read(1, 4096), read(2, 512), read(3, 8192), read(4, 0)];
        let tags = |batches: Vec<Vec<Task>>| -> Vec<Vec<u16>> {
            batches.iter().map(|batch| batch.iter().map(|task| task.tag).collect()).collect()
        };
        assert_eq!(tags(cut(tasks.to_vec(), 8192)), [vec![0, 1], vec![2], vec![3, 4]]);
        assert_eq!(tags(cut(tasks.to_vec(), 1 << 20)), [vec![0, 1, 2, 3, 4]]);
        assert!(cut(vec![], 8192).is_empty());
    }

    #[test]
    fn every_command_is_completed_once_and_the_queue_is_woken() {
        let (workers, completions, woken) = start(Null, false);
        workers.submit((0..100).map(|tag| read(tag, 4096)).collect());
        workers.stop();
        woken.recv().unwrap();
        let mut done = completions.take();
        done.sort_unstable();
        assert_eq!(done, (0..100).map(|tag| (tag, 4096)).collect::<Vec<_>>());
    }

    #[test]
    fn a_slow_batch_holds_up_no_other() {
        /// Waits for the other batch in the middle of each.
        struct Both(Barrier);
        impl Target for Both {
            fn execute<'a>(
                &self,
                batch: Vec<dedup_volume::Request<'a>>,
                done: &mut dyn FnMut(dedup_volume::Request<'a>, Result<(), dedup_volume::RequestError>),
            ) {
                self.0.wait();
                Null.execute(batch, done);
            }
        }
        let (workers, completions, _woken) = start(Both(Barrier::new(2)), false);
        workers.submit(vec![read(0, 512)]);
        workers.submit(vec![read(1, 512)]);
        workers.stop();
        assert_eq!(completions.take().len(), 2);
    }

    #[test]
    fn a_server_that_leaves_begins_nothing_and_completes_nothing() {
        let (workers, completions, _woken) = start(Null, true);
        workers.submit(vec![read(0, 512)]);
        workers.stop();
        assert_eq!(completions.take(), []);
    }
}
