//! The records of the intent log: what an operation did, in the order in which it did it.
//!
//! ```text
//! 1 allocate  | 1 | pbn 6 | digest 32 |                                 before any record that names the PBN
//! 2 map       | 2 | lbn 6 | pbn 6 | crc 4 | flags 2 | old pbn 6 |       pbn 0: the LBN becomes unmapped
//! 3 unmap     | 3 | lbn 6 | blocks 6 |                                  every mapped LBN of the range
//! 4 bad       | 4 | pbn 6 |                                             its content is not what was written
//! 5 healed    | 5 | pbn 6 |                                             its content was written again, in place
//! 6 content   | 6 | pbn 6 | offset 4 | length 2 | bytes |               before the `allocate` of the same commit group
//! ```
//!
//! One operation is one `map`, `unmap`, `bad` or `healed`, with the `allocate` or `healed` that it needs
//! right before it. The log never splits an operation over two of its blocks. `content` is part of no
//! operation: a commit group begins with it, piece by piece, in rising offsets.

use crate::digest::{DIGEST_SIZE, Digest};
use crate::ids::{Lbn, Pbn, get_u48, put_u48};
use crate::mapping::Mapping;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A PBN is taken into use for content with this digest.
    Allocate {
        /// The block.
        pbn: Pbn,
        /// Its content's digest.
        digest: Digest,
    },
    /// An LBN gets a new mapping.
    Map {
        /// The logical block.
        lbn: Lbn,
        /// Its mapping from now on.
        new: Mapping,
        /// Where it was mapped to before, 0 if nowhere.
        old: Pbn,
    },
    /// All mapped LBNs of a range become unmapped.
    Unmap {
        /// First logical block.
        lbn: Lbn,
        /// Number of logical blocks.
        blocks: u64,
    },
    /// A block's content was found damaged.
    Bad {
        /// The block.
        pbn: Pbn,
    },
    /// A damaged block's content was written again.
    Healed {
        /// The block.
        pbn: Pbn,
    },
    /// A piece of the content that a block is about to be allocated with.
    Content {
        /// The block.
        pbn: Pbn,
        /// Where the piece begins in it, in bytes.
        offset: u32,
        /// The piece, not empty.
        bytes: &'a [u8],
    },
}

/// What a record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Allocate = 1,
    Map = 2,
    Unmap = 3,
    Bad = 4,
    Healed = 5,
    Content = 6,
}

impl Tag {
    const ALL: [Self; 6] = [Self::Allocate, Self::Map, Self::Unmap, Self::Bad, Self::Healed, Self::Content];

    fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|tag| *tag as u8 == byte)
    }
}

const ALLOCATE_SIZE: usize = 1 + 6 + DIGEST_SIZE;
const MAP_SIZE: usize = 1 + 6 + Mapping::SIZE + 6;
const UNMAP_SIZE: usize = 1 + 6 + 6;
const MARK_SIZE: usize = 1 + 6;

impl<'a> Record<'a> {
    /// Bytes of a content record beside the content.
    pub const CONTENT_OVERHEAD: usize = 1 + 6 + 4 + 2;

    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        match *self {
            Self::Allocate { pbn, digest } => {
                out.resize(start + ALLOCATE_SIZE, 0);
                out[start] = Tag::Allocate as u8;
                put_u48(&mut out[start + 1..], pbn.0);
                out[start + 7..].copy_from_slice(&digest.0);
            }
            Self::Map { lbn, new, old } => {
                out.resize(start + MAP_SIZE, 0);
                out[start] = Tag::Map as u8;
                put_u48(&mut out[start + 1..], lbn.0);
                new.encode(&mut out[start + 7..]);
                put_u48(&mut out[start + 19..], old.0);
            }
            Self::Unmap { lbn, blocks } => {
                out.resize(start + UNMAP_SIZE, 0);
                out[start] = Tag::Unmap as u8;
                put_u48(&mut out[start + 1..], lbn.0);
                put_u48(&mut out[start + 7..], blocks);
            }
            Self::Bad { pbn } => mark(out, Tag::Bad, pbn),
            Self::Healed { pbn } => mark(out, Tag::Healed, pbn),
            Self::Content { pbn, offset, bytes } => {
                mark(out, Tag::Content, pbn);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }

    /// Takes the first record off `bytes`; the error says what is wrong with it.
    pub fn decode(bytes: &mut &'a [u8]) -> Result<Self, String> {
        let Some(&first) = bytes.first() else { return Err("no record".into()) };
        let Some(tag) = Tag::from_u8(first) else {
            return Err(format!("record type: expected 1 to {}, found {first}", Tag::ALL.len()));
        };
        let size = match tag {
            Tag::Allocate => ALLOCATE_SIZE,
            Tag::Map => MAP_SIZE,
            Tag::Unmap => UNMAP_SIZE,
            Tag::Bad | Tag::Healed => MARK_SIZE,
            Tag::Content => content_size(bytes),
        };
        let Some((record, rest)) = bytes.split_at_checked(size) else {
            return Err(format!("record of type {first}: expected {size} bytes, found {}", bytes.len()));
        };
        *bytes = rest;
        let number = get_u48(&record[1..]);
        Ok(match tag {
            Tag::Allocate => {
                let mut digest = Digest::default();
                digest.0.copy_from_slice(&record[7..]);
                Self::Allocate { pbn: Pbn(number), digest }
            }
            Tag::Map => Self::Map {
                lbn: Lbn(number),
                new: Mapping::decode(&record[7..]),
                old: Pbn(get_u48(&record[19..])),
            },
            Tag::Unmap => Self::Unmap { lbn: Lbn(number), blocks: get_u48(&record[7..]) },
            Tag::Bad => Self::Bad { pbn: Pbn(number) },
            Tag::Healed => Self::Healed { pbn: Pbn(number) },
            Tag::Content => {
                let (head, bytes) = record.split_at(Self::CONTENT_OVERHEAD);
                if head[11..] == [0, 0] {
                    return Err("content: expected bytes, found none".into());
                }
                let mut offset = [0; 4];
                offset.copy_from_slice(&head[7..11]);
                Self::Content { pbn: Pbn(number), offset: u32::from_le_bytes(offset), bytes }
            }
        })
    }
}

/// Bytes of the content record that `bytes` begin with; its smallest size if its head is cut off.
fn content_size(bytes: &[u8]) -> usize {
    let length =
        bytes.get(11..13).map_or(0, |length| usize::from(u16::from_le_bytes([length[0], length[1]])));
    Record::CONTENT_OVERHEAD + length.max(1)
}

fn mark(out: &mut Vec<u8>, tag: Tag, pbn: Pbn) {
    let start = out.len();
    out.resize(start + MARK_SIZE, 0);
    out[start] = tag as u8;
    put_u48(&mut out[start + 1..], pbn.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record<'static>> {
        let id = 0..crate::ids::MAX_BLOCKS;
        prop_oneof![
            (id.clone(), any::<[u8; 32]>())
                .prop_map(|(pbn, d)| Record::Allocate { pbn: Pbn(pbn), digest: Digest(d) }),
            (id.clone(), id.clone(), any::<u32>(), any::<u16>(), id.clone()).prop_map(
                |(lbn, pbn, crc, flags, old)| {
                    Record::Map { lbn: Lbn(lbn), new: Mapping { pbn: Pbn(pbn), crc, flags }, old: Pbn(old) }
                }
            ),
            (id.clone(), id.clone()).prop_map(|(lbn, blocks)| Record::Unmap { lbn: Lbn(lbn), blocks }),
            id.clone().prop_map(|pbn| Record::Bad { pbn: Pbn(pbn) }),
            id.clone().prop_map(|pbn| Record::Healed { pbn: Pbn(pbn) }),
            (id, any::<u32>(), 1..9usize).prop_map(|(pbn, offset, length)| Record::Content {
                pbn: Pbn(pbn),
                offset,
                bytes: &[1, 2, 3, 4, 5, 6, 7, 8][..length],
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(records in proptest::collection::vec(record(), 0..20)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|r| r.encode(&mut bytes));
            let mut rest = bytes.as_slice();
            let mut decoded = Vec::new();
            while !rest.is_empty() {
                decoded.push(Record::decode(&mut rest).unwrap());
            }
            prop_assert_eq!(records, decoded);
        }

        #[test]
        fn any_bytes_decode_or_fail_and_always_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() && Record::decode(&mut rest).is_ok() {}
        }
    }
}
