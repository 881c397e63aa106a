//! Copy-on-write trees of checksummed 4 KiB metadata blocks, changed by sorted batches.
//!
//! Two kinds, each a small value that knows its block type and holds no state, and a third made of the first:
//!
//! - [`BTree`] maps sparse keys of a fixed size to values of a fixed size: the hint index (14-byte keys, no
//!   value, 290 to a leaf), large reference counts, bad blocks.
//! - [`ArrayTree`] maps dense indices below 2^48 to small values, most of them zero: LBN to mapping, PBN to
//!   digest, PBN to two bits of reference count. Keys are not stored; an untouched terabyte has no nodes.
//! - [`KeySet`] is a B-tree of keys alone with *runs* above it, packed trees of changes that are merged into
//!   it many at a time.
//!
//! They read through [`NodeSource`](dedup_meta::NodeSource) and write through
//! [`NodeSink`](dedup_meta::NodeSink); a [`Root`](dedup_meta::Root) goes in and a new one comes out.
//!
//! ```
//! use dedup_btree::BTree;
//! use dedup_device::MemDevice;
//! use dedup_meta::{BlockType, Root, Store, Transaction, TxId};
//! use dedup_spacemap::SpaceMap;
//! use std::sync::Arc;
//!
//! const COUNTS: BTree<u64, u64> = BTree::new(BlockType::Overflow);
//!
//! let store = Store::new(Arc::new(MemDevice::new(1 << 20)), uuid::Uuid::from_u128(1), 64);
//! let mut map = SpaceMap::new(store.blocks());
//! let mut transaction = Transaction::new(&store, &mut map, TxId(2));
//! let old = COUNTS.apply(&mut transaction, &Root::EMPTY, &[(3, Some(30)), (5, Some(50))])?;
//! let new = COUNTS.apply(&mut transaction, &old, &[(3, None), (4, Some(40))])?;
//! transaction.finish()?;
//! let entries: Result<Vec<_>, _> = COUNTS.range(&store, &new, ..).collect();
//! assert_eq!(entries?, [(4, 40), (5, 50)]);
//! # Ok::<(), dedup_meta::MetaError>(())
//! ```
//!
//! # How a batch is applied
//!
//! ```text
//!  old root [ a | b | c ]          new root [ a | b'| c ]
//!             |   |   |                       |   |   |
//!             |   |   +-----------------------|---|---+        a and c are shared,
//!             +---|---------------------------+   |            b and the old root are freed
//!               [ b ]                           [ b']
//! ```
//!
//! Nothing is changed in place. `apply` descends once along the sorted changes, reads each touched node once
//! (children that will be read are prefetched first), and on the way back writes each of them once to a fresh
//! block, children before parents, since a parent holds its children's checksums. The old blocks are given
//! back to the sink, which keeps them until nobody can reach them. The more changes a batch holds, the more
//! of them share a node: that is what a large delta is for.
//!
//! # Nodes
//!
//! Both kinds begin with the common header of 32 bytes; the payload has 4064.
//!
//! ```text
//!  B-tree leaf         | key 0 | key 1 | ...      | value 0 | value 1 | ...              0 |
//!  B-tree index node   | key 0 | key 1 | ...      | child 0: block 6 B, crc 4 B | ...    0 |
//!  array leaf          | value 0 | value 1 | ...  (as the codec has it)                  0 |
//!  array index node    | child 0: block 6 B, crc 4 B, used 6 B | ... | child 253           |
//! ```
//!
//! `key i` of an index node is the lowest key below child i; `used` is the number of values below a child
//! that are not zero, which is what an allocator looks for.
//!
//! # What a reader may rely on
//!
//! - A child is only accepted in its version (checksum), kind, level and place; the place is checked on every
//!   descent, also for cached nodes. The whole node is checked when it comes from the device and before it is
//!   written, by one function for each kind of tree.
//! - A child's level is its parent's less one and a root's level is bounded, so no damage makes a descent
//!   loop.
//! - Old roots stay readable for as long as the sink holds their blocks.
//! - [`BTree::worst_case_blocks`] and [`ArrayTree::worst_case_blocks`] bound the blocks that a batch
//!   allocates, so a transaction can reserve them; [`ArrayTree::put_leaves_cost`] foretells them exactly.
//!
//! An `apply` that fails leaves blocks allocated that no root reaches: the transaction must be given up, as
//! the sink does after its first error. The crate neither caches nor flushes, and knows nothing of volumes,
//! logs or commits.
//!
//! # Reading order
//!
//! `rule` (how one node is read and written), `btree`, `array`, `runs`, `walk`, `sweep`.

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod array;
mod btree;
mod bytes;
mod rule;
mod runs;
mod sweep;
mod walk;

pub use array::{ArrayTree, Bytes, FANOUT, LeafCodec, Scan, Slot};
pub use btree::{BTree, Cursor, Key, MAX_LEVEL, Value};
pub use runs::{KeySet, Metered, RunMap};
pub use sweep::{Job, Reader, Spawn, Sweep, Window};
pub use walk::{Descend, Visit, Visitor};
