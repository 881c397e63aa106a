//! Reading a range of the LBN map: its base, and the runs of changes above it.

use crate::ids::Lbn;
use crate::mapping::{MAPPING_RUNS, MAPPINGS, Mapping};
use dedup_meta::{MetaError, NodeSource, RunSet};
use std::iter::Peekable;
use std::ops::Range;

/// An LBN and what it is mapped to.
type Entry = (Lbn, Mapping);

/// What the map says of the LBNs in `range`, in order: all that are mapped, and some that are not, since a
/// run says so. Ends after the first error.
pub fn scan_mappings<'s, S: NodeSource + ?Sized>(
    source: &'s S,
    set: &RunSet,
    range: Range<Lbn>,
) -> impl Iterator<Item = Result<Entry, MetaError>> + use<'s, S> {
    let runs = MAPPING_RUNS.range(source, &set.runs, range.clone());
    let base = MAPPINGS.scan(source, &set.base, range.start.0..range.end.0);
    Laid {
        above: runs.peekable(),
        below: base.map(|entry| entry.map(|(lbn, mapping)| (Lbn(lbn), mapping))).peekable(),
    }
}

/// Two rising sequences as one; where both have an entry, the upper one's counts.
struct Laid<A: Iterator, B: Iterator> {
    above: Peekable<A>,
    below: Peekable<B>,
}

impl<A, B> Iterator for Laid<A, B>
where
    A: Iterator<Item = Result<Entry, MetaError>>,
    B: Iterator<Item = Result<Entry, MetaError>>,
{
    type Item = Result<Entry, MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.above.peek(), self.below.peek()) {
            (Some(Ok((above, _))), Some(Ok((below, _)))) if below < above => self.below.next(),
            (Some(Ok((above, _))), Some(Ok((below, _)))) => {
                if above == below {
                    self.below.next();
                }
                self.above.next()
            }
            (None, _) | (_, Some(Err(_))) => self.below.next(),
            (Some(_), _) => self.above.next(),
        }
    }
}
