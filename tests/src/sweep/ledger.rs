//! What a volume may hold in a sweep: a [`History`], and the contents whose stored block is damaged, so that
//! reads of it fail.
//!
//! A request that failed while the volume goes on leaves each of its blocks old or new; reading them tells
//! which, and that is what stands in the history from then on. A block that could not be read stays
//! undecided.

use super::super::*;
use crate::history::History;
pub use crate::history::{Change, Content};

/// See the module.
#[derive(Clone, Debug)]
pub struct Ledger {
    history: History,
    /// Contents whose stored block is damaged, and whether it was healed since, though not durably.
    rotten: Vec<(Content, bool)>,
}

impl Ledger {
    /// An empty volume.
    pub fn new(lbns: usize, block_size: usize) -> Self {
        Self { history: History::new(lbns, block_size), rotten: Vec::new() }
    }

    /// Number of LBNs.
    pub fn lbns(&self) -> usize {
        self.history.block_count()
    }

    /// What an LBN may hold, for laying a partial write over it.
    pub fn contents(&self, lbn: usize) -> Vec<Content> {
        self.history.now()[lbn].clone()
    }

    /// A request succeeded, or failed with the volume: then it is the last one.
    pub fn answered(&mut self, blocks: &[Change]) {
        self.history.push(blocks);
    }

    /// Everything so far is durable.
    pub fn durable(&mut self) {
        self.history.durable();
        self.rotten.retain(|(_, healed)| !healed);
    }

    /// How many requests were acknowledged as durable, of those since the last reopen.
    pub fn durable_count(&self) -> usize {
        self.history.durable_count()
    }

    /// A request failed and the volume goes on: each of its blocks is old or new.
    pub fn failed(&mut self, blocks: &[Change], volume: &Volume, story: &str) {
        let latest = self.history.now();
        let mut changes = Vec::new();
        for (lbn, new) in blocks {
            let mut possible = latest[*lbn].clone();
            possible.extend_from_slice(new);
            match read_somehow(volume, *lbn) {
                Some(found) => {
                    let known = possible.into_iter().find(|content| **content == *found);
                    let Some(known) = known else { panic!("{story}: LBN {lbn} is neither old nor new") };
                    changes.push((*lbn, vec![known]));
                }
                None => changes.push((*lbn, possible)),
            }
        }
        self.history.push(&changes);
    }

    /// The stored block of this content is damaged from now on.
    pub fn rot(&mut self, content: Content) {
        self.rotten.push((content, false));
    }

    /// The stored block of this content is whole again, until a power cut.
    pub fn heal(&mut self, content: &Content) {
        self.rotten.iter_mut().filter(|(known, _)| known == content).for_each(|(_, healed)| *healed = true);
    }

    /// Contents whose stored block is damaged, or may be after a power cut.
    pub fn rotten(&self) -> impl Iterator<Item = &Content> {
        self.rotten.iter().map(|(content, _)| content)
    }

    fn may_fail(&self, possible: &[Content], cut: bool) -> bool {
        self.rotten.iter().any(|(content, healed)| (cut || !healed) && possible.contains(content))
    }

    /// Every read returns what the volume should hold in memory. `faulty`: or fails. The request that was
    /// stopped by a failure, if any, may have happened in part.
    pub fn check(&self, volume: &Volume, stopped: bool, faulty: bool, story: &str) {
        let latest = self.history.now();
        let before = self.history.after(self.history.request_count() - usize::from(stopped));
        for lbn in 0..self.lbns() {
            match read(volume, lbn as u64) {
                Ok(found) => {
                    let possible = latest[lbn].iter().chain(before[lbn].iter().filter(|_| stopped));
                    assert!(
                        possible.into_iter().any(|content| **content == *found),
                        "{story}: LBN {lbn} holds {}, not {}",
                        name(&found),
                        name(&latest[lbn][0])
                    );
                }
                Err(error) => {
                    assert!(faulty || self.may_fail(&latest[lbn], false), "{story}: LBN {lbn}: {error}");
                }
            }
        }
    }

    /// A volume was reopened: it holds one of the states that may be there, and goes on from that. `faulty`:
    /// reads may fail.
    pub fn recover(&mut self, volume: &Volume, faulty: bool, story: &str) {
        self.recover_from(volume, self.durable_count(), faulty, story);
    }

    /// The same, from so many requests on. Returns how many LBNs could not be read.
    pub fn recover_from(&mut self, volume: &Volume, durable: usize, faulty: bool, story: &str) -> usize {
        let found: Vec<Option<Content>> = (0..self.lbns())
            .map(|lbn| {
                let found = read_somehow(volume, lbn);
                let excused = faulty || self.may_fail(&self.history.possible(lbn, durable), true);
                assert!(found.is_some() || excused, "{story}: LBN {lbn} cannot be read");
                found.map(Content::from)
            })
            .collect();
        let fits = (durable..=self.history.request_count()).any(|k| self.history.fits(&found, k));
        if !fits {
            let names =
                |state: Vec<Vec<Content>>| state.iter().map(|c| name(&c[0])).collect::<Vec<_>>().join(" ");
            let found: Vec<_> = found.iter().map(|f| f.as_ref().map_or("?".into(), |f| name(f))).collect();
            let (found, from, to) =
                (found.join(" "), names(self.history.after(durable)), names(self.history.now()));
            panic!("{story}: found {found}, which is nothing between {from} and {to}");
        }
        let undecided = (0..self.lbns()).map(|lbn| self.history.possible(lbn, durable));
        // What can be read need not be durable: a failed flush may have dropped it.
        self.rotten.iter_mut().for_each(|(_, healed)| *healed = false);
        let failed = found.iter().filter(|found| found.is_none()).count();
        let base = found.into_iter().zip(undecided).map(|(f, all)| f.map_or(all, |f| vec![f])).collect();
        self.history.restart(base);
        failed
    }
}

/// Reads a block although something may go wrong with that, once or twice.
fn read_somehow(volume: &Volume, lbn: usize) -> Option<Vec<u8>> {
    (0..3).find_map(|_| read(volume, lbn as u64).ok())
}

/// A content in a few characters: its number if it is whole.
fn name(content: &[u8]) -> String {
    let number = (0..100).find(|n| block(*n, content.len()) == content);
    number.map_or_else(|| format!("{:02x?}..", &content[..4]), |n| n.to_string())
}
