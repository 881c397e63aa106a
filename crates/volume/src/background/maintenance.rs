//! The threads of a volume: one that commits, one that checkpoints and collects, one that discards if frees
//! are passed down. They only do early what a caller would have to do later; without them everything works, a
//! little less smoothly.

use crate::engine::Engine;
use crate::error::VolumeError;
use dedup_sync::{Arc, Signal, thread};

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
            let mut threads = vec![spawn("commit", commits)?, spawn("checkpoint", checkpoints)?];
            if engine.options.discard {
                threads.push(spawn("discard", discards)?);
            }
            Ok(threads)
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
        let mut _dropped_without_the_lock = Vec::new();
        let (commit, checkpoint, seq) = {
            let mut state = self.state.lock();
            if state.writable().is_err() {
                return;
            }
            if !state.history.is_empty() {
                let present = state.layers.tables().txid;
                let oldest = self.pins.oldest_tables().unwrap_or(present);
                _dropped_without_the_lock = state.history.trim(oldest);
            }
            let checkpoint =
                state.budget.wants_checkpoint(state.layers.active.operations, state.layers.tables());
            (state.budget.wants_commit() || state.log.bytes() >= LOG_BYTES_MAX, checkpoint, state.seq)
        };
        if !self.options.background {
            while self.discard_some() {}
        }
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

/// For each part of time in which a discard was under way, so many without one while there are writers: what
/// takes the device, and stops the writes of a file meanwhile, takes a sixteenth of their time.
const DISCARD_PAUSE: u32 = 15;

fn discards(engine: &Engine) {
    while engine.wakeup.wait(Signal::Discard) {
        loop {
            let (writable, before) = {
                let state = engine.state.lock();
                (state.writable().is_ok(), state.seq)
            };
            if !writable || engine.wakeup.is_stopping() {
                return;
            }
            let begun = pause::Moment::now();
            if !engine.discard_some() {
                break;
            }
            if engine.published_seq() != before {
                begun.pause(DISCARD_PAUSE, &engine.wakeup);
            }
        }
    }
}

/// The one clock of a volume: what is paced by it changes nothing but the moment at which frees are passed
/// down. Where a test fixes the schedule there is none.
mod pause {
    #[cfg(not(feature = "shuttle"))]
    pub(super) use real::Moment;
    #[cfg(feature = "shuttle")]
    pub(super) use scheduled::Moment;

    #[cfg(not(feature = "shuttle"))]
    mod real {
        use dedup_sync::Wakeup;
        use std::thread::sleep;
        use std::time::{Duration, Instant};

        /// The longest pause at a time, for a volume that is to be closed meanwhile.
        const NAP: Duration = Duration::from_millis(20);
        /// The longest pause at all: a device that hung once is tried again.
        const PAUSE_MAX: Duration = Duration::from_secs(5);

        /// When something began.
        pub(in super::super) struct Moment(Instant);

        impl Moment {
            pub(in super::super) fn now() -> Self {
                Self(Instant::now())
            }

            /// Waits for `times` what has passed, or for the volume to be closed.
            pub(in super::super) fn pause(self, times: u32, wakeup: &Wakeup) {
                let end = Instant::now() + (self.0.elapsed() * times).min(PAUSE_MAX);
                while let Some(left) = end.checked_duration_since(Instant::now())
                    && !wakeup.is_stopping()
                {
                    sleep(left.min(NAP));
                }
            }
        }
    }

    #[cfg(feature = "shuttle")]
    mod scheduled {
        use dedup_sync::Wakeup;
        use dedup_sync::thread::yield_now;

        /// No moment in particular.
        pub(in super::super) struct Moment;

        impl Moment {
            pub(in super::super) fn now() -> Self {
                Self
            }

            pub(in super::super) fn pause(self, times: u32, _wakeup: &Wakeup) {
                (0..times).for_each(|_| yield_now());
            }
        }
    }
}
