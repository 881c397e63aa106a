//! What the command-line tools share, so that all of them take arguments, print and fail in the same way.
//!
//! A tool's `main` is: [`parse`] its arguments (which also answers the hidden `completions` and `man`
//! commands), do the work, [`report`] an error, give an exit code of [`exit`]. In between it finds here:
//!
//! - [`VolumeArgs`]: which two devices are meant; [`Size`]: `10G`, and back; [`human`] sizes for people;
//! - [`OutputArgs`] and [`Status`]: one result, as aligned lines or as JSON; [`tell`]: the way to standard
//!   output; [`Progress`]: a bar, on a terminal only;
//! - [`control`]: asking the process that has a pool open;
//! - [`Devices`]: a volume's two devices, opened and locked; [`FormatArgs`] and [`format`](mod@format):
//!   making one; [`OpenArgs`]: from a server's options to an open volume;
//! - [`journal_options`]: where servers keep what they have acknowledged;
//! - [`serve`]: signals, the control socket and the service manager, for whoever serves a volume;
//! - [`LogArgs`]: what is told on standard error, and the limit that keeps it from flooding.
//!
//! ```
//! use clap::Parser;
//! use dedup_cli::{Size, VolumeArgs, human, parse_from};
//!
//! /// Print how large the devices of a volume are
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     volume: VolumeArgs,
//!     #[arg(long, default_value = "16M")]
//!     cache_size: Size,
//! }
//!
//! let args: Args = parse_from(["example", "/srv/images", "--cache-size", "1.5G"], 2).unwrap();
//! assert_eq!(human(args.cache_size.0), "1.5 GiB");
//! ```
//!
//! Not here: how a volume is served, checked or examined.

// The macros panic when nobody reads any more: output goes by way of `dedup_cli::tell` and `say`, and the
// log.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod command;
pub mod control;
mod devices;
pub mod exit;
pub mod format;
mod journal;
mod logging;
mod open;
mod output;
mod progress;
pub mod serve;
mod size;
mod volume;

pub use command::{parse, parse_from};
pub use devices::{Devices, Io, peek_label};
pub use exit::report;
pub use format::FormatArgs;
pub use journal::journal_options;
pub use logging::{Level, Log, LogArgs, say};
pub use open::{Backend, OpenArgs, OpenError};
pub use output::{OutputArgs, Status, tell};
pub use progress::{Progress, Unit};
pub use size::{Size, SizeError, human};
pub use volume::{VolumeArgs, VolumeError, VolumePaths};
