//! Maps that take random changes cheaply: a base tree, and *runs* of changes above it.
//!
//! ```text
//!   newest   run 2   [ changes ]      a run is a packed tree; its word on a key counts
//!            run 1   [ changes ]      against all that stands below it
//!            run 0   [ changes ]
//!   oldest   base    [ entries ]
//! ```
//!
//! A batch of `n` keys scattered over a large tree rewrites almost `n` leaves. As a run it takes `n / 290`
//! blocks; several runs merged into the base at once share the leaves that they rewrite. (A two-level
//! log-structured merge tree, after O'Neil et al., 1996; young runs are joined as they come, after Bentley
//! and Saxe, 1980.)
//!
//! Two kinds: [`KeySet`] has keys alone, above a B-tree of its own, and a run of it is two trees, of what it
//! adds and what it removes. [`RunMap`] has values, the base is whatever its owner likes, and a run is one
//! tree: what removes a key is a value like any other.
//!
//! **Invariants:** a run is immutable; merging the oldest runs changes what the base says and never what the
//! whole says, so it can stop after any key and begin anew. Damage is an error of the tree that it is in.
//!
//! Not here: when to make a run, when to merge, and who remembers how far a merge has come.

mod keys;
mod map;
mod meter;

pub use keys::KeySet;
pub use map::RunMap;
pub use meter::Metered;

use crate::btree::{BTree, Key, Value};
use crate::walk::{Descend, Visit, Visitor};
use dedup_meta::{BlockRef, MetaBlock, MetaError, NodeSink, NodeSource, Root};
use std::iter::Peekable;

/// A rising sequence of keys, each with what is said of it.
type Said<'s, K, C> = Box<dyn Iterator<Item = Result<(K, C), MetaError>> + 's>;

/// Several rising sequences as one; of equal keys the first sequence's counts.
struct Merge<'s, K, C> {
    parts: Vec<Peekable<Said<'s, K, C>>>,
}

impl<'s, K: Key, C> Merge<'s, K, C> {
    fn new(parts: impl Iterator<Item = Said<'s, K, C>>) -> Self {
        Self { parts: parts.map(Iterator::peekable).collect() }
    }
}

impl<K: Key, C> Iterator for Merge<'_, K, C> {
    type Item = Result<(K, C), MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut lowest: Option<(usize, K)> = None;
        for (i, part) in self.parts.iter_mut().enumerate() {
            match part.peek() {
                None => {}
                Some(Err(_)) => {
                    let error = part.next();
                    self.parts.clear();
                    return error;
                }
                Some(Ok((key, _))) if lowest.is_none_or(|(_, low)| *key < low) => lowest = Some((i, *key)),
                Some(Ok(_)) => {}
            }
        }
        let (first, low) = lowest?;
        let found = self.parts[first].next();
        for part in &mut self.parts[first + 1..] {
            part.next_if(|said| matches!(said, Ok((key, _)) if *key == low));
        }
        found
    }
}

/// An upper bound of the blocks of `trees` packed trees with so many entries together: full but for the last
/// node of each level.
fn packed_blocks<K: Key, V: Value>(entries: u64, trees: u64) -> u64 {
    let (mut blocks, mut level, mut capacity) = (0, entries, BTree::<K, V>::LEAF_CAPACITY as u64);
    loop {
        level = level / capacity + trees;
        blocks += level;
        if level <= trees {
            return blocks;
        }
        capacity = BTree::<K, V>::FANOUT as u64;
    }
}

/// A packed tree of `entries`; the error of one of them is the result's.
fn build<K: Key, V: Value, N: NodeSink + ?Sized>(
    tree: &BTree<K, V>,
    sink: &mut N,
    entries: impl Iterator<Item = Result<(K, V), MetaError>>,
) -> Result<Root, MetaError> {
    let mut failed = None;
    let sound = entries.map_while(|entry| entry.map_err(|error| failed = Some(error)).ok());
    let root = tree.bulk_build(sink, sound)?;
    failed.map_or(Ok(root), Err)
}

/// Frees all blocks of these trees. Leaves need not be read for it.
fn free<K: Key, V: Value, S: NodeSource + ?Sized, N: NodeSink + ?Sized>(
    tree: &BTree<K, V>,
    source: &S,
    sink: &mut N,
    roots: &[Root],
) -> Result<(), MetaError> {
    let mut blocks = Blocks::default();
    roots.iter().for_each(|root| tree.walk(source, root, &mut blocks));
    blocks.damage.map_or(Ok(()), Err)?;
    blocks.met.into_iter().for_each(|block| sink.free(block));
    Ok(())
}

/// A visitor that notes all blocks of a tree.
#[derive(Default)]
struct Blocks {
    met: Vec<MetaBlock>,
    damage: Option<MetaError>,
}

impl Visitor for Blocks {
    fn reference(&mut self, at: BlockRef, level: u8, _parent: Option<MetaBlock>) -> bool {
        self.met.push(at.block);
        level > 0
    }

    fn node(&mut self, visit: Visit<'_>) -> Descend {
        match visit.node {
            Ok(_) => Descend::Yes,
            Err(error) => {
                self.damage.get_or_insert(error);
                Descend::Stop
            }
        }
    }
}
