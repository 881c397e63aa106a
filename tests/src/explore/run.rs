//! Runs scripts: life by life under the [taps](super::tap), every captured state
//! [verified](mod@super::verify) and held against the [oracle](super::oracle).

use super::oracle::{Found, Oracle};
use super::script::{End, Keep, Life, Params, Script, Step};
use super::tally::Tally;
use super::tap::{Capture, Policy, Recorder, images};
use super::verify::{open_options, verify};
use crate::{format_options, run as request};
use dedup_device::{BlockDevice, IoKind, SimDevice, SparseImage};
use dedup_volume::{FormatOptions, Op, OpenOptions, RequestError, Volume, format};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

/// A script that fails and why.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Ends with the crash state that is not as it should be.
    pub script: Script,
    /// What was found.
    pub why: String,
}

/// The smallest metadata device there is.
const METADATA_BYTES: u64 = 4 << 20;

/// What an explorer carries from script to script.
#[derive(Debug, Default)]
pub struct Session {
    /// What was seen.
    pub tally: Tally,
    /// What was found in pairs of images, as long as scripts have the parameters of the first.
    verified: FxHashMap<u128, Found>,
    verified_with: Option<Params>,
}

impl Session {
    /// Runs a script with all that `policy` captures from life `from` on. Returns the policy, its generator
    /// where it is now.
    pub fn run(&mut self, script: &Script, policy: Policy, from: usize) -> Result<Policy, Failure> {
        if self.verified_with.as_ref() != Some(&script.params) {
            self.verified_with = Some(script.params.clone());
            self.verified.clear();
        }
        let options = open_options(&script.params);
        let sims = formatted(script);
        let oracle = Oracle::new(&script.params);
        let mut run = Run {
            script,
            options,
            sims,
            oracle,
            policy,
            from,
            verified: &mut self.verified,
            tally: &mut self.tally,
        };
        run.tally.scripts += 1;
        for n in 0..script.lives.len() {
            run.life(n)?;
        }
        Ok(run.policy)
    }

    /// Forgets what was found in which images: scripts that have little in common would only fill the memory.
    pub fn forget(&mut self) {
        self.verified.clear();
    }
}

/// A fresh volume as the script wants it.
fn formatted(script: &Script) -> [Arc<SimDevice>; 2] {
    let params = &script.params;
    let size = u64::from(params.block_size);
    let blocks = params.lbns + params.spare + 1;
    let data = Arc::new(SimDevice::new((blocks * size).max(16 << 10)));
    let metadata = Arc::new(SimDevice::new(METADATA_BYTES));
    let device: Arc<dyn BlockDevice> = metadata.clone();
    let options = FormatOptions {
        block_size: params.block_size,
        algorithm: params.algorithm,
        log_blocks: Some(params.log_blocks),
        ..format_options(params.lbns * size)
    };
    format(&*data, &device, &options).expect("the script's parameters make a volume");
    if !params.bypass {
        metadata.refuse_bypass();
    }
    [data, metadata]
}

/// A script being run.
struct Run<'a> {
    script: &'a Script,
    options: OpenOptions,
    sims: [Arc<SimDevice>; 2],
    oracle: Oracle,
    policy: Policy,
    /// The first life in which anything is captured.
    from: usize,
    /// What was found in each pair of images.
    verified: &'a mut FxHashMap<u128, Found>,
    tally: &'a mut Tally,
}

/// A life being run.
#[derive(Clone, Copy, Debug)]
struct Place {
    life: usize,
    /// Steps begun.
    steps: usize,
}

impl Run<'_> {
    fn life(&mut self, n: usize) -> Result<(), Failure> {
        let script = self.script;
        let life = &script.lives[n];
        self.tally.lives += 1;
        let policy = if n < self.from { Policy::Nothing } else { self.policy.clone() };
        let (recorder, taps) = Recorder::new(&self.sims, policy, life.end.event());
        let [data, metadata] = taps;
        let mut place = Place { life: n, steps: 0 };
        let opened = Volume::open(data, metadata, &self.options);
        self.judge(place, &recorder)?;
        let power_off = || recorder.lock().unwrap().power_off();
        match opened {
            Err(_) if power_off() => {}
            Err(error) => {
                return Err(self.failure(place, None, format!("the volume does not open: {error}")));
            }
            Ok(volume) => match self.oracle.recover(&volume) {
                None if power_off() => {}
                None => return Err(self.failure(place, None, "an I/O error from devices that work".into())),
                Some(Err(why)) => return Err(self.failure(place, None, why)),
                Some(Ok(())) => {
                    self.steps(&mut place, life, &volume, &recorder)?;
                    self.end_volume(place, life, volume, &recorder)?;
                }
            },
        }
        if n >= self.from {
            self.policy = recorder.lock().unwrap().policy();
        }
        self.end(place, &life.end)
    }

    fn steps(
        &mut self,
        place: &mut Place,
        life: &Life,
        volume: &Volume,
        recorder: &Arc<Mutex<Recorder>>,
    ) -> Result<(), Failure> {
        for step in &life.steps {
            place.steps += 1;
            recorder.lock().unwrap().set_moment(moment(step));
            if let Step::Fail { device, flush } = *step {
                self.sims[device].fail_nth(if flush { IoKind::Flush } else { IoKind::Write }, 0);
            }
            let durable = self.oracle.durable();
            let result = self.step(*place, volume, step, recorder)?;
            let power_off = recorder.lock().unwrap().power_off();
            if power_off {
                return Ok(());
            }
            if self.oracle.durable() != durable {
                recorder.lock().unwrap().between_steps();
                self.judge(*place, recorder)?;
            }
            match result {
                Ok(()) | Err(RequestError::NoSpace) => {}
                Err(_) if volume.is_read_only() => return self.stopped(*place, volume),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        place: Place,
        volume: &Volume,
        step: &Step,
        recorder: &Arc<Mutex<Recorder>>,
    ) -> Result<Result<(), RequestError>, Failure> {
        // The oracle is taken out, so that what it calls back can use the rest.
        let mut oracle = std::mem::replace(&mut self.oracle, Oracle::new(&self.script.params));
        let mut failed = None;
        let result = oracle.run(volume, step, &mut |oracle| {
            std::mem::swap(&mut self.oracle, oracle);
            let judged = self.judge(place, recorder);
            std::mem::swap(&mut self.oracle, oracle);
            judged.map_err(|failure| {
                let why = failure.why.clone();
                failed = Some(failure);
                why
            })
        });
        self.oracle = oracle;
        if recorder.lock().unwrap().power_off() && failed.is_none() {
            return Ok(result.unwrap_or(Err(RequestError::Io)));
        }
        result.map_err(|why| failed.unwrap_or_else(|| self.failure(place, Some((None, Keep::All)), why)))
    }

    /// The volume stopped after a failure: nothing more may be acknowledged as durable (I6).
    fn stopped(&mut self, place: Place, volume: &Volume) -> Result<(), Failure> {
        let size = self.script.params.block_size as usize;
        let data = crate::block(1, size);
        let flush = request(volume, Op::Flush);
        let fua = request(volume, Op::Write { offset: 0, data: &data, fua: true });
        if flush.is_ok() || fua.is_ok() {
            let why = format!("it had stopped, and then answered {flush:?} to FLUSH and {fua:?} to FUA");
            return Err(self.failure(place, Some((None, Keep::All)), why));
        }
        Ok(())
    }

    /// Closes or drops the volume.
    fn end_volume(
        &mut self,
        place: Place,
        life: &Life,
        volume: Volume,
        recorder: &Arc<Mutex<Recorder>>,
    ) -> Result<(), Failure> {
        if life.end != End::Close {
            return Ok(());
        }
        recorder.lock().unwrap().set_moment("close");
        let closed = volume.close();
        self.judge(place, recorder)?;
        if closed.is_ok() {
            self.oracle.closed();
            recorder.lock().unwrap().between_steps();
            self.judge(place, recorder)?;
        }
        Ok(())
    }

    /// What is there for the next life, verified.
    fn end(&mut self, place: Place, end: &End) -> Result<(), Failure> {
        self.sims.iter().for_each(|sim| sim.clear_faults());
        let keep = match end {
            End::Crash { keep, .. } => keep.clone(),
            End::Close | End::Kill { .. } => Keep::All,
        };
        let images = images(&self.sims, &keep);
        let capture = Capture { images, event: end.event(), keep, moment: "end of life", device: 1 };
        self.judge_one(place, &capture)?;
        if matches!(end, End::Crash { .. }) {
            self.sims = capture.images.map(|image| Arc::new(SimDevice::from_image(image)));
            if !self.script.params.bypass {
                self.sims[1].refuse_bypass();
            }
        }
        Ok(())
    }

    fn judge(&mut self, place: Place, recorder: &Arc<Mutex<Recorder>>) -> Result<(), Failure> {
        let captures = recorder.lock().unwrap().take();
        captures.iter().try_for_each(|capture| self.judge_one(place, capture))
    }

    fn judge_one(&mut self, place: Place, capture: &Capture) -> Result<(), Failure> {
        self.tally.judged(capture.moment, capture.device);
        let key = pair_key(&capture.images);
        let found = match self.verified.get(&key) {
            Some(found) => Ok(found.clone()),
            None => {
                RUNNING.with_borrow_mut(|running| {
                    *running = Some(self.cut_short(place, Some((capture.event, capture.keep.clone()))));
                });
                verify(&capture.images, &self.script.params, &self.options, &mut self.oracle)
            }
        };
        let judged = found.and_then(|found| {
            self.oracle.allows(&found)?;
            self.tally.verified(key);
            self.verified.insert(key, found);
            Ok(())
        });
        judged.map_err(|why| self.failure(place, Some((capture.event, capture.keep.clone())), why))
    }

    fn failure(&self, place: Place, crash: Option<(Option<u64>, Keep)>, why: String) -> Failure {
        Failure { script: self.cut_short(place, crash), why }
    }

    /// The script as far as it was run, ending in a crash if one is to blame.
    fn cut_short(&self, place: Place, crash: Option<(Option<u64>, Keep)>) -> Script {
        let mut lives = self.script.lives[..=place.life].to_vec();
        if let Some(life) = lives.last_mut() {
            life.steps.truncate(place.steps);
            life.end = match crash {
                Some((event, keep)) => End::Crash { event, keep },
                None => End::Kill { event: life.end.event() },
            };
        }
        Script { params: self.script.params.clone(), lives }
    }
}

thread_local! {
    /// For whoever has to tell about a panic.
    static RUNNING: RefCell<Option<Script>> = const { RefCell::new(None) };
}

/// The script that this thread was running, up to the crash state that it looked at last.
pub fn running() -> Option<Script> {
    RUNNING.with_borrow(Clone::clone)
}

/// A key for a pair of images.
pub(super) fn pair_key(images: &[SparseImage; 2]) -> u128 {
    // Odd, so that the two devices cannot be exchanged and nothing is lost.
    images[0]
        .fingerprint()
        .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        .wrapping_add(images[1].fingerprint())
}

fn moment(step: &Step) -> &'static str {
    match step {
        Step::Write { .. } => "write",
        Step::Part { .. } => "partial write",
        Step::Trim { .. } => "trim",
        Step::Zero { .. } => "zero",
        Step::Flush => "flush",
        Step::Checkpoint => "checkpoint",
        Step::Collect => "gc",
        Step::Fail { .. } => "fault",
    }
}
