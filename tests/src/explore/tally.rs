//! What a campaign has seen: crash states by what the volume was doing, and how many were distinct.

use rustc_hash::FxHashSet;
use std::collections::BTreeMap;
use std::fmt;

/// Counts; those of several explorers can be [added up](Self::add).
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Scripts run.
    pub scripts: u64,
    /// Lives of volumes.
    pub lives: u64,
    /// Crash states judged, however often the same.
    pub judged: u64,
    /// (doing, device of the last event) -> judged.
    pub by_moment: BTreeMap<(&'static str, usize), u64>,
    /// Keys of distinct pairs of images, each reopened, compared and checked with data.
    distinct: FxHashSet<u128>,
}

impl Tally {
    /// A captured state is about to be judged.
    pub fn judged(&mut self, moment: &'static str, device: usize) {
        self.judged += 1;
        *self.by_moment.entry((moment, device)).or_default() += 1;
    }

    /// A pair of images was reopened, compared and checked.
    pub fn verified(&mut self, key: u128) {
        self.distinct.insert(key);
    }

    /// Distinct pairs of images that were reopened, compared and checked with data.
    pub fn distinct(&self) -> u64 {
        self.distinct.len() as u64
    }

    /// Adds another one's counts.
    pub fn add(&mut self, other: Self) {
        self.scripts += other.scripts;
        self.lives += other.lives;
        self.judged += other.judged;
        for (key, count) in other.by_moment {
            *self.by_moment.entry(key).or_default() += count;
        }
        self.distinct.extend(other.distinct);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} scripts, {} lives, {} crash states judged, {} distinct pairs of images",
            self.scripts,
            self.lives,
            self.judged,
            self.distinct()
        )?;
        for ((moment, device), count) in &self.by_moment {
            writeln!(f, "  {moment:<12} {:<8} {count:>10}", ["data", "metadata"][*device])?;
        }
        Ok(())
    }
}
