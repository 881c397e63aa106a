//! `kill -9` in a loop: a server under a verifying writer is killed at random moments of its life, checked,
//! started again and read back.
//!
//! ```text
//!   kill in ... start       the server is opening the volume, replaying what the kill before left
//!               load        32 requests are under way
//!               checkpoint  the same, and the log shows that a checkpoint was due or under way
//!               shutdown    after SIGTERM, before it has ended
//!   and without a kill      SIGTERM under load: ends with 0, and everything that was answered is there
//! ```
//!
//! The seed fixes what is written and which moments are chosen; when exactly a process dies, the machine
//! decides.

use super::server::{Place, Served};
use super::writer::{Limit, Writer};
use crate::rng::Rng;
use anyhow::{Context, Result, ensure};
use dedup_nbd_server::test_client::Client;
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Blocks that are written: 8 MiB of the volume.
const BLOCKS: usize = 2048;
/// Bytes of the volume, which gets the smallest log ring.
const VOLUME_SIZE: &str = "64M";
/// Log blocks since the last checkpoint that make the next one due: a quarter of the smallest ring.
const CHECKPOINT_DUE: u64 = 256 / 4;
/// Answers between two moments at which the server may be killed under load, at most.
const ANSWERS_MAX: u64 = 4000;

/// How often the server was killed, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kills {
    /// While it was opening the volume.
    pub start: u64,
    /// Under load.
    pub load: u64,
    /// Under load, with a checkpoint due or under way.
    pub checkpoint: u64,
    /// After SIGTERM.
    pub shutdown: u64,
    /// Not at all: it ended by itself after SIGTERM.
    pub ended: u64,
}

/// One volume, its server and its writer.
#[derive(Debug)]
pub struct KillLoop<'p> {
    place: &'p Place,
    /// What was written, and what must be there.
    pub writer: Writer,
    /// What was done to the server.
    pub kills: Kills,
    rng: Rng,
    /// Blocks of the log since the last checkpoint, at the end of the last life.
    replayed: u64,
    /// How long the server took to start, and to end after SIGTERM, the last time.
    start_time: Duration,
    shutdown_time: Duration,
}

impl<'p> KillLoop<'p> {
    /// Formats the volume of a place.
    pub fn new(place: &'p Place, seed: u64) -> Result<Self> {
        place.format(VOLUME_SIZE)?;
        Ok(Self {
            place,
            writer: Writer::new(BLOCKS, seed),
            kills: Kills::default(),
            rng: Rng::new(seed + 1),
            replayed: 0,
            start_time: Duration::from_millis(20),
            shutdown_time: Duration::from_millis(20),
        })
    }

    /// One life of the server; at its end the volume was checked, and read back from another server.
    pub fn round(&mut self) -> Result<()> {
        let mut served = self.serve()?;
        let mut client = Client::connect(&self.place.socket())?;
        let limit = self.limit();
        self.writer.write(&mut client, limit).with_context(|| served.log())?;
        match self.rng.below(10) {
            0..7 => self.kill_under_load(&mut served, &mut client)?,
            7..9 => self.kill_in_shutdown(&mut served, &mut client)?,
            _ => self.terminate(&mut served, &mut client)?,
        }
        drop(served);
        // The death of a process loses nothing that it has answered.
        self.writer.ledger.all_durable();
        if self.rng.below(3) == 0 {
            self.kill_in_start()?;
        }
        let mut served = self.serve()?;
        self.writer.verify(&self.place.socket()).with_context(|| served.log())?;
        // What it replayed, the next one replays again.
        served.kill()?;
        Ok(())
    }

    /// Anywhere, or about where the next checkpoint is due: a commit takes a block of the log or more.
    fn limit(&mut self) -> Limit {
        match self.rng.below(2) {
            0 => Limit::Answers(1 + self.rng.below(ANSWERS_MAX)),
            _ => Limit::Commits(
                CHECKPOINT_DUE.saturating_sub(self.replayed) + self.rng.below(CHECKPOINT_DUE / 2),
            ),
        }
    }

    fn serve(&mut self) -> Result<Served> {
        let start = Instant::now();
        let served = self.place.serve()?;
        self.start_time = start.elapsed();
        Ok(served)
    }

    fn kill_under_load(&mut self, served: &mut Served, client: &mut Client) -> Result<()> {
        ensure!(served.kill()?, "the server had ended: {}", served.log());
        self.writer.drain(client)?;
        self.replayed = self.place.check()?;
        let in_checkpoint = self.replayed >= CHECKPOINT_DUE;
        *if in_checkpoint { &mut self.kills.checkpoint } else { &mut self.kills.load } += 1;
        Ok(())
    }

    fn kill_in_shutdown(&mut self, served: &mut Served, client: &mut Client) -> Result<()> {
        served.terminate()?;
        let all_answered = self.writer.drain(client)?;
        sleep(self.moment_within(self.shutdown_time));
        if served.kill()? {
            self.kills.shutdown += 1;
        } else {
            self.kills.ended += 1;
            ensure!(
                all_answered,
                "SIGTERM left requests unanswered that had been sent before: {}",
                served.log()
            );
        }
        self.replayed = self.place.check()?;
        Ok(())
    }

    /// SIGTERM while requests go on coming: what was answered is durable.
    fn terminate(&mut self, served: &mut Served, client: &mut Client) -> Result<()> {
        served.terminate()?;
        let start = Instant::now();
        match self.writer.write(client, Limit::Answers(u64::MAX)) {
            Err(error) if error.is::<std::io::Error>() => {}
            Err(error) => return Err(error),
            Ok(()) => unreachable!("nobody answers so often"),
        }
        self.writer.drain(client)?;
        served.ended()?;
        self.shutdown_time = start.elapsed();
        self.kills.ended += 1;
        self.writer.ledger.all_durable();
        let replayed = self.place.check()?;
        ensure!(
            replayed == 0,
            "the server ended in good order and left {replayed} log blocks to be replayed"
        );
        Ok(())
    }

    fn kill_in_start(&mut self) -> Result<()> {
        for _ in 0..1 + self.rng.below(4) {
            let mut command = self.place.program("dedup-nbd");
            command.arg(self.place.volume());
            let mut served = self.place.spawn(command)?;
            sleep(self.moment_within(self.start_time));
            ensure!(served.kill()?, "the server had ended: {}", served.log());
            self.kills.start += 1;
        }
        Ok(())
    }

    fn moment_within(&mut self, time: Duration) -> Duration {
        time * self.rng.below(1000) as u32 / 1000
    }
}

impl fmt::Display for KillLoop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kills { start, load, checkpoint, shutdown, ended } = self.kills;
        let tally = self.writer.tally;
        write!(
            f,
            "killed: {start} in start, {load} under load, {checkpoint} in a checkpoint, {shutdown} in shutdown; {ended} ended by \
             themselves; {} answers, {} FLUSH or FUA; {} blocks verified",
            tally.answers, tally.commits, tally.verified
        )
    }
}
