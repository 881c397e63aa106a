//! Which blocks are in use: the arithmetic of space, without any I/O.
//!
//! Both devices of a pool count references in the same 2-bit pages, and differ in how free blocks are found:
//!
//! - [`page`] is the page itself: 16256 counts in 4064 bytes, the payload of one metadata block.
//! - [`SpaceMap`] is the metadata device's map. It is small (96 KiB for a GiB of metadata), so it is in
//!   memory as a whole, and it also knows the blocks that are free but *held*: still reachable from an older
//!   superblock or by a reader.
//! - [`Generations`] says when such a hold ends (invariant I1, with its timeline).
//! - [`Regions`] is the data device's policy. Its counts are in a tree on the metadata device, too many to
//!   keep in memory, so it looks at one page at a time, the *open region*, and chooses the next with the used
//!   counts that the tree keeps a level higher.
//!
//! ```
//! use dedup_spacemap::{Generations, SpaceMap};
//!
//! let mut map = SpaceMap::new(1000);
//! let block = map.allocate().unwrap();
//! // Transaction 7 frees it. Superblock 6 still reaches it, so it is held and handed to nobody.
//! map.free_held(block);
//! let mut holds = Generations::new();
//! holds.freed(7, vec![block]);
//! assert!(map.is_held(block) && map.in_use() == 0);
//! // Superblock 8 has replaced number 6, and nobody reads from older trees: now it is as free as any.
//! assert!(holds.durable(7, None).is_empty());
//! for block in holds.durable(8, None) {
//!     map.unhold(block);
//! }
//! assert_eq!(map.allocatable(), 1000);
//! ```
//!
//! Nothing here reads a device, a clock or a random number: the same calls give the same blocks. Misuse (a
//! block freed twice, a number beyond the end) is a bug in the caller and panics with the values concerned;
//! bytes from a device are checked and give an error.

// Printing is for the tools: the macros panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod generations;
mod map;
pub mod page;
mod regions;

pub use generations::Generations;
pub use map::{LoadError, SpaceMap};
pub use regions::{REGION_BLOCKS, REGIONS_PER_WINDOW, Regions};
