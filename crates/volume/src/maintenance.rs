//! The threads of a volume: one that commits, one that checkpoints and collects. They only do early what a
//! caller would have to do later; without them everything works, a little less smoothly.

use crate::engine::Engine;
use crate::error::VolumeError;
use crate::sync::{Arc, thread};
use crate::wakeup::Signal;

/// The running threads.
#[derive(Debug)]
pub(crate) struct Threads {
    handles: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    /// Starts them.
    pub(crate) fn start(engine: &Arc<Engine>) -> Result<Self, VolumeError> {
        let spawn = |name: &str, run: fn(&Engine)| {
            let engine = Arc::clone(engine);
            thread::Builder::new().name(name.into()).spawn(move || run(&engine))
        };
        let start = || -> std::io::Result<_> {
            Ok(vec![spawn("commit", commits)?, spawn("checkpoint", checkpoints)?])
        };
        let threads = start()
            .map(|handles| Self { handles })
            .map_err(|error| VolumeError::Threads(error.to_string()))?;
        engine.wake_worker();
        Ok(threads)
    }

    /// Waits for them to end what they are doing.
    pub(crate) fn stop(self, engine: &Engine) {
        engine.wakeup.stop();
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!("a maintenance thread of the volume panicked");
            }
        }
    }
}

impl Engine {
    /// After a batch: has done what should be done soon, by the threads, or here if there are none.
    pub(crate) fn maintain(&self) {
        let (commit, checkpoint, seq) = {
            let state = self.state.lock();
            if state.writable().is_err() {
                return;
            }
            let checkpoint =
                state.budget.wants_checkpoint(state.layers.active.operations, state.layers.tables());
            (state.budget.wants_commit() || state.log.bytes() >= LOG_BYTES_MAX, checkpoint, state.seq)
        };
        if !commit && !checkpoint {
            return;
        }
        if self.options.background {
            if commit {
                self.wakeup.raise(Signal::Commit);
            }
            if checkpoint {
                self.wakeup.raise(Signal::Work);
            }
            return;
        }
        // An error has stopped the volume, which tells every caller from now on.
        let result = if checkpoint { self.checkpoint() } else { self.commit(seq) };
        if let Err(error) = result {
            tracing::error!("maintenance: {error}");
        }
    }

    /// Has the worker look for something to do.
    pub(crate) fn wake_worker(&self) {
        self.wakeup.raise(Signal::Work);
    }
}

/// Records not yet committed that are written out without being asked to: half of what a commit writes in one
/// go.
const LOG_BYTES_MAX: u64 = 512 << 10;

fn commits(engine: &Engine) {
    while engine.wakeup.wait(Signal::Commit) {
        if engine.commit(engine.published_seq()).is_err() {
            return;
        }
    }
}

fn checkpoints(engine: &Engine) {
    while engine.wakeup.wait(Signal::Work) {
        while !engine.wakeup.is_stopping() {
            let due = {
                let state = engine.state.lock();
                if state.writable().is_err() {
                    return;
                }
                state.budget.wants_checkpoint(state.layers.active.operations, state.layers.tables())
            };
            let more = match due {
                true => engine.checkpoint().map(|()| true),
                false => engine.collect_some(),
            };
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::error!("maintenance: {error}");
                    engine.fail_stop_if_damaged(&error);
                    break;
                }
            }
        }
    }
}
