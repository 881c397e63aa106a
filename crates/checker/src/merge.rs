//! A tree with its runs, read side by side in the order of the keys, so that each node is read once.
//!
//! ```text
//!   newest run   . 3 . . 7 . .       what the newest stream says of a key counts; the others' word on it is skipped
//!   older run    . . 4 . 7 . .       whatever one stream says below all others' next keys goes at once
//!   base         1 2 3 5 6 7 8
//! ```
//!
//! Damage ends nothing: a stream goes on behind it. But what a damaged stream would have said there is
//! unknown, and may be meant to hide what older ones say.

use crate::Check;
use crate::report::Findings;
use crate::walked::Walked;
use dedup_btree::Sweep;
use dedup_meta::{Block, BlockType, Root};

/// One tree, at some place of its order.
pub(crate) struct Stream<K, V> {
    tree: BlockType,
    pub(crate) root: Root,
    sweep: Box<dyn Sweep>,
    ended: bool,
    /// Entries of a leaf, and how many of them are done with.
    ahead: Vec<(K, V)>,
    done: usize,
    pub(crate) met: Walked,
    pub(crate) entries: u64,
}

impl<K: Ord + Copy, V> Stream<K, V> {
    pub(crate) fn new(tree: BlockType, root: Root, sweep: Box<dyn Sweep>) -> Self {
        let (ahead, met) = (Vec::new(), Walked::default());
        Self { tree, root, sweep, ended: false, ahead, done: 0, met, entries: 0 }
    }

    /// The next entry's key, if it has been [read on](Check::read_on) and there is one.
    pub(crate) fn head(&self) -> Option<K> {
        self.ahead.get(self.done).map(|(key, _)| *key)
    }

    /// The next entry, likewise, if its key is below `end`.
    pub(crate) fn next_below(&mut self, end: K) -> Option<(K, V)>
    where
        V: Copy,
    {
        let next = self.ahead.get(self.done).copied().filter(|(key, _)| *key < end)?;
        self.done += 1;
        Some(next)
    }
}

/// Part of the merged sequence.
pub(crate) struct Part<'m, K, V> {
    /// The stream that says it, of which 0 is the newest.
    pub(crate) stream: usize,
    /// Whether a newer stream met damage: what this part says may have been taken back.
    pub(crate) in_doubt: bool,
    pub(crate) entries: &'m [(K, V)],
}

impl Check<'_> {
    /// Merges `streams`, the newest first. `leaf` makes entries of an intact leaf, of which `part` is shown
    /// those that count. Each stream's tree has been accounted for when this returns.
    pub(crate) fn merge<K: Ord + Copy, V>(
        &mut self,
        streams: &mut [Stream<K, V>],
        mut leaf: impl FnMut(&Block, &mut Vec<(K, V)>, &mut Findings),
        mut part: impl FnMut(Part<'_, K, V>, &mut Findings),
    ) {
        loop {
            for stream in streams.iter_mut() {
                self.read_on(stream, &mut leaf);
            }
            let lowest = (0..streams.len()).filter_map(|i| Some((streams[i].head()?, i))).min();
            let Some((key, lowest)) = lowest else { break };
            for other in &mut streams[lowest + 1..] {
                // Older word on the same key.
                other.done += usize::from(other.head() == Some(key));
            }
            let others = streams.iter().enumerate().filter(|(i, _)| *i != lowest);
            // A stream that has just been emptied may go on with any key above this one.
            let bound =
                others.filter(|(_, other)| !other.ended).map(|(_, other)| other.head().unwrap_or(key)).min();
            let in_doubt = streams[..lowest].iter().any(|newer| newer.met.damaged > 0);
            let Stream { ahead, done, .. } = &mut streams[lowest];
            let rest = &ahead[*done..];
            let count =
                bound.map_or(rest.len(), |bound| rest.partition_point(|(key, _)| *key < bound)).max(1);
            part(Part { stream: lowest, in_doubt, entries: &rest[..count] }, &mut self.findings);
            *done += count;
        }
        streams.iter().rev().for_each(|stream| self.account(stream.tree, stream.met));
    }

    /// Reads the next leaf that has entries, if all are done with.
    pub(crate) fn read_on<K, V>(
        &mut self,
        stream: &mut Stream<K, V>,
        leaf: &mut impl FnMut(&Block, &mut Vec<(K, V)>, &mut Findings),
    ) {
        if stream.done < stream.ahead.len() {
            return;
        }
        stream.ahead.clear();
        stream.done = 0;
        while stream.ahead.is_empty() && !stream.ended {
            let ahead = &mut stream.ahead;
            let more = self.step(&mut *stream.sweep, stream.tree, &mut stream.met, |block, findings| {
                leaf(block, ahead, findings);
            });
            stream.ended = !more;
        }
        stream.entries += stream.ahead.len() as u64;
    }
}
