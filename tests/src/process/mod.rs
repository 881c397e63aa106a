//! The real programs on real files: a server process, a client of its own, and a writer that knows what must
//! be there.
//!
//! ```text
//!   Place ── directory with a volume, a socket, a runtime directory
//!     └─ Served ── dedup-nbd as a process: kill -9, SIGTERM
//!          └─ Client ── NBD, many requests at once: that of `dedup_nbd_server::test_client`
//!               └─ Writer ── Ledger: of each block the versions that it may hold; survives the server
//! ```
//!
//! Not here: power cuts (a killed process loses nothing that the kernel has; the simulated disks do that),
//! what a volume counts.

mod cramped;
mod kill_loop;
mod server;
mod writer;

pub use cramped::Cramped;
pub use kill_loop::{KillLoop, Kills};
pub use server::{Place, Programs, Served};
pub use writer::{Block, Limit, SECTORS, Tally, Writer};
