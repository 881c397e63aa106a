//! A volume against plain bytes: scripts of requests and of what happens to a volume, played on a real one
//! and on a model.
//!
//! ```text
//!   strategy ──> Script ──> play ──┬──> Volume on simulated devices        what it answers, reads, counts
//!    (proptest)    │ text          └──> Expected: blocks, counters,        what it may
//!                  └─ Display, FromStr           and what a crash may leave
//! ```
//!
//! A [`Script`] prints as text that can be kept in a file, changed by hand and played again: `cargo run -p
//! dedup-tests --bin model -- FILE`. Everything in it is decided when it is made, so a script does the same
//! each time.
//!
//! What [`Expected`] holds a volume to:
//! - a read returns, of each block, the bytes of the last write, and of requests of its own batch all or
//!   nothing;
//! - after a crash the volume is as after some *prefix* of what was done, and that prefix has everything that
//!   was acknowledged as durable. The batch that the prefix ends in may be there in part, each of its blocks
//!   whole;
//! - counters are exact, also after a crash; blocks in use are the distinct contents that are mapped.
//!
//! Not here: power cuts *within* a request (the crash explorers do that), several clients at once, failing
//! devices, scarcity.

mod expected;
mod orders;
mod parse;
mod player;
mod script;
mod strategy;

pub use expected::Expected;
pub use player::play;
pub use script::{Change, Ending, OpenAs, Req, Script, Shape, Step};
pub use strategy::{campaign, scripts};
