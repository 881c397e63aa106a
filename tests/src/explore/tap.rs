//! Taps on both devices of a volume: they number the events, cut the power at one of them, and capture what a
//! power cut would leave.
//!
//! The volume runs once; at each event the [policy](Policy) chooses subsets of the pending writes, and the
//! images that a power cut at this moment would leave are kept as snapshots. A completed write that may be
//! lost and one in flight that may be there look the same afterwards, so a crash right *before* an event
//! needs no capture of its own.

use super::script::{Keep, Piece};
use crate::rng::Rng;
use dedup_device::{BlockDevice, InterceptDevice, IoKind, SimDevice, SimError, SparseImage};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which crash states are captured.
#[derive(Clone, Debug)]
pub enum Policy {
    /// None.
    Nothing,
    /// At each event a few subsets by chance.
    Random {
        /// Draws them.
        rng: Rng,
        /// Captures for 8 events.
        per_8_events: u64,
    },
    /// With each new write, all subsets of those before it, up to a number; then a selection.
    Subsets {
        /// Pending writes of which all subsets are taken.
        max: usize,
        /// How writes are torn.
        torn: Torn,
        /// Draws a few of the others.
        rng: Rng,
    },
}

/// In which ways the newest write is torn at 512 bytes, with none and with all of the others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// Its first sector alone, its last alone, all but the last.
    Few,
    /// Everything it can begin with, everything it can end with, every sector alone.
    All,
}

/// A crash state.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Data and metadata.
    pub images: [SparseImage; 2],
    /// The event that was the last; `None`: the power failed between two steps.
    pub event: Option<u64>,
    /// What was kept.
    pub keep: Keep,
    /// What the volume was doing.
    pub moment: &'static str,
    /// Which device the event was on.
    pub device: usize,
}

/// What the taps share.
#[derive(Debug)]
pub struct Recorder {
    sims: [Arc<SimDevice>; 2],
    policy: Policy,
    events: u64,
    cut: Option<u64>,
    power_off: bool,
    captures: Vec<Capture>,
    moment: &'static str,
}

/// What an event did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// There is one more pending write.
    Pending,
    Flush,
}

impl Recorder {
    /// Taps on the devices: the recorder, then data and metadata device for the volume. With `cut`, the power
    /// fails with that event.
    pub fn new(
        sims: &[Arc<SimDevice>; 2],
        policy: Policy,
        cut: Option<u64>,
    ) -> (Arc<Mutex<Self>>, [Arc<dyn BlockDevice>; 2]) {
        let recorder = Arc::new(Mutex::new(Self {
            sims: sims.clone(),
            policy,
            events: 0,
            cut,
            power_off: false,
            captures: Vec::new(),
            moment: "open",
        }));
        let taps = [0, 1].map(|device| tap(device, &sims[device], &recorder));
        (recorder, taps)
    }

    /// What the volume is doing from now on.
    pub fn set_moment(&mut self, moment: &'static str) {
        self.moment = moment;
    }

    /// Whether the power has failed.
    pub fn power_off(&self) -> bool {
        self.power_off
    }

    /// Gives the policy back, with its generator where it is now.
    pub fn policy(&self) -> Policy {
        self.policy.clone()
    }

    /// The states captured since the last call.
    pub fn take(&mut self) -> Vec<Capture> {
        std::mem::take(&mut self.captures)
    }

    /// Captures between two steps: what a power cut now would leave, now that something was acknowledged.
    pub fn between_steps(&mut self) {
        self.capture(None, 1, None);
    }

    fn event(&mut self, device: usize, event: Event) -> io::Result<()> {
        let number = self.events;
        self.events += 1;
        let newest = match event {
            Event::Pending => self.sims[device].pending().len().checked_sub(1),
            Event::Flush => None,
        };
        self.capture(Some(number), device, newest);
        if self.cut == Some(number) {
            self.power_off = true;
        }
        self.permit()
    }

    fn permit(&self) -> io::Result<()> {
        if self.power_off { Err(SimError::PowerOff.into()) } else { Ok(()) }
    }

    fn capture(&mut self, event: Option<u64>, device: usize, newest: Option<usize>) {
        if self.power_off {
            return;
        }
        let pending = |sim: &SimDevice| sim.pending().iter().map(|w| w.sectors).collect::<Vec<_>>();
        let keeps = match &mut self.policy {
            Policy::Nothing => return,
            Policy::Random { rng, per_8_events } => random(rng, *per_8_events),
            Policy::Subsets { max, torn, rng } => {
                let pending = [pending(&self.sims[0]), pending(&self.sims[1])];
                subsets(&pending, newest.map(|write| (device, write)), *max, *torn, rng)
            }
        };
        let moment = self.moment;
        let sims = &self.sims;
        self.captures.extend(keeps.into_iter().map(|keep| Capture {
            images: images(sims, &keep),
            event,
            keep,
            moment,
            device,
        }));
    }
}

/// What a power cut that keeps `keep` leaves.
pub fn images(sims: &[Arc<SimDevice>; 2], keep: &Keep) -> [SparseImage; 2] {
    [0, 1].map(|device| sims[device].crash(|write, sector| keep.keeps(device, write, sector)).image())
}

fn random(rng: &mut Rng, per_8_events: u64) -> Vec<Keep> {
    let count = (per_8_events + rng.below(8)) / 8;
    (0..count)
        .map(|_| match rng.below(8) {
            0 => Keep::None,
            1 => Keep::All,
            n => Keep::Random { salt: rng.below(1 << 30), eighths: 1 + rng.below(7), torn: n % 2 == 0 },
        })
        .collect()
}

/// Random subsets beyond the size up to which all are taken.
const RANDOM_SUBSETS: u64 = 16;

/// Subsets of the pending writes (`pending[device]` has the sectors of each) that contain the newest one, if
/// there is one: those without it were there before.
fn subsets(
    pending: &[Vec<usize>; 2],
    newest: Option<(usize, usize)>,
    max: usize,
    torn: Torn,
    rng: &mut Rng,
) -> Vec<Keep> {
    let all = [0, 1].into_iter().flat_map(|d| (0..pending[d].len()).map(move |write| (d, write)));
    let others: Vec<(usize, usize)> = all.filter(|place| Some(*place) != newest).collect();
    let whole = |(device, write)| Piece { device, write, sectors: None };
    let with = |chosen: &mut dyn Iterator<Item = (usize, usize)>| {
        Keep::Only(chosen.chain(newest).map(whole).collect())
    };
    let n = others.len();
    let mut keeps = Vec::new();
    if n <= max {
        for mask in 0..1u64 << n {
            keeps.push(with(&mut (0..n).filter(|i| mask >> i & 1 == 1).map(|i| others[i])));
        }
    } else {
        keeps.push(with(&mut std::iter::empty()));
        keeps.push(with(&mut others.iter().copied()));
        for i in 0..n {
            keeps.push(with(&mut std::iter::once(others[i])));
            keeps.push(with(&mut (0..n).filter(|j| *j != i).map(|j| others[j])));
        }
        for _ in 0..RANDOM_SUBSETS {
            let chosen: Vec<(usize, usize)> = others.iter().copied().filter(|_| rng.below(2) == 0).collect();
            keeps.push(with(&mut chosen.into_iter()));
        }
    }
    if let Some((device, write)) = newest {
        for sectors in parts_of(pending[device][write], torn) {
            let piece = Piece { device, write, sectors: Some(sectors) };
            keeps.push(Keep::Only(vec![piece]));
            keeps.push(Keep::Only(others.iter().copied().map(whole).chain([piece]).collect()));
        }
    }
    keeps
}

/// First and last sector of what is there of a torn write.
fn parts_of(sectors: usize, torn: Torn) -> Vec<(usize, usize)> {
    let Some(last) = sectors.checked_sub(1).filter(|last| *last > 0) else { return Vec::new() };
    match torn {
        Torn::Few if last == 1 => vec![(0, 0), (1, 1)],
        Torn::Few => vec![(0, 0), (0, last - 1), (last, last)],
        Torn::All => {
            let mut parts: Vec<(usize, usize)> = (0..last).map(|end| (0, end)).collect();
            parts.extend((1..=last).map(|start| (start, last)));
            parts.extend((1..last).map(|sector| (sector, sector)));
            parts
        }
    }
}

fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One device of the volume, as the volume sees it.
fn tap(device: usize, sim: &Arc<SimDevice>, recorder: &Arc<Mutex<Recorder>>) -> Arc<dyn BlockDevice> {
    let recorder = Arc::clone(recorder);
    let tapped = InterceptDevice::new(sim.clone(), move |call| {
        let event = match call.kind() {
            IoKind::Read => None,
            IoKind::Write | IoKind::Discard => Some(Event::Pending),
            IoKind::Flush => Some(Event::Flush),
        };
        lock(&recorder).permit()?;
        call.pass();
        event.map_or(Ok(()), |event| lock(&recorder).event(device, event))
    });
    Arc::new(tapped.one_by_one())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pending: &[Vec<usize>; 2], max: usize, torn: Torn) -> Vec<String> {
        let keeps = subsets(pending, Some((1, pending[1].len() - 1)), max, torn, &mut Rng::new(1));
        keeps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_subset_with_the_newest_write_is_captured_once() {
        let mut all = texts(&[vec![1, 1], vec![1, 1]], 3, Torn::All);
        assert_eq!(all.len(), 8, "{all:?}");
        assert!(all.iter().all(|keep| keep.ends_with("m1")));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8, "{all:?}");
    }

    #[test]
    fn the_newest_write_is_torn_in_every_way_with_and_without_the_others() {
        let all = texts(&[vec![1], vec![8]], 3, Torn::All);
        let torn = all.iter().filter(|keep| keep.contains('.')).count();
        assert_eq!(torn, 2 * (7 + 7 + 6), "{all:?}");
        assert!(all.contains(&"m0.0-0".into()) && all.contains(&"d0,m0.7-7".into()), "{all:?}");
    }
}
