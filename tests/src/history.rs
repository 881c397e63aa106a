//! What a volume may hold after a crash: everything that was acknowledged as durable, and of what came after
//! it a beginning.
//!
//! ```text
//!   base        what was there first, or was read back after a crash
//!   requests    done since, in order; a request may be a batch, whose parts have no order
//!   durable     so many of them were acknowledged as durable
//!
//!   in memory   base with all requests
//!   reopened    base with the first k requests, and of the next one any of its blocks, for some k >= durable
//! ```
//!
//! A block whose content is not known may hold one of several: it was written by a request that failed, or
//! could not be read.
//!
//! Not here: what a volume counts, and the order within a request (the crash explorer knows it).

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a block. Blocks compare by content.
pub type Content = Arc<[u8]>;

/// A block, with all that it may hold.
pub type Change = (usize, Vec<Content>);

/// See the module.
#[derive(Clone, Debug)]
pub struct History {
    base: Vec<Vec<Content>>,
    requests: Vec<Request>,
    durable: usize,
}

/// What was done to blocks.
#[derive(Clone, Debug)]
struct Request {
    /// All that a block may hold if the request has been done in part.
    partly: BTreeMap<usize, Vec<Content>>,
    /// What it may hold when the request is done.
    done: Vec<Change>,
}

impl History {
    /// So many blocks of zeros, all durable.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        let zeros: Content = vec![0; block_size].into();
        Self { base: vec![vec![zeros]; blocks], requests: Vec::new(), durable: 0 }
    }

    /// Blocks in it.
    pub fn block_count(&self) -> usize {
        self.base.len()
    }

    /// Requests since the base.
    pub fn request_count(&self) -> usize {
        self.requests.len()
    }

    /// How many of them were acknowledged as durable.
    pub fn durable_count(&self) -> usize {
        self.durable
    }

    /// What each block may hold after so many requests.
    pub fn after(&self, requests: usize) -> Vec<Vec<Content>> {
        let mut state = self.base.clone();
        let done = self.requests[..requests].iter().flat_map(|request| &request.done);
        done.for_each(|(block, contents)| state[*block].clone_from(contents));
        state
    }

    /// What each block may hold now, in memory.
    pub fn now(&self) -> Vec<Vec<Content>> {
        self.after(self.requests.len())
    }

    /// A request was done, each of whose blocks is old or new if it was done in part.
    pub fn push(&mut self, done: &[Change]) {
        let now = self.now();
        let mut partly = BTreeMap::new();
        for (block, new) in done {
            partly.entry(*block).or_insert_with(|| now[*block].clone()).extend_from_slice(new);
        }
        self.push_batch(partly, done.to_vec());
    }

    /// A batch was done; `partly` has all that its blocks may hold if only a part of it was.
    pub fn push_batch(&mut self, partly: BTreeMap<usize, Vec<Content>>, done: Vec<Change>) {
        self.requests.push(Request { partly, done });
    }

    /// Everything so far is durable.
    pub fn durable(&mut self) {
        self.durable = self.requests.len();
    }

    /// Begins anew, with these blocks, all durable.
    pub fn restart(&mut self, base: Vec<Vec<Content>>) {
        *self = Self { base, requests: Vec::new(), durable: 0 };
    }

    /// Whether this is the state after `k` requests, and perhaps some blocks of the next. `None` for a block
    /// that was not looked at.
    pub fn fits(&self, found: &[Option<Content>], k: usize) -> bool {
        let (before, next) = (self.after(k), self.requests.get(k));
        found.iter().enumerate().all(|(block, found)| {
            let partly = next.and_then(|request| request.partly.get(&block));
            let may_be = partly.unwrap_or(&before[block]);
            found.as_ref().is_none_or(|found| may_be.contains(found))
        })
    }

    /// All that a block may hold after a crash, if the first `durable` requests survive it.
    pub fn possible(&self, block: usize, durable: usize) -> Vec<Content> {
        let later = self.requests[durable..].iter().filter_map(|request| request.partly.get(&block));
        self.after(durable)[block].iter().chain(later.flatten()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: u8) -> Content {
        vec![number; 4].into()
    }

    fn set(changes: &[(usize, u8)]) -> Vec<Change> {
        changes.iter().map(|(block, number)| (*block, vec![content(*number)])).collect()
    }

    /// The states that may be there, of two blocks with contents 0 to 3.
    fn possible(history: &History) -> Vec<[u8; 2]> {
        let all = (0..4).flat_map(|a| (0..4).map(move |b| [a, b]));
        let fits = |state: &[u8; 2]| {
            let found = state.map(|number| Some(content(number)));
            (history.durable_count()..=history.request_count()).any(|k| history.fits(&found, k))
        };
        all.filter(fits).collect()
    }

    #[test]
    fn a_beginning_of_the_requests_may_be_there_and_of_the_next_one_any_block() {
        let mut history = History::new(2, 4);
        history.push(&set(&[(0, 1)]));
        history.durable();
        history.push(&set(&[(0, 2), (1, 2)]));
        history.push(&set(&[(1, 3)]));
        assert_eq!(possible(&history), [[1, 0], [1, 2], [2, 0], [2, 2], [2, 3]]);
        history.durable();
        assert_eq!(possible(&history), [[2, 3]]);
    }

    #[test]
    fn of_a_batch_what_it_may_hold_in_part_is_what_was_said_and_not_the_old_content() {
        let mut history = History::new(2, 4);
        let partly = BTreeMap::from([(0, vec![content(1), content(2)]), (1, vec![content(0), content(3)])]);
        history.push_batch(partly, set(&[(0, 2), (1, 3)]));
        assert_eq!(possible(&history), [[1, 0], [1, 3], [2, 0], [2, 3]]);
    }

    #[test]
    fn a_block_that_may_hold_several_contents_goes_on_doing_so_until_it_is_written() {
        let mut history = History::new(2, 4);
        history.push(&[(0, vec![content(0), content(1)])]);
        history.durable();
        assert_eq!(possible(&history), [[0, 0], [1, 0]]);
        history.push(&set(&[(0, 3)]));
        assert_eq!(possible(&history), [[0, 0], [1, 0], [3, 0]]);
    }
}
