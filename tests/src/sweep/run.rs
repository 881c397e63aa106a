//! Playing a script on devices that fail, and holding every answer against the [`Ledger`].

use super::script::{blocks_of, request};
use super::*;
use dedup_device::{IoKind, SimFault, When};

/// A script being played.
#[derive(Debug)]
pub struct Run {
    /// The devices.
    pub disks: Disks,
    /// The open volume.
    pub volume: Option<Volume>,
    /// What it should hold.
    pub ledger: Ledger,
    /// What is happening, for messages.
    pub story: String,
    options: OpenOptions,
    index_lost: bool,
    targets: Vec<Target>,
    /// Whether the last request failed with the volume, and may have been done in part.
    unclear: bool,
    /// Whether a read may fail at any time: a region is bad, something lasts, or nobody was told.
    faulty: bool,
    /// Before each step: operations of each device by kind, and requests acknowledged as durable.
    progress: Vec<([[u64; 4]; 2], usize)>,
    /// Whether the volume may stop, or not open, at any time: the metadata device is full.
    stops: bool,
}

impl Run {
    /// Copies of the scene's devices, nothing open.
    pub fn start(scene: &Scene) -> Self {
        Self {
            disks: scene.disks(),
            volume: None,
            ledger: scene.ledger.clone(),
            story: String::new(),
            options: scene.options.clone(),
            index_lost: scene.index_lost,
            targets: Vec::new(),
            unclear: false,
            faulty: scene.mapping_lost,
            progress: Vec::new(),
            stops: false,
        }
    }

    /// Orders a fault.
    pub fn order(&mut self, target: Target) {
        let when = if target.lasting { When::From(target.n) } else { When::Nth(target.n) };
        self.device(target.device).inject(when, target.fault);
        self.faulty |= target.lasting || !target.is_reported();
        self.story = format!("{} {target:?}", self.story);
        self.targets.push(target);
    }

    /// Makes a region of a device fail, until the end.
    pub fn order_region(&mut self, device: usize, range: std::ops::Range<u64>, fault: SimFault) {
        self.story = format!("{} device {device} {range:?} {fault:?}", self.story);
        self.device(device).inject(When::Touching(range), fault);
        self.faulty = true;
    }

    /// Requests that were acknowledged as durable before the step in which a device's n-th operation of a
    /// kind was begun.
    pub fn durable_before(&self, device: usize, kind: IoKind, n: u64) -> usize {
        let before = self.progress.iter().take_while(|(begun, _)| begun[device][kind as usize] <= n);
        before.last().map_or(0, |(_, durable)| *durable)
    }

    /// Leaves room for so many bytes in places of a device that nothing was written to yet.
    pub fn limit(&mut self, device: usize, bytes: u64) {
        self.story = format!("{} device {device} with room for {bytes} bytes", self.story);
        self.device(device).set_capacity_left(bytes);
        self.stops |= device == 1;
    }

    /// Whether writes have failed for want of room, or by an ordered fault.
    pub fn has_refused(&self, device: usize) -> bool {
        let device = self.device(device);
        device.operations(IoKind::Write) > device.counters().writes
    }

    /// A device by number: 0 data, 1 metadata.
    pub fn device(&self, device: usize) -> &SimDevice {
        [&self.disks.data, &self.disks.metadata][device]
    }

    /// How many of the ordered faults have met their operation.
    pub fn met(&self) -> usize {
        self.targets.iter().filter(|t| self.has_met(t)).count()
    }

    fn has_met(&self, target: &Target) -> bool {
        self.device(target.device).operations(target.kind) > target.n
    }

    /// How many of those that end all writing have met their operation: a failed flush, a failed metadata
    /// write.
    fn stops_met(&self) -> usize {
        self.targets.iter().filter(|t| self.has_met(t) && t.stops()).count()
    }

    fn is_stopped(&self) -> bool {
        self.volume.as_ref().is_none_or(Volume::is_read_only)
    }

    /// Opens the volume, if need be a second and third time: what goes wrong once must not be in the way of
    /// that. `None` stays there if something lasts.
    fn open(&mut self) {
        let (met, stops) = (self.met(), self.stops_met());
        let mut opened = self.disks.open(&self.options);
        if opened.is_ok() {
            let found = self.stops_met() - stops;
            assert_eq!(found, 0, "{}: opened although a flush or a metadata write failed", self.story);
        }
        let mut tries = met;
        while opened.is_err() && tries < self.met() {
            tries += 1;
            opened = self.disks.open(&self.options);
        }
        match opened {
            Ok(volume) => {
                self.unclear = false;
                self.ledger.recover(&volume, self.faulty, &self.story);
                self.volume = Some(volume);
            }
            Err(error) => assert!(self.faulty || self.stops, "{}: {error}", self.story),
        }
    }

    /// Plays steps until the volume stops. Opens it first if it is not.
    pub fn play(&mut self, steps: &[Step]) {
        if self.volume.is_none() {
            self.open();
        }
        for (place, step) in steps.iter().enumerate() {
            self.story = format!("{} [{place}: {step:?}]", self.story.split(" [").next().unwrap_or_default());
            let begun = [0, 1].map(|device| KINDS.map(|kind| self.device(device).operations(kind)));
            self.progress.push((begun, self.ledger.durable_count()));
            let (met, stops) = (self.met(), self.stops_met());
            self.step(*step);
            if self.stops_met() > stops && !matches!(step, Step::Close | Step::Kill | Step::ReadOnly) {
                assert!(self.is_stopped(), "{}: goes on after a failed flush or metadata write", self.story);
            }
            if self.is_stopped() {
                assert!(self.may_stop(), "{}: stopped for nothing", self.story);
                self.assert_stopped();
                if self.faulty || self.stops || self.targets.len() == self.met() {
                    return;
                }
                // Something else is still to go wrong.
                self.step(Step::Kill);
            }
            if self.met() > met {
                self.assert_goes_on();
            }
        }
    }

    /// Only what leaves the durable state unknown stops a volume, or a checkpoint that cannot read its trees.
    fn may_stop(&self) -> bool {
        let unreadable = |t: &Target| t.device == 1 && t.kind == IoKind::Read;
        let met = |t: &Target| self.has_met(t) && (t.stops() || unreadable(t));
        self.faulty || self.stops || self.targets.iter().any(met)
    }

    /// After a failure, everything is as it was.
    fn assert_goes_on(&self) {
        if let Some(volume) = &self.volume {
            self.ledger.check(volume, false, self.faulty || self.targets.len() > 1, &self.story);
        }
    }

    fn step(&mut self, step: Step) {
        let Some(volume) = &self.volume else { return };
        let (story, faulty) = (&self.story, self.faulty);
        match step {
            Step::Read => self.ledger.check(volume, false, faulty || !self.targets.is_empty(), story),
            Step::Checkpoint => {
                if volume.checkpoint().is_ok() {
                    self.ledger.durable();
                }
            }
            Step::Collect => {
                volume.gc_start();
                let mut slices = 0;
                while volume.collect_some().unwrap_or(false) {
                    slices += 1;
                    assert!(slices < 1000, "{story}: collection does not end");
                }
            }
            Step::Rot(content) => self.rot(content),
            Step::Close => {
                let Some(volume) = self.volume.take() else { return };
                let stops = self.stops_met();
                match volume.close() {
                    Ok(()) => {
                        assert_eq!(self.stops_met(), stops, "{}: closed all the same", self.story);
                        self.ledger.durable();
                    }
                    Err(error) => assert!(self.may_stop(), "{}: {error}", self.story),
                }
                self.open();
            }
            Step::Kill => {
                self.volume = None;
                self.open();
            }
            Step::ReadOnly => self.read_only(),
            _ => self.request(step),
        }
    }

    fn request(&mut self, step: Step) {
        let Some(volume) = &self.volume else { return };
        let blocks = blocks_of(step, &self.ledger, volume.block_size() as usize);
        let writes = matches!(step, Step::Write(..) | Step::Batch(_) | Step::Part(..));
        let durable =
            matches!(step, Step::Flush | Step::WriteFua(..)) || writes && self.options.flushrq == Some(1);
        let (met, healed) = (self.met(), volume.status().counters.healed_blocks);
        match request(volume, step) {
            Ok(()) => {
                // A block that nobody knows to be damaged is a match like any other.
                if volume.status().counters.healed_blocks > healed {
                    let contents = blocks.iter().flat_map(|(_, contents)| contents);
                    contents.for_each(|content| self.ledger.heal(content));
                }
                self.ledger.answered(&blocks);
                if durable {
                    self.ledger.durable();
                }
            }
            Err(error) => {
                self.assert_reason(error, self.met() > met);
                match volume.is_read_only() {
                    true => {
                        self.unclear = true;
                        self.ledger.answered(&blocks);
                    }
                    false => self.ledger.failed(&blocks, volume, &self.story),
                }
            }
        }
    }

    /// A request fails for what went wrong, and says no space only if that is the reason.
    fn assert_reason(&self, error: RequestError, now: bool) {
        let reason = self.met() > 0 || self.faulty || self.stops || self.ledger.rotten().next().is_some();
        assert!(reason || error == RequestError::NoSpace, "{}: {error} from devices that work", self.story);
        if let [target] = *self.targets
            && !target.lasting
            && now
            && target.device == 0
            && target.kind == IoKind::Write
        {
            let expected = match target.fault {
                SimFault::FullWrite => RequestError::NoSpace,
                _ => RequestError::Io,
            };
            assert_eq!(error, expected, "{}", self.story);
        }
    }

    /// A second opinion: the log replayed in memory, nothing written.
    fn read_only(&mut self) {
        let events = self.disks.data.events() + self.disks.metadata.events();
        let options = OpenOptions { read_only: true, ..self.options.clone() };
        match self.disks.open(&options) {
            Ok(volume) => {
                let mut ledger = self.ledger.clone();
                ledger.recover(&volume, self.faulty || !self.targets.is_empty(), &self.story);
            }
            Err(error) => assert!(self.faulty || self.met() > 0, "{}: {error}", self.story),
        }
        assert_eq!(events, self.disks.data.events() + self.disks.metadata.events(), "{}: wrote", self.story);
    }

    fn rot(&mut self, content: u64) {
        let size = self.volume.as_ref().map_or(4096, |volume| volume.block_size() as usize);
        let bytes = block(content, size);
        let image = self.disks.data.image();
        let mut found = vec![0; size];
        for offset in (size as u64..image.size()).step_by(size) {
            image.read(offset, &mut found).unwrap();
            if found == bytes {
                self.disks.data.rot(offset + 17, &[4]).unwrap();
            }
        }
        self.ledger.rot(bytes.into());
    }

    /// Invariant I6: nothing is acknowledged as durable any more, and reads go on.
    fn assert_stopped(&self) {
        let Some(volume) = &self.volume else { return };
        let story = &self.story;
        assert!(run(volume, Op::Flush).is_err(), "{story}: a flush after the volume stopped");
        assert!(try_write(volume, 0, 1, true).is_err(), "{story}: FUA after the volume stopped");
        assert!(volume.checkpoint().is_err(), "{story}: a checkpoint after the volume stopped");
        self.ledger.check(volume, self.unclear, true, story);
    }

    /// Goes on in each of these ways, with devices that work: what was acknowledged as durable is there, the
    /// checker finds nothing, and the volume works.
    pub fn end(mut self, endings: &[Ending]) {
        for device in 0..2 {
            self.device(device).clear_faults();
        }
        self.volume = None;
        self.targets.clear();
        self.story = self.story.split(" [").next().unwrap_or_default().to_string();
        for ending in endings {
            let disks = ending.of(&self.disks);
            self.go_on(disks, &format!("{}, {ending:?}", self.story));
        }
    }

    fn go_on(&self, disks: Disks, story: &str) {
        let report = check_all(&disks);
        let ill = self.index_lost || self.ledger.rotten().next().is_some();
        assert!(report.is_clean() || ill, "{story}: {report}");
        let mut ledger = self.ledger.clone();
        let volume = disks.open(&self.options).unwrap_or_else(|error| panic!("{story}: {error}"));
        ledger.recover(&volume, false, story);
        let size = volume.block_size() as usize;
        let mut writes = vec![(LBNS as usize - 1, Content::from(block(99, size)))];
        // What is damaged and seen is healed by a write of the same content.
        writes.extend(ledger.rotten().map(|content| (LBNS as usize - 2, content.clone())));
        for (lbn, content) in writes {
            let healed = volume.status().counters.healed_blocks;
            match run(&volume, Op::Write { offset: (lbn * size) as u64, data: &content, fua: true }) {
                Ok(()) => {
                    if volume.status().counters.healed_blocks > healed {
                        ledger.heal(&content);
                    }
                    ledger.answered(&[(lbn, vec![content])]);
                    ledger.durable();
                }
                Err(error) => {
                    assert!(error == RequestError::NoSpace, "{story}: {error} from devices that work")
                }
            }
        }
        if ill {
            while volume.collect_some().unwrap() {}
            volume.checkpoint().unwrap();
        }
        drop(volume);
        let disks = disks.lose_everything_unflushed();
        if ill && ledger.rotten().next().is_none() {
            disks.assert_clean(&format!("{story}, cured"));
        }
        let volume = disks.open(&self.options).unwrap_or_else(|error| panic!("{story}, again: {error}"));
        ledger.recover(&volume, false, &format!("{story}, again"));
    }
}
